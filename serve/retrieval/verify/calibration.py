"""Thresholds of the support score: below it, a question counts as unanswerable.

A threshold is for a stated false-abstention rate: the share of answerable questions that score below it. Split conformal prediction
(Vovk et al. 2005; Angelopoulos and Bates 2021) gives it from the scores of labelled questions, without assumptions about how scores
are distributed: only that later questions are like these.
"""

import math
from collections.abc import Sequence

FALSE_ABSTENTION = 0.05  # share of answerable questions that may be abstained from
MAX_SCORES = 10_000  # of one calibration; more don't move the threshold


class TooFewQuestions(ValueError):
    """Fewer questions than a rate needs; the message says how many it needs."""


def min_questions(rate: float) -> int:
    """The fewest questions that give a threshold for this rate."""
    return math.ceil(1 / rate - 1e-9) - 1


def conformal_threshold(scores: Sequence[float], rate: float = FALSE_ABSTENTION) -> float:
    """The threshold below which a new answerable question scores with a probability of at most `rate`.

    Of n scores it is the k-th smallest, k = ⌊rate · (n + 1)⌋: a new one that is exchangeable with them is below it with a
    probability of at most k / (n + 1).

    Args:
        scores: of answerable questions, each the score of its best passage.
        rate: above 0 and below 1.

    Raises:
        TooFewQuestions: k is 0.
    """
    rank = math.floor(rate * (len(scores) + 1) + 1e-9)
    if rank < 1:
        raise TooFewQuestions(
            f"a false-abstention rate of {rate:g} needs at least {min_questions(rate)} answerable questions, not {len(scores)}"
        )
    return sorted(scores)[rank - 1]
