"""The real gateway behind a real HTTP server on a free loopback port, in a thread, with engine stubs as its replicas."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from benchmarks.lib.sample_catalog import MODEL, make_config, three_gears
from serve.config.platform import PlatformConfig
from serve.gateway.app import Gateway
from serve.gateway.engine_client import NoReplica
from serve.gateway.grounding import Retrieval
from serve.gateway.replica_health import ReplicaHealth
from serve.routing.catalog import Variant
from serve.telemetry.metrics import Metrics
from tests.support.engine_stub import EngineStub

ENGINE_TOKEN = "engine-token"
_SAMPLES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}  # suffixes by type


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


class Replicas:
    """Replica directory: a variant's first replica is chosen; a variant without an entry has none."""

    def __init__(self, urls: dict[str, str]) -> None:
        self.by_variant = {variant: [url] for variant, url in urls.items()}
        self.health = ReplicaHealth()

    def urls(self, variant: str) -> list[str]:
        return self.by_variant.get(variant, [])

    async def choose(self, variant: str, avoid: Collection[str] = ()) -> str:
        for url in self.urls(variant):
            if url not in avoid:
                return url
        raise NoReplica(f"variant '{variant}' has no replica")


class NoRetrieval:
    """Retrieval client of a deployment without retrieval."""

    async def call(self, method: str, **arguments: Any) -> Any:
        raise AssertionError("no call may reach it")


@dataclass
class Started:
    """A running gateway, with everything that tests inspect."""

    app: Gateway
    url: str
    http: httpx.Client
    config: PlatformConfig
    variants: dict[str, Variant]
    engines: dict[str, EngineStub]
    replicas: Replicas
    metrics: Metrics
    finish: Callable[[], None]  # waits until every request is recorded, which happens after its last byte was sent

    def post(self, path: str, body: object, headers: Mapping[str, str] | None = None) -> httpx.Response:
        response = self.http.post(path, json=body, headers=headers)
        self.finish()
        return response

    def chat(
        self, text: str = "hello there", *, model: str = MODEL, headers: Mapping[str, str] | None = None, **body: Any
    ) -> httpx.Response:
        messages = [{"role": "user", "content": text}]
        return self.post("/v1/chat/completions", {"model": model, "messages": messages, **body}, headers)

    def sdk(self, key: str = "any") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, http_client=self.http, max_retries=0)

    def sample(self, name: str, **labels: str) -> float:
        """The sum of all series of that name with these labels, and any others. Raises `LookupError` for an unknown name or label."""
        families = list(self.metrics.registry.restricted_registry([name]).collect())
        if not families and name not in self._names():
            raise LookupError(f"there is no metric {name}")
        samples = [sample for family in families for sample in family.samples]
        if any(labels.keys() - sample.labels.keys() for sample in samples):
            raise LookupError(f"{name} does not have all labels of {sorted(labels)}")
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def _names(self) -> set[str]:
        """Names of all samples that the registry's metrics can have, also of those without a series yet."""
        families = self.metrics.registry.collect()
        return {family.name + suffix for family in families for suffix in _SAMPLES[family.type]}

    def series(self) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
        """All series, without values."""
        self.finish()
        return {
            (sample.name, tuple(sorted(sample.labels.items())))
            for family in self.metrics.registry.collect()
            for sample in family.samples
        }

    def engine_calls(self) -> dict[str, int]:
        return {name: len(engine.requests) for name, engine in self.engines.items() if engine.requests}

    def settle(self) -> None:
        """Wait for every request to end; fail if one stays in flight."""
        self.finish()
        assert not {name: v.live.in_flight for name, v in self.variants.items() if v.live.in_flight}
        for name in self.variants:
            assert self.sample("gearbox_requests_in_flight", variant=name) == 0


Start = Callable[..., Started]


