"""Classes of budgets: requests with the same limits, what was learned about them, and the flows of their tenants."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from serve.budget import Budget
from serve.routing.catalog import Variant
from serve.routing.fair_shares import MEMORY_S, Flow, Tenant
from serve.routing.gears import Demand
from serve.routing.online_estimators import RecentQuantile, log_ratio
from serve.routing.prediction import Features, Latency, Load
from serve.routing.router import Decision

LATE_SHARE = 0.05  # of the requests at nearly full engines that may take longer per token than their limit
LEAST_MARGIN, MOST_MARGIN = 0.8, 2.5
_WAIT_LEVEL = 0.6  # quantile of the times to the first token and of all: few wait until the edge of their limits
_QUIET_S = 30.0  # without an answer, after which margins decay: one that lets nothing in would last for ever
_FORGOTTEN = 0.02  # of them a second
MAX_CLASSES = 64

Key = tuple[object, ...]


@dataclass(slots=True, eq=False)
class BudgetClass:
    """Requests with the same limits: offered per second, as moving averages, and what was learned about them."""

    tpot_ms: float  # its limit; infinite without one
    min_quality: float = 0.0
    requests: float = 0.0
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    flows: dict[str, Flow] = field(default_factory=dict)  # by tenant
    profile: str = ""  # of its last request
    # of log(observed / predicted)
    waits: RecentQuantile = field(default_factory=lambda: RecentQuantile(_WAIT_LEVEL, 0.0))
    steps: RecentQuantile = field(default_factory=lambda: RecentQuantile(1 - LATE_SHARE, math.log(1.1)))
    possible: bool = True  # whether a variant of the quality keeps `tpot_ms` when it is idle
    bounds: bool = True  # whether it may bound how many sequences engines run, see `serve.routing.step_limit`
    quiet_s: float = 0.0  # since it learned from an answer
    _now: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def flow(self, tenant: Tenant) -> Flow:
        """The requests of `tenant`."""
        return self.flows.setdefault(tenant.name, Flow(tenant))

    def count(self, features: Features) -> None:
        """Count an arriving request."""
        requests, prompt, output = self._now
        self._now = requests + 1, prompt + features.prompt_tokens, output + features.total_output_tokens

    @property
    def offered_ms(self) -> float:
        """Work offered per second by all tenants, ms of all replicas."""
        return sum(flow.offered_ms for flow in self.flows.values())

    @property
    def queued_ms(self) -> float:
        """Work that waits, ms of one replica."""
        return sum(flow.queued_ms for flow in self.flows.values())

    @property
    def recent_ms(self) -> float:
        """Work offered in about `MEMORY_S`, also since the last `roll`."""
        return sum(flow.recent_ms for flow in self.flows.values())

    @property
    def demand(self) -> Demand:
        """What it asks for."""
        return Demand(self.requests, self.prompt_tokens, self.output_tokens, self.step_limit_ms, self.min_quality)

    def roll(self, elapsed_s: float, variants: Sequence[Variant]) -> None:
        """Update the averages, `elapsed_s` after the last call."""
        weight = 1 - math.exp(-elapsed_s / MEMORY_S)
        before = self.requests, self.prompt_tokens, self.output_tokens
        self.requests, self.prompt_tokens, self.output_tokens = (
            old + weight * (new / elapsed_s - old) for old, new in zip(before, self._now, strict=True)
        )
        self._now = (0.0, 0.0, 0.0)
        for flow in self.flows.values():
            flow.roll(elapsed_s)
        for tenant in [t for t, one in self.flows.items() if one.recent_ms < _FORGOTTEN and not one.queued_ms]:
            del self.flows[tenant]
        idle_ms = (_idle_step_ms(v) for v in variants if v.quality.quality >= self.min_quality)
        self.possible = min(idle_ms, default=0.0) <= self.tpot_ms
        self.quiet_s += elapsed_s
        if self.quiet_s > _QUIET_S:
            for learned in (self.waits, self.steps):
                learned.decay(_FORGOTTEN * min(elapsed_s, 1.0))

    @property
    def step_limit_ms(self) -> float:
        """The predicted time per token that keeps its limit; infinite where nothing can, as others would gain nothing by it."""
        return self.tpot_ms / self.step_margin if self.possible else math.inf

    @property
    def margin(self) -> float:
        """Predicted times to the first token and of all, so many times as long, must be within their limits."""
        return _clipped(self.waits.value)

    @property
    def step_margin(self) -> float:
        """The same of the time per token."""
        return _clipped(self.steps.value)

    def observe(self, decision: Decision, took: Latency) -> None:
        """Learn from an admitted request how much longer than predicted its times were.

        The time per token counts where the engine ran nearly as much as it may, and compared with what that should take.
        """
        expected, budget = decision.chosen.prediction.expected, decision.chosen.budget
        self.quiet_s = 0.0
        if budget.ttft_ms is not None:
            self.waits.observe(log_ratio(took.ttft_ms, expected.ttft_ms))
        elif budget.e2e_ms is not None:
            self.waits.observe(log_ratio(took.e2e_ms, expected.e2e_ms))
        if took.tpot_ms and decision.chosen.fills:
            self.steps.observe(log_ratio(took.tpot_ms, decision.chosen.step_limit_ms))


class BudgetClasses(OrderedDict[Key, BudgetClass]):
    """The classes of one gateway, the least recently used first; at most `MAX_CLASSES`."""

    def of(self, budget: Budget) -> BudgetClass:
        """The class of `budget`. A new one replaces that which offered least, then the least recently used."""
        key = key_of(budget)
        found = self.get(key)
        if found is None:
            found = _new_class(budget)
            while len(self) >= MAX_CLASSES:
                del self[min(self, key=lambda one: self[one].recent_ms)]
            self[key] = found
        self.move_to_end(key)
        return found

    def known(self, budget: Budget) -> BudgetClass:
        """The class of `budget`, or one like a new one: decisions alone leave no trace."""
        return self.get(key_of(budget)) or _new_class(budget)

    def state(self) -> list[object]:
        """The classes with their margins, for `restore`."""
        return [[list(key), one.waits.state(), one.steps.state()] for key, one in self.items()]

    def restore(self, state: Any) -> None:
        """Take over the margins that another gateway learned, for classes that are not known here."""
        for key, waits, steps in state:
            if tuple(key) not in self:
                one = self[tuple(key)] = BudgetClass(key[1] or math.inf, key[3] or 0.0)
                one.waits.restore(waits)
                one.steps.restore(steps)

    def margins(self) -> dict[str, float]:
        """The highest margin of each profile's classes."""
        found: dict[str, float] = {}
        for one in self.values():
            if not one.profile:  # restored, and not asked for yet
                continue
            found[one.profile] = max(one.margin, one.step_margin, found.get(one.profile, 0.0))
        return found


def key_of(budget: Budget) -> Key:
    """The limits that requests of a class have in common."""
    return (budget.ttft_ms, budget.tpot_ms, budget.e2e_ms, budget.min_quality, budget.max_cost)


def _new_class(budget: Budget) -> BudgetClass:
    return BudgetClass(budget.tpot_ms or math.inf, budget.min_quality or 0.0)


def _clipped(log_margin: float) -> float:
    return min(max(math.exp(log_margin), LEAST_MARGIN), MOST_MARGIN)


def _idle_step_ms(variant: Variant) -> float:
    """Time per token of a request alone: the profile's or, if it is shorter, the present one."""
    profiled_ms = min(point.p50_ms for point in variant.profile.tpot)
    return min(profiled_ms, variant.latency.step_ms(Load(), 1))
