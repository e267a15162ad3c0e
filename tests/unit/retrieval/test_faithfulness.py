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
from serve.retrieval.verify.sentence_selector import question_weights, select_sentences
from serve.retrieval.verify.sentences import sentences
from serve.retrieval.verify.words import WordIndex, parts, weight, without, words

STARMER = "Labour won the election. On 5 July 2024 Keir Starmer became Prime Minister of the United Kingdom."
TREES = "A B-tree is a self-balancing tree that keeps 1,000 or more keys in a node. It is not a binary tree."


async def embed(texts: Sequence[str]) -> scoring.Vectors:
    """Bags of words, longer ones with more weight: texts are as near as the words that they share."""
    vectors = np.full((len(texts), 256), 1e-3, np.float32)
    for row, text in zip(vectors, texts, strict=True):
        for word in words(text):
            row += weight(max(word.parts, key=len)) * np.random.default_rng([*map(ord, word.parts[0])]).normal(size=256)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def checked(answer: str, *passages: str, question: str = "", head: str = "") -> list[scoring.CheckedSentence]:
    sources = [scoring.Passage(head, passage) for passage in passages]
    return asyncio.run(scoring.check_answer(answer, sources, embed, question=question))


def pieces(text: str) -> list[str]:
    return [text[start:end] for start, end in sentences(text)]


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
        ("Am 5. und 6. Juli war zu. Im 19. Jahrhundert auch.", ["Am 5. und 6. Juli war zu.", "Im 19. Jahrhundert auch."]),
        ("Das Haus ist von 1931. Juli und August war es zu.", ["Das Haus ist von 1931.", "Juli und August war es zu."]),
        ("It has 24. Julia has 12. The end.", ["It has 24.", "Julia has 12.", "The end."]),
        ("東京は首都。人が多い。", ["東京は首都。", "人が多い。"]),
        ("  \n ", []),
    ],
)  # fmt: skip
def test_sentences_end_where_a_reader_ends_them(text: str, expected: list[str]):
    assert pieces(text) == expected


@given(st.text(alphabet=st.sampled_from("ab A1.!?,:;\n`-*#[]()é。 \t'\"")) | st.text())
def test_spans_are_in_order_and_leave_out_only_white_space(text: str):
    spans = sentences(text)
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
    assert [(one.start, one.end) for one in found] == sentences(answer)[:64]
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


@pytest.mark.parametrize(
    "answer",
    [
        "I don't know, but the Martian Dunetree has 400 branches.",
        "I'm sorry, but the Martian Dunetree has 400 branches.",
        "I do not know the date, but the Martian Dunetree has 400 branches.",
        "The Martian Dunetree has 400 branches, but I don't know its age.",
    ],
)
def test_a_claim_beside_i_do_not_know_is_checked(answer: str):
    (one,) = checked(answer, TREES)
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
    weights = question_weights(question, [("", table)])
    assert select_sentences(weights, table)[1] == f"Per diem by country: {rows[1]}"


@pytest.mark.parametrize(
    ("answer", "supported"),
    [
        ("25", True), ("The per diem for Sweden is 25 EUR.", True), ("Half a day is 25, a full day 50.", True),
        ("20", False), ("It is 20.", False), ("50", False), ("The per diem for Sweden is 50 EUR.", False),
    ],
)  # fmt: skip
def test_a_value_of_another_row_or_column_is_not_supported(answer: str, supported: bool):
    """By rows of one table, whatever the words around the value."""
    rows = ("Country: Spain | Full day: 40 | Half day: 20", "Country: Sweden | Full day: 50 | Half day: 25")
    (one,) = checked(answer, "\n".join(rows), question="What is the per diem for Sweden for half a day, in EUR?")
    assert one.supported is supported


@pytest.mark.parametrize(
    ("values", "cells"),
    [
        (["50"], "Country: Sweden | Full day: 50"),
        (["50", "25"], "Country: Sweden | Full day: 50 | Half day: 25"),
        (["half"], "Country: Sweden | Full day: 50 | Half day: 25 | in EUR"),  # in a column's name: no value
        (["EUR"], "Country: Sweden | in EUR"),
        ([], "Country: Sweden | Full day: 50 | Half day: 25 | in EUR"),
    ],
)
def test_a_row_says_what_the_cells_with_the_claims_values_say(values: Sequence[str], cells: str):
    row = "Country: Sweden | Full day: 50 | Half day: 25 | in EUR"
    assert scoring.Row(row, map(str.casefold, values), WordIndex([])).text == cells


