"""Who is calling: bearer API keys, stored hashed, and their request and token limits."""

import hashlib
import math
import secrets
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.aio.storage import Storage
from limits.aio.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter
from limits.storage import storage_from_string

from serve.config import AccessConfig
from serve.errors import RequestError, overloaded


@dataclass(slots=True, frozen=True)
class Caller:
    """Whoever a request is counted for."""

    tenant: str
    budget: str  # name of the default profile
    requests: RateLimitItemPerMinute | None = None
    tokens: RateLimitItemPerMinute | None = None


def new_key() -> tuple[str, str]:
    """A fresh API key and the sha256 of it that belongs in the configuration."""
    key = f"gbx-{secrets.token_urlsafe(32)}"
    return key, hash_key(key)


def hash_key(key: str) -> str:
    """sha256, hexadecimal. Keys are 256 random bits, so no slow hash is needed."""
    return hashlib.sha256(key.encode()).hexdigest()


class Gatekeeper:
    """Authenticates callers and keeps their limits. Limits hold across gateways only with a shared `limits_store`."""

    def __init__(self, access: AccessConfig) -> None:
        storage = storage_from_string(access.limits_store)
        if not isinstance(storage, Storage):
            raise TypeError(f"access.limits_store: {access.limits_store.split(':')[0]} is no asynchronous store")
        self._requests = SlidingWindowCounterRateLimiter(storage)
        self._tokens = FixedWindowRateLimiter(storage)  # the one that can be overdrawn: usage is known afterwards
        self.reconfigure(access)

    def reconfigure(self, access: AccessConfig) -> None:
        """Know these keys from now on. What was counted stays; the store is the one of the start."""
        self._callers = {
            key.sha256: Caller(
                key.tenant,
                key.budget,
                RateLimitItemPerMinute(key.requests_per_minute) if key.requests_per_minute else None,
                RateLimitItemPerMinute(key.tokens_per_minute) if key.tokens_per_minute else None,
            )
            for key in access.keys
        }
        self._anonymous = Caller("anonymous", access.open_budget) if access.open else None
        self._limited = {caller.tenant: caller for caller in self._callers.values() if caller.requests or caller.tokens}

    @property
    def tenants(self) -> list[str]:
        """Every tenant there can be, in the configuration's order."""
        anonymous = [self._anonymous.tenant] if self._anonymous else []
        return list(dict.fromkeys([*(caller.tenant for caller in self._callers.values()), *anonymous]))

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """The caller behind the `authorization` header. Raises `RequestError` 401.

        Where access is open and no keys are configured, any key is accepted (clients insist on sending one).
        """
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if key and scheme.lower() == "bearer" and (caller := self._callers.get(hash_key(key.strip()))):
            return caller
        if self._anonymous is not None and (not key or not self._callers):
            return self._anonymous
        challenge = {"www-authenticate": "Bearer"}
        if not key:
            raise RequestError(
                401, "an API key is needed: 'Authorization: Bearer gbx-…'", code="missing_api_key", headers=challenge
            )
        raise RequestError(401, "this API key is not known", code="invalid_api_key", headers=challenge)

    async def admit(self, caller: Caller) -> None:
        """Count one request of `caller`. Raises `RequestError` 429 with the time until there is room again."""
        if caller.tokens and not await self._tokens.test(caller.tokens, "tokens", caller.tenant):
            reset_s, _ = await self._tokens.get_window_stats(caller.tokens, "tokens", caller.tenant)
            raise _limit_reached(caller.tokens, "tokens", reset_s)
        if caller.requests and not await self._requests.hit(caller.requests, "requests", caller.tenant):
            reset_s, _ = await self._requests.get_window_stats(caller.requests, "requests", caller.tenant)
            raise _limit_reached(caller.requests, "requests", reset_s)

    async def charge(self, caller: Caller, tokens: int) -> None:
        """Count the tokens a finished request used; they may overdraw the window, the next request then waits."""
        if caller.tokens and tokens:
            await self._tokens.hit(caller.tokens, "tokens", caller.tenant, cost=tokens)

    async def used(self, tenants: Collection[str]) -> list[tuple[str, str, float]]:
        """Of the limited ones of `tenants`: tenant, what is limited (requests, tokens), and the used share of it."""
        found = []
        for tenant in tenants:
            if (caller := self._limited.get(tenant)) is None:
                continue
            for kind, item, limiter in (
                ("requests", caller.requests, self._requests),
                ("tokens", caller.tokens, self._tokens),
            ):
                if item is not None:
                    _, left = await limiter.get_window_stats(item, kind, tenant)
                    found.append((tenant, kind, 1 - left / item.amount))
        return found


def _limit_reached(item: RateLimitItemPerMinute, kind: str, reset_s: float) -> RequestError:
    wait_s = math.ceil(reset_s - time.time())
    return overloaded(f"the limit of {item.amount} {kind} per minute is reached", wait_s, f"{kind}_per_minute")
