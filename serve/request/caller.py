"""The authenticated caller of a request: tenant, default budget profile and rate limits."""

from dataclasses import dataclass

from limits import RateLimitItemPerMinute


@dataclass(slots=True, frozen=True)
class Caller:
    """The caller of a request: the tenant it is counted for, with its default budget and limits."""

    tenant: str
    budget: str  # name of the default profile
    requests: RateLimitItemPerMinute | None = None
    tokens: RateLimitItemPerMinute | None = None
    weight: float = 1.0  # of the tenant, where tenants share the engines
