"""Properties of the router's decisions for random catalogs and budgets."""

import random

from benchmarks.lib.sample_catalog import decide, make_live_variant, make_profile
from serve.budget import Budget
from serve.errors import RequestError
from serve.routing.catalog import Variant
from serve.routing.prediction import Features
from serve.routing.router import HARD_RULES, REASONS


def random_catalog(generator: random.Random) -> list[Variant]:
    def variant(i: int) -> Variant:
        base, token = generator.uniform(10, 900), generator.uniform(1, 90)
        profile = make_profile(
            [(10, 1, base), (1000, 1, base * 4), (1000, 8, base * 9)], [(1, token), (8, token * 3)],
            startup_s=generator.uniform(1, 60),
        )  # fmt: skip
        return make_live_variant(
            f"v{i}", quality=generator.choice([0.5, 0.8, 0.9, generator.random()]), profile=profile,
            price=generator.choice([0.01, 0.02, generator.random()]), max_model_len=generator.choice([256, 2048]),
            max_running=generator.randint(1, 8), max_waiting=generator.randint(0, 8),
            min_replicas=generator.randint(0, 1), replicas=generator.randint(0, 3), load=generator.randint(0, 20),
        )  # fmt: skip

    return [variant(i) for i in range(generator.randint(1, 5))]


def random_budget(generator: random.Random) -> Budget:
    def maybe(value: float) -> float | None:
        return value if generator.random() < 0.4 else None

    return Budget(
        ttft_ms=maybe(10 ** generator.uniform(0, 4.5)),
        tpot_ms=maybe(10 ** generator.uniform(0, 3)),
        e2e_ms=maybe(10 ** generator.uniform(1, 5)),
        max_cost=maybe(10 ** generator.uniform(-8, -3)),
        min_quality=maybe(generator.random()),
        objective=generator.choice(["quality", "cost", "latency"]),
        on_no_candidate=generator.choice(["degrade", "reject"]),
    )


def meets_limits(budget: Budget, quality: float, cost: float, ttft: float, tpot: float, e2e: float) -> bool:
    """Whether every limit is met, written down a second time."""
    return (
        quality >= (budget.min_quality or 0)
        and (budget.max_cost is None or cost <= budget.max_cost)
        and all(
            v <= limit for v, limit in ((ttft, budget.ttft_ms), (tpot, budget.tpot_ms), (e2e, budget.e2e_ms)) if limit
        )
    )


def test_whatever_the_catalog_and_budget_the_decision_keeps_its_promises():
    generator = random.Random(3)
    outcomes: set[object] = set()
    for _ in range(400):
        variants, budget = random_catalog(generator), random_budget(generator)
        features = Features(
            generator.randint(1, 3000), generator.randint(1, 300), (), generator.choice([1, 1, 3, 12]),
            generator.choice([0, 300, 3000]),
        )  # fmt: skip
        pinned = generator.choice([None, None, None, variants[0].name])
        try:
            decision = decide(variants, budget, features, pinned=pinned)
        except RequestError as error:
            outcomes.add(error.status)
            assert error.status in (400, 422, 429, 503)
            assert (error.status == 400) == (error.code == "too_many_sequences")
            assert ("retry-after" in error.headers) == (error.status in (429, 503))
            assert pinned is None or error.status != 422
            assert budget.on_no_candidate == "reject" or error.code not in ("impossible_budget", "budget_under_load")
            continue
        outcomes.add(decision.reason)
        assert decision.reason in REASONS
        assert decision.chosen in decision.candidates
        assert decision.chosen.ruled_out not in HARD_RULES
        assert decision.variant.live.replicas or decision.variant.scales_to_zero
        assert len(decision.candidates) == (1 if pinned else len(variants))
        for candidate in decision.candidates:
            latency = candidate.prediction.expected
            within_budget = meets_limits(
                budget, candidate.variant.quality.quality, candidate.cost_usd,
                latency.ttft_ms, latency.tpot_ms, latency.e2e_ms,
            )  # fmt: skip
            assert (candidate.explanation is None) == (candidate.ruled_out is None)
            if candidate.ruled_out not in HARD_RULES:
                assert within_budget == (candidate.ruled_out is None)
                assert (candidate.violation > 0) != within_budget
            if decision.reason == "nearest_miss" and candidate.ruled_out not in HARD_RULES:
                assert (decision.chosen.overflows, decision.chosen.violation) <= (
                    candidate.overflows,
                    candidate.violation,
                )
        if decision.reason not in ("nearest_miss", "pinned"):
            assert decision.chosen.ruled_out is None
            assert decision.reason == budget.objective
            fitting = [candidate for candidate in decision.candidates if candidate.ruled_out is None]
            best = {
                "quality": max(candidate.variant.quality.quality for candidate in fitting),
                "cost": min(candidate.cost_usd for candidate in fitting),
                "latency": min(candidate.prediction.expected.e2e_ms for candidate in fitting),
            }
            own = {
                "quality": decision.variant.quality.quality,
                "cost": decision.chosen.cost_usd,
                "latency": decision.chosen.prediction.expected.e2e_ms,
            }
            assert own[budget.objective] == best[budget.objective]
        else:
            assert pinned or budget.on_no_candidate == "degrade"
    assert outcomes == {400, 422, 429, 503, *REASONS} - {"explore"}, "it reached every outcome"


def test_the_same_inputs_make_the_same_decision_in_any_order_of_the_catalog():
    generator = random.Random(4)
    for _ in range(100):
        variants, budget = random_catalog(generator), random_budget(generator)
        features = Features(generator.randint(1, 400), generator.randint(1, 300))

        def outcome(of: list[Variant], budget: Budget = budget, features: Features = features) -> object:
            try:
                decision = decide(of, budget, features)
            except RequestError as error:
                return error.status
            key = decision.chosen
            return decision.reason, key.variant.quality.quality, key.cost_usd, round(key.prediction.expected.e2e_ms, 6)

        first = outcome(variants)
        assert outcome(variants) == first
        assert outcome(list(reversed(variants))) == first
