"""Admission: a request starts now, waits in the gateway for its place, or is refused at once. In service and in the simulator.

Requests wait in the order of the latest time at which each must start. One that would make requests under way miss their limits
waits; one that is unlikely to be in time is refused before it costs others anything. Under overload, work is shared among the
classes of budgets by max-min fairness: what is offered, up to an equal share of what can be done.
"""

import math
from bisect import insort
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from serve.budget import Budget, remaining
from serve.errors import RequestError, overloaded
from serve.routing.catalog import Variant
from serve.routing.policies import ORDER
from serve.routing.prediction import Features
from serve.routing.router import HARMLESS, LEAST_CHANCE, Candidate, Decision, Router

BEST_EFFORT_S = 30.0  # that a request without time limits, or one that cannot meet them, waits at most for others
LATE_SHARE = 0.05  # of the admitted requests of a class that may miss their limits
_CAUTION_STEP = 0.04
_LEAST_CAUTION, _MOST_CAUTION = 0.5, 0.97
_PLACES_LEVEL = 0.9  # quantile of the time per token that keeps the tightest limit while all places are taken
_RELAXED, _SCARCE = 1.0, 1.5  # offered work in units of one replica's time: nothing is scarce below, all is above
_NOTICED = 0.05  # share of the offered work from which on a class's limits matter to others
_HOPELESS = 0.5  # times the class's caution: a waiting request with a lower chance is refused
_MEMORY_S = 10.0  # over which offered work is averaged
_MAX_CLASSES = 64


@dataclass(slots=True)
class BudgetClass:
    """Requests with the same limits: offered and queued work in ms of one replica, and what was learned about them."""

    tpot_ms: float  # its limit; infinite without one
    offered_ms: float = 0.0  # per second, moving average
    queued_ms: float = 0.0
    share: float = 1.0  # of the replicas' time that it may plan with
    profile: str = ""  # of its last request
    caution: float = 0.8  # least chance of meeting the limits at which a request is admitted
    _offered_now_ms: float = 0.0

    def offer(self, work_ms: float) -> None:
        """Count an arriving request."""
        self._offered_now_ms += work_ms

    def roll(self, elapsed_s: float) -> None:
        """Update the average, `elapsed_s` after the last call."""
        weight = 1 - math.exp(-elapsed_s / _MEMORY_S)
        self.offered_ms += weight * (self._offered_now_ms / elapsed_s - self.offered_ms)
        self._offered_now_ms = 0.0

    def observe(self, kept: bool) -> None:
        """Adapt the caution to the outcome of an admitted request, so that `LATE_SHARE` of them are late."""
        caution = self.caution + _CAUTION_STEP * ((not kept) - LATE_SHARE)
        self.caution = min(max(caution, _LEAST_CAUTION), _MOST_CAUTION)


@dataclass(slots=True, eq=False)
class Waiting:
    """A request that has no decision yet; `decided` is called once with it. Times are seconds of the caller's clock."""

    budget: Budget
    features: Features
    arrived: float
    decided: Callable[[Decision | RequestError], None]
    pinned: str | None = None
    failed: Collection[str] = ()
    start_by: float = math.inf  # the latest start that is in time
    variant: str = ""  # that it waits for
    work_ms: float = 0.0
    profile: str = ""

    def __lt__(self, other: "Waiting") -> bool:
        return self.start_by < other.start_by

    @property
    def patience(self) -> float:
        """Until when it waits at most, whatever it would do to others."""
        return self.arrived + BEST_EFFORT_S

    def left(self, now: float) -> Budget:
        """The rest of its budget."""
        return remaining(self.budget, now - self.arrived)


