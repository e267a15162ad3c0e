"""Objectives and profiles when engines fill up: the best by the objective of those that keep the limits and have room."""

import itertools

import pytest

from benchmarks.lib.sample_catalog import make_live_variant, make_profile
from benchmarks.routing.simulated_platform import Platform
from benchmarks.routing.workloads import Outcome, mixed, poisson, summary
from serve.budget import DEFAULT_PROFILES, Budget
from serve.routing.catalog import Variant
from serve.routing.policy import WithinBudget
from tests.support.admission_site import PACED, Site, engine

BALANCED = DEFAULT_PROFILES["balanced"].model_dump(exclude_none=True)
CHEAP = DEFAULT_PROFILES["cheap"].model_dump(exclude_none=True)


def gears() -> list[Variant]:
    """Each with hardware of its own, on which two sequences run within the limit of `PACED`."""
    made = [("full", 1.0, 0.09), ("int8", 0.95, 0.06), ("small", 0.5, 0.03)]
    return [engine(name, quality=quality, price=price) for name, quality, price in made]


def names(site: Site, count: int, **limits) -> list[str | None]:
    """The variants that start requests, one after the other; None for one that waits."""
    submitted = [site.ask(**limits) for _ in range(count)]
    return [one.variant.name if one.started else None for one in submitted]


def test_the_cheapest_that_keeps_the_limits_is_taken_until_it_is_full_then_the_next():
    found = names(Site(*gears()), 7, **PACED, objective="cost")
    assert found == ["small", "small", "int8", "int8", "full", "full", None]


def test_the_best_is_taken_until_it_is_full_then_the_next():
    found = names(Site(*gears()), 7, **PACED, objective="quality")
    assert found == ["full", "full", "int8", "int8", "small", "small", None]


def test_a_cheaper_variant_that_cannot_keep_the_limits_is_never_taken():
    profile = make_profile([(100, 1, 100)], [(1, 80), (8, 200)])
    slow = make_live_variant("slow", quality=0.4, price=0.01, profile=profile)
    slow.live.hardware = frozenset({"slow"})
    assert names(Site(slow, *gears()), 6, **PACED, objective="cost") == ["small"] * 2 + ["int8"] * 2 + ["full"] * 2


def test_requests_that_wait_for_the_cheapest_take_the_first_place_that_is_free():
    site = Site(*gears())
    running = [site.ask(**PACED, objective="cost") for _ in range(6)]
    waits = site.ask(**PACED, objective="cost")
    dearest = next(one for one in running if one.variant.name == "full")
    site.complete(dearest)
    assert waits.started and waits.variant.name == "full"


def test_a_request_with_a_cost_limit_waits_rather_than_take_a_dearer_variant():
    site = Site(*gears())
    small = site.variants[-1]
    ceiling = small.cost_usd(100, 11) * 1.1
    submitted = [site.ask(**PACED, objective="cost", max_cost=ceiling) for _ in range(3)]
    assert [one.started for one in submitted] == [True, True, False]
    site.complete(submitted[0])
    assert submitted[2].variant is small


def test_the_profile_cheap_stays_at_the_cheapest_whatever_runs_there():
    assert names(Site(*gears()), 10, **CHEAP) == ["small"] * 10


def test_beside_requests_with_a_time_per_token_the_profile_cheap_takes_no_place_that_is_theirs():
    site = Site(*gears())
    site.ask(**PACED, objective="cost")
    site.roll(5)  # the paced class counts
    found = names(site, 6, **CHEAP)
    assert found == ["small", "int8", "int8", "full", "full", None]
    assert all(variant.live.in_flight == 2 for variant in site.variants)
    site.roll(31)
    assert len(site.admission) == 0, "one without limits does not wait for ever"


def test_the_profile_balanced_takes_the_faster_of_those_with_the_quality():
    """int8 and full are as fast, and small, which is idle, has not the quality."""
    site = Site(*gears())
    found = names(site, 8, **BALANCED)
    assert set(found) == {"full", "int8"} and found.count("full") == found.count("int8")
    assert site.variants[-1].live.in_flight == 0


def test_the_profile_balanced_follows_the_load():
    site = Site(*gears())
    full, int8, _ = site.variants
    full.live.in_flight = 3
    assert names(site, 2, **BALANCED) == ["int8", "int8"]
    full.live.in_flight, int8.live.in_flight = 0, 3
    assert names(site, 2, **BALANCED) == ["full", "full"]


@pytest.mark.parametrize("rate", [2.0, 6.0])
def test_under_load_the_cost_objective_keeps_as_many_budgets_for_less(rate: float):
    """In the simulator, below and above the load that the cheapest alone can take."""

    def run(objective: str) -> list[Outcome]:
        profile = make_profile([(100, 1, 100)], [(1, 20), (8, 60)])
        variants = [
            make_live_variant(name, quality=quality, price=price, profile=profile, max_running=16)
            for name, quality, price in (("full", 1.0, 0.09), ("int8", 0.95, 0.06), ("small", 0.5, 0.03))
        ]
        budget = Budget(ttft_ms=1000, tpot_ms=60, objective=objective, on_no_candidate="reject")
        arrivals = itertools.takewhile(lambda at: at < 60_000, poisson(rate, 1))
        trace = mixed(arrivals, {"chat": (1.0, budget)}, 2)
        return list(Platform(variants, [[v.name] for v in variants], WithinBudget(), 1).run(trace))

    cheap, best = summary(run("cost")), summary(run("quality"))
    assert cheap["attainment"] > best["attainment"] - 0.05 and cheap["attainment"] > 0.8
    assert cheap["usd_per_1000"] < 0.9 * best["usd_per_1000"]
    assert cheap["quality"] < best["quality"]
