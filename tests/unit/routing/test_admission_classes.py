"""Admission: what is learned of each class of budgets, and how the classes share the engines, by hand and in simulated minutes."""

import itertools

import pytest

from benchmarks.lib.sample_catalog import REQUEST, make_live_variant
from benchmarks.routing.simulate import Platform
from benchmarks.routing.workloads import ARRIVALS, Outcome, Request
from serve.budget import Budget
from serve.routing import admission as of_admission
from serve.routing import budget_classes
from serve.routing.budget_classes import LEAST_MARGIN, MOST_MARGIN, BudgetClass
from serve.routing.fair_shares import FairShares, Flow, Tenant
from serve.routing.policy import WithinBudget
from serve.routing.prediction import Latency
from serve.routing.waiting_queue import Waiting
from tests.support.admission_site import PACED, Site, engine


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


def test_the_classes_least_recently_used_are_forgotten():
    site = Site()
    for i in range(200):
        site.ask(e2e_ms=10_000 + i)
    assert len(site.admission.classes) == budget_classes.MAX_CLASSES
    assert (None, None, 10_199, None, None) in site.admission.classes


def taught(slower: float, count: int) -> BudgetClass:
    """A class whose requests took `slower` times what was predicted, at engines that ran as much as they may."""
    site, budget_class, budget = Site(engine()), BudgetClass(50.0), Budget(ttft_ms=10_000, tpot_ms=50)
    site.variants[0].live.in_flight = 3
    for _ in range(count):
        decision = site.admission.router.decide(
            site.variants, budget, REQUEST, step_limit_ms=budget_class.step_limit_ms
        )
        assert decision.chosen.fills
        ttft_ms = decision.chosen.prediction.expected.ttft_ms
        budget_class.observe(decision, Latency(slower * ttft_ms, slower * decision.chosen.step_limit_ms, 1e3))
    return budget_class


def test_margins_rise_with_slower_answers_than_predicted_and_fall_with_faster():
    slow, fast = taught(1.8, 50), taught(0.5, 50)
    assert 1.5 < slow.margin < 2.1 and fast.margin == LEAST_MARGIN
    assert slow.step_margin > 1.5 and fast.step_margin == LEAST_MARGIN
    assert taught(9.0, 300).margin == MOST_MARGIN


def test_the_time_per_token_teaches_only_where_the_engine_is_nearly_full():
    site, budget_class = Site(engine()), BudgetClass(5000.0)
    chosen = site.admission.router.decide(site.variants, Budget(tpot_ms=5000), REQUEST, step_limit_ms=5000)
    before = budget_class.step_margin
    budget_class.observe(chosen, Latency(100, 20, 300))
    assert not chosen.chosen.fills and budget_class.step_margin == before


def test_the_margin_of_a_profile_is_that_of_its_most_careful_class():
    site = Site()
    site.admission.class_of(Budget(ttft_ms=100)).profile = "fast"
    careful = site.admission.class_of(Budget(ttft_ms=200))
    careful.profile = "fast"
    careful.waits.value = 2.0
    assert site.admission.classes.margins() == {"fast": MOST_MARGIN}


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


def within_budget(outcomes: list[Outcome]) -> int:
    return sum(one.within_budget for one in outcomes)


def test_a_class_that_offers_too_much_does_not_starve_another():
    alone = minute({"slow": 0.5})
    flooded = minute({"slow": 0.5, "quick": 20.0})
    assert within_budget(alone["slow"]) >= 0.95 * len(alone["slow"])
    assert within_budget(flooded["slow"]) >= 0.8 * within_budget(alone["slow"]), (
        "the fair share of the one is more than it offers"
    )
    assert within_budget(flooded["quick"]) > 0.3 * 60, "the other has the rest"


