"""Retrieval on Ray Serve: the embedder and the pipelines, each a deployment that scales apart from gateway and engines."""

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ray import serve as ray_serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.embedder import IDENTITY_FILE, READY_FILE
from deployments.fetch import arrived
from deployments.placement import HERE
from deployments.replicas import app_handle
from serve.config.platform import ReplicaBounds, RetrievalConfig
from serve.errors import RequestError, retrieval_misconfigured
from serve.retrieval.embedder import Embedder, EmbeddingTokenizer, Side, Vectors

_LOG = logging.getLogger("gearbox.retrieval")
APP = "retrieval"
_MAX_ONGOING = 64
_BATCH = 64  # requests that are embedded together
_PART = 8  # texts of one request
#: Of every replica. Haystack reads its own when it is imported: no statistics are sent.
_ENV = {"OMP_NUM_THREADS": "1", "HAYSTACK_TELEMETRY_ENABLED": "False"}


class EmbedderDeployment:
    """Token ids to vectors; what is asked at the same time is computed together."""

    async def __init__(self, folder: str) -> None:
        await arrived(Path(folder) / READY_FILE)
        self._embedder = Embedder(Path(folder))
        self._busy = asyncio.Lock()

    async def __call__(self, ids: Sequence[Sequence[int]]) -> Vectors:
        """Unit vectors of texts given as token ids, (texts, dimension)."""
        return await self._together(ids)  # type: ignore[no-any-return]  # Serve's decorator loses the type

    @ray_serve.batch(max_batch_size=_BATCH, batch_wait_timeout_s=0)
    async def _together(self, asked: list[Sequence[Sequence[int]]]) -> list[Vectors]:
        async with self._busy:
            vectors = await asyncio.to_thread(self._embedder.embed_ids, [ids for one in asked for ids in one])
        ends = np.cumsum([len(one) for one in asked])
        return [vectors[end - len(one) : end] for one, end in zip(asked, ends, strict=True)]


class RetrievalDeployment:
    """The pipelines and the store, for every tenant.

    A configuration that can't work (a broken pipeline, a store made for another embedder) fails here, at start, where the
    platform's state and Serve's status show it, and where Serve keeps the replicas that it was to replace.
    """

    async def __init__(
        self, config: Mapping[str, object], conninfo: str | None, folder: str, embedder: DeploymentHandle
    ) -> None:
        await arrived(Path(folder) / IDENTITY_FILE)
        model = (Path(folder) / IDENTITY_FILE).read_text()
        conninfo = conninfo or os.environ["GEARBOX_RETRIEVAL__DATABASE"]  # a cluster's secret stays in its pods
        from serve.retrieval.service import Service  # Haystack imports torch where there is one: not in the gateway
        from serve.retrieval.store.postgres import StoreDown

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
        except StoreDown:
            _LOG.warning("the document store does not answer yet; it is tried again with every request")

    async def __call__(self, method: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """`{"made": …}` or `{"refused": …}`: an error of a request is an answer, not a failure of the replica."""
        try:
            if method == "embed":
                return {"made": await self._embed(**arguments)}
            return {"made": await self._service.call(method, arguments)}
        except RequestError as error:
            return {"refused": error.parts()}

    async def _embed(
        self, texts: Sequence[str], truncate: int | None = None, side: Side = "right", dimensions: int | None = None
    ) -> dict[str, Any]:
        """A few at a time, so that a search waits for those and not for all. Raises `RequestError`."""
        if dimensions not in (None, self._dimension):
            message = f"the embeddings have {self._dimension} dimensions; the model makes no others"
            raise RequestError(400, message, param="dimensions", code="invalid_dimensions")
        ids = await asyncio.to_thread(self._tokenizer.request_ids, texts, truncate, side)
        parts = [await self._vectors(ids[at : at + _PART]) for at in range(0, len(ids), _PART)]
        return {"vectors": np.concatenate(parts), "tokens": sum(map(len, ids))}

    async def _embed_texts(self, texts: Sequence[str]) -> Vectors:
        return await self._vectors(await asyncio.to_thread(self._tokenizer.ids, texts, self._tokenizer.max_tokens))

    async def _vectors(self, ids: Sequence[Sequence[int]]) -> Vectors:
        return await answer_of(self._embedder.remote(ids), "the embedder")  # type: ignore[no-any-return]


async def answer_of(response: Any, what: str) -> Any:
    """The answer to a call by a deployment's handle; cancelled, it ends the work there too.

    Raises:
        RequestError: 503 where `what` is away and may come back, 500 where trying again can't help.
    """
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except DeploymentUnavailableError as error:
        message = f"{what} could not be started; the platform's status and its log say why"
        raise retrieval_misconfigured(message) from error
    except RayTaskError as error:  # raised by the code there, so that it would be again
        cause = type(error.cause).__name__
        _LOG.error("%s failed: %s", what, cause)  # its message may quote a question
        message = f"{what} failed ({cause}); its log says more"
        raise RequestError(500, message, code="retrieval_failed", headers={"x-should-retry": "false"}) from error
    except (RayError, RayServeException) as error:
        raise _unavailable(f"{what} does not answer") from error


class RetrievalHandle:
    """The gateway's way there."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._handle: DeploymentHandle | None = None

    async def sync(self) -> None:
        """Find the deployment once it is there."""
        if self._wanted and self._handle is None:
            self._handle = await app_handle(APP)

    async def call(self, method: str, **arguments: Any) -> Any:
        """Do one of `Service`'s calls, or `embed`. Raises `RequestError`; cancelled, it ends the work there too."""
        if self._handle is None:
            raise _unavailable("retrieval is starting")
        answer = await answer_of(self._handle.remote(method, arguments), "retrieval")
        if "refused" in answer:
            raise RequestError.of(answer["refused"])
        return answer["made"]


def retrieval_app(
    config: RetrievalConfig,
    conninfo: str | None,
    folder: Path,
    drain_timeout_s: float,
    placement: Mapping[str, object] = HERE,
) -> ray_serve.Application:
    """The Serve application of retrieval: the pipelines' deployment with the embedder's behind it.

    Args:
        conninfo: of the documents' database; None leaves it to the environment of the replicas.
        folder: of the embedder; it may appear later.
    """
    embedder = _scaled(EmbedderDeployment, "embedder", config.embedder_replicas, drain_timeout_s, placement).bind(
        str(folder)
    )
    settings = config.model_dump(mode="json", exclude={"database"})
    return _scaled(RetrievalDeployment, "retrieval", config.replicas, drain_timeout_s, placement).bind(
        settings, conninfo, str(folder), embedder
    )


def _scaled(
    cls: type, name: str, bounds: ReplicaBounds, drain_timeout_s: float, placement: Mapping[str, object]
) -> Any:
    return ray_serve.deployment(
        cls,
        name=name,
        autoscaling_config={
            "min_replicas": bounds.min, "max_replicas": bounds.max, "target_ongoing_requests": bounds.target_in_flight,
        },
        max_ongoing_requests=_MAX_ONGOING,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=drain_timeout_s,
        max_surge_percent=100 if bounds.surge else 0,
        ray_actor_options={**placement, "runtime_env": {"env_vars": _ENV}},
        logging_config={"enable_access_log": False, "encoding": "JSON"},
    )  # fmt: skip


def _unavailable(message: str) -> RequestError:
    return RequestError(503, f"{message}; retry later", code="retrieval_unavailable", headers={"retry-after": "2"})
