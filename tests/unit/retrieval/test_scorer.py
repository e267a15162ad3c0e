"""Support scores: similarity in meaning, and words of the question that no passage has."""

import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.retrieval.verify.scorer import DEFAULT_THRESHOLD, Vectors, support_scores
from serve.retrieval.verify.unknown_words import MAX_QUESTION_CHARS, unknown_words

SHEET = "Larkspur P-220 data sheet\nThe pump weighs 12 kg. Warranty: 24 months."


def unit(angle: float) -> list[float]:
    return [float(np.cos(angle)), float(np.sin(angle))]


class Embedder:
    """The question at angle 0; without a word of `influences` (cosines), it is at that distance from there."""

    def __init__(self, question: str, influences: dict[str, float]) -> None:
        self.influences = influences
        self.vector = np.array(unit(0), np.float32)
        self.calls: list[Sequence[str]] = []
        self.question = question

    async def embed(self, texts: Sequence[str]) -> Vectors:
        self.calls.append(list(texts))
        left = [max((c for word, c in self.influences.items() if word not in text), default=0.0) for text in texts]
        return np.array([unit(np.arccos(1 - influence)) for influence in left], np.float32)

    async def scores(self, passages: Sequence[str], *cosines: float) -> list[float]:
        vectors = np.array([unit(np.arccos(cosine)) for cosine in cosines], np.float32).reshape(-1, 2)
        return await support_scores(self.question, self.vector, passages, vectors, self.embed)


def missing(question: str, *passages: str) -> list[str]:
    """The unknown words, as what is left of the question without each."""
    words = question.split()
    return [next(w for w in words if w not in one.without.split()) for one in unknown_words(question, passages)]


async def test_without_unknown_words_support_is_the_similarity_and_nothing_is_embedded():
    embedder = Embedder("Warranty: P-220?", {})
    assert await embedder.scores([SHEET, "Tea."], 0.7, -0.2) == [pytest.approx(0.7), 0.0]
    assert await embedder.scores([]) == []
    assert embedder.calls == []


async def test_a_word_that_the_question_is_about_and_no_passage_has_makes_all_unsupported():
    embedder = Embedder("Per diem for Finland?", {"Finland": 0.35})
    passages = ["Per diem for Norway: 90 EUR.", "Per diem for Sweden: 80 EUR."]
    assert max(await embedder.scores(passages, 0.7, 0.6)) < DEFAULT_THRESHOLD
    assert min(await embedder.scores([*passages, "Finland: 85 EUR."], 0.7, 0.6, 0.5)) > DEFAULT_THRESHOLD


async def test_a_word_that_the_question_is_hardly_about_does_not():
    embedder = Embedder("What is the warranty of P-220?", {"What": 0.03})
    assert await embedder.scores([SHEET], 0.7) == [pytest.approx(0.7)]


async def test_another_number_or_code_counts_double():
    number = Embedder("Warranty of the P-440?", {"P-440": 0.09})
    name = Embedder("Warranty of the Plover?", {"Plover": 0.09})
    assert (await number.scores([SHEET], 0.7))[0] < DEFAULT_THRESHOLD < (await name.scores([SHEET], 0.7))[0]


async def test_a_passage_that_says_an_unknown_word_otherwise_loses_less():
    question = np.array([1, 0, 0], np.float32)
    without = np.array([0.9, 0, -(0.19**0.5)], np.float32)  # the word moves the question up
    passages = np.array([[0.6, 0, 0.8], [0.6, 0, -0.8]], np.float32)

    async def embed(texts: Sequence[str]) -> Vectors:
        return without[None]

    near, far = await support_scores("Which monarch reigns?", question, ["which king reigns"] * 2, passages, embed)
    assert near > far


def test_words_are_known_in_other_forms_and_numbers_only_as_they_are():
    passage = "Compile the programs with 12 threads; P-220."
    assert missing("compiling programmes 120 threads P-220 P-22 kilns", passage) == ["P-22", "120", "kilns"]
    assert missing("COMPILE the Programs", passage) == []


def test_a_number_is_known_however_it_is_written():
    assert missing("1000 units, 12kg or 3.50 EUR", "1,000 units weigh 12 kg and cost 3,5 EUR, or more") == []


@pytest.mark.parametrize(
    ("question", "passage", "expected"),
    [
        ("Welches Tagegeld gilt für Finnland", "Das Tagegeld für Norwegen: welches gilt, sagt die Liste.", ["Finnland"]),
        ("¿Cuál es la dieta de Finlandia", "Cuál es la dieta de Noruega", ["Finlandia"]),
        ("Какие суточные в Финляндии", "Какие суточные в Норвегии", ["Финляндии"]),
        ("保証期間は P-440", "P-220 の保証期間", ["P-440"]),
        ("保証期間はどれくらいですか", "全く違う文章", []),
    ],
)  # fmt: skip
def test_no_language_needs_a_list_of_words(question, passage, expected):
    assert missing(question, passage) == expected


def test_the_whole_question_is_no_unknown_word_and_long_questions_have_none():
    assert unknown_words("Finland?", ["Norway"]) == []
    assert unknown_words("word " * (MAX_QUESTION_CHARS // 5) + "Finland", ["word"]) == []


async def test_at_most_a_few_words_are_embedded():
    embedder = Embedder(" ".join(f"w{i}" for i in range(60)), {})
    await embedder.scores(["x"], 0.5)
    assert [len(texts) for texts in embedder.calls] == [8]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.text(max_size=100), st.lists(st.text(max_size=60), min_size=1, max_size=3))
async def test_any_text_has_a_score_between_0_and_1(question, passages):
    scores = await Embedder(question, {"a": 0.5}).scores(passages, *[0.5] * len(passages))
    assert all(0 <= score <= 1 for score in scores)


async def test_scoring_many_passages_takes_little_time():
    passages = [" ".join(f"word{i}x{j} and another" for i in range(70)) for j in range(20)]
    embedder, times = Embedder("What is another word?", {}), []
    for _ in range(9):
        started = time.process_time()
        await embedder.scores(passages, *[0.5] * 20)
        times.append(time.process_time() - started)
    assert min(times) < 0.02  # 2 ms on an idle core
