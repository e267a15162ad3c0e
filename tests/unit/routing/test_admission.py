"""Admission: which requests start at once, which wait and in what order, and which are refused, by hand and in simulated minutes."""

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.lib.sample_catalog import REQUEST, make_live_variant, make_profile
from benchmarks.routing.simulated_platform import Platform
from benchmarks.routing.workloads import ARRIVALS, Outcome, Request
from serve.budget import Budget
from serve.errors import RequestError
from serve.routing import admission as of_admission
from serve.routing.admission import BEST_EFFORT_S, LEAST_MARGIN, MOST_MARGIN, Admission, BudgetClass, Waiting
from serve.routing.catalog import Variant
from serve.routing.policies import POLICIES, WithinBudget
from serve.routing.prediction import Features, Latency
from serve.routing.router import Decision, Router

# 20 ms per token alone, 20 ms more for each other sequence; a prompt of 100 tokens takes 100 ms
PROFILE = make_profile([(100, 1, 100)], [(1, 20), (8, 160)])
# two sequences run within 50 ms per token, for whose prediction a margin of 1.2 is kept at first
PACED = {"tpot_ms": 50}


def engine(name: str = "full", **changes) -> Variant:
    """A variant with hardware of its own."""
    made = make_live_variant(name, profile=PROFILE, **{"max_running": 8, "max_waiting": 8, **changes})
    made.live.hardware = frozenset({name})
    return made


@dataclass(eq=False)
class Asked:
    """One request, and what came of it."""

    waiting: Waiting
    decisions: list[Decision | RequestError] = field(default_factory=list)

    @property
    def started(self) -> bool:
        return bool(self.decisions) and isinstance(self.decisions[0], Decision)

    @property
    def waits(self) -> bool:
        return not self.decisions

    @property
    def error(self) -> RequestError:
        (found,) = self.decisions
        assert isinstance(found, RequestError)
        return found

    @property
    def variant(self) -> Variant:
        (found,) = self.decisions
        assert isinstance(found, Decision)
        return found.variant


