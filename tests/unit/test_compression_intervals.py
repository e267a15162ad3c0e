"""Intervals against values computed by others, and their behaviour at the edges."""

import numpy as np
import pytest

from compression.intervals import bootstrap_ci95, wilson_ci95


def test_the_interval_contains_the_mean_and_narrows_with_more_sequences() -> None:
    values = np.random.default_rng(8).normal(1.0, 0.2, size=400)
    few, many = bootstrap_ci95(values[:20]), bootstrap_ci95(values)
    assert few[0] < values[:20].mean() < few[1]
    assert many[1] - many[0] < few[1] - few[0]


@pytest.mark.parametrize(
    ("hits", "items", "low", "high"),
    # statsmodels.stats.proportion.proportion_confint(hits, items, method="wilson")
    [(8, 10, 0.4901625, 0.9433178), (0, 10, 0.0, 0.2775328), (10, 10, 0.7224672, 1.0), (50, 100, 0.4038315, 0.5961685)],
)
def test_wilson_intervals_are_the_published_ones(hits: int, items: int, low: float, high: float) -> None:
    assert wilson_ci95(hits, items) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize(("hits", "items"), [(0, 0), (3, 2), (-1, 2)])
def test_a_share_of_nothing_is_refused(hits: int, items: int) -> None:
    with pytest.raises(ValueError, match="is no share"):
        wilson_ci95(hits, items)


def test_samples_that_are_all_equal_have_no_width() -> None:
    assert bootstrap_ci95(np.full(7, 0.25)) == (0.25, 0.25)
