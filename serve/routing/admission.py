"""Admission: a request starts now, waits in the gateway for its place, or is refused at once. In service and in the simulator.

An engine runs as many sequences as the time per token allows that the budgets of the traffic ask for; what comes then waits,
in the order of the latest time at which each request must start. One that would wait too long is refused before it costs
others anything; one that would rather be late goes behind those that can be in time once it cannot be. Under overload tenants
share the work by max-min fairness: what is offered, up to a fair part of what can be done.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from serve.budget import Budget
from serve.errors import RequestError, overloaded
from serve.routing.budget_classes import BudgetClass, BudgetClasses
from serve.routing.candidate import Candidate
from serve.routing.catalog import Variant
from serve.routing.fair_shares import FairShares, Flow, Tenant
from serve.routing.gears import resting
from serve.routing.places import FreePlaces
from serve.routing.prediction import Features, Load
from serve.routing.router import Decision, Router
from serve.routing.step_limit import NOTICED, common_step_limit_ms
from serve.routing.waiting_queue import Waiting, WaitingQueue

BEST_EFFORT_S = 30.0  # that a request waits at most for others when it has no time limits or cannot meet them
_MAX_TRIED = 16  # decisions in vain whenever a place is free: each quality and cost asked for needs one


@dataclass(slots=True)
class Admission:
    """The waiting requests of one gateway, and the classes of their budgets."""

    router: Router
    classes: BudgetClasses = field(default_factory=BudgetClasses)
    _shares: FairShares = field(default_factory=FairShares)
    _queue: WaitingQueue = field(default_factory=WaitingQueue)
    _step_limit_ms: float = math.inf  # time per token that engines keep for all
    _resting: frozenset[str] = frozenset()
    _rolled: float = -1.0

    def __len__(self) -> int:
        """Number of waiting requests."""
        return len(self._queue)

    def decide(self, variants: Sequence[Variant], waiting: Waiting, now: float) -> Decision:
        """The decision about an arriving request: to start now or, with `Decision.wait_ms`, later. Changes no later one.

        Raises:
            RequestError: as `Router.decide`, and 429 when it would wait too long or too many wait already.
        """
        budget_class = self.classes.known(waiting.budget)
        decision = self._now(variants, waiting, budget_class, now)
        waiting.work_ms = _work_ms(decision.variant, waiting.features, decision.chosen)
        if decision.reason == "pinned":
            return decision
        if (known := budget_class.flows.get(waiting.tenant)) is None:
            known = Flow(self._shares.tenants.get(waiting.tenant) or Tenant(waiting.tenant))
        waiting.flow = known
        waiting.variant = decision.variant.name
        waiting.start_by = _start_by(waiting, decision, budget_class.margin, now)
        waiting.gives_up = waiting.start_by if waiting.rejects else waiting.arrived + BEST_EFFORT_S
        self._queue.rank(waiting)
        held = waiting.flow.tenant.over
        if not decision.chosen.harm and not held and not self._is_behind(waiting, decision, now):
            return decision
        decision.wait_ms = self._wait_ms(waiting, decision)
        if waiting.rejects:
            if decision.chosen.harm and not budget_class.bounds:
                raise _costs_too_much(decision)
            too_late = now + decision.wait_ms / 1000 > waiting.start_by
            if held or too_late:
                raise _too_long(decision)
        if now > waiting.arrived + BEST_EFFORT_S:
            decision.wait_ms = 0.0
        elif self._is_full(variants) and self._last_of_longest(waiting) is None:
            raise _room_full(decision)
        return decision

    def decide_begun(self, variants: Sequence[Variant], waiting: Waiting, now: float, full: bool) -> Decision:
        """The decision about a request whose answer was begun elsewhere: it starts now, whoever waits. Raises as `Router.decide`."""
        return self._now(variants, waiting, self.classes.known(waiting.budget), now, full)

    def submit(self, variants: Sequence[Variant], waiting: Waiting, now: float) -> None:
        """Decide about an arriving request, or let it wait."""
        budget_class = self.classes.of(waiting.budget)
        budget_class.profile = waiting.profile
        waiting.flow = budget_class.flow(self._shares.tenant(waiting.tenant, waiting.weight))
        try:
            decision = self.decide(variants, waiting, now)
        except RequestError as refused:
            if refused.status == 422 and waiting.left(now) != waiting.budget:
                return waiting.decided(self._out_of_time(variants, waiting, budget_class))
            if refused.status != 429:  # never possible: no demand that others should make room for
                return waiting.decided(refused)
            if best := max((v for v in variants if v.live.replicas), key=lambda v: v.quality.quality, default=None):
                _offer(waiting, budget_class, _work_ms(best, waiting.features) / best.live.replicas)
            self._shares.refused(waiting.flow.tenant)
            return waiting.decided(refused)
        _offer(waiting, budget_class, waiting.work_ms / (decision.chosen.load.replicas or 1))
        if decision.wait_ms == 0:
            self._admit(waiting, decision)
            return waiting.decided(decision)
        last = self._last_of_longest(waiting) if self._is_full(variants) else None
        if last is not None:
            self._queue.remove(last)
        self._queue.add(waiting)
        if last is not None:
            last.decided(_room_full(decision))

    def _out_of_time(self, variants: Sequence[Variant], waiting: Waiting, budget_class: BudgetClass) -> RequestError:
        """The refusal of a request whose budget nothing meets in what is left of it: 422 only if nothing did at its arrival."""
        try:
            self._now(variants, waiting, budget_class, waiting.arrived)
        except RequestError as refused:
            return refused
        if waiting.failed:
            message = "the replicas that failed left no time for this request; retry later"
            return RequestError(503, message, code="engine_unavailable", headers={"retry-after": "1"})
        return _no_time(0.0, "what came before it, such as retrieval, left no time for this request; retry later")

    def withdraw(self, waiting: Waiting) -> None:
        """Forget a request whose client has gone."""
        if waiting.queued:
            self._queue.remove(waiting)

    def pump(self, variants: Sequence[Variant], now: float) -> None:
        """Start the first waiting request that has a place now, and refuse those that cannot be in time any more.

        A request that needs more room than those behind it lets them go first, until the engine has to become empty for it to
        start in time. Call it again when the started one counts as in flight.
        """
        while (late := self._queue.due(now)) is not None:
            if self._start(variants, late, now, set(), due=True):
                return
        if not len(self._queue):
            return
        places, reserved, tried = FreePlaces(self.router.loads(variants), self._step_limit_ms), set[str](), 0
        in_vain = set[tuple[object, ...]]()
        for head in self._queue.heads():
            if head.flow.tenant.over:
                continue
            limit_ms = self._limit_ms(head, self.classes.known(head.budget))
            if head.kind not in in_vain and places.may_take(head, limit_ms):
                if self._start(variants, head, now, reserved):
                    return
                tried += 1
                if head.queued:
                    in_vain.add(head.kind)
            if head.queued and places.holds(head, limit_ms, now):
                head.holds = True
                reserved.add(head.variant)
            if tried == _MAX_TRIED:
                return

    def _start(
        self, variants: Sequence[Variant], waiting: Waiting, now: float, reserved: set[str], due: bool = False
    ) -> bool:
        """Whether a waiting request was started. One that cannot be, or is `due`, is refused; else it goes on waiting."""
        budget_class = self.classes.known(waiting.budget)
        try:
            decision = self._now(variants, waiting, budget_class, now)
        except RequestError as refused:
            if refused.status == 429 and not due:
                return False
            self._queue.remove(waiting)
            if refused.status == 422:  # what is left of a budget that was possible
                refused = _no_time(waiting.work_ms / 1000)
            waiting.decided(refused)
            return False
        harms = decision.chosen.harm > 0 or decision.variant.name in reserved
        if harms and not due:
            return False
        self._queue.remove(waiting)
        if harms and waiting.rejects:
            self._shares.refused(waiting.flow.tenant)
            waiting.decided(_too_long(decision))
            return False
        self._admit(waiting, decision)
        decision.waited = True
        waiting.decided(decision)
        return True

    def _admit(self, waiting: Waiting, decision: Decision) -> None:
        self.router.policy.on_admit(decision)
        if not waiting.counted:
            waiting.flow.tenant.admit(waiting.work_ms / (decision.chosen.load.replicas or 1))

    def class_of(self, budget: Budget) -> BudgetClass:
        """The class of `budget`, see `BudgetClasses.of`."""
        return self.classes.of(budget)

    def admitted_shares(self) -> dict[str, float]:
        """Share of the replicas' time that each tenant's admitted requests took of late, at most 1 together.

        Work is counted as if each request were alone: requests of one batch may be more than all of the time.
        """
        found = {name: tenant.admitted_ms / 1000 for name, tenant in self._shares.tenants.items()}
        all_of_it = max(sum(found.values()), 1.0)
        return {tenant: taken / all_of_it for tenant, taken in found.items()}

    def roll(self, variants: Sequence[Variant], now: float) -> None:
        """Update the classes' shares, and the waiting requests. Call it regularly."""
        classes = self.classes.values()
        if self._rolled >= 0 and now > self._rolled:
            for budget_class in classes:
                budget_class.roll(now - self._rolled, variants)
            self._shares.divide((flow for one in classes for flow in one.flows.values()), now - self._rolled)
            self._step_limit_ms = common_step_limit_ms(classes, variants, self._resting)
            requests = sum(one.requests for one in classes)
            demands = [one.demand for one in classes if one.bounds and one.requests > NOTICED * requests]
            self._resting = resting(variants, demands, self._resting)
        self._rolled = now
        self.pump(variants, now)

    def _limit_ms(self, waiting: Waiting, budget_class: BudgetClass) -> float:
        """Time per token that the request may cost others, and gets itself; one that takes what it gets bounds nobody alone."""
        if budget_class.bounds or waiting.rejects:
            return min(self._step_limit_ms, budget_class.step_limit_ms)
        return self._step_limit_ms

    def _now(
        self, variants: Sequence[Variant], waiting: Waiting, budget_class: BudgetClass, now: float, full: bool = False
    ) -> Decision:
        return self.router.decide(
            variants, waiting.left(now), waiting.features, pinned=waiting.pinned, failed=waiting.failed,
            margin=budget_class.margin, step_limit_ms=self._limit_ms(waiting, budget_class), resting=self._resting, full=full,
        )  # fmt: skip

    def _wait_ms(self, waiting: Waiting, decision: Decision) -> float:
        """Predicted wait: for the next place, after those that go first or its own flow, whose tenant's share is limited."""
        load, latency = decision.chosen.load, decision.variant.latency
        replicas = load.replicas or 1
        batch = max(load.requests / replicas, 1.0)
        next_ms = waiting.features.output_tokens * latency.step_ms(load, batch) / batch
        ahead_ms = self._queue.ahead_ms(waiting)
        return (max(ahead_ms, waiting.flow.queued_ms / waiting.flow.share) + next_ms) / replicas

    def _is_behind(self, waiting: Waiting, decision: Decision, now: float) -> bool:
        """Whether a request that waits for the same variant goes first, and does not need more room which it has time to get.

        Only for a request of a tenant within its share.
        """
        places: FreePlaces | None = None
        for other in self._queue.line(waiting.variant):
            if other.rank > waiting.rank:
                return False
            if other.flow.tenant.over:  # since it waits: it leaves free places to others
                continue
            if not other.is_larger(waiting):
                return True
            places = places or FreePlaces([(decision.variant, decision.chosen.load)], self._step_limit_ms)
            if places.holds(other, self._limit_ms(other, self.classes.known(other.budget)), now):
                return True
        return False

    def _is_full(self, variants: Sequence[Variant]) -> bool:
        """Whether as many requests wait as may."""
        return len(self._queue) >= sum(max(v.live.replicas, 1) * v.max_waiting for v in variants)

    def _last_of_longest(self, waiting: Waiting) -> Waiting | None:
        """Of a full queue, the last request of the tenant that has most in it for its weight; None if that is `waiting`'s own."""
        queued = {waiting.flow.tenant: waiting.work_ms / waiting.weight}
        for one in self.classes.values():
            for flow in one.flows.values():
                queued[flow.tenant] = queued.get(flow.tenant, 0.0) + flow.queued_ms / flow.tenant.weight
        longest = max(queued, key=lambda tenant: queued[tenant])
        return None if queued[longest] == queued[waiting.flow.tenant] else self._queue.last_of(longest)


