"""Harm: the sequences under way that a request would slow beyond the time per token that the budgets allow."""

import pytest

from benchmarks.lib.sample_catalog import REQUEST
from serve.budget import Budget
from serve.routing.catalog import Variant
from serve.routing.policy import WithinBudget
from serve.routing.prediction import Features
from serve.routing.router import Router
from tests.support.admission_site import engine

LIMIT_MS = 50.0  # two sequences run within it


def harm(*variants: Variant, features: Features = REQUEST) -> dict[str, int]:
    decision = Router(WithinBudget(explore=0)).decide(variants, Budget(), features, step_limit_ms=LIMIT_MS)
    return {candidate.variant.name: candidate.harm for candidate in decision.candidates}


def test_a_prompt_longer_than_usual_harms_where_reading_it_takes_the_others_time():
    """Two sequences take 41 ms per token; reading 100 tokens more than usual is 10 ms for each of the usual answer."""
    full = engine()
    full.live.on_dispatch(10, 1, 10)
    assert harm(full, features=Features(60, 10)) == {"full": 0}
    assert harm(full, features=Features(160, 10)) == {"full": 1}
    full.live.usual_prompt, full.live.usual_output = 160.0, 1000.0
    assert harm(full, features=Features(160, 10)) == {"full": 0}, "it is as long as usual"


@pytest.mark.parametrize(("hardware", "harmed"), [("full", 2), ("other", 0)])
def test_waking_an_idle_variant_harms_those_whose_hardware_it_takes(hardware: str, harmed: int):
    """Beside another busy variant a token takes twice as long, 80 ms for two sequences."""
    full, small = engine(), engine("small", quality=0.5)
    small.live.hardware = frozenset({hardware})
    full.live.on_dispatch(0, 2)
    assert harm(full, small) == {"full": 2, "small": harmed}


def test_of_equally_near_misses_the_one_is_taken_that_harms_nobody():
    busy, idle = engine("busy"), engine("idle", quality=0.9)
    busy.live.on_dispatch(0, 2)
    found = Router(WithinBudget(explore=0)).decide([busy, idle], Budget(max_cost=0), REQUEST, step_limit_ms=LIMIT_MS)
    assert (found.variant.name, found.reason) == ("idle", "nearest_miss")


def test_a_margin_counts_for_every_time_limit():
    expected = Router(WithinBudget(explore=0)).decide([engine()], Budget(), REQUEST).chosen.prediction.expected
    for rule, time_ms in zip(("ttft", "tpot", "e2e"), expected, strict=True):
        budget = Budget(**{f"{rule}_ms": 1.3 * time_ms})
        for margin, ruled_out in ((1.2, None), (1.4, rule)):
            assert (
                Router(WithinBudget(explore=0)).decide([engine()], budget, REQUEST, margin=margin).chosen.ruled_out
                == ruled_out
            )
