"""Variants in the catalog: cost."""

import pytest

from benchmarks.lib.sample_catalog import choose, make_live_variant
from serve.routing.prediction import Features


def test_cost_is_the_share_of_a_fully_used_machine():
    variant = make_live_variant("full", price=0.36)
    assert variant.cost_usd(1000, 0) == pytest.approx(0.36 / 3600)  # prefill: 1000 tokens a second
    assert variant.cost_usd(0, 200) == pytest.approx(2 * 0.36 / 3600)  # decode: 100 tokens a second
    assert choose([variant], Features(1000, 200)).chosen.cost_usd == pytest.approx(3 * 0.36 / 3600)
