"""Fair shares: the replicas' time by weighted max-min fairness among tenants.

Shares among the classes of budgets of one tenant cost 1 to 6 points of kept budgets, and the class kept least gained nothing by
them (`benchmarks.routing.ablation`): within a tenant, requests go by their latest start.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

MEMORY_S = 10.0  # over which work is averaged
_TOLERANCE = 1.05
_LEAST = 0.01
_CUT = 0.95  # of the capacity that is divided, whenever a tenant with less than its part was refused
_GROWTH, _CAREFUL = 0.01, 0.002  # of it a second; while one has less than its part
_LEAST_CAPACITY = 0.6


@dataclass(slots=True, eq=False)
class Tenant:
    """One tenant's use of the replicas, ms of all of them per second: a moving average, which an admitted request adds to at once."""

    name: str = ""
    weight: float = 1.0
    admitted_ms: float = 0.0
    part_ms: float = math.inf  # that it may have while others ask for more too
    wanting: bool = False  # whether it had less than its part, and than it asked for

    def admit(self, work_ms: float) -> None:
        """Count an admitted request."""
        self.admitted_ms += work_ms / MEMORY_S

    @property
    def over(self) -> bool:
        """Whether it had more than its part of late."""
        return self.admitted_ms > self.part_ms


@dataclass(slots=True, eq=False)
class Flow:
    """The requests of one tenant in one class of budgets; work in ms of all replicas, queued in ms of one."""

    tenant: Tenant = field(default_factory=Tenant)
    offered_ms: float = 0.0  # per second: a moving average
    queued_ms: float = 0.0
    fair: float = 1.0  # of the replicas' time: what it offers, up to its part
    share: float = 1.0  # that its tenant may plan with: also what nobody else asks for
    _offered_now_ms: float = 0.0

    def offer(self, work_ms: float) -> None:
        """Count an arriving request."""
        self._offered_now_ms += work_ms

    @property
    def recent_ms(self) -> float:
        """Work offered in about `MEMORY_S`, also since the last `roll`."""
        return self.offered_ms * MEMORY_S + self._offered_now_ms

    def roll(self, elapsed_s: float) -> None:
        """Update the average, `elapsed_s` after the last call."""
        self.offered_ms += (1 - math.exp(-elapsed_s / MEMORY_S)) * (self._offered_now_ms / elapsed_s - self.offered_ms)
        self._offered_now_ms = 0.0


def max_min(offered: Sequence[float], weights: Sequence[float], capacity: float) -> list[float]:
    """What each gets of `capacity`: what it offers, up to a part of what is left in proportion to its weight (water-filling)."""
    shares, left, weight = [0.0] * len(offered), capacity, sum(weights)
    for i in sorted(range(len(offered)), key=lambda i: offered[i] / weights[i]):
        shares[i] = min(offered[i], left * weights[i] / max(weight, weights[i]))
        left -= shares[i]
        weight -= weights[i]
    return shares


@dataclass(slots=True)
class FairShares:
    """Divides the replicas' time. `capacity` is learned: how much of it there is, in the unit of the predicted work.

    It has no limit until a tenant that has less than its part is refused for others' load. Then those over their part make room,
    and it grows slowly until that happens again.
    """

    capacity: float = math.inf
    tenants: dict[str, Tenant] = field(default_factory=dict)
    _short: bool = False

    def tenant(self, name: str, weight: float) -> Tenant:
        """The tenant called `name`, whose weight is `weight` now."""
        found = self.tenants.setdefault(name, Tenant(name))
        found.weight = weight
        return found

    def refused(self, tenant: Tenant) -> None:
        """Count a request that was refused because of the load."""
        self._short = self._short or tenant.wanting

    def divide(self, flows: Iterable[Flow], elapsed_s: float = 0.0) -> None:
        """Set the shares of all flows: their tenants' by weight; all may use the rest."""
        by_tenant: dict[Tenant, list[Flow]] = {}
        for flow in flows:
            by_tenant.setdefault(flow.tenant, []).append(flow)
        self.tenants = {tenant.name: tenant for tenant in by_tenant}
        if self._short:
            admitted = sum(tenant.admitted_ms for tenant in by_tenant) / 1000
            self.capacity = max(_CUT * min(self.capacity, admitted), _LEAST_CAPACITY)
        else:
            self.capacity *= 1 + elapsed_s * (_CAREFUL if any(tenant.wanting for tenant in by_tenant) else _GROWTH)
        self._short = False
        offered = [sum(flow.offered_ms for flow in its) / 1000 for its in by_tenant.values()]
        weights = [tenant.weight for tenant in by_tenant]
        shares, parts = max_min(offered, weights, 1.0), max_min(offered, weights, self.capacity)
        left = max(1.0 - sum(shares), 0.0)
        several = len(by_tenant) > 1
        for (tenant, its), share, part, wanted in zip(by_tenant.items(), shares, parts, offered, strict=True):
            tenant.admitted_ms *= math.exp(-elapsed_s / MEMORY_S)
            tenant.part_ms = 1000 * part * _TOLERANCE if several and part < wanted else math.inf
            tenant.wanting = several and tenant.admitted_ms * _TOLERANCE < 1000 * min(part, max(share, _LEAST))
            fair = max_min([flow.offered_ms / 1000 for flow in its], [1.0] * len(its), share)
            for flow, fair_share in zip(its, fair, strict=True):
                flow.fair, flow.share = fair_share, max(share + left, _LEAST)
