"""The router: eligible variants, the chosen one, and the explanation if none is chosen."""

import gc

import pytest

from benchmarks.lib.sample_catalog import REQUEST, choose, decide, make_live_variant, three_gears
from serve.budget import Budget, remaining
from serve.errors import RequestError
from serve.routing.catalog import Variant
from serve.routing.prediction import Features
from serve.routing.router import Decision

# REQUEST is 100 prompt tokens and 11 of answer, so end to end is TTFT + 10 TPOT: full 800, int8 400, distilled 200 ms.


def refusal(variants: list[Variant], features: Features = REQUEST, pinned=None, failed=(), **limits) -> RequestError:
    with pytest.raises(RequestError) as caught:
        decide(variants, Budget(**limits), features, pinned=pinned, failed=failed)
    return caught.value


def rules(decision: Decision) -> dict[str, str | None]:
    return {candidate.variant.name: candidate.ruled_out for candidate in decision.candidates}


@pytest.mark.parametrize(
    ("objective", "chosen"), [("quality", "full"), ("cost", "distilled"), ("latency", "distilled")]
)
def test_without_limits_the_objective_decides(objective, chosen):
    decision = choose(three_gears(), objective=objective)
    assert (decision.variant.name, decision.reason) == (chosen, objective)


def test_cost_and_latency_are_different_objectives():
    slow_and_cheap = make_live_variant("a", ttft_ms=500, price=0.01)
    fast_and_dear = make_live_variant("b", ttft_ms=100, price=1)
    for variants in ([slow_and_cheap, fast_and_dear], [fast_and_dear, slow_and_cheap]):
        assert choose(variants, objective="cost").variant.name == "a"
        assert choose(variants, objective="latency").variant.name == "b"


def test_latency_means_end_to_end_not_only_the_first_token():
    starts_fast, ends_fast = (
        make_live_variant("a", ttft_ms=10, tpot_ms=50),
        make_live_variant("b", ttft_ms=100, tpot_ms=5),
    )
    assert choose([starts_fast, ends_fast], objective="latency").variant.name == "b"
    assert choose([starts_fast, ends_fast], Features(100, 1), objective="latency").variant.name == "a"


def test_no_variant_under_the_quality_floor_is_taken():
    decision = choose(three_gears(), objective="cost", min_quality=0.9)
    assert decision.variant.name == "int8"
    assert rules(decision) == {"full": None, "int8": None, "distilled": "min_quality"}
    assert choose(three_gears(), objective="cost", min_quality=0.95).variant.name == "int8", (
        "the floor itself is enough"
    )


def test_no_variant_over_the_cost_ceiling_is_taken():
    int8 = three_gears()[1].cost_usd(REQUEST.prompt_tokens, REQUEST.output_tokens)
    decision = choose(three_gears(), max_cost=int8)
    assert decision.variant.name == "int8"
    assert rules(decision)["full"] == "max_cost"
    assert choose(three_gears(), max_cost=int8 * 0.999).variant.name == "distilled"


@pytest.mark.parametrize(
    ("limits", "rule"), [({"ttft_ms": 200}, "ttft"), ({"tpot_ms": 20}, "tpot"), ({"e2e_ms": 400}, "e2e")]
)
def test_each_latency_limit_rules_out_what_is_slower(limits, rule):
    decision = choose(three_gears(), **limits)
    assert decision.variant.name == "int8", "exactly on the limit is within it"
    assert rules(decision) == {"full": rule, "int8": None, "distilled": None}
    tighter = {name: value * 0.99 for name, value in limits.items()}
    assert choose(three_gears(), **tighter).variant.name == "distilled"


def test_load_moves_requests_to_a_lower_gear():
    variants = three_gears()
    assert choose(variants, ttft_ms=500).variant.name == "full"
    variants[0].live.update_from_engines(1, 4, 2, 0.1)  # more than its engine runs at once: a queue
    assert choose(variants, ttft_ms=500).variant.name == "int8"


def test_ties_go_to_quality_then_cost():
    same = {"ttft_ms": 100, "tpot_ms": 10, "price": 0.05}
    worse, better = make_live_variant("a", quality=0.9, **same), make_live_variant("b", quality=0.99, **same)
    for objective in ("cost", "latency"):
        assert choose([worse, better], objective=objective).variant.name == "b"
        assert choose([better, worse], objective=objective).variant.name == "b"
    dear, cheap = make_live_variant("a", price=0.06), make_live_variant("b", price=0.05)
    assert choose([dear, cheap], objective="quality").variant.name == "b"
    assert choose([dear, cheap], objective="latency").variant.name == "b"


