"""Admission: a request starts now, waits in the gateway for its place, or is refused at once. In service and in the simulator.

An engine runs as many sequences as the time per token allows that the budgets of the traffic ask for; what comes then waits,
in the order of the latest time at which each request must start. One that would wait too long is refused before it costs
others anything. Under overload the classes of budgets share the work by max-min fairness: what is offered, up to an equal
share of what can be done.
"""

import math
from bisect import insort
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from serve.budget import Budget, remaining
from serve.errors import RequestError, overloaded
from serve.routing.catalog import Variant
from serve.routing.gears import Demand, resting
from serve.routing.online_estimators import RecentQuantile, log_ratio
from serve.routing.prediction import Features, Latency, Load
from serve.routing.router import Candidate, Decision, Router

BEST_EFFORT_S = 30.0  # that a request waits at most for others when it has no time limits or cannot meet them
_HOPE = 0.25  # of the mean time until a place is free: those that can wait longer than others may find one sooner
_WAIT_LEVEL = 0.6  # quantile of the times to the first token and of all: few wait until the edge of their limits
LATE_SHARE = 0.05  # of the requests at nearly full engines that may take longer per token than their limit
LEAST_MARGIN, MOST_MARGIN = 0.8, 2.5
_SHARE_TOLERANCE = 1.05
_NOTICED = 0.05  # share of the offered work from which on a class's limits matter to others
_MEMORY_S = 10.0  # over which offered work is averaged
_QUIET_S = 30.0  # without an answer, after which margins decay: one that lets nothing in would last for ever
_FORGOTTEN = 0.02  # of them a second
_MAX_CLASSES = 64
_MAX_TRIED = 16  # decisions in vain whenever a place is free: each quality and cost asked for needs one


@dataclass(slots=True)
class BudgetClass:
    """Requests with the same limits: offered work in ms of all replicas, queued in ms of one, and what was learned about them."""

    tpot_ms: float  # its limit; infinite without one
    min_quality: float = 0.0
    offered_ms: float = 0.0  # of this, and of the next three, per second: moving averages
    requests: float = 0.0
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    admitted_ms: float = 0.0  # the same, of the admitted requests
    queued_ms: float = 0.0
    share: float = 1.0  # of the replicas' time that it may plan with
    profile: str = ""  # of its last request
    # of log(observed / predicted)
    waits: RecentQuantile = field(default_factory=lambda: RecentQuantile(_WAIT_LEVEL, 0.0))
    steps: RecentQuantile = field(default_factory=lambda: RecentQuantile(1 - LATE_SHARE, math.log(1.1)))
    possible: bool = True  # whether a variant of the quality keeps `tpot_ms` when it is idle
    quiet_s: float = 0.0  # since it learned from an answer
    _admitted_now_ms: float = 0.0
    _now: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def offer(self, work_ms: float, features: Features) -> None:
        """Count an arriving request."""
        ms, requests, prompt, output = self._now
        self._now = ms + work_ms, requests + 1, prompt + features.prompt_tokens, output + features.total_output_tokens

    def admit(self, work_ms: float) -> None:
        """Count an admitted request."""
        self._admitted_now_ms += work_ms

    @property
    def recent_ms(self) -> float:
        """Work offered in about `_MEMORY_S`, also since the last `roll`."""
        return self.offered_ms * _MEMORY_S + self._now[0]

    @property
    def over_share(self) -> bool:
        """Whether it got more than its share of late."""
        return self.admitted_ms > 1000 * self.share * _SHARE_TOLERANCE

    def roll(self, elapsed_s: float) -> None:
        """Update the average, `elapsed_s` after the last call."""
        weight = 1 - math.exp(-elapsed_s / _MEMORY_S)
        before = self.offered_ms, self.requests, self.prompt_tokens, self.output_tokens
        self.offered_ms, self.requests, self.prompt_tokens, self.output_tokens = (
            old + weight * (new / elapsed_s - old) for old, new in zip(before, self._now, strict=True)
        )
        self._now = (0.0, 0.0, 0.0, 0.0)
        self.admitted_ms += weight * (self._admitted_now_ms / elapsed_s - self.admitted_ms)
        self._admitted_now_ms = 0.0
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


