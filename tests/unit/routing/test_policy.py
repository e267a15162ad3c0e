"""Properties of the routing policy for all variants, loads and estimates."""

import itertools
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.lib.sample_catalog import REQUEST, make_live_variant, make_profile, three_gears
from serve.budget import Budget
from serve.errors import RequestError
from serve.routing.catalog import Variant
from serve.routing.policy import WithinBudget
from serve.routing.prediction import Features
from serve.routing.router import HARD_RULES, REASONS, Decision, Router

LATENCY = ("ttft_ms", "tpot_ms", "e2e_ms")


@st.composite
def variants(draw: st.DrawFn) -> list[Variant]:
    """A catalog with loads, and with predictions that have learnt something."""
    found = []
    for i in range(draw(st.integers(1, 6))):
        ttft, tpot = draw(st.floats(5, 2000)), draw(st.floats(1, 200))
        variant = make_live_variant(
            f"v{i}", quality=draw(st.floats(0, 1)), profile=make_profile([(100, 1, ttft)], [(1, tpot), (8, 3 * tpot)]),
            price=draw(st.floats(0.01, 1)), load=draw(st.integers(0, 10)), max_running=8, max_waiting=8,
        )  # fmt: skip
        for slower in draw(st.lists(st.floats(0.2, 5), max_size=8)):
            prediction = variant.latency.predict(REQUEST, variant.live.load())
            prediction.observe(*(slower * time for time in prediction.expected))
        found.append(variant)
    return found


def limit(low: float, high: float) -> st.SearchStrategy[float | None]:
    return st.none() | st.floats(low, high)


@st.composite
def budgets(draw: st.DrawFn) -> Budget:
    return Budget(
        ttft_ms=draw(limit(1, 10_000)), tpot_ms=draw(limit(0.5, 1000)), e2e_ms=draw(limit(10, 100_000)),
        max_cost=draw(limit(1e-7, 1e-3)), min_quality=draw(limit(0, 1)),
        objective=draw(st.sampled_from(["quality", "cost", "latency"])),
        on_no_candidate=draw(st.sampled_from(["degrade", "reject"])),
    )  # fmt: skip


def decide(router: Router, of: list[Variant], budget: Budget, features: Features = REQUEST) -> Decision | RequestError:
    """The decision by which a request starts, or its refusal."""
    try:
        decision = router.decide(of, budget, features)
    except RequestError as error:
        return error
    router.policy.on_admit(decision)
    return decision


@given(variants(), budgets(), st.integers(0, 50))
@settings(deadline=None)
def test_never_below_the_floor_or_over_the_cost_unless_it_says_degrade(of, budget, seed):
    router = Router(WithinBudget(seed, explore=0.5))
    for _ in range(3):
        found = decide(router, of, budget)
        if isinstance(found, RequestError) or found.reason == "nearest_miss":
            assert not isinstance(found, RequestError) or found.status in (422, 429)
            assert isinstance(found, RequestError) or budget.on_no_candidate == "degrade"
            continue
        assert found.chosen.quality >= (budget.min_quality or 0)
        assert budget.max_cost is None or found.chosen.cost_usd <= budget.max_cost
        assert found.chosen.ruled_out is None
        if found.reason == "explore":
            assert found.chosen.chance >= 0.99


@given(variants(), budgets(), st.sampled_from([*LATENCY, "max_cost", "min_quality"]), st.floats(1, 10))
@settings(deadline=None)
def test_a_looser_budget_never_yields_lower_quality(of, budget, name, factor):
    budget = budget.model_copy(update={"objective": "quality"})
    tight = decide(Router(WithinBudget(explore=0)), of, budget)
    if isinstance(tight, RequestError) or tight.reason != "quality":
        return
    if (value := getattr(budget, name)) is not None:
        value = value / factor if name == "min_quality" else value * factor
    loose = decide(Router(WithinBudget(explore=0)), of, budget.model_copy(update={name: value}))
    assert isinstance(loose, Decision)
    assert loose.chosen.quality >= tight.chosen.quality


