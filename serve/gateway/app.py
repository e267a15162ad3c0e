"""The gateway's ASGI application: routing table, model list, health and readiness. Generation is in `generation`."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic, perf_counter

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Router

from serve.config.platform import PlatformConfig
from serve.errors import RequestError, internal_error
from serve.gateway.auth import Gatekeeper
from serve.gateway.documents_api import Documents
from serve.gateway.engine_client import Engines, Replicas
from serve.gateway.generation import Generation
from serve.gateway.grounding import Grounder, Retrieval
from serve.gateway.http import (
    JSON,
    BodyMemory,
    Headers,
    Receive,
    Scope,
    Send,
    headers_of,
    read_body,
    reply,
    reply_json,
)
from serve.gateway.idempotency import Idempotency, idempotency_key
from serve.gateway.open_requests import OpenRequests
from serve.gateway.openapi import describe
from serve.gateway.replica_watch import ReplicaWatch
from serve.gateway.request_admission import RequestAdmission
from serve.gateway.shared_store import StoreUnavailable
from serve.gateway.static_pages import Page, page_routes
from serve.request.call import PATHS, Endpoint, parse_call
from serve.request.caller import Caller
from serve.request.json_body import read_json
from serve.request.lifecycle import CUSTOM, Arrival
from serve.routing.catalog import Variant
from serve.telemetry.metrics import Metrics
from serve.telemetry.request_telemetry import RequestTelemetry
from serve.telemetry.tracing import Tracer

_BODIES = 64  # request bodies of the maximum size that fit into the body memory of one gateway
_STARTING_S = 900  # a variant that has not started by then does not delay readiness any longer

Handler = Callable[[Headers, Receive, Send, Scope], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Gateway:
    """ASGI application of one gateway: authenticate and route requests for every variant of one model."""

    def __init__(
        self,
        config: PlatformConfig,
        variants: Mapping[str, Variant],
        replicas: Replicas,
        metrics: Metrics,
        engine_token: str,
        retrieval: Retrieval,
    ) -> None:
        self._started_at = monotonic()
        self._has_been_ready = False
        self._config = config
        self._variants = variants
        self._metrics = metrics
        self._gatekeeper = Gatekeeper(config.access, config.server, metrics)
        self._idempotency = Idempotency(self._gatekeeper.store, metrics.idempotent)
        _initialize_series(metrics, config)
        self._description = _description(config)
        self._engines = Engines(replicas, engine_token, config.server.stream_idle_timeout_s, metrics)
        observability = config.observability
        tracer = (
            Tracer(observability.otlp_endpoint, observability.trace_sample_ratio, uuid.uuid4().hex)
            if observability.otlp_endpoint
            else None
        )
        self.telemetry = RequestTelemetry(observability, self._gatekeeper.tenants, metrics, tracer)
        self._under_way = OpenRequests()
        self.loaded = asyncio.Event()  # what the first requests need
        self._bodies = BodyMemory(_BODIES * config.server.max_body_bytes)
        self._documents = Documents(config.retrieval, retrieval)
        self._uploads = self._documents.uploads()
        self._grounder = Grounder(config.retrieval, retrieval, metrics, _own_url(config))
        self._admission = RequestAdmission(variants, metrics)
        self._watch = ReplicaWatch(self._engines, variants, config.model.name)
        self._generation = Generation(
            config, variants, self._engines, self._gatekeeper, metrics, self.telemetry, self._admission, self._grounder
        )
        self._routes: dict[str, dict[str, Handler]] = {
            "/v1/route": {"POST": self._route},
            "/v1/models": {"GET": self._models},
            "/v1/models/": {"GET": self._model},
            "/v1/variants": {"GET": self._list_variants},
            "/v1/documents": {
                "POST": self._add_document,
                "GET": self._list_documents,
                "DELETE": self._delete_documents,
            },
            "/v1/search": {"POST": self._search},
            "/v1/calibration": {
                "POST": self._calibrate,
                "GET": partial(self._calibration, "calibration"),
                "DELETE": partial(self._calibration, "delete_calibration"),
            },
            "/v1/embeddings": {"POST": self._embed},
            "/healthz": {"GET": self._healthz},
            "/readyz": {"GET": self._readyz},
            "/readyz/all": {"GET": self._readyz_all},
            "/openapi.json": {"GET": self._openapi},
            **page_routes(),
        }
        self._entry = _with_cors(self._serve, config.server.allowed_origins)

    def reconfigure(self, config: PlatformConfig) -> None:
        """Use `config` from the next request on. Estimates stay, and requests in flight are not affected."""
        self._config = config
        _initialize_series(self._metrics, config)
        self._description = _description(config)
        self._gatekeeper.reconfigure(config.access)
        self.telemetry.reconfigure(self._gatekeeper.tenants)
        self._generation.reconfigure(config)

    def refresh(self) -> None:
        """Follow the engines' speed, start or refuse waiting requests, and drop old idempotent answers; called regularly."""
        self._admission.refresh()
        self.telemetry.export_shares(self._admission.admitted_shares())
        self._idempotency.memory.expire()

    def check_replicas(self) -> None:
        """Eject replicas that have stalled, and take back those that have recovered; called every `replica_health.CHECK_S`."""
        self._watch.check(self._admission.loads())

    def learned(self) -> bytes:
        """What routing has learned, for another gateway's `restore`."""
        return self._admission.learned()

    def restore(self, data: bytes) -> bool:
        """Begin with what another gateway has learned. Raises as `serve.routing.learned_state.restore`."""
        return self._admission.restore(data)

    def end_requests(self) -> int:
        """End the generation requests under way with an error, before the gateway is stopped; returns how many there were."""
        return self._under_way.end()

    async def export_quotas(self) -> None:
        """Export rate-limit utilization; called periodically."""
        try:
            quotas = await self._gatekeeper.used(self.telemetry.tenants)
        except StoreUnavailable:
            return  # already logged and counted by `SharedStore`
        self.telemetry.export_quotas(quotas)

    @asynccontextmanager
    async def _open(self, app: object) -> AsyncIterator[None]:
        loading = asyncio.get_running_loop().run_in_executor(None, self._grounder.load_tools)
        loading.add_done_callback(lambda _: self.loaded.set())
        yield
        await self._engines.close()
        await asyncio.to_thread(self.telemetry.close)
        await loading

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection scope."""
        if scope["type"] == "lifespan":
            return await Router(lifespan=self._open).lifespan(scope, receive, send)
        if scope["type"] == "http":
            with self._metrics.open.track_inprogress():
                await self._entry(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        path, method = scope["path"], scope["method"]
        request_id = ""
        error = None
        try:
            headers = headers_of(scope)
            request_id = _request_id(headers)
            if (endpoint := PATHS.get(path)) is not None and method == "POST":
                caller = self._gatekeeper.authenticate(headers)
                authenticated = perf_counter()
                raw = await self._read(headers, receive)
                arrival = Arrival(started, authenticated, perf_counter())
                call = parse_call(raw, endpoint, caller.tenant)

                async def generate(send: Send) -> None:
                    await self._generation.answer(call, caller, headers, request_id, arrival, send)

                async def once(send: Send) -> None:
                    await self._idempotency.answer(caller.tenant, path, headers, raw, send, generate)

                idempotency_key(headers)  # of a stream it is ignored, but not accepted when it is none
                await self._under_way.run(send, generate if call.stream else once)
            else:
                await self._find(path, method)(headers, receive, send, scope)
        except RequestError as raised:
            error = raised
        except Exception as raised:
            error = internal_error(request_id, raised)
        if error is not None:  # outside of `except`: where this fails, Serve logs no message of the exception before
            self.telemetry.record_rejection(error, request_id, path)
            await reply(send, error.status, error.body(), error.headers.items())

    def _find(self, path: str, method: str) -> Handler:
        handlers = self._routes.get("/v1/models/" if path.startswith("/v1/models/") else path)
        if path in PATHS:
            handlers = {}  # generation paths; `_serve` handles their POST
        if handlers is None:
            raise RequestError(404, f"unknown path '{path[:200]}'; /openapi.json lists the paths", code="not_found")
        methods = [*(handlers or ["POST"]), *(["HEAD"] if "GET" in handlers else []), "OPTIONS"]
        if method == "OPTIONS":
            return partial(_allowed_methods, ", ".join(methods))
        if (handler := handlers.get("GET" if method == "HEAD" else method)) is None:  # servers leave out HEAD's body
            raise _method_not_allowed(path, ", ".join(methods))
        return handler

    async def _route(self, headers: Headers, receive: Receive, send: Send, scope: Scope) -> None:
        """Dry run: respond with the routing decision for a chat or completions body; nothing is generated or charged."""
        caller = self._gatekeeper.authenticate(headers)
        raw = await self._read(headers, receive)
        endpoint: Endpoint = "completions" if b'"prompt"' in raw and b'"messages"' not in raw else "chat"
        call = parse_call(raw, endpoint, caller.tenant)
        budget, _ = self._generation.budget(call, caller, headers)
        computed = await self._grounder.computed(call, headers)
        if computed is not None and computed.direct is not None:
            self._admission.check_size(call)
            return await reply_json(send, {"budget": budget.model_dump(), **_no_variant(computed.reason)})
        planned = None if computed else self._generation.planned(call, caller, budget, headers)
        if planned and not await self._grounder.collection_exists(call, caller.tenant, headers):
            planned = {"top_k": 0, "more_chars": 0}
        decision = self._admission.decide(call, caller, budget, planned["more_chars"] if planned else 0)
        retrieval = {"retrieval": planned} if planned else {}
        await reply_json(send, {"budget": budget.model_dump(), **decision.public(), **retrieval})

    async def _models(self, headers: Headers, receive: Receive, send: Send, scope: Scope) -> None:
        self._gatekeeper.authenticate(headers)
        await reply_json(send, {"object": "list", "data": self._model_list()})

    async def _model(self, headers: Headers, receive: Receive, send: Send, scope: Scope) -> None:
        self._gatekeeper.authenticate(headers)
        name = scope["path"].removeprefix("/v1/models/")
        for model in self._model_list():
            if model["id"] == name:
                return await reply_json(send, model)
        raise RequestError(404, f"model '{name[:200]}' does not exist", param="model", code="model_not_found")

    def _model_list(self) -> list[dict[str, object]]:
        """The logical model, then every other value that `model` accepts."""
        name = self._config.model.name
        newest = max((variant.card.created.timestamp() for variant in self._variants.values()), default=0)
        common = {"object": "model", "created": int(newest), "owned_by": "gearbox"}
        models = [
            {
                "id": name,
                **common,
                "gearbox": {"variants": list(self._variants), "profiles": list(self._config.profiles)},
            }
        ]
        for profile, budget in self._config.profiles.items():
            models.append(
                {"id": f"{name}@{profile}", **common, "gearbox": {"budget": budget.model_dump(exclude_none=True)}}
            )
        for variant in self._variants.values():
            created = int(variant.card.created.timestamp())
            models.append({"id": f"{name}:{variant.name}", **common, "created": created, "gearbox": variant.summary()})
        if self._config.retrieval is not None:
            taken = {model["id"] for model in models}
            embedders = [name for name in self._config.retrieval.embedding_models if name not in taken]
            models += [{"id": name, **common, "gearbox": {"endpoint": "/v1/embeddings"}} for name in embedders]
        return models

    async def _list_variants(self, headers: Headers, receive: Receive, send: Send, scope: Scope) -> None:
        self._gatekeeper.authenticate(headers)
        await reply_json(send, {"object": "list", "data": [_describe(variant) for variant in self._variants.values()]})

    async def _add_document(self, headers: Headers, receive: Receive, send: Send, scope: Scope) -> None:
        caller = await self._admitted(headers)
        with self._uploads.body() as held:
            raw = read_body(receive, headers, self._documents.max_body_bytes, held)
            await reply_json(send, await self._documents.add(caller.tenant, await raw))

    async def _list_documents(self, headers: Headers, receive: Receive, send: Send, scope: Scope) -> None:
        caller = self._gatekeeper.authenticate(headers)
        await reply_json(send, await self._documents.listed(caller.tenant, scope.get("query_string", b"")))

    async def _delete_documents(self, headers: Headers, receive: Receive, send: Send, scope: Scope) -> None:
        caller = self._gatekeeper.authenticate(headers)
        await reply_json(send, await self._documents.delete(caller.tenant, scope.get("query_string", b"")))

    async def _search(self, headers: Headers, receive: Receive, send: Send, scope: Scope) -> None:
        caller = await self._admitted(headers)
        body = read_json(await self._read(headers, receive))
        await reply_json(send, await self._documents.search(caller.tenant, body))

    async def _calibrate(self, headers: Headers, receive: Receive, send: Send, scope: Scope) -> None:
        caller = await self._admitted(headers)
        body = read_json(await self._read(headers, receive))
        await reply_json(send, await self._documents.calibrate(caller.tenant, body))

    async def _calibration(self, method: str, headers: Headers, receive: Receive, send: Send, scope: Scope) -> None:
        caller = self._gatekeeper.authenticate(headers)
        query = scope.get("query_string", b"")
        await reply_json(send, await self._documents.calibration(caller.tenant, query, method))

    async def _embed(self, headers: Headers, receive: Receive, send: Send, scope: Scope) -> None:
        caller = self._gatekeeper.authenticate(headers)
        raw = await self._read(headers, receive)

        async def embed(send: Send) -> None:
            await self._gatekeeper.admit(caller)
            response = await self._documents.embed(read_json(raw))
            try:
                await reply_json(send, response)
            finally:  # also where the client has left: sent again with its idempotency key, the answer is charged to nobody
                await self._gatekeeper.charge(caller, response["usage"]["total_tokens"])

        await self._idempotency.answer(caller.tenant, scope["path"], headers, raw, send, embed)

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        with self._bodies.body() as held:
            return await read_body(receive, headers, self._config.server.max_body_bytes, held)

    async def _admitted(self, headers: Headers) -> Caller:
        """Authenticate the caller and count one request against their rate limit."""
        caller = self._gatekeeper.authenticate(headers)
        await self._gatekeeper.admit(caller)
        return caller

    async def _openapi(self, headers: Headers, receive: Receive, send: Send, scope: Scope) -> None:
        await self._description.answer(headers, receive, send, scope)

    async def _healthz(self, headers: Headers, receive: Receive, send: Send, scope: Scope) -> None:
        await reply_json(send, {"status": "ok"})

    async def _readyz(self, headers: Headers, receive: Receive, send: Send, scope: Scope) -> None:
        ready = [variant.name for variant in self._variants.values() if variant.live.replicas or variant.scales_to_zero]
        if not ready:
            raise RequestError(503, "no variant can answer yet", code="not_ready", headers={"retry-after": "2"})
        await reply_json(send, {"status": "ready", "variants": ready})

    async def _readyz_all(self, headers: Headers, receive: Receive, send: Send, scope: Scope) -> None:
        """Readiness to take over from an older gateway: no variant is still starting, or `_STARTING_S` have passed.

        Once ready, variants that are added or fail later do not make the gateway unready.
        """
        starting = [v.name for v in self._variants.values() if not v.live.been_up and not v.scales_to_zero]
        if starting and not self._has_been_ready and monotonic() - self._started_at < _STARTING_S:
            message = f"{', '.join(starting)} starting"
            raise RequestError(503, message, code="not_ready", headers={"retry-after": "2"})
        await self._readyz(headers, receive, send, scope)
        self._has_been_ready = True


def _with_cors(app: Application, origins: Collection[str]) -> Application:
    """Add CORS for `origins`. Pages send an API key as a header, so browser credentials are never allowed."""
    if not origins:
        return app
    return CORSMiddleware(
        app, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=["*"],
        allow_private_network=True,
    )  # fmt: skip


async def _allowed_methods(methods: str, headers: Headers, receive: Receive, send: Send, scope: Scope) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": [(b"allow", methods.encode())]})
    await send({"type": "http.response.body", "body": b""})


def _description(config: PlatformConfig) -> Page:
    return Page.from_bytes(describe(config), JSON)


def _own_url(config: PlatformConfig) -> str:
    """The API's base URL as seen from the platform's own machines."""
    return f"{config.server.url}/v1"


def _initialize_series(metrics: Metrics, config: PlatformConfig) -> None:
    metrics.initialize_series((variant.name for variant in config.variants), [*config.profiles, CUSTOM])


def _no_variant(reason: str) -> dict[str, object]:
    """The dry-run response for a request that needs no variant; it has the fields of `Decision.public`."""
    times = [f"predicted_{time}{bound}_ms" for bound in ("", "_p95") for time in ("ttft", "tpot", "e2e")]
    unknown = dict.fromkeys(["variant", "quality", "chance", *times])
    return {**unknown, "reason": reason, "sequences": 0, "wait_ms": 0.0, "harm": 0, "cost_usd": 0.0, "candidates": []}


def _describe(variant: Variant) -> dict[str, object]:
    live = variant.live
    health = "healthy" if live.replicas else "scaled_to_zero" if variant.scales_to_zero else "unavailable"
    return {
        "name": variant.name,
        "health": health,
        "replicas": live.replicas,
        "max_replicas": variant.max_replicas,
        "ejected_replicas": live.ejected,
        "in_flight": live.in_flight,
        "running": live.running,
        "waiting": live.waiting,
        "kv_cache_usage": live.kv_usage,
        "card": variant.card.model_dump(mode="json"),
    }


def _request_id(headers: Headers) -> str:
    """The request ID for logs and the engine. Ray Serve assigns one to every request and returns it to the client."""
    request_id = headers.get("x-request-id", "")
    return (
        request_id
        if 0 < len(request_id) <= 128 and request_id.isascii() and request_id.isprintable()
        else uuid.uuid4().hex
    )


def _method_not_allowed(path: str, expected: str) -> RequestError:
    return RequestError(405, f"use {expected} for {path}", code="method_not_allowed", headers={"allow": expected})