def test_a_pinned_variant_ignores_the_budget():
    impossible = Budget(ttft_ms=1, max_cost=0, min_quality=1, on_no_candidate="reject")
    decision = decide(three_gears(), impossible, REQUEST, pinned="distilled")
    assert (decision.variant.name, decision.reason) == ("distilled", "pinned")
    assert [candidate.variant.name for candidate in decision.candidates] == ["distilled"]
    assert decision.chosen.explanation, "and says that it misses it"


@pytest.mark.parametrize(
    ("limits", "elapsed_s", "by_ms"),
    [({"ttft_ms": 500}, 0, 500), ({"e2e_ms": 900}, 0, 500), ({"ttft_ms": 500, "e2e_ms": 850}, 0, 450), ({}, 0, 60_000),
     ({"ttft_ms": 300}, 0, 60_000), ({"ttft_ms": 500, "e2e_ms": 700}, 0, 60_000), ({"ttft_ms": 500, "e2e_ms": 9000}, 1, 60_000),
     ({"ttft_ms": 120_000}, 121, 120_000)],
)  # fmt: skip
def test_what_cannot_be_in_time_is_due_at_the_engine_like_a_request_without_limits(limits, elapsed_s, by_ms):
    """A first token takes 400 ms, the others another 400."""
    budget = Budget(**limits)
    chosen = decide(three_gears()[:1], remaining(budget, elapsed_s), REQUEST).chosen
    assert chosen.first_token_by_ms(budget) == pytest.approx(by_ms)


def test_degrade_takes_the_nearest_miss_and_says_so():
    decision = choose(three_gears(), ttft_ms=90)
    assert (decision.variant.name, decision.reason) == ("distilled", "nearest_miss")
    assert decision.chosen.explanation == "predicted ttft 100 ms > 90 ms"
    assert set(rules(decision).values()) == {"ttft"}


def test_the_nearest_miss_weighs_all_limits_together():
    variants = [
        make_live_variant("slow", quality=1.0, ttft_ms=300, tpot_ms=1),  # misses TTFT by 200 %
        make_live_variant("poor", quality=0.7, ttft_ms=100, tpot_ms=1),  # misses quality by 30 %
        make_live_variant("both", quality=0.8, ttft_ms=125, tpot_ms=1),  # misses by 20 % and 25 %
    ]
    assert choose(variants, ttft_ms=100, min_quality=1).variant.name == "poor"
    assert choose(variants, ttft_ms=100, min_quality=1, objective="latency").variant.name == "poor"


def test_equal_misses_go_to_quality():
    variants = [make_live_variant("a", quality=0.8), make_live_variant("b", quality=0.9)]
    assert choose(variants, ttft_ms=50).variant.name == "b"


def test_reject_refuses_a_budget_that_no_variant_meets_even_idle():
    error = refusal(three_gears(), ttft_ms=50, on_no_candidate="reject")
    assert (error.status, error.code, error.param) == (422, "impossible_budget", "budget")
    for name in ("full", "int8", "distilled"):
        assert f"{name}: predicted ttft" in error.message
    assert "retry-after" not in error.headers


def test_reject_says_retry_when_only_the_load_is_in_the_way():
    variants = [make_live_variant("full", ttft_ms=100, load=7)]
    error = refusal(variants, ttft_ms=150, on_no_candidate="reject")
    assert (error.status, error.code) == (429, "budget_under_load")
    assert int(error.headers["retry-after"]) >= 1
    variants[0].live.in_flight = 0
    assert choose(variants, ttft_ms=150, on_no_candidate="reject").variant.name == "full"


def test_reject_says_retry_when_only_variants_that_are_away_could():
    variants = [make_live_variant("full", quality=1.0), make_live_variant("distilled", quality=0.5)]
    variants[0].live.replicas = 0
    error = refusal(variants, min_quality=0.9, on_no_candidate="reject")
    assert (error.status, error.code) == (503, "no_healthy_variant")
    assert "full: no healthy replica" in error.message and int(error.headers["retry-after"]) >= 1
    assert refusal(variants, min_quality=0.9, max_cost=0, on_no_candidate="reject").status == 422


def test_load_is_no_excuse_where_quality_or_cost_is_missing():
    variants = [make_live_variant("distilled", quality=0.8, ttft_ms=100, load=7)]
    assert refusal(variants, ttft_ms=150, min_quality=0.9, on_no_candidate="reject").status == 422
    assert refusal(variants, ttft_ms=150, max_cost=0, on_no_candidate="reject").status == 422


def test_a_variant_without_a_healthy_replica_is_not_taken():
    variants = three_gears()
    variants[0].live.replicas = 0
    decision = choose(variants)
    assert decision.variant.name == "int8"
    assert rules(decision)["full"] == "unavailable"


def test_nothing_healthy_is_503_with_retry_after():
    error = refusal(three_gears(replicas=0))
    assert (error.status, error.code) == (503, "no_healthy_variant")
    assert int(error.headers["retry-after"]) >= 1
    assert "full" in error.message