@given(variants(), st.lists(budgets(), min_size=1, max_size=10), st.integers(0, 1000))
@settings(deadline=None)
def test_the_same_requests_are_routed_the_same_way_again(of, requests, seed):
    def run() -> list[object]:
        router = Router(WithinBudget(seed, explore=0.3))
        found = [decide(router, of, budget) for budget in requests]
        return [one.status if isinstance(one, RequestError) else (one.variant.name, one.reason) for one in found]

    assert run() == run()


@given(variants(), budgets())
@settings(deadline=None)
def test_with_degrade_every_request_is_answered_while_there_is_room(of, budget):
    found = decide(Router(WithinBudget()), of, budget.model_copy(update={"on_no_candidate": "degrade"}))
    assert isinstance(found, Decision)
    assert found.chosen.ruled_out not in HARD_RULES


def test_traffic_moves_down_as_load_rises_and_back_when_it_falls():
    full, small = make_live_variant("full"), make_live_variant("small", quality=0.5, ttft_ms=50, tpot_ms=5)
    router, budget = Router(WithinBudget(explore=0)), Budget(e2e_ms=800)
    assert router.decide([full, small], budget, REQUEST).variant is full
    for _ in range(6):  # as many as run at once, and two that wait
        full.live.on_dispatch(100)
    assert decide(router, [full, small], budget).variant is small
    for _ in range(6):
        full.live.on_first_token(100)
        full.live.on_complete()
    assert decide(router, [full, small], budget).variant is full


def test_what_was_learnt_in_an_overload_does_not_keep_a_variant_idle_for_ever():
    full, small = make_live_variant("full"), make_live_variant("small", quality=0.5, ttft_ms=50, tpot_ms=5)
    router, budget = Router(WithinBudget(explore=0)), Budget(e2e_ms=800)
    for _ in range(100):
        full.latency.predict(REQUEST, full.live.load()).observe(3000, 200, 5000)
    assert router.decide([full, small], budget, REQUEST).variant is small
    for _ in range(600):  # five minutes of polls
        full.latency.tick()
    assert router.decide([full, small], budget, REQUEST).variant is full


def test_a_load_at_the_edge_does_not_swing_between_two_variants():
    full, small = make_live_variant("full"), make_live_variant("small", quality=0.5, ttft_ms=50, tpot_ms=5)
    edge = full.latency.predict(REQUEST, full.live.load()).expected.e2e_ms
    router, names = Router(WithinBudget(explore=0)), []
    for i in range(40):
        budget = Budget(e2e_ms=edge * (1.01 + 0.0001 * (i % 3)))  # what is left of it after the gateway's own time
        full.latency.drift = 0.02 if i % 2 else -0.02  # what is known changes a little all the time
        names.append(decide(router, [full, small], budget).variant.name)
    switches = sum(a != b for a, b in itertools.pairwise(names))
    assert switches <= 1
    assert names[-1] == "small"


@pytest.mark.parametrize(("objective", "chosen"), [("quality", "small"), ("cost", "full"), ("latency", "full")])
def test_hysteresis_holds_back_quality_and_not_what_is_cheaper_or_faster(objective: str, chosen: str):
    full = make_live_variant("full", price=0.01)
    small = make_live_variant("small", quality=0.5, ttft_ms=110, price=0.02)
    full.live.hardware, small.live.hardware = frozenset({"a"}), frozenset({"b"})
    router, budget = Router(WithinBudget(explore=0)), Budget(e2e_ms=320, objective=objective)
    full.live.on_dispatch(100)
    assert decide(router, [full, small], budget).variant is small
    full.live.on_first_token(100)
    full.live.on_complete()
    assert decide(router, [full, small], budget).variant.name == chosen, "full has less than a tenth to spare"


