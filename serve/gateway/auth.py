"""Authentication: bearer API keys, stored as hashes, or anonymous callers where the configuration allows them."""

import hashlib
import secrets
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Literal

from limits import RateLimitItemPerMinute

from serve.config.sections import AccessConfig, ServerConfig
from serve.errors import RequestError
from serve.gateway.cross_origin import CrossOriginProtection
from serve.gateway.rate_limits import Limits
from serve.gateway.shared_store import SharedStore
from serve.request.caller import Caller
from serve.telemetry.metrics import Metrics


def new_key() -> tuple[str, str]:
    """Generate an API key; returns it with its SHA-256, which goes into the configuration."""
    key = f"gbx-{secrets.token_urlsafe(32)}"
    return key, hash_key(key)


def hash_key(key: str) -> str:
    """SHA-256 of a key, hexadecimal. Keys are 256 random bits, so no slow hash is needed."""
    return hashlib.sha256(key.encode()).hexdigest()


class Gatekeeper:
    """Authenticates callers and enforces rate limits, across gateways only with a shared `rate_limit_store`."""

    def __init__(
        self, access: AccessConfig, server: ServerConfig | None = None, metrics: Metrics | None = None
    ) -> None:
        self.store = SharedStore(access, (metrics or Metrics()).rate_limit_store_failures)
        self._limits = Limits(self.store)
        self._protection = CrossOriginProtection(server or ServerConfig())
        self.reconfigure(access)

    def reconfigure(self, access: AccessConfig) -> None:
        """Accept the keys of `access` from now on. Counts stay, and the store set at start is not replaced."""
        self.store.reconfigure(access)
        self._callers = {
            key.sha256: Caller(
                key.tenant,
                key.budget,
                RateLimitItemPerMinute(key.requests_per_minute) if key.requests_per_minute else None,
                RateLimitItemPerMinute(key.tokens_per_minute) if key.tokens_per_minute else None,
                key.weight,
            )
            for key in access.keys
        }
        self._anonymous = Caller("anonymous", access.anonymous_profile) if access.allow_anonymous else None
        self._limited: dict[str, Caller] = {}  # by tenant, with the limits of all its keys
        for caller in self._callers.values():
            if caller.requests or caller.tokens:
                other = self._limited.get(caller.tenant, caller)
                requests, tokens = caller.requests or other.requests, caller.tokens or other.tokens
                self._limited[caller.tenant] = replace(caller, requests=requests, tokens=tokens)

    @property
    def tenants(self) -> list[str]:
        """All configured tenants, in the configuration's order."""
        anonymous = [self._anonymous.tenant] if self._anonymous else []
        return list(dict.fromkeys([*(caller.tenant for caller in self._callers.values()), *anonymous]))

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """Return the caller of a request by its `authorization` header. Raises `RequestError` 401.

        Where anonymous access is allowed and no keys are configured, any key is accepted (many clients always send one).
        Requests without a known key must pass the cross-origin checks (403, 415), see `serve.gateway.cross_origin`.
        """
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if key and scheme.lower() == "bearer" and (caller := self._callers.get(hash_key(key.strip()))):
            return caller
        if self._anonymous is not None and (not key or not self._callers):
            self._protection.check(headers)
            return self._anonymous
        challenge = {"www-authenticate": "Bearer"}
        if not key:
            raise RequestError(
                401, "an API key is needed: 'Authorization: Bearer gbx-…'", code="missing_api_key", headers=challenge
            )
        raise RequestError(401, "this API key is not known", code="invalid_api_key", headers=challenge)

    async def admit(self, caller: Caller) -> None:
        """Count one request of `caller`.

        Raises:
            RequestError: 429 with `Retry-After` when a limit is reached; 503 when the rate-limit store fails.
        """
        await self._limits.admit(caller.tenant, caller.requests, caller.tokens)

    async def charge(self, caller: Caller, tokens: int) -> None:
        """Count the tokens of a finished request. They may exceed the limit; later requests are then rejected.

        A failing store does not raise, because the response was already sent.
        """
        await self._limits.charge(caller.tenant, caller.tokens, tokens)

    async def used(self, tenants: Collection[str]) -> list[tuple[str, str, float]]:
        """Utilization of the rate limits of `tenants`: (tenant, limit, used share), limit being requests or tokens.

        Raises:
            StoreUnavailable: the rate-limit store fails.
        """
        kinds: tuple[Literal["requests", "tokens"], ...] = ("requests", "tokens")
        return [
            (tenant, kind, await self._limits.used(tenant, kind, limit))
            for tenant in tenants
            if (caller := self._limited.get(tenant)) is not None
            for kind in kinds
            if (limit := getattr(caller, kind)) is not None
        ]