def test_no_variant_at_all_is_503():
    assert refusal([]).status == 503


def test_a_variant_that_failed_this_request_is_not_tried_again():
    decision = decide(three_gears(), Budget(), REQUEST, failed={"full"})
    assert decision.variant.name == "int8"
    assert rules(decision)["full"] == "failed"
    assert refusal(three_gears(), failed={"full", "int8", "distilled"}).status == 503


def test_a_prompt_too_long_for_one_variant_goes_to_one_with_room():
    variants = [
        make_live_variant("short", quality=1.0, max_model_len=100),
        make_live_variant("long", quality=0.5, max_model_len=101),
    ]
    decision = choose(variants, Features(100, 1, context_tokens=101))
    assert decision.variant.name == "long"
    assert rules(decision)["short"] == "context"
    assert decision.public()["candidates"][0]["why"] == "about 101 tokens by estimate, 100 fit"
    assert choose(variants, Features(100, 1, context_tokens=100)).variant.name == "short"


@pytest.mark.parametrize("on_no_candidate", ["degrade", "reject"])
def test_an_estimate_of_the_context_never_refuses(on_no_candidate):
    """Only the engine's own count does."""
    huge = Features(5000, 1, context_tokens=10**9)
    assert choose(three_gears(), huge, on_no_candidate=on_no_candidate).variant.name == "full"
    variants = [
        make_live_variant("short", quality=1.0, ttft_ms=10, max_model_len=100),
        make_live_variant("long", quality=0.5, ttft_ms=9000, max_model_len=4000),
    ]
    decision = choose(variants, Features(100, 1, context_tokens=200), ttft_ms=500, on_no_candidate=on_no_candidate)
    assert decision.variant.name == "short", "the budget is sure, the estimate is not"
    assert decision.reason == "quality" and rules(decision)["short"] is None


def sequences(number: int) -> Features:
    return Features(100, 11, sequences=number)


def test_all_sequences_of_a_request_cost():
    variant = make_live_variant("full", price=0.36)
    one, eight = (choose([variant], sequences(number)).chosen.cost_usd for number in (1, 8))
    read = variant.cost_usd(100, 0)
    assert eight - read == pytest.approx(8 * (one - read))
    assert refusal([variant], sequences(8), max_cost=(one + eight) / 2, on_no_candidate="reject").status == 422
    assert choose([variant], sequences(8), max_cost=(one + eight) / 2).chosen.explanation is not None, (
        "degraded, and the decision says so"
    )


def test_sequences_that_do_not_run_at_once_take_longer():
    times = [
        choose(
            [make_live_variant("full", max_running=4, max_waiting=12, load=load)], sequences(number)
        ).chosen.prediction
        for load, number in ((0, 1), (0, 4), (0, 5), (0, 16), (4, 1), (4, 4))
    ]
    e2e = [one.expected.e2e_ms for one in times]
    assert e2e[0] == e2e[1] < e2e[2] < e2e[3]
    assert times[3].expected.ttft_ms == times[0].expected.ttft_ms, "its first sequences run at once"
    assert e2e[4] < e2e[5] and times[4].expected.ttft_ms < times[5].expected.e2e_ms
    assert times[4].expected.ttft_ms == times[5].expected.ttft_ms > times[0].expected.ttft_ms, "behind the others'"


def test_sequences_count_in_the_queue():
    variants = [make_live_variant("full", max_running=4, max_waiting=4, load=4)]
    assert choose(variants, sequences(4)).variant.name == "full"
    assert refusal(variants, sequences(5)).code == "overloaded"
    live = variants[0].live
    live.on_dispatch(10, 3)
    assert (live.in_flight, live.load().requests) == (7, 7)
    live.update_from_engines(1, 7, 0, 0.0)
    assert live.remote_in_flight == 0, "the engine counts sequences too"
    live.on_complete(3)
    assert live.in_flight == 4


@pytest.mark.parametrize("pinned", [None, "full"])
def test_more_sequences_than_a_replica_admits_are_refused_at_once(pinned):
    variants = three_gears(max_running=4, max_waiting=4, replicas=3, load=0)
    error = refusal(variants, sequences(9), pinned=pinned)
    assert (error.status, error.code, error.param) == (400, "too_many_sequences", "n")
    assert "9" in error.message and "8" in error.message
    variants[1] = make_live_variant("int8", quality=0.9, max_running=9)
    if pinned is None:
        decision = choose(variants, sequences(9))
        assert decision.variant.name == "int8" and rules(decision)["full"] == "sequences"
    variants[1].live.replicas = 0
    assert refusal(variants, sequences(9)).status == 503, "it fits when that one is up again"