def test_decisions_that_are_not_followed_change_no_later_one():
    """Those of dry runs, and of waiting requests without a place."""

    def reasons(dry_runs: int) -> list[str]:
        of, router = three_gears(), Router(WithinBudget(seed=2, explore=0.3))
        found = []
        for _ in range(50):
            planned = [router.decide(of, Budget(), REQUEST).reason for _ in range(dry_runs)]
            found.append(decide(router, of, Budget()).reason)
            assert planned == found[-1:] * dry_runs, "a dry run says what the next request gets"
        return found

    assert reasons(0) == reasons(3) and set(reasons(0)) == {"quality", "explore"}
    full, small = make_live_variant("full"), make_live_variant("small", quality=0.5, ttft_ms=50, tpot_ms=5)
    router, budget = Router(WithinBudget(explore=0)), Budget(e2e_ms=310)
    full.live.on_dispatch(100)
    assert router.decide([full, small], budget, REQUEST).variant is small
    full.live.on_first_token(100)
    full.live.on_complete()
    assert decide(router, [full, small], budget).variant is full, "no hysteresis for what nobody got"


def test_exploration_is_a_small_share_and_never_at_risk():
    of = three_gears()
    router = Router(WithinBudget(seed=1, explore=0.05))
    reasons = Counter(decide(router, of, Budget()).reason for _ in range(2000))
    assert 60 <= reasons["explore"] <= 140
    assert set(reasons) == {"quality", "explore"}
    tight = Budget(e2e_ms=of[0].latency.predict(REQUEST, of[0].live.load()).tail(0.95).e2e_ms * 1.01, min_quality=0.99)
    assert all(decide(router, of, tight).reason == "quality" for _ in range(500))


def test_exploration_leaves_alone_what_another_variant_might_not_keep():
    full, slower = make_live_variant("full"), make_live_variant("slower", quality=0.9, ttft_ms=700, tpot_ms=60)
    edge = slower.latency.predict(REQUEST, slower.live.load()).tail(0.95).e2e_ms
    router = Router(WithinBudget(seed=1, explore=1.0))
    assert router.decide([full, slower], Budget(e2e_ms=edge * 1.01), REQUEST).reason == "quality", "it fits, but barely"
    assert router.decide([full, slower], Budget(e2e_ms=edge * 3), REQUEST).reason == "explore"


def test_exploration_goes_to_what_is_known_least():
    of = three_gears()
    for variant in of[:2]:
        variant.latency.predict(REQUEST, variant.live.load()).observe(100, 10, 200)
    router = Router(WithinBudget(seed=1, explore=1.0))
    assert router.decide(of, Budget(), REQUEST).variant.name == "distilled"


def test_what_is_known_or_would_have_to_start_is_not_explored():
    of = three_gears(min_replicas=0)
    of[1].latency.observed = 50
    of[2].live.replicas = 0
    router = Router(WithinBudget(seed=1, explore=1.0))
    assert router.decide(of, Budget(), REQUEST).reason == "quality"


def test_a_request_that_would_be_late_is_refused_at_once_where_it_says_reject():
    full = make_live_variant("full", load=4, max_waiting=100)
    budget = Budget(e2e_ms=900, on_no_candidate="reject")
    for _ in range(40):
        full.live.on_dispatch(100)
    found = decide(Router(WithinBudget()), [full], budget)
    assert isinstance(found, RequestError)
    assert (found.status, found.code) == (429, "budget_under_load")


def test_every_reason_is_documented():
    router, generator = Router(WithinBudget()), random.Random(5)
    documented = (Path(__file__).parents[3] / "docs/how-to/budgets.md").read_text()
    for _ in range(300):
        variants = three_gears(load=generator.randint(0, 7))
        budget = Budget(
            ttft_ms=10 ** generator.uniform(0, 4), objective=generator.choice(["quality", "cost", "latency"])
        )
        reason = router.decide(variants, budget, REQUEST).reason
        assert reason in REASONS and f"`{reason}`" in documented
