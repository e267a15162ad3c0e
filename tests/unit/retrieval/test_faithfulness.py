"""Faithfulness scoring: which sentences of an answer the passages entail."""

import asyncio
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.reporting.results import load
from benchmarks.retrieval import faithfulness_scoring, labelled_texts
from serve.retrieval.verify import faithfulness as scoring
from serve.retrieval.verify.sentence_selector import select_sentences

STARMER = "Labour won the election. On 5 July 2024 Keir Starmer became Prime Minister of the United Kingdom."
TREES = "A B-tree is a self-balancing tree that keeps 1,000 or more keys in a node. It is not a binary tree."


async def embed(texts: Sequence[str]) -> scoring.Vectors:
    """Every text alike: what differs is in the words alone."""
    return np.tile(np.eye(1, 8, dtype=np.float32), (len(texts), 1)) * 1.0


def checked(answer: str, *passages: str, question: str = "") -> list[scoring.CheckedSentence]:
    return asyncio.run(scoring.check_answer(answer, passages, embed, question=question))


def pieces(text: str) -> list[str]:
    return [text[start:end] for start, end in scoring.sentences(text)]


def test_peoples_and_their_countries_are_the_same_word():
    assert scoring.stems("French wine and British tea") == scoring.stems("France wine and Kingdom tea")


def test_forms_of_a_word_have_one_stem():
    assert len(set(scoring.stems("indexes index indexing indexed"))) == 1
    assert len(set(scoring.stems("city cities"))) == 1
    assert scoring.stems("the of and is") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One is here. Two is there! Is three? Yes.", ["One is here.", "Two is there!", "Is three?", "Yes."]),
        ("Dr. Smith et al. wrote it, e.g. in Fig. 3. It holds.", ["Dr. Smith et al. wrote it, e.g. in Fig. 3.", "It holds."]),
        ("It is 3.14 or 1,000.5 in v2.0.1. Next", ["It is 3.14 or 1,000.5 in v2.0.1.", "Next"]),
        ("Call os.path.join first. then go", ["Call os.path.join first.", "then go"]),
        ("J. R. Tolkien wrote. He did.", ["J. R. Tolkien wrote.", "He did."]),
        ("At 5 p.m. we left etc. and so on. End.", ["At 5 p.m. we left etc. and so on.", "End."]),
        ("Steps:\n1. Open it.\n2. Close it\n- a\n- b", ["Steps:", "1. Open it.", "2. Close it", "- a", "- b"]),
        ("Title\n\nText over\ntwo lines.", ["Title", "Text over\ntwo lines."]),
        ("See:\n```py\na = 1. \nb. c\n```\nDone.", ["See:", "```py\na = 1. \nb. c\n```", "Done."]),
        ("Open ```a. b", ["Open", "```a. b"]),
        ('He said "no." Then left.', ['He said "no."', "Then left."]),
        ("Wait... what?", ["Wait...", "what?"]),
        ("東京は首都。人が多い。", ["東京は首都。", "人が多い。"]),
        ("  \n ", []),
    ],
)  # fmt: skip
def test_sentences_end_where_a_reader_ends_them(text: str, expected: list[str]):
    assert pieces(text) == expected


@given(st.text(alphabet=st.sampled_from("ab A1.!?,:;\n`-*#[]()é。 \t'\"")) | st.text())
def test_spans_are_in_order_and_leave_out_only_white_space(text: str):
    spans = scoring.sentences(text)
    assert all(start < end for start, end in spans)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert all(text[start:end] == text[start:end].strip() for start, end in spans)
    left, at = "", 0
    for start, end in [*spans, (len(text), len(text))]:
        left, at = left + text[at:start], end
    assert left.strip() == ""


@given(st.text(max_size=200), st.lists(st.text(max_size=100), max_size=3), st.text(max_size=50))
def test_any_text_can_be_checked(answer: str, passages: list[str], question: str):
    found = checked(answer, *passages, question=question)
    assert [(one.start, one.end) for one in found] == scoring.sentences(answer)[:64]
    assert all(one.score is None or 0 <= one.score <= 1 for one in found)


@pytest.mark.parametrize(
    "answer",
    [
        "On 5 July 2024 Keir Starmer became Prime Minister of the United Kingdom.",
        "Keir Starmer became Prime Minister on 5 July 2024 [2].",
        "According to the source, Keir Starmer became Prime Minister of the United Kingdom on 5 July 2024.",
        "- Keir Starmer became Prime Minister of the United Kingdom.",
    ],
)
def test_what_a_passage_says_is_supported_by_it(answer: str):
    (one,) = checked(answer, TREES, STARMER)
    assert one.supported
    assert one.passage == 1


@pytest.mark.parametrize(
    "answer",
    [
        "On 6 July 2024 Keir Starmer became Prime Minister of the United Kingdom.",
        "On 5 July 2025 Keir Starmer became Prime Minister of the United Kingdom.",
        "On 5 July 2024 Rishi Sunak became Prime Minister of the United Kingdom.",
        "On 5 July 2024 Keir Starmer did not become Prime Minister of the United Kingdom.",
        "A B-tree keeps 2,000 or more keys in a node.",
        "It is a binary tree.",
        "The Martian Dunetree blossoms at night.",
    ],
)
def test_another_number_name_or_a_negation_is_not_supported(answer: str):
    (one,) = checked(answer, TREES, STARMER)
    assert one.supported is False
    assert one.score is not None
    assert one.score < scoring.MIN_ENTAILED