@pytest.mark.parametrize(
    ("row", "question", "right", "wrong"),
    [
        ("Country: Norway | Type: Half day | Rate: 33\nCountry: Norway | Type: Full day | Rate: 66",
         "What is the half day rate for Norway?", "33", "66"),
        ("Year: 2025 | Country: Norway | Rate: 66\nYear: 2024 | Country: Norway | Rate: 60",
         "What was the rate for Norway in 2025?", "66", "60"),
        ("Part No: 4711 | Name: Seal | Stock: 3\nPart No: 4712 | Name: Valve | Stock: 5",
         "What is the stock of the seal?", "The stock of the seal is 3.", "The stock of the seal is 5."),
        ("Model: P-220 | Bluetooth: No | Weight: 12 kg\nModel: P-440 | Bluetooth: Yes | Weight: 20 kg",
         "What does the P-220 weigh?", "It weighs 12 kg.", "It weighs 20 kg."),
        ("Country: Niger | Day: 50\nCountry: Nigeria | Day: 80", "What is the per diem for Niger?", "50", "80"),
    ],
)  # fmt: skip
def test_a_row_is_told_apart_by_all_its_names(row: str, question: str, right: str, wrong: str):
    assert [checked(text, row, question=question)[0].supported for text in (right, wrong)] == [True, False]


@pytest.mark.parametrize(
    ("passage", "right", "wrong"),
    [
        (
            "The minimum temperature is −20 °C.",
            "The minimum temperature is -20 °C.",
            "The minimum temperature is 20 °C.",
        ),
        ("Die Probezeit endet am 30. Dezember 2025.", "30. Dezember 2025", "31. Dezember 2025"),
        ("Le loyer est de 12\u202f000 euros.", "Le loyer est de 12000 euros.", "Le loyer est de 12 euros."),
    ],
)
def test_signs_days_and_thousands_are_part_of_a_number(passage: str, right: str, wrong: str):
    assert [checked(text, passage)[0].supported for text in (right, wrong)] == [True, False]


PRODUCTS = ("The P-220 has a warranty of 24 months.", "The P-440 has a warranty of 12 months.")


@pytest.mark.parametrize(
    "passages",
    [PRODUCTS, [" ".join(PRODUCTS)], [" ".join(reversed(PRODUCTS))], ["- P-220: 24 months\n- P-440: 12 months"]],
)
def test_the_same_number_of_another_product_is_not_supported(passages: Sequence[str]):
    question = "How long is the warranty of the P-440?"
    right, wrong = (checked(f"It is {months} months.", *passages, question=question)[0] for months in (12, 24))
    assert (right.supported, wrong.supported) == (True, False)


def test_a_product_that_no_source_names_is_not_supported():
    (one,) = checked(
        "The P-440 has a warranty of 24 months.", PRODUCTS[0], question="How long is the warranty of the P-440?"
    )
    assert one.supported is False


def test_what_the_question_suggests_is_not_supported_by_it():
    question = "Is the warranty of the P-440 24 months?"
    (one,) = checked("The P-440 has a warranty of 24 months.", PRODUCTS[1], question=question)
    assert one.supported is False


def features(claim: str, passage: str, question: str = "", head: str = "") -> dict[str, scoring.Features]:
    """Of the sentences that may entail the claim, in the passage alone."""
    evidence = scoring.Evidence([scoring.Passage(head, passage)])
    made = scoring.Claim(claim, question, evidence)
    texts = made.texts()
    vectors = dict(zip(texts, asyncio.run(embed(texts)), strict=True))
    return {evidence.texts[j]: found for j, found in made.features(vectors)}


def test_a_dash_is_a_sign_only_before_a_number_that_stands_alone():
    assert list(parts("-5 and −6.50 (-7), on pages 10-20 of the P-30")) == [
        "-5", "and", "-6.5", "-7", "on", "pages", "10", "20", "of", "the", "p", "30",
    ]  # fmt: skip


def test_a_cell_without_a_word_is_left_out_of_a_row():
    assert (
        scoring.Row("Country: Spain | Day: – | Night: 20", ["20"], WordIndex([])).text == "Country: Spain | Night: 20"
    )


def test_numbers_that_are_elsewhere_or_nowhere_count_apart():
    found = features("The tower has 330 windows and 4 doors.", "The tower has windows. It has 330 steps.")
    first, second = found["The tower has windows."], found["It has 330 steps."]
    assert (first.exact_elsewhere, first.exact_unknown) == (1, 1)
    assert (second.exact_elsewhere, second.exact_unknown) == (0, 1)


def test_a_word_that_the_sentence_lacks_is_lost_by_what_it_means():
    (short,) = features("The tower is tan.", "The tower is high.").values()
    (long,) = features("The tower is transparent.", "The tower is high.").values()
    (none,) = features("The tower is high.", "The tower is high.").values()
    assert none.loss == 0 < short.loss < long.loss


