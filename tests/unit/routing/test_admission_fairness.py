"""Admission: how tenants share full engines, and what a short time per token of a few may cost the others."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.lib.sample_catalog import make_live_variant, make_profile
from benchmarks.routing.simulate import Platform
from benchmarks.routing.workloads import ARRIVALS, Outcome, Request
from serve.budget import Budget
from serve.routing.fair_shares import FairShares, Flow, Tenant, max_min
from serve.routing.policy import WithinBudget
from serve.routing.prediction import Features
from serve.routing.router import Router
from serve.routing.waiting_queue import Waiting
from tests.support.admission_site import PACED, Site, engine

AMOUNTS = st.lists(st.tuples(st.floats(0, 10), st.floats(0.1, 10)), min_size=1, max_size=8)


@given(AMOUNTS, st.floats(0, 20))
def test_max_min_gives_nobody_more_than_requested_and_wastes_nothing(amounts, capacity):
    offered, weights = zip(*amounts, strict=True)
    shares = max_min(offered, weights, capacity)
    assert all(0 <= share <= wanted for share, wanted in zip(shares, offered, strict=True))
    assert sum(shares) == pytest.approx(min(sum(offered), capacity), abs=1e-9)
    parts = [share / weight for share, weight in zip(shares, weights, strict=True)]
    for part, share, wanted in zip(parts, shares, offered, strict=True):
        assert share == pytest.approx(wanted) or part == pytest.approx(max(parts)), "only who asks for less gets less"


def divided(*offered: tuple[Tenant, float]) -> list[float]:
    flows = [Flow(tenant, offered_ms=ms) for tenant, ms in offered]
    FairShares().divide(flows)
    return [flow.share for flow in flows]


def test_classes_of_a_tenant_share_its_part():
    many, one, small = Tenant("many"), Tenant("one"), Tenant("small")
    shares = divided(*[(many, 900.0)] * 9, (one, 900.0), (small, 100.0))
    assert shares == pytest.approx([0.45] * 10 + [0.1]), "other limits for each request get a tenant no more"


def test_a_weight_makes_the_part_of_a_tenant_larger():
    assert divided((Tenant("heavy", 3.0), 2000.0), (Tenant("light"), 2000.0)) == pytest.approx([0.75, 0.25])


def test_tenants_over_their_part_make_room_when_one_with_less_was_refused_for_the_load():
    shares, flood, modest = FairShares(), Tenant("flood", admitted_ms=900.0), Tenant("modest", admitted_ms=100.0)
    flows = [Flow(flood, offered_ms=5000.0), Flow(modest, offered_ms=300.0)]
    shares.divide(flows)
    assert not flood.over, "there is room for what anybody asks for"
    shares.refused(flood)
    shares.divide(flows)
    assert not flood.over, "the flood has its part, and is refused for its own load"
    shares.refused(modest)
    shares.divide(flows)
    assert flood.over and not modest.over
    capacity, part_ms = shares.capacity, flood.part_ms
    shares.divide(flows, 1.0)
    assert shares.capacity > capacity and flood.part_ms > part_ms, "it grows until that happens again"


def test_a_tenant_alone_is_never_over_its_part():
    shares, alone = FairShares(), Tenant("alone", admitted_ms=2000.0)
    flows = [Flow(alone, offered_ms=5000.0)]
    for _ in range(3):
        shares.divide(flows, 0.5)
        shares.refused(alone)
    assert not alone.over and shares.capacity == math.inf


def minute(rates: dict[str, float], weights: dict[str, float] | None = None) -> dict[str, list[Outcome]]:
    """A minute of requests a second by tenant, all with the same limits, at one simulated engine that has run for another."""
    budget = Budget(e2e_ms=4000, on_no_candidate="reject")
    trace = sorted(
        (
            Request(at, 100, 21, budget, tenant=tenant, weight=(weights or {}).get(tenant, 1.0))
            for number, (tenant, rate) in enumerate(rates.items())
            for at in itertools.takewhile(lambda at: at < 120_000, ARRIVALS["poisson"](rate, number))
        ),
        key=lambda request: request.at,
    )
    outcomes = list(Platform([engine(max_waiting=100)], [["full"]], WithinBudget(explore=0), 1).run(trace))
    return {
        tenant: [one for one in outcomes if one.request.tenant == tenant and one.request.at > 60_000]
        for tenant in rates
    }


def within_budget(outcomes: list[Outcome]) -> int:
    return sum(one.within_budget for one in outcomes)


def test_a_tenant_that_floods_a_class_does_not_starve_another():
    alone, flooded = minute({"modest": 0.5}), minute({"modest": 0.5, "flood": 20.0})
    assert within_budget(alone["modest"]) >= 0.95 * len(alone["modest"])
    assert within_budget(flooded["modest"]) >= 0.7 * within_budget(alone["modest"])
    assert within_budget(flooded["flood"]) > 0.3 * 60, "the flood has the rest"


def test_tenants_that_all_flood_keep_work_by_weight():
    found = minute({"heavy": 10.0, "light": 10.0}, {"heavy": 3.0})
    assert 1.8 < within_budget(found["heavy"]) / within_budget(found["light"]) < 5


def test_a_full_waiting_room_has_a_place_for_a_tenant_with_less_in_it():
    site = Site(engine(max_waiting=4))
    for _ in range(2):
        site.ask(**PACED, tenant="flood")
    flood = [site.ask(**PACED, tenant="flood") for _ in range(5)]
    assert [one.waits for one in flood] == [True] * 4 + [False]
    modest = [site.ask(**PACED, tenant="modest") for _ in range(3)]
    assert [one.waits for one in modest] == [True, True, False]
    assert [one.waits for one in flood[:4]] == [True, True, False, False]
    assert {one.error.code for one in (*flood[2:], modest[2])} == {"overloaded"}
    assert len(site.admission) == 4


def test_the_waiting_of_a_tenant_over_its_part_is_last():
    site = Site()
    running = [site.ask(**PACED) for _ in range(2)]
    tenant = site.admission._shares.tenant("flood", 1.0)
    tenant.part_ms, tenant.admitted_ms = 0.0, 1.0
    flood, modest = site.ask(**PACED, tenant="flood"), site.ask(**PACED, tenant="modest")
    site.complete(running[0])
    assert flood.waits and modest.started


def test_the_waiting_of_a_tenant_that_goes_over_its_part_does_not_block_others():
    site = Site()
    running = [site.ask(**PACED) for _ in range(2)]
    flood, modest = site.ask(**PACED, tenant="flood"), site.ask(**PACED, tenant="modest")
    tenant = site.admission._shares.tenant("flood", 1.0)
    tenant.part_ms, tenant.admitted_ms = 0.0, 1.0
    site.complete(running[0])
    assert flood.waits and modest.started
    running[1].variant.live.on_complete()  # a place that is not given away yet
    assert site.ask(**PACED, tenant="arriving").started and flood.waits


def test_many_tenants_in_vain_do_not_keep_another_kind_from_a_place(monkeypatch: pytest.MonkeyPatch):
    full, small = engine(max_waiting=100), engine("small", quality=0.5)
    site = Site(full, small)
    running = [site.ask(**PACED) for _ in range(4)]
    floor = [site.ask(**PACED, min_quality=0.9, tenant=f"tenant{i}") for i in range(40)]
    free = site.ask(**PACED)
    decided, decide = [], Router.decide
    monkeypatch.setattr(Router, "decide", lambda *args, **options: decided.append(1) or decide(*args, **options))
    site.complete(next(one for one in running if one.variant is small))
    assert all(one.waits for one in floor) and free.variant is small
    assert len(decided) == 2


# 16 sequences take 1.6 times as long per token as one: running one alone gives most of the throughput away
STEEP = make_profile([(100, 1, 100)], [(1, 20), (16, 32)])
TIGHT = {"tpot_ms": 24}


def crowd(loose: int, tight: int, tenants: int = 1) -> Site:
    """After a second of `loose` requests without limits and `tight` ones that only few sequences at once satisfy."""
    site = Site(make_live_variant("full", profile=STEEP, max_running=16, max_waiting=1000))
    for i in range(loose):
        site.ask(features=Features(10, 200), tenant=f"loose{i % tenants}")
    for _ in range(tight):
        site.ask(features=Features(10, 200), tenant="tight", **TIGHT)
    site.roll(0.5)
    site.roll(0.5)
    return site


def test_a_short_time_per_token_of_a_few_does_not_shrink_the_batch_for_all():
    few = crowd(loose=16, tight=2, tenants=8)
    assert few.admission._step_limit_ms == math.inf
    many = crowd(loose=16, tight=16)
    assert many.admission._step_limit_ms < 24, "half of the offered work has the limit"


def test_a_short_time_per_token_bounds_engines_that_do_all_work_nevertheless():
    site = Site(make_live_variant("full", profile=STEEP, max_running=16, max_waiting=1000))
    for _ in range(20):
        site.admission.submit(site.variants, Waiting(Budget(), Features(10, 5), site.now, lambda _: None), site.now)
        site.roll(0.5)
    for _ in range(4):
        site.admission.submit(
            site.variants, Waiting(Budget(**TIGHT), Features(10, 5), site.now, lambda _: None), site.now
        )
    site.roll(0.5)
    assert site.admission._step_limit_ms < 24


def test_a_time_per_token_that_costs_too_much_is_refused_with_what_it_would_cost():
    site = crowd(loose=16, tight=2, tenants=8)
    refused = site.ask(tenant="tight", on_no_candidate="reject", **TIGHT)
    assert refused.error.code == "budget_under_load"
    assert f"slow down {site.variants[0].live.in_flight} sequences" in refused.error.message
    assert site.ask(tenant="loose1").started
    assert site.ask(tenant="tight", **TIGHT).started, "who takes what there is does not wait for a small batch"


def test_a_short_time_per_token_is_met_where_engines_are_idle():
    site = crowd(loose=16, tight=2, tenants=8)
    site.variants[0].live.in_flight = 0
    assert site.ask(tenant="tight", on_no_candidate="reject", **TIGHT).started


def test_a_tenant_over_its_part_leaves_free_places_to_others_until_it_is_within_it_again():
    site = Site()
    site.ask(tenant="flood")
    flood = site.admission._shares.tenant("flood", 1.0)
    flood.part_ms, flood.admitted_ms = 10.0, 20.0
    assert site.ask(tenant="flood", on_no_candidate="reject").error.code == "budget_under_load"
    patient = site.ask(tenant="flood")
    site.admission.pump(site.variants, site.now)
    assert patient.waits and site.ask(tenant="modest").started
    flood.admitted_ms = 5.0
    site.admission.pump(site.variants, site.now)
    assert patient.started


def test_the_shares_that_are_shown_are_at_most_all_of_the_time():
    site = Site(engine(max_running=8))
    assert site.admission.admitted_shares() == {}
    for tenant, requests in (("many", 6), ("one", 2)):
        for _ in range(requests):
            site.ask(tenant=tenant, e2e_ms=1e6)
    site.roll(1.0)
    few = site.admission.admitted_shares()
    assert few["many"] == pytest.approx(3 * few["one"]) and sum(few.values()) < 1
    for tenant, requests in (("many", 60), ("one", 20)):
        for _ in range(requests):
            site.complete(site.ask(tenant=tenant, e2e_ms=1e6))
    site.roll(1.0)
    assert site.admission.admitted_shares() == pytest.approx({"many": 0.75, "one": 0.25})