def test_numbers_are_the_same_however_they_are_written():
    same, other = checked("It keeps 1000 keys in a node. It keeps 100 keys in a node.", TREES)
    assert same.score > other.score


def test_what_the_question_says_is_no_claim_of_the_answer():
    answer = "The Wimbledon Prime Minister is Keir Starmer."
    (alone,) = checked(answer, STARMER)
    (sentence,) = checked(answer, STARMER, question="Who is the Wimbledon Prime Minister?")
    assert sentence.score > alone.score


@pytest.mark.parametrize(
    "answer",
    [
        "Hello!", "Sure, of course!", "What do you mean?", "Here is the list:", "I don't know.", "I do not know the answer.",
        "The sources do not mention it in the text.", "I hope this helps!", "```\nx = 41\n```", "...",
    ],
)  # fmt: skip
def test_nothing_is_checked_where_nothing_is_claimed(answer: str):
    assert {(one.score, one.supported, one.passage) for one in checked(answer, TREES)} == {(None, None, None)}


def test_a_claim_after_i_do_not_know_is_checked():
    (one,) = checked("I don't know, but the Martian Dunetree has 400 branches.", TREES)
    assert one.supported is False


def test_without_passages_nothing_is_supported():
    (one,) = checked("Keir Starmer is Prime Minister.")
    assert (one.supported, one.passage) == (False, None)


def test_each_row_of_a_table_is_a_sentence():
    """As `ingest.formats.tables` writes them: the selector takes the row that is asked for alone."""
    rows = ["Country: Norway | Full day: 66 | Half day: 33", "Country: Sweden | Full day: 50 | Half day: 25"]
    table = "\n".join(["Per diem by country:", "", *rows])
    assert pieces(table) == ["Per diem by country:", *rows]
    question = "What is the per diem for Sweden for half a day?"
    assert select_sentences(question, table)[1] == f"Per diem by country: {rows[1]}"


def test_texts_are_embedded_once_and_only_a_few_for_each_sentence():
    calls: list[list[str]] = []

    async def counted(texts: Sequence[str]) -> scoring.Vectors:
        calls.append(list(texts))
        return await embed(texts)

    passages = [" ".join(f"Sentence {i} of passage {j} is here." for i in range(20)) for j in range(10)]
    asyncio.run(scoring.check_answer("Sentence 3 is here. Sentence 4 is here. Hello!", passages, counted))
    assert len(calls) == 1
    assert len(calls[0]) == len(set(calls[0])) <= 2 + 2 * 3
    asyncio.run(scoring.check_answer("Hello!", passages, counted))
    assert len(calls) == 1


def test_the_weights_and_thresholds_are_those_that_were_calibrated():
    result = load("guard")
    assert list(scoring.ENTAILMENT) == result["entailment"]["weights"]
    assert result["entailment"]["threshold"] == scoring.MIN_ENTAILED


def test_the_benchmark_makes_claims_that_differ_from_their_passage_where_they_are_wrong():
    made = labelled_texts.claims(
        [f"Trees\n\n{TREES} It was made by Rudolf Bayer at Boeing in 1970."], random.Random(1), 9
    )
    assert {one.kind for one in made} >= {"told differently", "number", "negation"}
    for one in made:
        if one.kind == "number":
            assert set(labelled_texts.NUMBER.findall(one.text)) - {"1970", "1", "000"}


def test_the_benchmark_fits_what_it_is_given():
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(4000, 2))
    labels = draw.random(4000) < 1 / (1 + np.exp(-(0.5 + 2 * rows[:, 0] - 1 * rows[:, 1])))
    assert faithfulness_scoring.fitted(rows, labels.astype(float), np.ones(4000)) == pytest.approx(
        [0.5, 2, -1], abs=0.35
    )  # the ridge draws it to 0
    assert faithfulness_scoring.auc(np.array([0.9, 0.8, 0.1]), np.array([True, True, False])) == 1
    assert faithfulness_scoring.auc(np.array([0.5, 0.5]), np.array([True, False])) == 0.5


def test_the_benchmark_chooses_the_threshold_that_tells_them_apart():
    scores, labels = np.array([0.1, 0.2, 0.3, 0.7, 0.8]), np.array([False, False, False, True, True])
    assert 0.3 < faithfulness_scoring.best_threshold(scores, labels, np.ones(5)) <= 0.7
    row = faithfulness_scoring.rates(scores, labels, 0.25)
    assert (row["precision"]["share"], row["recall"]["share"], row["false_alarms"]["share"]) == (1, 0.667, 0)


def test_the_benchmark_s_facts_have_questions_and_are_found_in_their_passages():
    facts = list(labelled_texts.facts(Path(), random.Random(0)))
    claims = labelled_texts.fact_claims(list(enumerate(facts)), random.Random(0))
    assert len({fact.term for fact in facts}) == len(facts) > 100
    right = [one for one in claims if one.supported]
    assert len(right) * 2 == len(claims)
    assert (
        len(
            {(one.text, one.passage) for one in right}
            & {(one.text, one.passage) for one in claims if not one.supported}
        )
        == 0
    )