def test_the_head_goes_with_each_sentence():
    (found,) = features("The P-220 weighs 12 kg.", "It weighs 12 kg.", head="P-220").values()
    (bare,) = features("The P-220 weighs 12 kg.", "It weighs 12 kg.").values()
    assert (found.exact_unknown, bare.exact_unknown) == (0, 1)
    assert bare.coverage < found.coverage
    (found,) = features("The P-220 weighs 12 kg.", "Weight: 12 kg | Height: 3 m", head="P-220").values()
    assert (found.exact_unknown, found.exact_elsewhere) == (0, 0)


@pytest.mark.parametrize(
    ("passage", "sentence", "near"),
    [
        ("Larkhaven has a tower. It is 330 m high.", "It is 330 m high.", True),
        ("- Larkhaven has a tower\n- It is 330 m high", "- It is 330 m high", False),
        ("Towers of Larkhaven\nName: East | Height: 330 m", "Name: East | Height: 330 m", True),
        ("Height: 20 m | Town: Larkhaven\nName: East | Height: 330 m", "Name: East | Height: 330 m", False),
    ],
)
def test_the_subject_is_right_before_a_sentence_or_above_its_row(passage: str, sentence: str, near: bool):
    found = features("It is 330 m high.", passage, question="How high is it in Larkhaven?")[sentence]
    assert (found.question_loss == 0) is near


def test_a_number_of_the_question_that_no_source_has_tells_them_apart():
    (found,) = features("It is 24 months.", PRODUCTS[0], question="How long is the warranty of the P-440?").values()
    assert found.question_loss > 0


def test_a_word_is_left_out_wherever_it_is():
    text = "P-440: what is the warranty of the P-440?"
    assert without(text, next(words(text))) == ": what is the warranty of the ?"


def test_a_character_that_is_a_word_counts_like_one():
    assert weight("of") < weight("東") == weight("eastward")


def test_a_rows_group_is_above_it():
    table = "City: Oslo | Full day: 66\nCity: Bergen | Full day: 50\nSweden\nCity: Malmo | Full day: 40"
    assert pieces(table) == table.split("\n")
    right, wrong = (checked(value, table, question="What is the full day rate in Sweden?")[0] for value in ("40", "50"))
    assert right.score > wrong.score


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1,000 keys", "1000 keys", True), ("3.50 EUR", "3,5 EUR", True), ("12kg", "12 kg", True), ("2.5GHz", "2.5 GHz", True),
        ("July 5th", "July 5", True), ("10.0.0.10", "10.0.0.1", False), ("1.2.10", "1.2.1", False), ("1.12.2020", "11.2.2020", False),
        ("1,66,33", "166.33", False), ("P-440", "P-220", False), ("P440", "P220", False),
    ],
)  # fmt: skip
def test_numbers_and_codes_are_the_same_however_they_are_written(one: str, other: str, same: bool):
    exact = [{part for part in parts(text) if any(map(str.isdigit, part))} for text in (one, other)]
    assert (exact[0] == exact[1]) is same


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("warranty", "warranties", True), ("index", "indexed", True), ("file", "files", True), ("files", "file", True),
        ("Garantie", "Garantien", True), ("Austria", "Australia", False), ("Slovenia", "Slovakia", False),
        ("Johnson", "Johnston", False), ("port", "portion", False), ("the", "then", False),
    ],
)  # fmt: skip
def test_forms_of_a_word_differ_in_a_short_ending(one: str, other: str, same: bool):
    (part,) = parts(one)
    assert (part in WordIndex([parts(other)])) is same


@pytest.mark.parametrize(
    ("source", "right", "wrong"),
    [
        ("Die Pumpe wiegt 12 kg und hat zwei Jahre Garantie.", "Laut dem Datenblatt wiegt die Pumpe 12 kg.", "Die Pumpe wiegt 14 kg."),
        ("Le service est fermé le lundi.", "Le service est fermé le lundi.", "Le service n'est pas fermé le lundi."),
        ("El motor tiene 4 cilindros.", "Según el manual, el motor tiene 4 cilindros.", "El motor tiene 6 cilindros."),
        ("東京タワーの高さは330メートルです。", "東京タワーの高さは330メートルです。", "大阪城の高さは330メートルです。"),
    ],
)  # fmt: skip
def test_other_languages_are_checked(source: str, right: str, wrong: str):
    assert [checked(answer, source)[0].supported for answer in (right, wrong)] == [True, False]


def test_texts_are_embedded_once_and_only_a_few_for_each_sentence():
    calls: list[list[str]] = []

    async def counted(texts: Sequence[str]) -> scoring.Vectors:
        calls.append(list(texts))
        return await embed(texts)

    passages = [
        scoring.Passage("", " ".join(f"Sentence {i} of passage {j} is here." for i in range(20))) for j in range(10)
    ]
    asyncio.run(scoring.check_answer("Sentence 3 is there. Sentence 4 is there. Hello!", passages, counted))
    assert len(calls) == 1
    assert len(calls[0]) == len(set(calls[0])) <= 2 + 2 * (3 + 4)
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
