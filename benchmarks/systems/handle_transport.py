"""The road not taken: the same gateway, but the answer comes over a Ray Serve deployment handle, not the replica's port.

`python -m benchmarks.systems.mock_engine_platform --over-handle` serves it; `benchmarks.overhead.gateway instant` measures it beside the other.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager

from ray import serve as ray_serve

import serve.gateway.app
from benchmarks.systems.mock_engine import InstantEngine
from deployments.gateway import GatewayDeployment
from deployments.replicas import app_name
from serve.routing.catalog import Variant


class HandleEngine:
    """The instant engine as a deployment that is called, not asked over HTTP."""

    def __init__(self) -> None:
        self._engine = InstantEngine()

    async def __serve_build_asgi_app__(self) -> InstantEngine:
        """For the gateway's look at the engine's gauges, as with the real engines."""
        return self._engine

    async def answer(self, path: str, payload: bytes) -> AsyncIterator[bytes]:
        """The engine's answer, body chunk by body chunk."""
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
    """Stands in for `serve.gateway.engine_client.Engines`, and takes what that takes."""

    def __init__(self, *_: object) -> None:
        pass

    async def close(self) -> None:
        """Handles need no closing."""

    @asynccontextmanager
    async def post(
        self,
        variant: Variant,
        path: str,
        payload: bytes,
        request_id: str,
        more: Mapping[str, str],
        avoid: Collection[str] = (),
    ) -> AsyncIterator["HandleResponse"]:
        """The answer of a replica, as far as the gateway looks at one."""
        handle = ray_serve.get_app_handle(app_name(variant.name))
        yield HandleResponse(handle.options(stream=True).answer.remote(path, payload))


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
        """Everything."""
        return b"".join([chunk async for chunk in self._chunks])


class HandleGateway(GatewayDeployment):
    """The gateway with its way to the engines exchanged."""

    def __init__(self, config: dict[str, object], engine_token: str) -> None:
        serve.gateway.app.Engines = HandleEngines  # type: ignore[misc, assignment]
        super().__init__(config, engine_token)