def test_sequences_that_only_a_broken_variant_admits_are_worth_another_try():
    variants = [make_live_variant("full", max_running=4, max_waiting=4), make_live_variant("int8", max_running=20)]
    assert refusal(variants, sequences(9), failed={"int8"}).status == 503
    variants[0].live.replicas = 0
    error = refusal(variants[:1], sequences(9))
    assert (error.status, error.code) == (400, "too_many_sequences"), "it fits no more when that one is up"


def test_a_full_variant_is_not_taken():
    variants = three_gears(max_running=2, max_waiting=1)
    variants[0].live.in_flight = 3
    decision = choose(variants)
    assert decision.variant.name == "int8"
    assert rules(decision)["full"] == "full"
    variants[0].live.in_flight = 2
    assert choose(variants).variant.name == "full"


def test_room_grows_with_the_replicas():
    variants = [make_live_variant("full", max_running=2, max_waiting=1, load=5, replicas=2)]
    assert choose(variants).variant.name == "full"
    variants[0].live.in_flight = 6
    assert refusal(variants).status == 429


def test_everything_full_is_429_with_retry_after():
    error = refusal(three_gears(load=8))
    assert (error.status, error.code) == (429, "overloaded")
    assert int(error.headers["retry-after"]) >= 1


def test_full_beside_unavailable_is_429_because_waiting_helps():
    variants = three_gears(load=8)
    variants[0].live.replicas = 0
    assert refusal(variants).status == 429


def test_a_pinned_variant_is_still_refused_when_it_is_down_full_or_too_short():
    variants = three_gears()
    variants[0].live.replicas = 0
    assert refusal(variants, pinned="full").status == 503
    variants[1].live.in_flight = 8
    assert refusal(variants, pinned="int8").status == 429
    assert refusal(variants, sequences(999), pinned="distilled").status == 400


def test_a_variant_scaled_to_zero_is_a_candidate_with_its_start_up_in_the_prediction():
    asleep = make_live_variant("full", ttft_ms=100, min_replicas=0, replicas=0)
    awake = make_live_variant("int8", quality=0.9, ttft_ms=100)
    decision = choose([asleep, awake])
    assert decision.variant.name == "full"
    assert decision.chosen.prediction.expected.ttft_ms == pytest.approx(100 + 30_000)
    assert choose([asleep, awake], ttft_ms=200).variant.name == "int8"


def test_every_candidate_is_explained():
    variants = three_gears()
    variants[1].live.replicas = 0
    shown = choose(variants, ttft_ms=350).public()
    assert shown["variant"] == "distilled"
    assert shown["reason"] == "quality"
    assert shown["predicted_ttft_ms"] == 100
    explained = {candidate["variant"]: (candidate["ruled_out"], candidate["why"]) for candidate in shown["candidates"]}
    assert explained == {
        "full": ("ttft", "predicted ttft 400 ms > 350 ms"),
        "int8": ("unavailable", "no healthy replica"),
        "distilled": (None, None),
    }
    for candidate in shown["candidates"]:
        assert candidate["predicted_e2e_ms"] > 0
        assert candidate["cost_usd"] > 0
        assert 0 < candidate["quality"] <= 1
        assert candidate["in_flight"] == 0


def test_a_decision_changes_nothing():
    variants = three_gears(load=2)
    before = [(v.name, v.live.replicas, v.live.in_flight, v.live.load()) for v in variants]
    choose(variants, ttft_ms=300)
    assert [(v.name, v.live.replicas, v.live.in_flight, v.live.load()) for v in variants] == before


def test_a_decision_leaves_nothing_to_the_garbage_collector():
    """It would take longer than the decision."""
    variants, budget = three_gears(), Budget(ttft_ms=1)
    decide(variants, budget, REQUEST)
    gc.disable()
    gc.freeze()  # what is there already: to collect it, with all modules of all tests, takes a second
    try:
        decide(variants, budget, REQUEST)
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_the_nearest_miss_names_every_limit_it_misses():
    decision = choose(three_gears(), ttft_ms=50, min_quality=0.99, objective="cost")
    missed = decision.chosen.explanation
    assert decision.reason == "nearest_miss" and missed is not None
    assert "predicted ttft" in missed and ("quality" in missed) == (decision.chosen.quality < 0.99)
    [distilled] = [one for one in decision.candidates if one.variant.name == "distilled"]
    assert (
        distilled.explanation is not None
        and "quality" in distilled.explanation
        and "predicted ttft" in distilled.explanation
    )
    assert distilled.ruled_out == "min_quality", "the first of them"


def test_the_wait_before_a_request_counts_until_its_first_token_and_its_end():
    chosen = choose(three_gears()).chosen
    now, later = chosen.predictions(), chosen.predictions(100.0)
    waited = {name: 0.0 if name.startswith("tpot") else 100.0 for name in now}
    assert {name: later[name] - now[name] for name in now} == pytest.approx(waited)
