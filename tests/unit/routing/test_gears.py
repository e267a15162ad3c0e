"""Gears that share hardware: which rest under which traffic."""

import math

import pytest

from benchmarks.lib.sample_catalog import REQUEST, make_live_variant, make_profile
from serve.budget import Budget
from serve.routing.admission import Admission
from serve.routing.catalog import Variant
from serve.routing.gears import Demand, resting
from serve.routing.policy import WithinBudget
from serve.routing.router import Router
from serve.routing.waiting_queue import Waiting

# tokens a second, whatever the batch is: 50 and 200
SPEED = {"full": (1.0, 20), "small": (0.5, 5)}


def gear(name: str, hardware: str = "node", price: float = 0.036) -> Variant:
    quality, step_ms = SPEED[name]
    profile = make_profile([(100, 1, 5 * step_ms)], [(1, step_ms), (8, 8 * step_ms)])
    made = make_live_variant(name, quality=quality, profile=profile, price=price, max_running=8)
    made.live.hardware = frozenset({hardware})
    return made


def demand(tokens_per_s: float, step_limit_ms: float = 40.0, min_quality: float = 0.0) -> Demand:
    return Demand(tokens_per_s / 10, 0.0, tokens_per_s, step_limit_ms, min_quality)


def test_none_rests_without_contention():
    assert resting([gear("full"), gear("small")], [demand(30)], ()) == frozenset()


def test_none_rests_where_no_time_per_token_is_limited():
    assert resting([gear("full"), gear("small")], [demand(500, math.inf)], ()) == frozenset()
    assert resting([gear("full"), gear("small")], [], ()) == frozenset()


def test_under_contention_the_gear_rests_that_keeps_fewer_budgets():
    assert resting([gear("full"), gear("small")], [demand(150)], ()) == {"full"}


def test_gears_with_hardware_of_their_own_do_not_rest():
    assert resting([gear("full", "one"), gear("small", "other")], [demand(150)], ()) == frozenset()
    alone, unknown = gear("full"), gear("small")
    unknown.live.hardware = frozenset()
    assert resting([alone, unknown], [demand(150)], ()) == frozenset(), "what they compute on is not known"


def test_a_gear_without_replicas_neither_rests_nor_keeps_others_from_working():
    stopped, full = gear("small"), gear("full")
    stopped.live.replicas = 0
    assert resting([full, stopped], [demand(150)], ()) == frozenset()


def test_a_quality_floor_keeps_the_better_gear_awake():
    assert "full" not in resting([gear("full"), gear("small")], [demand(120), demand(60, min_quality=0.9)], ())
    assert resting([gear("full"), gear("small")], [demand(150), demand(2, min_quality=0.4)], ()) == {"full"}, (
        "a floor that the other has too"
    )


def test_gears_that_share_through_a_third_one_are_one_group():
    first, last = gear("full", "one"), gear("small", "other")
    between = make_live_variant("between", quality=0.8, profile=first.profile, max_running=8)
    between.live.hardware = frozenset({"one", "other"})
    assert resting([first, last, between], [demand(150)], ()) == {"full", "between"}


def test_a_small_difference_changes_nothing():
    of = [gear("full"), gear("small")]
    edge = [demand(51)]  # 98% of it is within what `full` can do
    assert resting(of, edge, {"small"}) == {"small"}
    assert resting(of, edge, {"full"}) == {"full"}
    assert resting(of, [demand(100)], {"small"}) == {"full"}, "a large one does"
    assert resting(of, [demand(30)], {"full"}) == frozenset(), "nor does any stay at rest without contention"


@pytest.mark.parametrize(
    ("limits", "chosen"), [({}, "small"), ({"min_quality": 0.9}, "full"), ({"max_cost": 0}, "full")]
)
def test_a_resting_gear_gets_only_what_no_other_may_answer(limits: dict[str, float], chosen: str):
    """At a price of 0 only `full` is within `max_cost`."""
    full, small = gear("full", price=0.0), gear("small")
    found = Router(WithinBudget(explore=0)).decide([full, small], Budget(**limits), REQUEST, resting={"full"})
    assert found.variant.name == chosen
    ruled_out = {one.variant.name: one.ruled_out for one in found.candidates}
    assert ruled_out["full"] == ("resting" if chosen == "small" else None)


def test_offered_work_lets_a_gear_rest_and_its_end_wakes_it():
    of = [gear("full"), gear("small")]
    admission = Admission(Router(WithinBudget(explore=0)))
    admission.roll(of, 0.0)
    for half in range(1, 41):
        for _ in range(8):  # 16 requests of 11 tokens a second
            admission.submit(of, Waiting(Budget(tpot_ms=50), REQUEST, half / 2, lambda _: None), half / 2)
        for variant in of:
            variant.live.in_flight = 0
        admission.roll(of, half / 2)
    assert admission._resting == {"full"}
    for half in range(41, 200):
        admission.roll(of, half / 2)
    assert admission._resting == frozenset()


def test_two_gears_work_where_each_keeps_what_the_other_would_not():
    of = [gear("full"), gear("small")]
    assert resting(of, [demand(80), demand(20, min_quality=0.9)], ()) == frozenset()


def test_few_requests_with_a_floor_do_not_outweigh_all_others():
    of = [gear("full"), gear("small")]
    assert resting(of, [demand(150), demand(2, min_quality=0.9)], ()) == {"full"}


def test_replicas_add_up():
    full = gear("full")
    full.live.replicas = 4
    assert resting([full, gear("small")], [demand(120)], ()) == frozenset(), "60% of what four do is no contention"


def test_prompts_take_time_from_decoding():
    """With ten tokens of prompts for each of answers `full` decodes 37 tokens a second within 100 ms, without 50."""
    of = [gear("full"), gear("small")]
    assert resting(of, [Demand(3.2, 0, 32, 100, 0)], {"small"}) == frozenset()
    assert resting(of, [Demand(3.2, 320, 32, 100, 0)], {"small"}) == {"small"}
