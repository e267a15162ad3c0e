"""Comparison of token streams with undisturbed answers, parts of migrated answers, and gaps."""

import random

import pytest

from benchmarks.cluster.token_streams import Agreement, Part, compare, compare_text, longest_gap, parts, percentile

EXPECTED, OTHER = (random.Random(seed).sample(range(40_000), 48) for seed in (1, 2))
TEXT = "the quick brown fox jumps over the lazy dog while nine odd wizards mix a potent brew of jade"


def test_an_equal_answer_and_the_beginning_of_one_agree():
    assert compare(EXPECTED, EXPECTED) == Agreement(48)
    assert compare(EXPECTED[:20], EXPECTED) == Agreement(20)
    assert compare([], EXPECTED) == Agreement(0)


@pytest.mark.parametrize("at", [0, 1, 20, 35])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_lost_tokens_are_counted(at, count):
    answer = EXPECTED[:at] + EXPECTED[at + count :]
    assert compare(answer, EXPECTED) == Agreement(at, lost=count)


@pytest.mark.parametrize("at", [6, 20, 35])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_doubled_tokens_are_counted(at, count):
    answer = EXPECTED[:at] + EXPECTED[at - count :]
    assert compare(answer, EXPECTED) == Agreement(at, doubled=count)


def test_other_text_is_neither_lost_nor_doubled():
    assert compare(EXPECTED[:20] + OTHER[20:], EXPECTED) == Agreement(20, diverged=True)


def test_a_few_last_tokens_are_too_few_to_tell_a_loss():
    assert compare(EXPECTED[:40] + EXPECTED[43:], EXPECTED) == Agreement(40, diverged=True)


def test_texts_are_compared_where_there_are_no_tokens():
    assert compare_text(TEXT[:50], TEXT) == Agreement(50)
    assert compare_text(TEXT[:20] + TEXT[26:], TEXT).lost == 6
    assert compare_text(TEXT[:26] + TEXT[20:], TEXT).doubled == 6
    assert compare_text(TEXT[:20] + TEXT[:3:-1], TEXT).diverged


def test_parts_of_an_answer_follow_its_migrations():
    assert parts("full", [], 48) == [Part("full", 0, 48)]
    migrations = [{"from": "full", "to": "int8", "at_token": 10}, {"from": "int8", "to": "full", "at_token": 30}]
    assert parts("full", migrations, 48) == [Part("full", 0, 10), Part("int8", 10, 30), Part("full", 30, 48)]
    assert parts("full", migrations, 20)[-1] == Part("full", 20, 20), "broken off before its last migration"


def test_percentiles_are_values_that_occurred():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.95, 1.0)] == [1.0, 3.0, 5.0, 5.0]
    assert percentile([float(i) for i in range(1, 101)], 0.95) == 95
    assert percentile([], 0.5) is None


def test_the_longest_gap_is_between_two_events():
    assert longest_gap([1.0, 1.5, 4.0, 4.1]) == 2.5
    assert longest_gap([1.0]) is None
