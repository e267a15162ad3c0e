"""Retrieval deployments: the embedder and the Haystack pipelines, which scale independently of gateway and engines."""

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ray import serve as ray_serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.cpu_priority import EMBEDDER, lower_cpu_priority
from deployments.embedder import IDENTITY_FILE, READY_FILE
from deployments.fetch import wait_for_file
from deployments.placement import LOCAL
from deployments.replicas import app_handle
from serve.config.retrieval import RetrievalConfig
from serve.config.sections import ReplicaBounds
from serve.errors import RequestError, log_unhandled, origin_of, overloaded, retrieval_misconfigured
from serve.retrieval.embedder import Embedder, EmbeddingTokenizer, Side, Vectors

_LOG = logging.getLogger("gearbox.retrieval")
APP = "retrieval"
_MAX_ONGOING = 64
_MAX_QUEUED = 128  # requests of one gateway that wait for a replica; each may hold a body of `max_body_bytes`
_MAX_BATCH = 64  # requests in one batch of the embedder
_TEXTS_PER_CALL = 8
#: Environment of every replica. Haystack reads its telemetry switch when it is imported.
_ENV = {"OMP_NUM_THREADS": "1", "HAYSTACK_TELEMETRY_ENABLED": "False"}


class EmbedderDeployment:
    """Embed token ids; concurrent requests are batched."""

    async def __init__(self, folder: str) -> None:
        lower_cpu_priority(EMBEDDER)
        await wait_for_file(Path(folder) / READY_FILE)
        self._embedder = Embedder(Path(folder))
        self._lock = asyncio.Lock()

    async def __call__(self, ids: Sequence[Sequence[int]]) -> Vectors:
        """Unit vectors of texts as token ids, (texts, dimension)."""
        return await self._embed_batch(ids)  # type: ignore[no-any-return]  # Serve's decorator loses the type

    @ray_serve.batch(max_batch_size=_MAX_BATCH, batch_wait_timeout_s=0)
    async def _embed_batch(self, requests: list[Sequence[Sequence[int]]]) -> list[Vectors]:
        async with self._lock:
            vectors = await asyncio.to_thread(
                self._embedder.embed_ids, [ids for request in requests for ids in request]
            )
        ends = np.cumsum([len(request) for request in requests])
        return [vectors[end - len(request) : end] for request, end in zip(requests, ends, strict=True)]


