"""Retrieval on Ray Serve: the embedder and the pipelines, each a deployment that scales apart from gateway and engines."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.embedder import IDENTITY_FILE, READY_FILE
from deployments.fetch import arrived
from deployments.placement import HERE
from deployments.replicas import app_handle
from serve.config import ReplicaBounds, RetrievalConfig
from serve.errors import RequestError
from serve.retrieval.embed import Embedder, Vectors

APP = "retrieval"
_MAX_ONGOING = 64
_BATCH = 64  # requests that are embedded together
_PART = 8  # texts of one request
#: Of every replica. Haystack reads its own when it is imported: no statistics are sent.
_ENV = {"OMP_NUM_THREADS": "1", "HAYSTACK_TELEMETRY_ENABLED": "False"}


class EmbedderDeployment:
    """Texts to vectors; what is asked at the same time is computed together."""

    async def __init__(self, folder: str) -> None:
        await arrived(Path(folder) / READY_FILE)
        self._embedder = Embedder(Path(folder))
        self._busy = asyncio.Lock()

    async def __call__(self, texts: Sequence[str]) -> tuple[Vectors, int]:
        """Unit vectors, (texts, dimension), and how many tokens were read."""
        return await self._together(texts)  # type: ignore[no-any-return]  # Serve's decorator loses the type

    @ray_serve.batch(max_batch_size=_BATCH, batch_wait_timeout_s=0)
    async def _together(self, asked: list[Sequence[str]]) -> list[tuple[Vectors, int]]:
        texts = [text for one in asked for text in one]
        async with self._busy:
            vectors, tokens = await asyncio.to_thread(self._pass, texts)
        ends = np.cumsum([len(one) for one in asked])
        return [
            (vectors[end - len(one) : end], sum(tokens[end - len(one) : end]))
            for one, end in zip(asked, ends, strict=True)
        ]

    def _pass(self, texts: list[str]) -> tuple[Vectors, list[int]]:
        return self._embedder.embed(texts), [self._embedder.tokens(text) for text in texts]


class RetrievalDeployment:
    """The pipelines and the store, for every tenant."""

    async def __init__(
        self, config: Mapping[str, object], conninfo: str | None, folder: str, embedder: DeploymentHandle
    ) -> None:
        await arrived(Path(folder) / IDENTITY_FILE)
        model = (Path(folder) / IDENTITY_FILE).read_text()
        conninfo = conninfo or os.environ["GEARBOX_RETRIEVAL__DATABASE"]  # a cluster's secret stays in its pods
        from serve.retrieval.service import Service  # Haystack imports torch where there is one: not in the gateway

        tokenizer = Path(folder) / "tokenizer.json"
        dimension = Embedder.dimension_of(Path(folder))

        async def embed(texts: Sequence[str]) -> Vectors:
            return (await embedder.remote(list(texts)))[0]  # type: ignore[no-any-return]

        self._embedder = embedder
        self._service = Service(RetrievalConfig.model_validate(config), conninfo, embed, dimension, tokenizer, model)

    async def __call__(self, method: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """`{"made": …}` or `{"refused": …}`: an error of a request is an answer, not a failure of the replica."""
        try:
            if method == "embed":
                return {"made": await self._embed(arguments["texts"])}
            return {"made": await self._service.call(method, arguments)}
        except RequestError as error:
            return {"refused": error.parts()}

    async def _embed(self, texts: Sequence[str]) -> dict[str, Any]:
        """A few at a time, so that a search waits for those and not for all."""
        parts = [await self._embedder.remote(texts[at : at + _PART]) for at in range(0, len(texts), _PART)]
        return {
            "vectors": np.concatenate([vectors for vectors, _ in parts]),
            "tokens": sum(tokens for _, tokens in parts),
        }


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
        response = self._handle.remote(method, arguments)
        try:
            answer = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except (RayError, RayServeException) as error:
            raise _unavailable("retrieval does not answer") from error
        if "refused" in answer:
            raise RequestError.of(answer["refused"])
        return answer["made"]


def retrieval_app(
    config: RetrievalConfig,
    conninfo: str | None,
    folder: Path,
    drain_s: float,
    placement: Mapping[str, object] = HERE,
) -> ray_serve.Application:
    """The Serve application of retrieval: the pipelines' deployment with the embedder's behind it.

    Args:
        conninfo: of the documents' database; None leaves it to the environment of the replicas.
        folder: of the embedder; it may appear later.
    """
    embedder = _scaled(EmbedderDeployment, "embedder", config.embedder_replicas, drain_s, placement).bind(str(folder))
    settings = config.model_dump(mode="json", exclude={"database"})
    return _scaled(RetrievalDeployment, "retrieval", config.replicas, drain_s, placement).bind(
        settings, conninfo, str(folder), embedder
    )


def _scaled(cls: type, name: str, bounds: ReplicaBounds, drain_s: float, placement: Mapping[str, object]) -> Any:
    return ray_serve.deployment(
        cls,
        name=name,
        autoscaling_config={
            "min_replicas": bounds.min, "max_replicas": bounds.max, "target_ongoing_requests": bounds.target_in_flight,
        },
        max_ongoing_requests=_MAX_ONGOING,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=drain_s,
        max_surge_percent=100 if bounds.surge else 0,
        ray_actor_options={**placement, "runtime_env": {"env_vars": _ENV}},
        logging_config={"enable_access_log": False, "encoding": "JSON"},
    )  # fmt: skip


def _unavailable(message: str) -> RequestError:
    return RequestError(503, f"{message}; retry later", code="retrieval_unavailable", headers={"retry-after": "2"})