class Site:
    """A gateway's admission and its variants; what starts is in flight until `complete`."""

    def __init__(self, *variants: Variant, policy: str = "budget") -> None:
        self.variants = list(variants) or [engine()]
        chosen = WithinBudget(explore=0) if policy == "budget" else POLICIES[policy]()
        self.admission = Admission(Router(chosen))
        self.now = 0.0

    def ask(self, *, features: Features = REQUEST, pinned: str | None = None, **limits) -> Asked:
        one: Asked

        def decided(found: Decision | RequestError) -> None:
            one.decisions.append(found)
            if isinstance(found, Decision):
                found.variant.live.on_dispatch(0, features.sequences, features.total_output_tokens)
                if found.waited:
                    self.admission.pump(self.variants, self.now)

        one = Asked(Waiting(Budget(**limits), features, self.now, decided, pinned))
        self.admission.submit(self.variants, one.waiting, self.now)
        return one

    def complete(self, one: Asked) -> None:
        one.variant.live.on_complete(one.waiting.features.sequences)
        self.admission.pump(self.variants, self.now)

    def roll(self, seconds: float = 0.0) -> None:
        """Let the time pass as the gateway does."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + 0.5, until)
            self.admission.roll(self.variants, self.now)

    def queued_ms(self) -> float:
        return sum(one.queued_ms for one in self.admission.classes.values())


def test_a_request_starts_at_once_where_there_is_room():
    one = Site().ask(**PACED, on_no_candidate="reject")
    assert one.started and one.decisions[0].wait_ms == 0 and not one.decisions[0].waited


def test_it_waits_where_the_time_per_token_would_be_too_long_and_starts_when_another_is_complete():
    site = Site()
    first, second, third = (site.ask(**PACED) for _ in range(3))
    assert first.started and second.started and third.waits
    assert len(site.admission) == 1 and site.queued_ms() > 0
    site.complete(first)
    assert third.started and third.decisions[0].waited
    assert len(site.admission) == 0 and site.queued_ms() == 0


def test_a_dry_run_predicts_the_wait_and_changes_nothing():
    site = Site()
    for _ in range(2):
        site.ask(**PACED)
    decision = site.admission.decide(site.variants, Waiting(Budget(**PACED), REQUEST, 0.0, lambda _: None), 0.0)
    assert decision.public()["harm"] == 2 and decision.public()["wait_ms"] > 0
    assert len(site.admission) == 0 and site.queued_ms() == 0


def test_the_limits_of_others_bound_what_runs_for_those_without():
    """As soon as they are more than a twentieth of the offered work."""
    site = Site()
    free = [site.ask() for _ in range(6)]
    assert all(one.started for one in free), "nobody's time per token is limited"
    site.roll(0.5)
    paced = site.ask(**PACED)
    assert paced.waits
    site.roll(0.5)
    assert site.ask().waits
    for one in free:
        site.complete(one)
    assert paced.started


def test_a_time_per_token_that_nothing_keeps_bounds_nobody():
    site = Site(engine(max_waiting=100))
    for _ in range(4):
        site.ask(tpot_ms=10)
    site.roll(1.0)
    assert all(site.ask(**limits).started for limits in ({}, {"e2e_ms": 20_000}, {"tpot_ms": 10}))
    floor = Site(engine(), make_live_variant("small", quality=0.5, tpot_ms=5))
    floor.ask(tpot_ms=10, min_quality=0.9)
    floor.roll(1.0)
    assert floor.admission._step_limit_ms == float("inf"), "no variant with that quality is so fast"


def test_the_one_that_must_start_first_starts_first():
    site = Site()
    running = [site.ask(**PACED) for _ in range(2)]
    patient, late, early = (site.ask(**PACED, ttft_ms=ms) for ms in (20_000, 9000, 4000))
    site.complete(running[0])
    assert (patient.waits, late.waits, early.started) == (True, True, True)
    site.complete(early)
    assert (patient.waits, late.started) == (True, True)


def test_an_arrival_does_not_overtake_one_that_must_start_earlier():
    site = Site()
    running = [site.ask(**PACED) for _ in range(2)]
    early = site.ask(**PACED, ttft_ms=4000)
    running[0].variant.live.on_complete()  # a place that is not given away yet
    assert site.ask(**PACED, ttft_ms=9000).waits
    site.roll(0.5)
    assert early.started


def test_one_that_needs_a_busy_variant_does_not_keep_others_from_an_idle_one():
    full, small = engine(), engine("small", quality=0.5)
    site = Site(full, small)
    running = [site.ask(**PACED) for _ in range(4)]
    floor, free = site.ask(**PACED, min_quality=0.9, ttft_ms=4000), site.ask(**PACED, ttft_ms=9000)
    assert floor.waits and free.waits
    site.complete(next(one for one in running if one.variant is small))
    assert floor.waits and free.started and free.variant is small


def test_what_would_wait_too_long_is_refused_at_once():
    site = Site()
    for _ in range(2):
        site.ask(**PACED)
    for _ in range(50):
        refused = site.ask(**PACED, ttft_ms=600, on_no_candidate="reject")
        if not refused.waits:
            break
    assert (refused.error.status, refused.error.code) == (429, "budget_under_load")
    assert int(refused.error.headers["retry-after"]) >= 1
    assert len(site.admission) < 50


def test_what_waited_and_cannot_be_in_time_any_more_is_refused():
    site = Site()
    for _ in range(2):
        site.ask(**PACED)
    one = site.ask(**PACED, ttft_ms=1500, on_no_candidate="reject")
    assert one.waits
    site.roll(1.0)
    assert one.waits
    site.roll(1.0)
    assert (one.error.status, one.error.code) == (429, "budget_under_load")
    assert len(site.admission) == 0 and site.queued_ms() == 0


def test_degrade_waits_for_others_only_so_long_and_is_not_refused_while_there_is_room():
    site = Site(engine(max_waiting=100))
    running = [site.ask(**PACED) for _ in range(2)]
    waiting = [site.ask(**PACED, ttft_ms=600) for _ in range(20)]
    assert all(one.waits for one in waiting)
    site.roll(BEST_EFFORT_S)
    assert all(one.waits for one in waiting), "nothing was complete"
    site.roll(1.0)
    assert all(one.started for one in waiting)
    assert all(one.started for one in running) and site.queued_ms() == 0


def test_a_pinned_request_never_waits():
    site = Site()
    for _ in range(2):
        site.ask(**PACED)
    assert site.ask(**PACED, pinned="full").started


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "budget"])
def test_policies_for_comparison_let_nothing_wait(policy: str):
    site = Site(policy=policy)
    assert all(site.ask(**PACED).started for _ in range(8))


def test_a_request_whose_client_has_gone_leaves_nothing_behind():
    site = Site()
    running = [site.ask(**PACED) for _ in range(2)]
    gone, other = site.ask(**PACED), site.ask(**PACED)
    site.admission.withdraw(gone.waiting)
    site.admission.withdraw(gone.waiting)
    assert len(site.admission) == 1
    site.complete(running[0])
    assert other.started and gone.waits and site.queued_ms() == 0
    site.admission.withdraw(running[1].waiting)  # has started already
    assert len(site.admission) == 0


def test_a_variant_that_goes_while_requests_wait_for_it_passes_them_on():
    full, small = engine(), engine("small", quality=0.5, replicas=0)
    site = Site(full, small)
    for _ in range(2):
        site.ask(**PACED)
    floor, free = site.ask(**PACED, min_quality=0.9, on_no_candidate="reject"), site.ask(**PACED)
    assert floor.waits and free.waits
    full.live.replicas, small.live.replicas = 0, 1
    site.roll(0.5)
    assert floor.error.status == 429, "no variant with the quality is left, for now"
    assert free.variant is small


def test_when_no_variant_is_left_waiting_requests_get_503():
    site = Site()
    for _ in range(2):
        site.ask(**PACED)
    one = site.ask(**PACED)
    site.variants[0].live.replicas = 0
    site.roll(0.5)
    assert (one.error.status, one.error.code) == (503, "no_healthy_variant")
    assert len(site.admission) == 0 and site.queued_ms() == 0


def test_no_more_wait_than_engines_may_have_waiting():
    site = Site(engine(max_waiting=5))
    for _ in range(2):
        site.ask(**PACED)
    asked = [site.ask(**PACED) for _ in range(6)]
    assert [one.waits for one in asked] == [True] * 5 + [False]
    assert (asked[5].error.status, asked[5].error.code) == (429, "overloaded")
    assert "retry-after" in asked[5].error.headers


def test_the_classes_least_recently_used_are_forgotten():
    site = Site()
    for i in range(200):
        site.ask(e2e_ms=10_000 + i)
    assert len(site.admission.classes) == of_admission._MAX_CLASSES
    assert (None, None, 10_199, None, None) in site.admission.classes


def taught(slower: float, count: int) -> BudgetClass:
    """A class whose requests took `slower` times what was predicted, at engines that ran as much as they may."""
    site, its, budget = Site(engine()), BudgetClass(50.0), Budget(ttft_ms=10_000, tpot_ms=50)
    site.variants[0].live.in_flight = 3
    for _ in range(count):
        decision = site.admission.router.decide(site.variants, budget, REQUEST, step_limit_ms=its.step_limit_ms)
        assert decision.chosen.fills
        ttft_ms = decision.chosen.prediction.expected.ttft_ms
        its.observe(decision, Latency(slower * ttft_ms, slower * decision.chosen.step_limit_ms, 1e3))
    return its


def test_margins_rise_with_slower_answers_than_predicted_and_fall_with_faster():
    slow, fast = taught(1.8, 50), taught(0.5, 50)
    assert 1.5 < slow.margin < 2.1 and fast.margin == LEAST_MARGIN
    assert slow.step_margin > 1.5 and fast.step_margin == LEAST_MARGIN
    assert taught(9.0, 300).margin == MOST_MARGIN


def test_the_time_per_token_teaches_only_where_the_engine_is_nearly_full():
    site, its = Site(engine()), BudgetClass(5000.0)
    chosen = site.admission.router.decide(site.variants, Budget(tpot_ms=5000), REQUEST, step_limit_ms=5000)
    before = its.step_margin
    its.observe(chosen, Latency(100, 20, 300))
    assert not chosen.chosen.fills and its.step_margin == before


def test_the_margin_of_a_profile_is_that_of_its_most_careful_class():
    site = Site()
    site.admission.class_of(Budget(ttft_ms=100)).profile = "fast"
    careful = site.admission.class_of(Budget(ttft_ms=200))
    careful.profile = "fast"
    careful.waits.value = 2.0
    assert site.admission.margins() == {"fast": MOST_MARGIN}


def minute(rates: dict[str, float]) -> dict[str, list[Outcome]]:
    """A minute of requests a second by kind, each with budgets of its own, at one simulated engine."""
    limits = {"quick": {"e2e_ms": 3000}, "slow": {"e2e_ms": 6000}}
    trace = sorted(
        (
            Request(at, 100, 21, Budget(**limits[kind], on_no_candidate="reject"), kind)
            for number, (kind, rate) in enumerate(rates.items())
            for at in itertools.takewhile(lambda at: at < 60_000, ARRIVALS["poisson"](rate, number))
        ),
        key=lambda request: request.at,
    )
    outcomes = list(Platform([engine(max_waiting=100)], [["full"]], WithinBudget(explore=0), 1).run(trace))
    return {kind: [one for one in outcomes if one.request.kind == kind] for kind in rates}


def kept(outcomes: list[Outcome]) -> int:
    return sum(one.within_budget for one in outcomes)


def test_a_class_that_offers_too_much_does_not_starve_another():
    alone = minute({"slow": 0.5})
    flooded = minute({"slow": 0.5, "quick": 20.0})
    assert kept(alone["slow"]) >= 0.95 * len(alone["slow"])
    assert kept(flooded["slow"]) >= 0.8 * kept(alone["slow"]), "the fair share of the one is more than it offers"
    assert kept(flooded["quick"]) > 0.3 * 60, "the other has the rest"


def test_shares_are_what_is_offered_up_to_an_equal_part_and_all_may_plan_with_the_rest():
    admission = Site().admission
    small, large, huge = (admission.class_of(Budget(e2e_ms=ms)) for ms in (1000, 2000, 3000))
    small.offered_ms, large.offered_ms, huge.offered_ms = 100.0, 900.0, 5000.0
    admission._share()
    assert [one.share for one in (small, large, huge)] == pytest.approx([0.1, 0.45, 0.45])
    small.offered_ms, large.offered_ms, huge.offered_ms = 100.0, 200.0, 300.0
    admission._share()
    assert [one.share for one in (small, large, huge)] == pytest.approx([0.5, 0.6, 0.7])


@st.composite
def scripts(draw: st.DrawFn) -> list[tuple]:
    """What happens at a gateway: requests arrive, end, are given up; engines come and go; time passes."""
    limit = st.none() | st.floats(20, 20_000)
    request = st.tuples(
        st.just("ask"), limit, st.none() | st.floats(1, 400), limit, st.none() | st.floats(0, 1),
        st.sampled_from(["degrade", "reject"]), st.integers(1, 3),
    )  # fmt: skip
    others = st.tuples(st.sampled_from(["complete", "withdraw", "replicas"]), st.integers(0, 7))
    time = st.tuples(st.just("roll"), st.floats(0.1, 10))
    return draw(st.lists(st.one_of(request, request, others, time), max_size=40))


@given(scripts(), st.integers(1, 4))
@settings(deadline=None, max_examples=150)
def test_every_request_gets_one_decision(script, max_waiting):
    site = Site(
        engine(max_waiting=max_waiting),
        engine("small", quality=0.5, max_waiting=max_waiting, max_running=2),
    )
    asked: list[Asked] = []
    withdrawn: set[Asked] = set()
    for what, *values in script:
        if what == "ask":
            ttft, tpot, e2e, floor, otherwise, sequences = values
            features = Features(100, 11, sequences=sequences)
            limits = {"ttft_ms": ttft, "tpot_ms": tpot, "e2e_ms": e2e, "min_quality": floor}
            asked.append(site.ask(features=features, **limits, on_no_candidate=otherwise))
        elif what == "complete" and (running := [one for one in asked if one.started and one not in withdrawn]):
            one = running[values[0] % len(running)]
            withdrawn.add(one)
            site.complete(one)
        elif what == "withdraw" and (waiting := [one for one in asked if one.waits and one not in withdrawn]):
            one = waiting[values[0] % len(waiting)]
            withdrawn.add(one)
            site.admission.withdraw(one.waiting)
        elif what == "replicas":
            site.variants[values[0] % 2].live.replicas = values[0] // 4
        elif what == "roll":
            site.roll(values[0])
    for _ in range(200):
        for one in asked:
            if one.started and one not in withdrawn:
                withdrawn.add(one)
                site.complete(one)
        site.roll(1.0)
    assert all(len(one.decisions) == 1 or (one in withdrawn and one.waits) for one in asked)
    assert len(site.admission) == 0 and site.queued_ms() == pytest.approx(0, abs=1e-6)
    assert all(variant.live.in_flight == 0 for variant in site.variants)


def test_decisions_alone_leave_no_trace():
    site = Site()
    site.ask(e2e_ms=10_000)
    for i in range(200):
        site.admission.decide(site.variants, Waiting(Budget(e2e_ms=9000 + i), REQUEST, 0.0, lambda _: None), 0.0)
    assert list(site.admission.classes) == [(None, None, 10_000, None, None)]


def test_many_odd_limits_do_not_displace_the_classes_that_offer_work():
    site = Site(engine(max_waiting=1000))
    for _ in range(3):
        site.ask(e2e_ms=10_000)
    site.admission.class_of(Budget(e2e_ms=10_000)).waits.observe(0.5)
    site.roll(1.0)
    for i in range(200):
        site.ask(e2e_ms=20_000 + i)
    assert len(site.admission.classes) == of_admission._MAX_CLASSES
    assert (None, None, 10_000, None, None) in site.admission.classes
    assert (None, None, 20_199, None, None) in site.admission.classes


def test_what_cannot_be_met_at_all_is_no_demand():
    site = Site()
    for _ in range(5):
        assert site.ask(tpot_ms=21, max_cost=0, on_no_candidate="reject").error.status == 422
    site.roll(1.0)
    assert site.admission._step_limit_ms == float("inf")
    assert all(site.ask().started for _ in range(4))


def test_rounding_leaves_no_queue_behind():
    site = Site()
    waiting = [Waiting(Budget(), REQUEST, 0.0, lambda _: None, work_ms=ms) for ms in (0.1, 0.2, 0.3)]
    for one in waiting:
        site.admission._waiting.append(one)
        site.admission.class_of(one.budget).queued_ms += one.work_ms
    for one in waiting:
        site.admission.withdraw(one)
    assert site.queued_ms() == 0


def test_with_another_policy_no_gear_rests_and_nothing_waits_any_more():
    site = Site()
    for _ in range(2):
        site.ask(**PACED)
    waiting = [site.ask(**PACED), site.ask(**PACED, on_no_candidate="reject")]
    site.admission._resting = frozenset({"full"})
    site.admission.router = Router(POLICIES["full"]())
    site.roll(1.0)
    assert all(one.started for one in waiting) and not site.admission._resting


def test_a_free_place_costs_few_decisions_however_many_different_requests_wait(monkeypatch):
    site = Site(engine(max_waiting=1000))
    for _ in range(2):
        site.ask(**PACED)
    waiting = [site.ask(**PACED, max_cost=1 + i) for i in range(200)]
    decided, decide = [], Router.decide
    monkeypatch.setattr(Router, "decide", lambda *args, **options: decided.append(1) or decide(*args, **options))
    site.roll(0.5)
    assert all(one.waits for one in waiting) and len(decided) <= 20


def test_a_margin_that_lets_nothing_in_does_not_last():
    site, limits = Site(), {"ttft_ms": 200, "on_no_candidate": "reject"}
    its = site.admission.class_of(Budget(**limits))
    for _ in range(30):
        its.waits.observe(1.0)
    assert site.ask(**limits).error.status in (422, 429)
    site.roll(29)
    assert its.margin == MOST_MARGIN
    site.roll(150)
    assert site.ask(**limits).started


def test_a_time_per_token_that_nothing_keeps_is_refused_also_where_others_have_one():
    site, limits = Site(), {"tpot_ms": 10, "on_no_candidate": "reject"}
    site.admission.class_of(Budget(**limits))
    site.ask(**PACED)
    site.roll(1.0)
    assert site.admission._step_limit_ms < 50
    assert site.ask(**limits).error.status == 422


@pytest.mark.parametrize("replicas", [1, 4])
def test_a_share_is_of_all_replicas(replicas: int):
    site = Site(engine(replicas=replicas, max_waiting=1000))
    for _ in range(60):
        for _ in range(2):
            site.admission.submit(
                site.variants, Waiting(Budget(tpot_ms=1000), REQUEST, site.now, lambda _: None), site.now
            )
        site.roll(0.5)
    (its,) = site.admission.classes.values()
    assert its.over_share == (replicas == 1)
