"""Support score: how well a passage supports an answer to a question."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from serve.retrieval.verify.unknown_words import unknown_words

Vectors = np.ndarray[Any, np.dtype[np.float32]]

SCORER = "cosine and unknown words, 1"  # scores of another number can't be compared with these
#: Threshold of a collection without a calibration: for a false-abstention rate of 5% of the English answerable questions in the
#: calibration part of `benchmarks.retrieval.faq_corpus` and `table_corpus`, which `benchmarks.retrieval.abstention` prints.
DEFAULT_THRESHOLD = 0.322

# Chosen on that part and the development part.
_INFLUENCE = 5.0  # score lost for a word that is all of the question's meaning
_EXACT = 2.0  # factor of a number or a code: it is little of a question's meaning, and decides
_NEARNESS = 0.5  # share of a word's nearness to the passage that counts for it: the passage may say it in other words


async def support_scores(
    question: str,
    question_vector: Vectors,
    passages: Sequence[str],
    passage_vectors: Vectors,
    embed: Callable[[Sequence[str]], Awaitable[Vectors]],
) -> list[float]:
    """Support of each passage, 0 to 1: its cosine similarity to the question, limited by the question's words that no passage has.

    A word's influence is how far the question's vector moves without it, 1 - cosine. What of this movement is towards the passage
    is in the passage in other words.

    Args:
        question: the user's question.
        question_vector: its unit vector, (d,).
        passages: all texts that were found, with their titles and headings.
        passage_vectors: their unit vectors, (n, d).
        embed: unit vectors of texts, (texts, d); called once, and only where a word is unknown.
    """
    if not passages:
        return []
    scores = np.clip(passage_vectors @ question_vector, 0.0, 1.0)
    if words := unknown_words(question, passages):
        without = await embed([word.without for word in words])
        influence = 1 - without @ question_vector
        towards = np.maximum(passage_vectors @ (question_vector - without).T, 0.0)  # (n, words)
        exact = np.array([word.exact for word in words])
        loss = np.where(exact, _EXACT * influence, influence - _NEARNESS * towards)
        scores = np.minimum(scores, np.clip(1 - _INFLUENCE * loss.max(axis=1), 0.0, 1.0))
    return [float(score) for score in scores]
