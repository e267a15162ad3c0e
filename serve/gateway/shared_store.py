"""The store that gateways share: rate limits and idempotent answers, in Redis or in the gateway's memory.

Every operation has a deadline, and a circuit breaker keeps an outage of the store from delaying requests.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine
from time import monotonic
from typing import Any, Literal, TypeVar

from limits.aio.storage import Storage
from limits.storage import storage_from_string
from prometheus_client import Counter

from serve.config.sections import AccessConfig
from serve.errors import origin_of

_T = TypeVar("_T")
Operation = Literal["admit", "charge", "read", "idempotency"]

PAUSE_S = 1.0  # time between two attempts at a store that is down
_CONCURRENCY = 64  # concurrent store operations; each may hold a connection
_TRIPS = 3  # consecutive failures after which the store counts as down
_LOG_EACH_S = 10.0
_LOG = logging.getLogger("gearbox.limits")


class StoreUnavailable(Exception):
    """The shared store timed out or failed. The failure is already logged and counted."""


class SharedStore:
    """A store of the library `limits`, with a deadline for every operation and a circuit breaker.

    While the store is down, one operation per second tries it and all others fail at once, so that requests neither queue
    in the gateway nor overload a store that recovers.
    """

    def __init__(self, access: AccessConfig, failures: Counter) -> None:
        storage = storage_from_string(access.rate_limit_store, **_options(access))
        if not isinstance(storage, Storage):
            raise TypeError(
                f"access.rate_limit_store: {access.rate_limit_store.split(':')[0]} is no asynchronous store"
            )
        self.storage = storage
        self._remote = not access.rate_limit_store.startswith("async+memory")
        self._slots = asyncio.Semaphore(_CONCURRENCY)
        self._failures = failures
        self._failed = 0  # consecutive failures
        self._retry_at = 0.0
        self._logged_at = -math.inf
        self._finishing: set[asyncio.Task[None]] = set()
        self.reconfigure(access)

    def reconfigure(self, access: AccessConfig) -> None:
        """Change the deadline and whether failures admit requests; the store set at start is not replaced."""
        self._timeout_s = access.rate_limit_store_timeout_s
        self.fails_open = access.on_rate_limit_store_failure == "fail_open"

    async def finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` to its end, even if the caller is cancelled meanwhile."""
        task = asyncio.ensure_future(work)
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        await asyncio.shield(task)

    async def run(self, operation: Operation, work: Callable[[], Awaitable[_T]]) -> _T:
        """Run a store operation with the deadline and the circuit breaker. Raises `StoreUnavailable`."""
        if self._failed >= _TRIPS:
            if monotonic() < self._retry_at:
                self._failures.labels(operation).inc()
                raise StoreUnavailable("the store was down a moment ago")
            self._retry_at = monotonic() + PAUSE_S  # this operation tries the store; others still fail at once
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
        self._retry_at = monotonic() + PAUSE_S
        if monotonic() - self._logged_at >= _LOG_EACH_S:
            self._logged_at = monotonic()
            consequence = (
                "requests pass uncounted"
                if self.fails_open
                else "requests of keys with limits, and those with an Idempotency-Key, get 503"
            )
            # Redis quotes the arguments of a command that it refuses, which may be an answer
            _LOG.error("the rate-limit store fails (%s): %s", origin_of(error), consequence)


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
