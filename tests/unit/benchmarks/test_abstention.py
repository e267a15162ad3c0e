"""The abstention benchmark: which passage is right, shares by kind of question, and candidate scores."""

from dataclasses import replace

import pytest

pytest.importorskip("haystack")

from benchmarks.reporting import claim_rows_grounding, grounding_tables
from benchmarks.retrieval.abstention import POINTS, Asked, Hit, lines, roc, summary
from benchmarks.retrieval.support_candidates import Rarity, Scored, abstention_at, areas, overlap, unknown_surprisal

HIT = Hit("The seal kit is 20-114.", "P-220", False, 0.5, 0.1, 0.03, 0.4)
ASKED = Asked("Which part is it?", "pumps", "en", "answered", (HIT, replace(HIT, right=True)), 0.4, False)
MACHINE = {"measured": "2026-01-01T00:00", "cpu": "a processor", "cores": 2, "memory_gb": 24.0}


def test_false_abstention_is_counted_with_and_without_the_passages_that_search_missed() -> None:
    missed = replace(ASKED, hits=(HIT,), supported=False)
    answered = replace(ASKED, supported=True)
    unanswerable = replace(ASKED, kind="left out", hits=(HIT,))
    (own, other) = lines(summary([ASKED, missed, answered, unanswerable]))
    assert own.startswith("en, answerable: abstains 2/3 = 0.667")
    assert "where the passage is found 1/2" in own and "@1 0/3" in own and "@4 2/3" in own
    assert other.startswith("en, left out: abstains 1/1") and "recall" not in other


def test_a_roc_curve_is_abstention_below_each_threshold() -> None:
    assert roc([0.2, 0.4], [0.1, 0.2]) == [(0.0, 0.0), (0.0, 0.5), (0.5, 1.0), (1.0, 1.0)]
    curve = roc([i / 1000 for i in range(1000)], [i / 2000 for i in range(1000)])
    assert len(curve) <= POINTS and curve == sorted(curve) and (curve[0], curve[-1]) == ((0.0, 0.0), (1.0, 1.0))


def test_aims_are_for_english_and_answers_of_faqs_and_tables_together() -> None:
    row, other = replace(ASKED, kind="row", supported=True), replace(ASKED, kind="other source", support=0.1)
    german = [replace(one, language="de") for one in (ASKED, other)]
    result = {**summary([ASKED, row, other, *german]), "part": "development", "machine": MACHINE}
    figures = {one.id: one for one in claim_rows_grounding.abstention(result)}
    assert (figures["en.answerable.abstained"].measured, figures["en.answerable.abstained"].aim) == (0.5, "<= 0.08")
    assert {key for key, one in figures.items() if one.aim} == {"en.answerable.abstained", "en.other-source.abstained"}
    shown = grounding_tables.abstention(result)
    assert "| en | with an answer | 1 of 2, 50% [" in shown and "| de | of another FAQ | 1 of 1, 100% [" in shown


def test_overlap_sees_another_model_number_and_not_another_inflection() -> None:
    passage = "The warranty of the Larkspur P-220 lasts two years."
    rarity = Rarity([passage, "Every pump has a seal kit.", "Pumps are tested twice."])
    same, other = (overlap(f"How long is {name} warrantied?", passage, rarity) for name in ("P-220", "P-440"))
    assert same["missing number"] == 0 and other["missing number"] == -1
    assert same["coverage"] > other["coverage"]
    assert overlap("Wie lange gelten Garantien?", "Die Garantie gilt zwei Jahre.", rarity)["coverage"] == 0.25


def test_areas_and_the_threshold_for_five_percent() -> None:
    def scored(kind: str, score: float) -> Scored:
        return Scored({"kind": kind}, {"score": score})

    rows = [scored("answered", i / 100) for i in range(100)] + [
        scored("other source", -1.0),
        scored("other source", 2.0),
    ]
    assert areas(rows, lambda one: one.features["score"]) == {"other source": 0.5}
    line = abstention_at(rows, rows, lambda one: one.features["score"])
    assert line == "answered 0.04, other source 0.50"


def test_a_surprising_word_counts_only_where_the_collection_lacks_it() -> None:
    rarity = Rarity(["The P-220 has a warranty of two years.", "Read or write it."])
    words, surprisals = (
        ["What", " warranties", " has", " the", " P-440", " read/write?"],
        [1.0, 9.0, 1.0, 1.0, 30.0, 40.0],
    )
    assert unknown_surprisal(words, surprisals, rarity) == 30.0
    assert unknown_surprisal(["What", " P-220?"], [1.0, 30.0], rarity) == 1.0