@dataclass(slots=True)
class Admission:
    """The waiting requests of one gateway, and the classes of their budgets."""

    router: Router
    classes: "OrderedDict[tuple[object, ...], BudgetClass]" = field(default_factory=OrderedDict)
    _waiting: list[Waiting] = field(default_factory=list)  # in the order of `start_by`
    _demand: float = 0.0  # offered work in units of what one replica does
    _tightest_ms: float = math.inf  # time per token that the classes which are offered now need
    _rolled: float = -1.0

    def __len__(self) -> int:
        """Number of waiting requests."""
        return len(self._waiting)

    def class_of(self, budget: Budget) -> BudgetClass:
        """The class of `budget`; of the least recently used, only `_MAX_CLASSES` are kept."""
        key = (budget.ttft_ms, budget.tpot_ms, budget.e2e_ms, budget.min_quality, budget.max_cost)
        found = self.classes.get(key)
        if found is None:
            found = self.classes[key] = BudgetClass(budget.tpot_ms or math.inf)
            if len(self.classes) > _MAX_CLASSES:
                self.classes.popitem(last=False)
        self.classes.move_to_end(key)
        return found

    def decide(self, variants: Sequence[Variant], waiting: Waiting, now: float) -> Decision:
        """The decision about an arriving request: to start now or, with `Decision.wait_ms`, later. Changes nothing.

        Raises:
            RequestError: as `Router.decide`, and 429 when it would wait too long.
        """
        budget = waiting.left(now)
        its_class = self.class_of(waiting.budget)
        try:
            decision = self._now(variants, waiting, budget, its_class, now)
        except RequestError as refused:
            if refused.code != "budget_under_load" or not self.router.schedules:
                raise
            if (later := self._later(variants, waiting, budget, its_class, now)) is None:
                raise
            return later
        if decision.reason == "pinned" or not self.router.schedules:
            return decision
        if self._crowds(waiting, decision, now):
            return self._later(variants, waiting, budget, its_class, now) or decision
        if (
            decision.reason == "nearest_miss"
            and decision.chosen.harm <= HARMLESS
            and not self._is_behind(waiting, decision)
        ):
            return decision
        if decision.reason == "nearest_miss" or self._is_behind(waiting, decision):
            later = self._later(variants, waiting, budget, its_class, now)
            if later is not None:
                return later
            if budget.on_no_candidate == "reject":
                raise _too_long(decision)
            if now < waiting.patience:
                decision.wait_ms = 1.0
        return decision

    def submit(self, variants: Sequence[Variant], waiting: Waiting, now: float) -> None:
        """Decide about an arriving request, or let it wait."""
        its_class = self.class_of(waiting.budget)
        its_class.profile = waiting.profile
        try:
            decision = self.decide(variants, waiting, now)
        except RequestError as refused:
            self._offer(its_class, variants, waiting)
            return waiting.decided(refused)
        waiting.work_ms = _work_ms(decision.variant, waiting.features, decision.chosen)
        its_class.offer(waiting.work_ms)
        if decision.wait_ms == 0:
            return waiting.decided(decision)
        limit = sum(max(v.live.replicas, 1) * v.max_waiting for v in variants)
        if len(self._waiting) >= limit:
            return waiting.decided(_too_long(decision))
        waiting.variant = decision.variant.name
        waiting.start_by = _start_by(waiting, decision.chosen)
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
        blocked: set[str] = set()
        for waiting in list(self._waiting):
            if waiting.variant in blocked and now < waiting.start_by:
                continue
            budget, its_class = waiting.left(now), self.class_of(waiting.budget)
            try:
                decision = self._now(variants, waiting, budget, its_class, now)
                if self._crowds(waiting, decision, now):
                    blocked.add(waiting.variant)
                    continue
            except RequestError as refused:
                waits = refused.status in (422, 429)
                if waits and now < (waiting.start_by if budget.on_no_candidate == "reject" else waiting.patience):
                    blocked.add(waiting.variant)
                else:
                    self._remove(waiting)
                    waiting.decided(refused)
                continue
            if decision.reason == "nearest_miss" and decision.chosen.harm > HARMLESS and now < waiting.patience:
                blocked.add(waiting.variant)
                continue
            self._remove(waiting)
            decision.waited = True
            return waiting.decided(decision)

    def cautions(self) -> dict[str, float]:
        """The highest caution of each profile's classes."""
        found: dict[str, float] = {}
        for one in self.classes.values():
            found[one.profile] = max(one.caution, found.get(one.profile, 0.0))
        return found

    def roll(self, variants: Sequence[Variant], now: float) -> None:
        """Update the classes' shares, and the waiting requests. Call it regularly."""
        if self._rolled >= 0 and now > self._rolled:
            for its_class in self.classes.values():
                its_class.roll(now - self._rolled)
            self._share()
        self._rolled = now
        self.pump(variants, now)

    def _now(
        self, variants: Sequence[Variant], waiting: Waiting, budget: Budget, its_class: BudgetClass, now: float
    ) -> Decision:
        return self.router.decide(
            variants, budget, waiting.features, pinned=waiting.pinned, failed=waiting.failed, now=now,
            least_chance=LEAST_CHANCE if budget.on_no_candidate == "degrade" else self._caution(its_class),
        )  # fmt: skip

    def _caution(self, its_class: BudgetClass) -> float:
        """Refusing costs a request that might be in time: it pays as far as others need the place."""
        pressure = min(max((self._demand - _RELAXED) / (_SCARCE - _RELAXED), 0.0), 1.0)
        return its_class.caution * pressure + _LEAST_CAUTION * (1 - pressure)

    def _crowds(self, waiting: Waiting, decision: Decision, now: float) -> bool:
        """Whether the request can wait and would take the place of one that cannot: of a class with a tighter limit per token."""
        if now >= waiting.start_by or (waiting.budget.tpot_ms or math.inf) <= self._tightest_ms:
            return False
        candidate = decision.chosen
        step_ms = candidate.variant.latency.step_ms(candidate.load, waiting.features.sequences, _PLACES_LEVEL)
        return step_ms > self._tightest_ms and candidate.load.requests > 0

    def _is_behind(self, waiting: Waiting, decision: Decision) -> bool:
        """Whether a request that waits for the same variant must start earlier."""
        start_by = _start_by(waiting, decision.chosen)
        for other in self._waiting:
            if other.start_by > start_by:
                return False
            if other.variant == decision.variant.name:
                return True
        return False

    def _later(
        self, variants: Sequence[Variant], waiting: Waiting, budget: Budget, its_class: BudgetClass, now: float
    ) -> Decision | None:
        candidates = self.router.candidates(variants, budget, waiting.features, waiting.failed, now)
        usable = [
            c
            for c in candidates
            if c.ruled_out not in ("failed", "unavailable", "sequences", "context", "min_quality", "max_cost")
        ]
        for candidate in sorted(usable, key=ORDER[budget.objective]):
            replicas = max(candidate.variant.live.replicas, 1)
            places = _places(candidate)
            work_ms = _work_ms(candidate.variant, waiting.features, candidate, places)
            wait_ms = (its_class.queued_ms + work_ms) / (its_class.share * replicas)
            load = candidate.load._replace(
                requests=max(places * replicas - waiting.features.sequences, 0), pending_prefill_tokens=0
            )
            after = remaining(budget, wait_ms / 1000)
            prediction = candidate.variant.latency.predict(waiting.features, load)
            if prediction.within(after.ttft_ms, after.tpot_ms, after.e2e_ms) >= self._caution(its_class):
                return Decision(candidate, budget.objective, candidates, waiting.features, wait_ms)
        return None

    def _offer(self, its_class: BudgetClass, variants: Sequence[Variant], waiting: Waiting) -> None:
        """Count the work of a refused request, at the variant of the highest quality."""
        up = [variant for variant in variants if variant.live.replicas]
        if up:
            best = max(up, key=lambda variant: variant.quality.quality)
            its_class.offer(_work_ms(best, waiting.features))

    def _remove(self, waiting: Waiting) -> None:
        self._waiting.remove(waiting)
        its_class = self.class_of(waiting.budget)
        its_class.queued_ms = max(its_class.queued_ms - waiting.work_ms, 0.0)

    def _share(self) -> None:
        """Max-min fairness: each class gets what it offers, up to an equal share of what is left; then all may use the rest."""
        left, classes = 1.0, sorted(self.classes.values(), key=lambda one: one.offered_ms)
        for i, one in enumerate(classes):
            one.share = min(one.offered_ms / 1000, left / (len(classes) - i))
            left -= one.share
        for one in classes:
            one.share = max(one.share + left, 0.01)
        self._demand = sum(one.offered_ms for one in classes) / 1000
        noticed = (one.tpot_ms for one in classes if one.offered_ms > _NOTICED * 1000 * self._demand)
        self._tightest_ms = min(noticed, default=math.inf)