@dataclass(slots=True, eq=False)
class Waiting:
    """A request that has no decision yet; `decided` is called once with it. Times are seconds of the caller's clock."""

    budget: Budget
    features: Features
    arrived: float
    decided: Callable[[Decision | RequestError], None]
    pinned: str | None = None
    failed: Collection[str] = ()
    profile: str = ""
    start_by: float = math.inf  # the latest start that is in time
    variant: str = ""  # that it waits for
    work_ms: float = 0.0

    def __lt__(self, other: "Waiting") -> bool:
        return self.start_by < other.start_by

    def left(self, now: float) -> Budget:
        """The rest of its budget."""
        return remaining(self.budget, now - self.arrived)


@dataclass(slots=True)
class Admission:
    """The waiting requests of one gateway, and the classes of their budgets."""

    router: Router
    classes: OrderedDict[tuple[object, ...], BudgetClass] = field(default_factory=OrderedDict)
    _waiting: list[Waiting] = field(default_factory=list)  # in the order of `start_by`
    _step_limit_ms: float = math.inf  # time per token that the classes which are offered now need
    _resting: frozenset[str] = frozenset()
    _rolled: float = -1.0

    def __len__(self) -> int:
        """Number of waiting requests."""
        return len(self._waiting)

    def class_of(self, budget: Budget) -> BudgetClass:
        """The class of `budget`. A new one replaces that which offered least, then the least recently used, of `_MAX_CLASSES`."""
        key = _key(budget)
        found = self.classes.get(key)
        if found is None:
            found = _new_class(budget)
            while len(self.classes) >= _MAX_CLASSES:
                del self.classes[min(self.classes, key=lambda one: self.classes[one].recent_ms)]
            self.classes[key] = found
        self.classes.move_to_end(key)
        return found

    def _known(self, budget: Budget) -> BudgetClass:
        """The class of `budget`, or one like a new one: decisions alone leave no trace."""
        return self.classes.get(_key(budget)) or _new_class(budget)

    def decide(self, variants: Sequence[Variant], waiting: Waiting, now: float) -> Decision:
        """The decision about an arriving request: to start now or, with `Decision.wait_ms`, later.

        Raises:
            RequestError: as `Router.decide`, and 429 when it would wait too long.
        """
        its_class = self._known(waiting.budget)
        decision = self._now(variants, waiting, its_class, now)
        waiting.work_ms = _work_ms(decision.variant, waiting.features, decision.chosen)
        if decision.reason == "pinned":
            return decision
        waiting.variant = decision.variant.name
        waiting.start_by = _start_by(waiting, decision, its_class.margin)
        if not decision.chosen.harm and not self._is_behind(waiting):
            return decision
        decision.wait_ms = self._wait_ms(waiting, decision, its_class)
        if waiting.budget.on_no_candidate == "reject" and (
            now + decision.wait_ms / 1000 > waiting.start_by or (its_class.over_share and self._endangers(waiting, now))
        ):
            raise _too_long(decision)
        if now > waiting.arrived + BEST_EFFORT_S:
            decision.wait_ms = 0.0
        return decision

    def submit(self, variants: Sequence[Variant], waiting: Waiting, now: float) -> None:
        """Decide about an arriving request, or let it wait."""
        its_class = self.class_of(waiting.budget)
        its_class.profile = waiting.profile
        try:
            decision = self.decide(variants, waiting, now)
        except RequestError as refused:
            if refused.status != 429:  # never possible: no demand that others should make room for
                return waiting.decided(refused)
            if best := max((v for v in variants if v.live.replicas), key=lambda v: v.quality.quality, default=None):
                its_class.offer(_work_ms(best, waiting.features) / best.live.replicas, waiting.features)
            return waiting.decided(refused)
        replicas = decision.chosen.load.replicas or 1
        its_class.offer(waiting.work_ms / replicas, waiting.features)
        if decision.wait_ms == 0:
            its_class.admit(waiting.work_ms / replicas)
            return waiting.decided(decision)
        if len(self._waiting) >= sum(max(v.live.replicas, 1) * v.max_waiting for v in variants):
            wait_s = decision.wait_ms / 1000
            return waiting.decided(overloaded("too many requests wait already; retry later", wait_s, "overloaded"))
        its_class.queued_ms += waiting.work_ms
        insort(self._waiting, waiting)

    def withdraw(self, waiting: Waiting) -> None:
        """Forget a request whose client has gone."""
        if waiting in self._waiting:
            self._remove(waiting)

    def pump(self, variants: Sequence[Variant], now: float) -> None:
        """Start the first waiting request that has a place now, and refuse those that cannot be in time any more.

        Call it again when the started one counts as in flight.
        """
        blocked: set[tuple[object, ...]] = set()
        for waiting in list(self._waiting):
            queue = waiting.variant, waiting.budget.min_quality, waiting.budget.max_cost, frozenset(waiting.failed)
            rejects = waiting.budget.on_no_candidate == "reject"
            overdue = now > (waiting.start_by if rejects else waiting.arrived + BEST_EFFORT_S)
            if not overdue and (queue in blocked or len(blocked) >= _MAX_TRIED):
                continue
            try:
                decision = self._now(variants, waiting, self.class_of(waiting.budget), now)
            except RequestError as refused:
                if refused.status == 429 and not overdue:
                    blocked.add(queue)
                    continue
                self._remove(waiting)
                if refused.status == 422:  # what is left of a budget that was possible
                    refused = _no_time(waiting.work_ms / 1000)
                waiting.decided(refused)
                continue
            if decision.chosen.harm and not overdue:
                blocked.add(queue)
                continue
            self._remove(waiting)
            if decision.chosen.harm and rejects:
                waiting.decided(_too_long(decision))
                continue
            self.class_of(waiting.budget).admit(waiting.work_ms / (decision.chosen.load.replicas or 1))
            decision.waited = True
            return waiting.decided(decision)

    def state(self) -> list[object]:
        """The classes with their margins, for `restore`."""
        return [[list(key), one.waits.state(), one.steps.state()] for key, one in self.classes.items()]

    def restore(self, state: Any) -> None:
        """Take over the margins that another gateway learned, for classes that are not known here."""
        for key, waits, steps in state:
            if tuple(key) not in self.classes:
                one = self.classes[tuple(key)] = BudgetClass(key[1] or math.inf, key[3] or 0.0)
                one.waits.restore(waits)
                one.steps.restore(steps)

    def margins(self) -> dict[str, float]:
        """The highest margin of each profile's classes."""
        found: dict[str, float] = {}
        for one in self.classes.values():
            if not one.profile:  # restored, and not asked for yet
                continue
            found[one.profile] = max(one.margin, one.step_margin, found.get(one.profile, 0.0))
        return found

    def roll(self, variants: Sequence[Variant], now: float) -> None:
        """Update the classes' shares, and the waiting requests. Call it regularly."""
        if self._rolled >= 0 and now > self._rolled:
            for its_class in self.classes.values():
                its_class.roll(now - self._rolled)
                idle_ms = (_idle_step_ms(v) for v in variants if v.quality.quality >= its_class.min_quality)
                its_class.possible = min(idle_ms, default=0.0) <= its_class.tpot_ms
            self._share()
            classes = self.classes.values()
            demands = [
                Demand(one.requests, one.prompt_tokens, one.output_tokens, one.step_limit_ms, one.min_quality)
                for one in classes if one.requests > _NOTICED * sum(other.requests for other in classes)
            ]  # fmt: skip
            self._resting = resting(variants, demands, self._resting)
        self._rolled = now
        self.pump(variants, now)

    def _now(self, variants: Sequence[Variant], waiting: Waiting, its_class: BudgetClass, now: float) -> Decision:
        return self.router.decide(
            variants, waiting.left(now), waiting.features, pinned=waiting.pinned, failed=waiting.failed,
            margin=its_class.margin, step_limit_ms=min(self._step_limit_ms, its_class.step_limit_ms), resting=self._resting,
        )  # fmt: skip

    def _wait_ms(self, waiting: Waiting, decision: Decision, its_class: BudgetClass) -> float:
        """Predicted wait: for the next place, after those that must start earlier or its own class, whose share is limited."""
        load, latency = decision.chosen.load, decision.variant.latency
        replicas = load.replicas or 1
        batch = max(load.requests / replicas, 1.0)
        next_ms = _HOPE * waiting.features.output_tokens * latency.step_ms(load, batch) / batch
        ahead_ms = sum(other.work_ms for other in self._waiting if other < waiting and other.variant == waiting.variant)
        return (max(ahead_ms, its_class.queued_ms / its_class.share) + next_ms) / replicas

    def _endangers(self, waiting: Waiting, now: float) -> bool:
        """Whether there is no time for a waiting request of another class, if this one is done first."""
        key, ahead_ms = _key(waiting.budget), waiting.work_ms
        for other in self._waiting:
            if other.variant == waiting.variant and _key(other.budget) != key:
                ahead_ms += other.work_ms
                if now + ahead_ms / 1000 > other.start_by:
                    return True
        return False

    def _is_behind(self, waiting: Waiting) -> bool:
        """Whether a request that waits for the same variant must start earlier."""
        for other in self._waiting:
            if other.start_by > waiting.start_by:
                return False
            if other.variant == waiting.variant:
                return True
        return False

    def _remove(self, waiting: Waiting) -> None:
        self._waiting.remove(waiting)
        its_class = self.class_of(waiting.budget)
        left_ms = its_class.queued_ms - waiting.work_ms
        its_class.queued_ms = left_ms if left_ms > 1e-6 else 0.0  # less is what rounding leaves

    def _share(self) -> None:
        """Max-min fairness: each class gets what it offers, up to an equal share of what is left; then all may use the rest."""
        left, classes = 1.0, sorted(self.classes.values(), key=lambda one: one.offered_ms)
        for i, one in enumerate(classes):
            one.share = min(one.offered_ms / 1000, left / (len(classes) - i))
            left -= one.share
        for one in classes:
            one.share = max(one.share + left, 0.01)
        demand = sum(one.offered_ms for one in classes)
        noticed = (one.step_limit_ms for one in classes if one.offered_ms > _NOTICED * demand)
        self._step_limit_ms = min(noticed, default=math.inf)