def _offer(waiting: Waiting, budget_class: BudgetClass, work_ms: float) -> None:
    """Count a request's work as offered, once, whatever becomes of its attempts."""
    if not waiting.counted:
        budget_class.count(waiting.features)
        waiting.flow.offer(work_ms)


def _work_ms(variant: Variant, features: Features, candidate: Candidate | None = None) -> float:
    """Time that the request costs one replica, ms: its share of the batches that it is in, with prefill."""
    load = candidate.load if candidate else variant.live.load()
    batch = min(max(load.requests / (load.replicas or 1), 1.0), variant.max_running)
    uncached = candidate.uncached_tokens if candidate else features.prompt_tokens
    decodes = Load(colocated_busy_variants=load.colocated_busy_variants)
    decode_ms = features.total_output_tokens * variant.latency.step_ms(decodes, batch) / batch
    return decode_ms + uncached * variant.latency.ms_per_prefill_token


def _start_by(waiting: Waiting, decision: Decision, margin: float, now: float) -> float:
    """The latest time at which the request starts in time at the present load, if it takes `margin` times what is predicted.

    That of one without limits, where it may be late and cannot be in time.
    """
    expected, budget, by = decision.chosen.prediction, waiting.budget, waiting.arrived + BEST_EFFORT_S
    if budget.ttft_ms is not None:
        by = min(by, waiting.arrived + (budget.ttft_ms - margin * expected.ttft_ms) / 1000)
    if budget.e2e_ms is not None:
        by = min(by, waiting.arrived + (budget.e2e_ms - margin * expected.e2e_ms) / 1000)
    return by if by >= now or waiting.rejects else waiting.arrived + BEST_EFFORT_S


def _room_full(decision: Decision) -> RequestError:
    return overloaded("too many requests wait already; retry later", decision.wait_ms / 1000, "overloaded")


def _too_long(decision: Decision) -> RequestError:
    return _no_time(decision.chosen.prediction.expected.e2e_ms / 1000)


def _no_time(
    wait_s: float, message: str = "the requests that wait already leave no time for this one; retry later"
) -> RequestError:
    return overloaded(message, wait_s, "budget_under_load")


def _costs_too_much(decision: Decision) -> RequestError:
    chosen = decision.chosen
    message = (
        f"so short a time per token would slow down {chosen.harm} sequences in flight at '{decision.variant.name}', more than"
        " the fair share of such requests allows; retry later or raise tpot_ms"
    )
    return overloaded(message, chosen.prediction.expected.e2e_ms / 1000, "budget_under_load")
