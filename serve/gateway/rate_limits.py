"""Rate limits: requests and tokens per minute, counted in a store whose outages do not block other requests."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Literal, TypeVar

from limits import RateLimitItemPerMinute
from limits.aio.storage import Storage
from limits.aio.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter
from limits.storage import storage_from_string
from prometheus_client import Counter

from serve.config.sections import AccessConfig
from serve.errors import RequestError, overloaded

_T = TypeVar("_T")
Operation = Literal["admit", "charge", "read"]

_CONCURRENCY = 64  # concurrent store operations; each may hold a connection
_TRIPS = 3  # consecutive failures after which the store counts as down
_PAUSE_S = 1.0  # time between two attempts at a store that is down
_LOG_EACH_S = 10.0
_LOG = logging.getLogger("gearbox.limits")


class StoreUnavailable(Exception):
    """The rate-limit store timed out or failed. The failure is already logged and counted."""


class Limits:
    """Rate limits of tenants, with a deadline for every store operation and a circuit breaker.

    While the store is down, one operation per second tries it and all others fail at once, so that requests neither queue
    in the gateway nor overload a store that recovers.
    """

    def __init__(self, access: AccessConfig, failures: Counter) -> None:
        storage = storage_from_string(access.rate_limit_store, **_options(access))
        if not isinstance(storage, Storage):
            raise TypeError(
                f"access.rate_limit_store: {access.rate_limit_store.split(':')[0]} is no asynchronous store"
            )
        self._requests = SlidingWindowCounterRateLimiter(storage)
        self._tokens = FixedWindowRateLimiter(
            storage
        )  # a fixed window can be exceeded: token usage is known afterwards
        self._remote = not access.rate_limit_store.startswith("async+memory")
        self._slots = asyncio.Semaphore(_CONCURRENCY)
        self._failures = failures
        self._failed = 0  # consecutive failures
        self._retry_at = 0.0
        self._logged_at = -math.inf
        self._charging: set[asyncio.Task[None]] = set()
        self.reconfigure(access)

    def reconfigure(self, access: AccessConfig) -> None:
        """Change the deadline and whether failures admit requests; the store set at start is not replaced."""
        self._timeout_s = access.rate_limit_store_timeout_s
        self._fails_open = access.on_rate_limit_store_failure == "fail_open"

    async def admit(
        self, tenant: str, requests: RateLimitItemPerMinute | None, tokens: RateLimitItemPerMinute | None
    ) -> None:
        """Count one request of `tenant`; without limits the store is not used.

        Raises:
            RequestError: 429 with `Retry-After` when a limit is reached; 503 when the store fails and the limits fail closed.
        """
        if requests is None and tokens is None:
            return
        try:
            refusal = await self._ask("admit", lambda: self._admit(tenant, requests, tokens))
        except StoreUnavailable as error:
            if self._fails_open:
                return
            raise RequestError(
                503,
                "the limits of this API key cannot be checked at the moment; try again",
                code="limits_unavailable",
                headers={"retry-after": str(math.ceil(_PAUSE_S))},
            ) from error
        if refusal is not None:
            raise refusal

    async def charge(self, tenant: str, limit: RateLimitItemPerMinute | None, tokens: int) -> None:
        """Count the tokens of a finished request. A store failure loses the count only; cancelled requests are charged."""
        if limit is None or not tokens:
            return
        charging = asyncio.ensure_future(self._charge(tenant, limit, tokens))
        self._charging.add(charging)
        charging.add_done_callback(self._charging.discard)
        await asyncio.shield(charging)

    async def used(self, tenant: str, kind: Literal["requests", "tokens"], limit: RateLimitItemPerMinute) -> float:
        """Utilization of a limit in the current minute. Raises `StoreUnavailable`."""
        limiter = self._requests if kind == "requests" else self._tokens
        _, left = await self._ask("read", lambda: limiter.get_window_stats(limit, kind, tenant))
        return 1 - left / limit.amount

    async def _admit(
        self, tenant: str, requests: RateLimitItemPerMinute | None, tokens: RateLimitItemPerMinute | None
    ) -> RequestError | None:
        if tokens and not await self._tokens.test(tokens, "tokens", tenant):
            reset_s, _ = await self._tokens.get_window_stats(tokens, "tokens", tenant)
            return _limit_reached(tokens, "tokens", reset_s)
        if requests and not await self._requests.hit(requests, "requests", tenant):
            reset_s, _ = await self._requests.get_window_stats(requests, "requests", tenant)
            return _limit_reached(requests, "requests", reset_s)
        return None

    async def _charge(self, tenant: str, limit: RateLimitItemPerMinute, tokens: int) -> None:
        try:
            await self._ask("charge", lambda: self._tokens.hit(limit, "tokens", tenant, cost=tokens))
        except StoreUnavailable:
            return  # already logged and counted; the response was sent

    async def _ask(self, operation: Operation, work: Callable[[], Awaitable[_T]]) -> _T:
        """Run a store operation with the deadline and the circuit breaker. Raises `StoreUnavailable`."""
        if self._failed >= _TRIPS:
            if monotonic() < self._retry_at:
                self._failures.labels(operation).inc()
                raise StoreUnavailable("the store was down a moment ago")
            self._retry_at = monotonic() + _PAUSE_S  # this operation tries the store; others still fail at once
        try:
            result = await (self._before_deadline(work) if self._remote else work())
        except Exception as error:  # store clients raise many types
            self._on_failure(operation, error)
            raise StoreUnavailable(type(error).__name__) from error
        if self._failed >= _TRIPS:
            _LOG.warning("the rate-limit store answers again")
        self._failed = 0
        return result

    async def _before_deadline(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Run `work` in a separate task, because some store clients suppress cancellation and keep waiting."""

        async def do() -> _T:
            async with self._slots:
                return await work()

        task = asyncio.ensure_future(do())
        task.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # ignore the result of an abandoned task
        try:
            if not (await asyncio.wait({task}, timeout=self._timeout_s))[0]:
                raise TimeoutError(f"no answer within {self._timeout_s:g} s")
            return task.result()
        finally:
            task.cancel()

    def _on_failure(self, operation: Operation, error: Exception) -> None:
        self._failures.labels(operation).inc()
        self._failed += 1
        self._retry_at = monotonic() + _PAUSE_S
        if monotonic() - self._logged_at >= _LOG_EACH_S:
            self._logged_at = monotonic()
            consequence = "requests pass uncounted" if self._fails_open else "requests of keys with limits get 503"
            _LOG.error("the rate-limit store fails (%s: %s): %s", type(error).__name__, str(error)[:200], consequence)


def _options(access: AccessConfig) -> dict[str, Any]:
    """Options for redis-py, the installed client; `limits` would choose another by default.

    Its timeout is the gateway's deadline. Its default retries have pauses, which would make a refused connection look like a
    timeout. One retry is left for connections that Redis closed while they were idle.
    """
    if not access.rate_limit_store.startswith("async+redis"):
        return {}
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    timeout_s = access.rate_limit_store_timeout_s
    return {
        "implementation": "redispy", "retry": Retry(NoBackoff(), 1), "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s, "max_connections": 2 * _CONCURRENCY,
    }  # fmt: skip


def _limit_reached(item: RateLimitItemPerMinute, kind: str, reset_s: float) -> RequestError:
    wait_s = math.ceil(reset_s - time.time())
    return overloaded(f"the limit of {item.amount} {kind} per minute is reached", wait_s, f"{kind}_per_minute")
