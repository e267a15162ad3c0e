"""Gateway that calls the engine over a Ray Serve deployment handle instead of the replica's HTTP port.

`python -m benchmarks.systems.mock_engine_platform --over-handle` serves it; `benchmarks.overhead.gateway instant` compares both.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from time import perf_counter

from ray import serve as ray_serve

import serve.gateway.app
from benchmarks.systems.mock_engine import InstantEngine
from deployments.gateway import GatewayDeployment
from deployments.replicas import app_name
from serve.gateway.replica_health import Exchange, ReplicaHealth
from serve.routing.catalog import Variant


class HandleEngine:
    """The mock engine as a deployment called over its handle instead of HTTP."""

    def __init__(self) -> None:
        self._engine = InstantEngine()

    async def __serve_build_asgi_app__(self) -> InstantEngine:
        """For the gateway's polling of the engine's gauges, as with the real engines."""
        return self._engine

    async def answer(self, path: str, payload: bytes) -> AsyncIterator[bytes]:
        """Yield the engine's answer in body chunks."""
        chunks: asyncio.Queue[bytes | None] = asyncio.Queue()

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": payload}

        async def send(message: dict[str, object]) -> None:
            if message["type"] == "http.response.body":
                chunks.put_nowait(message["body"])
                if not message.get("more_body"):
                    chunks.put_nowait(None)

        working = asyncio.create_task(self._engine({"type": "http", "path": path}, receive, send))
        while (chunk := await chunks.get()) is not None:
            if chunk:
                yield chunk
        await working


class HandleEngines:
    """Replaces `serve.gateway.engine_client.Engines`, with the same arguments."""

    def __init__(self, *_: object) -> None:
        self.health = ReplicaHealth()

    def urls(self, variant: str) -> list[str]:
        """None: no replica is watched."""
        return []

    async def close(self) -> None:
        """Do nothing: handles need no closing."""

    @asynccontextmanager
    async def post(
        self,
        variant: Variant,
        path: str,
        payload: bytes,
        request_id: str,
        more: Mapping[str, str],
        avoid: Collection[str] = (),
        replica: str = "",
        reading_s: float = 0.0,
        on_choice: Callable[[str], None] = lambda _: None,
    ) -> AsyncIterator[tuple["HandleResponse", Exchange]]:
        """Send a request to a replica; the response has what the gateway reads of one."""
        handle = ray_serve.get_app_handle(app_name(variant.name))
        exchange = self.health.begin(variant.name, perf_counter())
        try:
            yield HandleResponse(handle.options(stream=True).answer.remote(path, payload)), exchange
        finally:
            self.health.end(exchange)


class HandleResponse:
    """A streamed handle call that looks like a response."""

    status = 200

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self.content = self

    async def readany(self) -> bytes:
        """The next chunk; empty at the end."""
        return await anext(self._chunks, b"")

    async def read(self) -> bytes:
        """The whole body."""
        return b"".join([chunk async for chunk in self._chunks])


class HandleGateway(GatewayDeployment):
    """The gateway with handles as its engine client."""

    def __init__(self, config: dict[str, object], engine_token: str) -> None:
        serve.gateway.app.Engines = HandleEngines  # type: ignore[misc, assignment]
        super().__init__(config, engine_token)
