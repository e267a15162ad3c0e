"""Engine client: HTTP requests to the replicas of the variants."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from time import perf_counter
from typing import Protocol

import aiohttp
import orjson

from serve.gateway.replica_health import ANSWER_S, PROBE_TIMEOUT_S, EjectionCause, Exchange, ReplicaHealth
from serve.routing.catalog import Variant
from serve.telemetry.metrics import Metrics

REPLICA_WAIT_S = 5  # for a replica of a variant that should have one
COLD_START_WAIT_S = 300  # for a variant that starts from zero
_ENGINE_KEEPALIVE_S = 60  # shorter than the 90 s after which Serve's replicas close idle connections
_LOG = logging.getLogger("gearbox.gateway")


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

    health: ReplicaHealth

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
        self._health_checks: dict[str, asyncio.Task[None]] = {}  # under way, by replica

    @property
    def health(self) -> ReplicaHealth:
        """Health of all replicas."""
        return self._replicas.health

    def urls(self, variant: str) -> list[str]:
        """Base URLs of all replicas of `variant` that run now."""
        return self._replicas.urls(variant)

    def has_replica(self, variant: Variant, avoid: Collection[str]) -> bool:
        """Whether a replica of `variant` runs that is not in `avoid` (base URLs), and is not ejected."""
        urls = self._replicas.urls(variant.name)
        return bool(set(urls).difference(avoid, self.health.ejected(urls)))

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
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, Exchange]]:
        """The response of `replica` (its base URL), its head read, its body not, and the exchange with it.

        Without one, or where it is ejected, any replica that is not in `avoid`.

        `more` are headers for it. `reading_s` is the predicted time until it has read the prompt. `on_choice` gets the base URL of
        the replica, before the request is sent.

        Leaving the context before the body was read to its end closes the connection, on which the engine aborts
        the generation.

        Raises:
            EngineUnreachable: no replica, no connection, a server error instead of an answer, or the replica has stalled.
        """
        replica = await self._choose(variant, avoid, replica)
        on_choice(replica)
        exchange = self.health.begin(replica, perf_counter(), reading_s, moved=bool(avoid))
        response: aiohttp.ClientResponse | None = None
        # clients may repeat their ids, engines must not see one twice
        headers = {**self._headers, "x-request-id": f"{request_id}-{uuid.uuid4().hex[:8]}", **more}
        try:
            response = await self._send(exchange, path, payload, headers, variant)
            if response.status >= 500:
                raise EngineUnreachable(f"variant '{variant.name}' answered {response.status}")
            yield response, exchange
        except EngineUnreachable as error:
            error.replica = replica
            raise
        except asyncio.CancelledError:
            self.health.leave(exchange, perf_counter())
            raise
        finally:
            self.health.end(exchange)
            if response is not None:
                if response.content.at_eof():
                    response.release()
                else:
                    response.close()

    async def _choose(self, variant: Variant, avoid: Collection[str], replica: str) -> str:
        """Base URL of `replica`, or of any other that is not avoided; waits where one starts from zero."""
        avoid = self._avoided(variant, avoid)
        if replica in (running := self._replicas.urls(variant.name)) and replica not in avoid:
            return replica
        if replica and running and replica not in running:
            unreachable = EngineUnreachable(f"a replica of variant '{variant.name}' has stopped", sent=False)
            unreachable.replica = replica
            raise unreachable
        try:
            cold, started = variant.live.replicas == 0 and variant.scales_to_zero, perf_counter()
            async with asyncio.timeout(COLD_START_WAIT_S if variant.scales_to_zero else REPLICA_WAIT_S):
                replica = await self._replicas.choose(variant.name, avoid)
        except NoReplica as error:
            raise EngineUnreachable(str(error), sent=False) from error
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise EngineUnreachable(f"{type(error).__name__} at variant '{variant.name}'", sent=False) from error
        if cold:
            self._metrics.cold_start.labels(variant.name).observe(perf_counter() - started)
        return replica

    def _avoided(self, variant: Variant, broken: Collection[str]) -> Collection[str]:
        """Replicas that the next request avoids: those in `broken`, the ejected ones, and if others are left, suspect and returning ones."""
        if not self.health.troubled:
            return broken
        urls = self._replicas.urls(variant.name)
        avoided = self.health.avoided(urls, perf_counter()).union(broken)
        return avoided if set(urls) - avoided else self.health.ejected(urls).union(broken)

    async def _send(
        self, exchange: Exchange, path: str, payload: bytes, headers: Mapping[str, str], variant: Variant
    ) -> aiohttp.ClientResponse:
        loop = asyncio.get_running_loop()
        url = exchange.replica.url
        try:
            async with asyncio.timeout(None) as wait:
                exchange.interrupt = lambda: wait.reschedule(loop.time())
                response = await self._open().post(url + path, data=payload, headers=headers, timeout=self._timeout)
                exchange.interrupt = partial(_break_off, response)
            if exchange.stalled:  # ejected after the response had begun, before this task went on
                response.close()
                raise TimeoutError
            return response
        except aiohttp.ClientConnectorError as error:
            self.health.end(exchange)
            if _refused(error):
                self.eject(variant, url, "unreachable")
            raise EngineUnreachable(f"{type(error).__name__} at variant '{variant.name}'", sent=False) from error
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            problem = "a stalled replica" if exchange.stalled else type(error).__name__
            raise EngineUnreachable(f"{problem} at variant '{variant.name}'") from error

    def eject(self, variant: Variant, url: str, cause: EjectionCause) -> None:
        """Send nothing more to this replica until a probe succeeds, and interrupt its requests."""
        variant.live.on_ejected(url)
        if self.health.eject(url, perf_counter(), cause):
            self._metrics.ejections.labels(variant.name, cause).inc()
            seen = self.health.evidence(url) if cause == "stalled" else "nobody listens, or its engine is dead"
            _LOG.warning("a replica of variant %s is ejected (%s: %s): %s", variant.name, cause, seen, url)

    def on_failure(self, variant: Variant, url: str) -> None:
        """Choose other replicas than this one, which broke a request, and eject it if its engine is dead."""
        variant.live.on_unreachable(url)
        if url in self.urls(variant.name) and not self.health.ejected([url]) and url not in self._health_checks:
            check = asyncio.get_running_loop().create_task(self._check_health(variant, url))
            self._health_checks[url] = check
            check.add_done_callback(lambda _: self._health_checks.pop(url))

    async def _check_health(self, variant: Variant, url: str) -> None:
        """Eject the replica if it is gone, or reports a dead engine: its server outlives the engine's own process for some seconds."""
        try:
            timeout = aiohttp.ClientTimeout(total=ANSWER_S)
            async with self._open().get(url + "/health", headers=self._headers, timeout=timeout) as answer:
                dead = answer.status >= 500
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            dead = _refused(error)  # if it has stalled, the watch notices
        if dead:
            self.eject(variant, url, "unreachable")

    async def detokenize(
        self, variant: Variant, model: str, tokens: Sequence[int], avoid: Collection[str], replica: str
    ) -> str:
        """The text of `tokens` by the tokenizer of `variant`, at `replica` as in `post`.

        Raises `EngineUnreachable`, also where the engine does not offer it.
        """
        payload = orjson.dumps({"model": model, "tokens": tokens})
        async with self.post(variant, "/detokenize", payload, "detokenize", {}, avoid, replica) as (response, _):
            try:
                return str(orjson.loads(await response.read())["prompt"])
            except (TimeoutError, aiohttp.ClientError, ValueError, LookupError, TypeError) as error:
                raise EngineUnreachable(f"{type(error).__name__} while detokenizing") from error

    async def probe(self, url: str, model: str) -> bool:
        """Whether the replica generates a token in time."""
        payload = orjson.dumps({"model": model, "prompt": [0], "max_tokens": 1})
        try:
            timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
            async with self._open().post(
                url + "/v1/completions", data=payload, headers=self._headers, timeout=timeout
            ) as answer:
                await answer.read()
                return answer.status == 200
        except (TimeoutError, aiohttp.ClientError, OSError):
            return False

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


def _refused(error: Exception) -> bool:
    """Whether nobody listens there. Other connections fail for want of file descriptors or ports here, or for the network."""
    return isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ConnectionRefusedError)


def _break_off(response: aiohttp.ClientResponse) -> None:
    """End the wait for the rest of a response; one that has arrived as a whole, and waits for its client, stays."""
    if not response.content.is_eof():
        response.close()
