"""Rate limits: requests and tokens per minute, counted in a store whose outages do not block other requests."""

import math
import time
from typing import Literal

from limits import RateLimitItemPerMinute
from limits.aio.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter

from serve.errors import ErrorCode, RequestError, overloaded
from serve.gateway.shared_store import PAUSE_S, SharedStore, StoreUnavailable


class Limits:
    """Rate limits of tenants, counted in the shared store."""

    def __init__(self, store: SharedStore) -> None:
        self._store = store
        self._requests = SlidingWindowCounterRateLimiter(store.storage)
        self._tokens = FixedWindowRateLimiter(
            store.storage
        )  # a fixed window can be exceeded: token usage is known afterwards

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
            refusal = await self._store.run("admit", lambda: self._admit(tenant, requests, tokens))
        except StoreUnavailable as error:
            if self._store.fails_open:
                return
            raise RequestError(
                503,
                "the limits of this API key cannot be checked at the moment; try again",
                code="limits_unavailable",
                headers={"retry-after": str(math.ceil(PAUSE_S))},
            ) from error
        if refusal is not None:
            raise refusal

    async def charge(self, tenant: str, limit: RateLimitItemPerMinute | None, tokens: int) -> None:
        """Count the tokens of a finished request. A store failure loses the count only; cancelled requests are charged."""
        if limit is None or not tokens:
            return
        await self._store.finish(self._charge(tenant, limit, tokens))

    async def used(self, tenant: str, kind: Literal["requests", "tokens"], limit: RateLimitItemPerMinute) -> float:
        """Utilization of a limit in the current minute. Raises `StoreUnavailable`."""
        limiter = self._requests if kind == "requests" else self._tokens
        _, left = await self._store.run("read", lambda: limiter.get_window_stats(limit, kind, tenant))
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
            await self._store.run("charge", lambda: self._tokens.hit(limit, "tokens", tenant, cost=tokens))
        except StoreUnavailable:
            return  # already logged and counted; the response was sent


def _limit_reached(item: RateLimitItemPerMinute, kind: Literal["requests", "tokens"], reset_s: float) -> RequestError:
    wait_s = math.ceil(reset_s - time.time())
    code: ErrorCode = "requests_per_minute" if kind == "requests" else "tokens_per_minute"
    return overloaded(f"the limit of {item.amount} {kind} per minute is reached", wait_s, code)