def _places(candidate: Candidate) -> int:
    """Sequences that one replica can run while each meets the limits of the tightest of its active requests and of this one."""
    variant, latency = candidate.variant, candidate.variant.latency
    load = candidate.load._replace(requests=0)
    step_ms = latency.step_ms(candidate.load)
    tightest = variant.live.tightest(candidate.now, step_ms, candidate.budget.tpot_ms or math.inf)
    low, high = 1, variant.max_running
    while low < high:
        middle = (low + high + 1) // 2
        if latency.step_ms(load, middle, _PLACES_LEVEL) <= tightest:
            low = middle
        else:
            high = middle - 1
    return low


def _work_ms(
    variant: Variant, features: Features, candidate: Candidate | None = None, places: int | None = None
) -> float:
    """Time that the request costs one replica which runs `places` sequences, ms."""
    load = (candidate.load if candidate else variant.live.load())._replace(requests=0, prompt_rate=0.0)
    places = places or max(min(variant.live.in_flight // max(variant.live.replicas, 1), variant.max_running), 1)
    uncached = candidate.uncached_tokens if candidate else features.prompt_tokens
    decode_ms = features.total_output_tokens * variant.latency.step_ms(load, places) / places
    return decode_ms + uncached * variant.latency.ms_per_prefill_token


def _start_by(waiting: Waiting, candidate: Candidate) -> float:
    """The latest time at which the request starts in time at the candidate's present load."""
    expected, budget = candidate.prediction.expected, waiting.budget
    by = waiting.patience
    if budget.ttft_ms is not None:
        by = min(by, waiting.arrived + (budget.ttft_ms - expected.ttft_ms) / 1000)
    if budget.e2e_ms is not None:
        by = min(by, waiting.arrived + (budget.e2e_ms - expected.e2e_ms) / 1000)
    return by


def _too_long(decision: Decision) -> RequestError:
    wait_s = decision.chosen.prediction.expected.e2e_ms / 1000
    message = "the requests that wait already leave no time for this one; retry later"
    return overloaded(message, wait_s, "budget_under_load")
