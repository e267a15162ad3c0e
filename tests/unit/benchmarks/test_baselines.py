"""The simulator's baselines: what each picks, and that no request of theirs waits."""

import pytest

from benchmarks.lib.sample_catalog import REQUEST, three_gears
from benchmarks.routing.baselines import POLICIES, Unscheduled, admission
from serve.budget import Budget
from serve.errors import RequestError
from serve.routing.admission import Admission
from serve.routing.catalog import Variant
from serve.routing.policy import WithinBudget
from serve.routing.router import Decision, Router
from serve.routing.waiting_queue import Waiting
from tests.support.admission_site import PACED, engine


def picked(router: Router, of: list[Variant], budget: Budget) -> str:
    return router.decide(of, budget, REQUEST).variant.name


@pytest.mark.parametrize(
    ("name", "chosen"),
    [("full", "full"), ("cheapest", "distilled"), ("fastest", "distilled"), ("threshold", "full")],
)
def test_each_does_what_it_says_when_idle_and_regards_no_budget(name: str, chosen: str):
    assert picked(Router(POLICIES[name]()), three_gears(), Budget(min_quality=0.99)) == chosen


@pytest.mark.parametrize("name", ["round-robin", "random"])
def test_round_robin_and_random_use_all(name: str):
    router = Router(POLICIES[name]())
    assert {picked(router, three_gears(), Budget()) for _ in range(60)} == {"full", "int8", "distilled"}


def test_the_threshold_fills_one_variant_after_the_other():
    of, router = three_gears(load=8, max_running=16), Router(POLICIES["threshold"]())
    of[1].live.in_flight = 7
    assert picked(router, of, Budget()) == "int8"
    of[1].live.in_flight = of[2].live.in_flight = 8
    assert picked(router, of, Budget()) == "distilled"


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "budget"])
def test_no_request_of_a_baseline_waits_and_no_variant_rests(name: str):
    found: list[Decision | RequestError] = []
    one, queue = engine(), admission(POLICIES[name]())
    for number in range(8):
        queue.submit([one], Waiting(Budget(**PACED), REQUEST, number, found.append), number)
        one.live.on_dispatch(100)
        queue.roll([one], number)
    assert [type(each) for each in found] == [Decision] * 8 and not len(queue)
    assert isinstance(queue, Unscheduled) and not queue._resting


def test_the_router_under_test_keeps_its_own_admission():
    assert type(admission(WithinBudget())) is Admission