def test_shares_are_what_is_offered_up_to_an_equal_part_and_all_may_plan_with_the_rest():
    flows = [Flow(Tenant(), offered_ms=ms) for ms in (100.0, 900.0, 5000.0)]
    FairShares().divide(flows)
    assert [one.share for one in flows] == pytest.approx([0.1, 0.45, 0.45])
    flows = [Flow(Tenant(), offered_ms=ms) for ms in (100.0, 200.0, 300.0)]
    FairShares().divide(flows)
    assert [one.share for one in flows] == pytest.approx([0.5, 0.6, 0.7])


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
    assert len(site.admission.classes) == budget_classes.MAX_CLASSES
    assert (None, None, 10_000, None, None) in site.admission.classes
    assert (None, None, 20_199, None, None) in site.admission.classes


def test_what_cannot_be_met_at_all_is_no_demand():
    site = Site()
    for _ in range(5):
        assert site.ask(tpot_ms=21, max_cost=0, on_no_candidate="reject").error.status == 422
    site.roll(1.0)
    assert site.admission._step_limit_ms == float("inf")
    assert all(site.ask().started for _ in range(4))


def test_a_margin_that_lets_nothing_in_does_not_last():
    site, limits = Site(), {"ttft_ms": 200, "on_no_candidate": "reject"}
    budget_class = site.admission.class_of(Budget(**limits))
    for _ in range(30):
        budget_class.waits.observe(1.0)
    assert site.ask(**limits).error.status in (422, 429)
    site.roll(29)
    assert budget_class.margin == MOST_MARGIN
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
    assert (site.admission._shares.tenant("", 1.0).admitted_ms > 1000) == (replicas == 1)


def test_an_answer_ends_the_quiet_after_which_margins_decay():
    site, budget = Site(), Budget(ttft_ms=10_000)
    budget_class = site.admission.class_of(budget)
    for _ in range(30):
        budget_class.waits.observe(1.0)
    site.roll(29)
    decision = site.admission.router.decide(site.variants, budget, REQUEST)
    budget_class.observe(decision, Latency(decision.chosen.prediction.expected.ttft_ms, 20, 300))
    site.roll(29)
    assert budget_class.waits.value == 1.0


def test_a_class_with_no_other_limit_learns_from_the_time_of_all():
    site, budget, budget_class = Site(), Budget(e2e_ms=10_000), BudgetClass(float("inf"))
    decision = site.admission.router.decide(site.variants, budget, REQUEST)
    for _ in range(30):
        budget_class.observe(decision, Latency(1.0, 20, 1.5 * decision.chosen.prediction.expected.e2e_ms))
    assert budget_class.margin == pytest.approx(1.5)


def test_limits_of_few_requests_bound_nobody(monkeypatch: pytest.MonkeyPatch):
    """Neither the places nor the gears that rest."""
    demands = []
    monkeypatch.setattr(of_admission, "resting", lambda variants, offered, before: demands.extend(offered) or ())
    for paced, noticed in ((3, False), (20, True)):
        site = Site(engine(max_running=1000, max_waiting=1000))
        for _ in range(100):
            site.ask()
        for _ in range(paced):
            site.ask(**PACED)
        demands.clear()
        site.roll(1.0)
        site.roll(0.5)
        assert (site.admission._step_limit_ms < float("inf")) == noticed
        assert any(one.step_limit_ms < float("inf") for one in demands) == noticed


def test_refused_requests_are_demand():
    """Without them the class that is refused would never get its share."""
    site, limits = Site(), {**PACED, "ttft_ms": 120, "on_no_candidate": "reject"}
    for _ in range(2):
        site.ask(**PACED)
    assert site.ask(**limits).error.code == "budget_under_load"
    assert site.admission.class_of(Budget(**limits)).recent_ms > 0


def test_another_gateways_margins_are_taken_for_unknown_classes_and_have_no_profile_yet():
    other, site = Site(), Site()
    for ttft_ms in (100, 200):
        other.admission.class_of(Budget(ttft_ms=ttft_ms)).waits.observe(0.5)
    known = site.admission.class_of(Budget(ttft_ms=100))
    site.admission.classes.restore(other.admission.classes.state())
    assert site.admission.class_of(Budget(ttft_ms=100)) is known and known.waits.state() == [0.0]
    assert site.admission.class_of(Budget(ttft_ms=200)).waits.state()[-1] == 0.5
    assert site.admission.classes.margins() == {}
