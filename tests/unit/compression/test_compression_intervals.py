"""Confidence intervals against their definition, and edge cases."""

import numpy as np
import pytest

from compression.measure.intervals import bootstrap_ci95, wilson_ci95


def test_the_interval_contains_the_mean_and_narrows_with_more_sequences() -> None:
    values = np.random.default_rng(8).normal(1.0, 0.2, size=400)
    few, many = bootstrap_ci95(values[:20]), bootstrap_ci95(values)
    assert few[0] < values[:20].mean() < few[1]
    assert many[1] - many[0] < few[1] - few[0]


@pytest.mark.parametrize(("hits", "items"), [(8, 10), (0, 10), (10, 10), (50, 100), (1, 3)])
def test_wilson_ends_are_where_the_score_test_just_rejects(hits: int, items: int) -> None:
    """Both ends solve (share - p)^2 = z^2 p (1 - p) / items, which is how the interval is defined."""
    for end in wilson_ci95(hits, items):
        assert (hits / items - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / items, rel=1e-5, abs=1e-12)
    low, high = wilson_ci95(hits, items)
    assert 0 <= low <= hits / items <= high <= 1 and low < high


@pytest.mark.parametrize(("hits", "items"), [(0, 0), (3, 2), (-1, 2)])
def test_a_share_of_nothing_is_refused(hits: int, items: int) -> None:
    with pytest.raises(ValueError, match="is no share"):
        wilson_ci95(hits, items)


def test_samples_that_are_all_equal_have_no_width() -> None:
    assert bootstrap_ci95(np.full(7, 0.25)) == (0.25, 0.25)
