"""Conformal thresholds of the support score."""

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.retrieval.verify.calibration import TooFewQuestions, conformal_threshold, min_questions

RATES = st.sampled_from([0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5])


@given(st.lists(st.floats(0, 1), min_size=2, max_size=300), RATES)
def test_of_questions_that_are_alike_at_most_the_rate_is_below_the_threshold_of_the_others(scores, rate):
    """Each of n + 1 exchangeable scores is as likely the new one: the guarantee is the mean over them."""
    below = 0
    for i, new in enumerate(scores):
        try:
            below += new < conformal_threshold([*scores[:i], *scores[i + 1 :]], rate)
        except TooFewQuestions:
            assert len(scores) - 1 < min_questions(rate)
    assert Fraction(below, len(scores)) <= Fraction(str(rate))


@given(st.lists(st.integers(0, 10**6), min_size=19, max_size=300, unique=True), RATES)
def test_it_is_the_largest_threshold_with_that_guarantee(scores, rate):
    if len(scores) < min_questions(rate):
        return
    ordered = sorted(scores)
    at = ordered.index(conformal_threshold(scores, rate))
    assert Fraction(at + 1, len(scores) + 1) <= Fraction(str(rate)) < Fraction(at + 2, len(scores) + 1)


@given(RATES)
def test_the_fewest_questions_are_enough_and_one_less_is_not(rate):
    fewest = min_questions(rate)
    assert fewest == ceil(1 / Fraction(str(rate))) - 1
    scores = [i / fewest for i in range(fewest)]
    assert conformal_threshold(scores, rate) == 0
    with pytest.raises(TooFewQuestions, match=f"at least {fewest} answerable questions, not {fewest - 1}"):
        conformal_threshold(scores[1:], rate)
