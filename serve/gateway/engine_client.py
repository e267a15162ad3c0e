"""Engine client: HTTP requests to the replicas of the variants."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Protocol

import aiohttp

from serve.routing.catalog import Variant
from serve.telemetry.metrics import Metrics

REPLICA_WAIT_S = 5  # for a replica of a variant that should have one
COLD_START_WAIT_S = 300  # for a variant that starts from zero
_ENGINE_KEEPALIVE_S = 60  # shorter than the 90 s after which Serve's replicas close idle connections


class NoReplica(Exception):
    """No replica of the variant can take a request."""


class EngineUnreachable(Exception):
    """The replica could not be reached or broke before it answered: the request may go elsewhere.

    Args:
        sent: whether the replica may have got the request, and have broken over it.
    """

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent
        self.replica: str | None = None  # base URL, where one was chosen


class Replicas(Protocol):
    """Chooses the replica of a variant for one request."""

    async def choose(self, variant: str, avoid: Collection[str] = ()) -> str:
        """Base URL of a replica's own HTTP server that is not in `avoid`.

        Raises `NoReplica`; waits where one is starting from zero.
        """

    def urls(self, variant: str) -> list[str]:
        """Base URLs of all replicas of `variant` that run now."""


class Engines:
    """Connection pool to the replicas of all variants."""

    def __init__(self, replicas: Replicas, token: str, idle_timeout_s: float, metrics: Metrics) -> None:
        self._replicas = replicas
        self._metrics = metrics
        self._headers = {
            "authorization": f"Bearer {token}",
            "content-type": "application/json",
            # Serve's own watch for disconnects would cancel vLLM's handler from outside, which leaves the generation
            # running; without it vLLM sees the disconnect itself and aborts.
            "x-request-disconnect-disabled": "?1",
        }
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=idle_timeout_s)
        self._session: aiohttp.ClientSession | None = None

    def has_replica(self, variant: Variant, avoid: Collection[str]) -> bool:
        """Whether a replica of `variant` runs that is not in `avoid` (base URLs)."""
        return any(url not in avoid for url in self._replicas.urls(variant.name))

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
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response of `replica` (its base URL), its head read, its body not; without one, of any that is not in `avoid`.

        `more` are headers for it.

        Leaving the context before the body was read to its end closes the connection, on which the engine aborts
        the generation.

        Raises:
            EngineUnreachable: no replica, no connection, or a server error instead of an answer.
        """
        try:
            if replica not in (running := self._replicas.urls(variant.name)):
                if replica and running:
                    raise NoReplica(f"a replica of variant '{variant.name}' has stopped")
                replica = await self._any(variant, avoid)
            engine_id = (
                f"{request_id}-{uuid.uuid4().hex[:8]}"  # clients may repeat theirs, engines must not see one twice
            )
            response = await self._open().post(
                replica + path,
                data=payload,
                headers={**self._headers, "x-request-id": engine_id, **more},
                timeout=self._timeout,
            )
        except NoReplica as error:
            unreachable = EngineUnreachable(str(error), sent=False)
            unreachable.replica = replica or None
            raise unreachable from error
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            sent = bool(replica) and not isinstance(error, aiohttp.ClientConnectorError)
            unreachable = EngineUnreachable(f"{type(error).__name__} at variant '{variant.name}'", sent=sent)
            unreachable.replica = replica or None
            raise unreachable from error
        try:
            if response.status >= 500:
                raise EngineUnreachable(f"variant '{variant.name}' answered {response.status}")
            yield response
        except EngineUnreachable as error:
            error.replica = replica
            raise
        finally:
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    async def _any(self, variant: Variant, avoid: Collection[str]) -> str:
        """Base URL of a replica that is not in `avoid`; waits where one starts from zero."""
        cold, started = variant.live.replicas == 0 and variant.scales_to_zero, perf_counter()
        async with asyncio.timeout(COLD_START_WAIT_S if variant.scales_to_zero else REPLICA_WAIT_S):
            replica = await self._replicas.choose(variant.name, avoid)
        if cold:
            self._metrics.cold_start.labels(variant.name).observe(perf_counter() - started)
        return replica

    def _open(self) -> aiohttp.ClientSession:
        """The session, made on first use because it belongs to the running event loop."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_ENGINE_KEEPALIVE_S)
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )
        return self._session

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
