"""The retrieval benchmark: what counts as a hit, and its cache of vectors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("haystack")
pytest.importorskip("lxml")

from benchmarks.retrieval import search_speed
from benchmarks.retrieval.corpora import Cached, Question, triples
from benchmarks.retrieval.search import first_right, measures

SECTION = "The collector can be switched off when you are sure that the program makes no cycles of references."


class Counting:
    """An embedder that records the texts it embeds."""

    def __init__(self) -> None:
        self.texts_seen: list[str] = []

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.texts_seen += texts
        return np.array([[len(text), 1.0] for text in texts], np.float32)


def test_a_passage_of_the_right_section_answers_wherever_it_was_cut() -> None:
    question = Question(
        "titles", "Switching it off", "library/gc.html", triples(f"{SECTION} " + "And more of it. " * 30)
    )
    assert question.answered_by("library/gc.html", f"# Some heading\n\n{SECTION}")
    assert not question.answered_by(
        "library/gc.html", "Objects are tracked in three generations by how often they survived."
    )
    assert not question.answered_by("library/sys.html", SECTION)


def test_any_passage_of_a_term_answers() -> None:
    question = Question("terms", "What is a thunk?", "foldoc/thunk")
    assert question.answered_by("foldoc/thunk", "whatever")
    assert not question.answered_by("foldoc/closure", "thunk")


def test_the_first_right_passage_counts() -> None:
    question = Question("terms", "What is a thunk?", "foldoc/thunk")
    ranking = [("foldoc/closure", ""), ("foldoc/thunk", "a"), ("foldoc/thunk", "b")]
    assert first_right(question, ranking) == 2
    assert first_right(question, ranking[:1]) == 0
    assert measures(2) == {
        "recall_at_5": 1.0, "recall_at_10": 1.0, "mrr_at_10": 0.5, "ndcg_at_10": pytest.approx(0.6309, abs=1e-4),
    }  # fmt: skip
    assert measures(7)["recall_at_5"] == 0.0
    assert set(measures(0).values()) == set(measures(11).values()) == {0.0}


def test_vectors_are_made_once_for_each_text_and_model(tmp_path: Path) -> None:
    embedder, file = Counting(), tmp_path / "there" / "vectors.sqlite"
    first = Cached(embedder, "one", file)
    assert first.embed(["a", "bb", "a"]).tolist() == [[1, 1], [2, 1], [1, 1]]
    again = Cached(embedder, "one", file)
    assert again.embed(["bb", "ccc"]).tolist() == [[2, 1], [3, 1]]
    assert again.made == 1
    assert embedder.texts_seen.count("bb") == 1
    Cached(embedder, "two", file).embed(["bb"])
    assert embedder.texts_seen.count("bb") == 2


def test_made_up_text_is_of_two_real_ones() -> None:
    made = search_speed._recombined("one two three four", "five six seven eight")
    assert made == "one two eight"
