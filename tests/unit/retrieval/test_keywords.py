"""Words of a question: which select chunks, and how each is weighted."""

import math

import pytest

from serve.retrieval.store.keywords import weighted_rank


@pytest.mark.parametrize(
    ("lexemes", "words"),
    [
        ([("'warranti'", 0.001), ("'pump'", 0.05), ("'use'", 0.4)], "'warranti' | 'pump'"),
        ([("'use'", 0.3), ("'file'", 0.3), ("'valu'", 0.4)], "'use' | 'file'"),
    ],
)
def test_common_words_select_no_chunks_unless_all_are_common(lexemes, words):
    assert weighted_rank(lexemes)[1]["words"] == words


def test_every_word_ranks_and_rare_ones_more():
    score, params = weighted_rank([("'warranti'", 0.001), ("'use'", 0.4)])
    assert score.as_string(None).count("ts_rank") == 2
    assert params["word_1"] == "'use'"
    assert params["weight_0"] == math.log1p(1000) > params["weight_1"]