class RetrievalDeployment:
    """The pipelines and the document store, for every tenant.

    A configuration that cannot work (a broken pipeline, a store built with another embedder) fails at start-up: the platform's
    state and Serve's status show it, and Serve keeps the replicas of the last deploy.
    """

    async def __init__(
        self, config: Mapping[str, object], conninfo: str | None, folder: str, embedder: DeploymentHandle
    ) -> None:
        asyncio.get_running_loop().set_exception_handler(log_unhandled)
        await wait_for_file(Path(folder) / IDENTITY_FILE)
        model = (Path(folder) / IDENTITY_FILE).read_text()
        conninfo = conninfo or os.environ["GEARBOX_RETRIEVAL__DATABASE"]  # in a cluster, from a secret
        from serve.retrieval.service import Service  # lazy: Haystack imports torch where installed

        tokenizer = Path(folder) / "tokenizer.json"
        dimension = Embedder.dimension_of(Path(folder))

        self._tokenizer = EmbeddingTokenizer(Path(folder))
        self._dimension = dimension
        self._embedder = embedder
        self._service = Service(
            RetrievalConfig.model_validate(config), conninfo, self._embed_texts, dimension, tokenizer, model
        )
        try:
            await self._service.open()
        except RequestError as error:
            if error.status != 503:
                raise
            _LOG.warning("the document store cannot be used yet (%s); each request tries to connect again", error.code)

    async def __call__(self, method: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """`{"result": …}` or `{"error": …}`: an error of the request is a response, not a failure of the replica."""
        try:
            if method == "embed":
                return {"result": await self._embed(**arguments)}
            return {"result": await self._service.call(method, arguments)}
        except RequestError as error:
            return {"error": error.parts()}
        except Exception as error:  # Serve would log its message, which may quote a question
            _LOG.error("retrieval failed: %s", origin_of(error))
            return {"error": _failed("retrieval", error).parts()}

    async def _embed(
        self, texts: Sequence[str], truncate: int | None = None, side: Side = "right", dimensions: int | None = None
    ) -> dict[str, Any]:
        """Embed a few texts per call, so that a concurrent search does not wait for all of them. Raises `RequestError`."""
        if dimensions not in (None, self._dimension):
            message = f"the model's embeddings have {self._dimension} dimensions; others are not supported"
            raise RequestError(400, message, param="dimensions", code="invalid_dimensions")
        ids = await asyncio.to_thread(self._tokenizer.request_ids, texts, truncate, side)
        parts = [await self._vectors(ids[at : at + _TEXTS_PER_CALL]) for at in range(0, len(ids), _TEXTS_PER_CALL)]
        return {"vectors": np.concatenate(parts), "tokens": sum(map(len, ids))}

    async def _embed_texts(self, texts: Sequence[str]) -> Vectors:
        return await self._vectors(await asyncio.to_thread(self._tokenizer.ids, texts, self._tokenizer.max_tokens))

    async def _vectors(self, ids: Sequence[Sequence[int]]) -> Vectors:
        return await await_response(self._embedder.remote(ids), "the embedder")  # type: ignore[no-any-return]


async def await_response(response: Any, service: str) -> Any:
    """Result of a call through a deployment handle. Cancelling it cancels the call in the replica too.

    Raises:
        RequestError: 429 where too many calls wait already, 503 where `service` is temporarily unavailable, 500 where a retry cannot help.
    """
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except BackPressureError as error:
        raise overloaded(f"too many requests wait for {service}; retry later", 2, "overloaded") from error
    except DeploymentUnavailableError as error:
        message = f"{service} could not be started; see the platform's status and log for the reason"
        raise retrieval_misconfigured(message) from error
    except RayTaskError as error:  # raised by the deployment's code: a retry would fail too
        _LOG.error("%s failed: %s", service, type(error.cause).__name__)
        raise _failed(service, error.cause) from error
    except (RayError, RayServeException) as error:
        raise _unavailable(f"{service} does not answer") from error


class RetrievalHandle:
    """The gateway's client of the retrieval deployment."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._handle: DeploymentHandle | None = None

    async def sync(self) -> None:
        """Look up the deployment until it exists."""
        if self._enabled and self._handle is None:
            self._handle = await app_handle(APP)

    async def call(self, method: str, **arguments: Any) -> Any:
        """Call a method of `Service`, or `embed`. Raises `RequestError`; cancelling it cancels the call in the replica too."""
        if self._handle is None:
            raise _unavailable("retrieval is starting")
        response = await await_response(self._handle.remote(method, arguments), "retrieval")
        if "error" in response:
            raise RequestError.of(response["error"])
        return response["result"]


def retrieval_app(
    config: RetrievalConfig,
    conninfo: str | None,
    folder: Path,
    drain_timeout_s: float,
    placement: Mapping[str, object] = LOCAL,
) -> ray_serve.Application:
    """The Serve application of retrieval: the pipelines' deployment with the embedder's behind it.

    Args:
        conninfo: connection string of the documents' database; None for the one in the replicas' environment.
        folder: folder of the embedder, which may appear later.
    """
    embedder = _deployment(EmbedderDeployment, "embedder", config.embedder_replicas, drain_timeout_s, placement).bind(
        str(folder)
    )
    settings = config.model_dump(mode="json", exclude={"database"})
    return _deployment(RetrievalDeployment, "retrieval", config.replicas, drain_timeout_s, placement).bind(
        settings, conninfo, str(folder), embedder
    )


def _deployment(
    cls: type, name: str, bounds: ReplicaBounds, drain_timeout_s: float, placement: Mapping[str, object]
) -> Any:
    return ray_serve.deployment(
        cls,
        name=name,
        autoscaling_config={
            "min_replicas": bounds.min, "max_replicas": bounds.max, "target_ongoing_requests": bounds.target_in_flight,
        },
        max_ongoing_requests=_MAX_ONGOING,
        max_queued_requests=_MAX_QUEUED,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=drain_timeout_s,
        max_surge_percent=100 if bounds.surge else 0,
        ray_actor_options={**placement, "runtime_env": {"env_vars": _ENV}},
        logging_config={"enable_access_log": False, "encoding": "JSON"},
    )  # fmt: skip


def _failed(service: str, cause: BaseException) -> RequestError:
    message = f"{service} failed ({type(cause).__name__}); see its log"
    return RequestError(500, message, code="retrieval_failed", headers={"x-should-retry": "false"})


def _unavailable(message: str) -> RequestError:
    return RequestError(503, f"{message}; retry later", code="retrieval_unavailable", headers={"retry-after": "2"})