def _key(budget: Budget) -> tuple[object, ...]:
    return (budget.ttft_ms, budget.tpot_ms, budget.e2e_ms, budget.min_quality, budget.max_cost)


def _new_class(budget: Budget) -> BudgetClass:
    return BudgetClass(budget.tpot_ms or math.inf, budget.min_quality or 0.0)


def _clipped(log_margin: float) -> float:
    return min(max(math.exp(log_margin), LEAST_MARGIN), MOST_MARGIN)


def _idle_step_ms(variant: Variant) -> float:
    """Time per token of a request alone: the profile's or, if it is shorter, the present one."""
    profiled_ms = min(point.p50_ms for point in variant.profile.tpot)
    return min(profiled_ms, variant.latency.step_ms(Load(), 1))


def _work_ms(variant: Variant, features: Features, candidate: Candidate | None = None) -> float:
    """Time that the request costs one replica, ms: its share of the batches that it is in, with prefill."""
    load = candidate.load if candidate else variant.live.load()
    batch = min(max(load.requests / (load.replicas or 1), 1.0), variant.max_running)
    uncached = candidate.uncached_tokens if candidate else features.prompt_tokens
    alone = load._replace(prefill_per_token=0.0)
    decode_ms = features.total_output_tokens * variant.latency.step_ms(alone, batch) / batch
    return decode_ms + uncached * variant.latency.ms_per_prefill_token


def _start_by(waiting: Waiting, decision: Decision, margin: float) -> float:
    """The latest time at which the request starts in time at the present load, if it takes `margin` times what is predicted."""
    ttft_ms, _, e2e_ms = decision.chosen.prediction.expected
    budget, by = waiting.budget, waiting.arrived + BEST_EFFORT_S
    if budget.ttft_ms is not None:
        by = min(by, waiting.arrived + (budget.ttft_ms - margin * ttft_ms) / 1000)
    if budget.e2e_ms is not None:
        by = min(by, waiting.arrived + (budget.e2e_ms - margin * e2e_ms) / 1000)
    return max(by, waiting.arrived)  # what cannot be in time is due at once, not before all others


def _too_long(decision: Decision) -> RequestError:
    return _no_time(decision.chosen.prediction.expected.e2e_ms / 1000)


def _no_time(wait_s: float) -> RequestError:
    message = "the requests that wait already leave no time for this one; retry later"
    return overloaded(message, wait_s, "budget_under_load")