class GatewayServer:
    """One uvicorn for the whole session; each test installs its gateway as the application."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gateway", daemon=True)
        self._thread.start()
        self._current: Gateway | None = None
        self._running = 0  # requests inside the application
        listener = socket.socket(proto=socket.IPPROTO_TCP)  # asyncio sets TCP_NODELAY only where the protocol is named
        listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(self._dispatch, interface="asgi3", log_config=None, access_log=False, lifespan="off")
        self._uvicorn = uvicorn.Server(config)
        self._serving = asyncio.run_coroutine_threadsafe(self._uvicorn.serve(sockets=[listener]), self._loop)
        self._stubs = [EngineStub() for _ in range(3)]
        for stub in self._stubs:
            self._do(stub.start())
        self._http = httpx.Client(base_url=self.url, timeout=60, trust_env=False, verify=False)
        while not self._uvicorn.started:
            time.sleep(0.002)

    def start(
        self,
        *,
        variants: list[Variant] | None = None,
        without_replica: tuple[str, ...] = (),
        searches: Retrieval | None = None,
        **config: Any,
    ) -> Started:
        """A gateway for `variants`, each with an engine; `config` replaces sections of the configuration."""
        variants = three_gears() if variants is None else variants
        engines = dict(zip((variant.name for variant in variants), self._stubs, strict=False))
        for stub in self._stubs:
            stub.reset()
        replicas = Replicas({name: stub.url for name, stub in engines.items() if name not in without_replica})
        settings, metrics = (
            make_config(**{"access": {"allow_anonymous": True, "anonymous_profile": "best"}, **config}),
            Metrics(),
        )
        named = {variant.name: variant for variant in variants}
        app = Gateway(settings, named, replicas, metrics, ENGINE_TOKEN, searches or NoRetrieval())
        self._current = app
        return Started(app, self.url, self._http, settings, named, engines, replicas, metrics, self._finish)

    def run_and_cancel(self, started: Started, body: object, begun: Callable[[], object]) -> None:
        """Send a request past the HTTP server and, once it has `begun`, cancel its task as Ray Serve does."""

        async def call() -> None:
            request = iter([{"type": "http.request", "body": json.dumps(body).encode()}])

            async def receive() -> dict[str, Any]:
                return next(request)

            async def send(message: Any) -> None:
                pass

            scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
            task = asyncio.create_task(started.app(scope, receive, send))
            while not begun():
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        self._do(call())

    def refresh(self, started: Started) -> None:
        """Update the gateway's routing, as its deployment does regularly."""

        async def call() -> None:
            started.app.refresh()

        self._do(call())

    def check_replicas(self, started: Started) -> None:
        """Let the gateway look for stalled replicas, as its deployment does regularly."""

        async def call() -> None:
            started.app.check_replicas()

        self._do(call())

    def read_slowly(self, started: Started, body: object, meanwhile: Callable[[], object]) -> bytes:
        """Send a request past the HTTP server, as a client that reads nothing of the body until `meanwhile` has returned."""

        async def call() -> bytes:
            request = iter([{"type": "http.request", "body": json.dumps(body).encode()}])
            parts: list[bytes] = []

            async def receive() -> dict[str, Any]:
                return next(request)

            async def send(message: Any) -> None:
                if not any(parts) and "body" in message:
                    await asyncio.to_thread(meanwhile)
                parts.append(message.get("body", b""))

            scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
            await started.app(scope, receive, send)
            return b"".join(parts)

        result: bytes = self._do(call())
        return result

    def close(self, started: Started) -> None:
        """End the gateway the way an ASGI server does."""
        messages = iter(("lifespan.startup", "lifespan.shutdown"))
        sent: list[str] = []

        async def receive() -> dict[str, str]:
            return {"type": next(messages)}

        async def send(message: Any) -> None:
            sent.append(message["type"])

        self._do(started.app({"type": "lifespan"}, receive, send))
        assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert started.app.loaded.is_set()

    def stop(self) -> None:
        self._http.close()
        self._uvicorn.should_exit = True
        self._serving.result(60)
        for stub in self._stubs:
            self._do(stub.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)

    async def _dispatch(self, scope: Any, receive: Any, send: Any) -> None:
        assert self._current is not None
        self._running += 1
        try:
            await self._current(scope, receive, send)
        finally:
            self._running -= 1

    def _finish(self) -> None:
        deadline = time.monotonic() + 30
        while self._running:
            assert time.monotonic() < deadline, "a request does not end"
            time.sleep(0.0005)

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)
