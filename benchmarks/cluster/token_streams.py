"""Streams under faults: tokens lost or doubled against an undisturbed greedy answer, and gaps. Pure functions.

Greedy answers are not always equal: an engine that batches other requests may round differently, and two nearly equal tokens
swap. Such an answer goes on with other text (`diverged`). A lost or doubled part shows in what follows: the expected text,
shifted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

MAX_SHIFT = 64  # largest number of lost or doubled tokens that is detected
_MATCH = 6  # tokens in a row that must agree, for a shift to be believed
_CHARS = 4  # characters for a token, where the answer has no token ids

Item = TypeVar("Item", int, str)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How an answer agrees with the expected one.

    `equal`: length of the common prefix. `lost`, `doubled`: tokens that are missing or there twice at its end. `diverged`: the
    answer goes on with other text.
    """

    equal: int
    lost: int = 0
    doubled: int = 0
    diverged: bool = False


def compare(answer: Sequence[Item], expected: Sequence[Item], scale: int = 1) -> Agreement:
    """Compare two token sequences; one may be shorter. `scale`: items for a token, where they are characters."""
    length = min(len(answer), len(expected))
    equal = next((i for i in range(length) if answer[i] != expected[i]), length)
    if equal == length:
        return Agreement(equal)
    least = _MATCH * scale
    for shift in range(1, MAX_SHIFT * scale + 1):
        if _agrees(answer, equal, expected, equal + shift, least):
            return Agreement(equal, lost=shift)
        if shift <= equal and _agrees(answer, equal, expected, equal - shift, least):
            return Agreement(equal, doubled=shift)
    return Agreement(equal, diverged=True)


def _agrees(answer: Sequence[Item], at: int, expected: Sequence[Item], other: int, least: int) -> bool:
    """Whether what follows is the same for up to 4 times `least` items, and at least `least`."""
    count = min(len(answer) - at, len(expected) - other, 4 * least)
    return count >= least and answer[at : at + count] == expected[other : other + count]


def compare_text(answer: str, expected: str) -> Agreement:
    """Compare two texts; numbers in characters."""
    return compare(list(answer), list(expected), _CHARS)


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens of one answer by one replica: from `start` to `end`, not included."""

    variant: str
    start: int
    end: int


def parts(variant: str, migrations: Sequence[Mapping[str, Any]], tokens: int) -> list[Part]:
    """Parts of an answer of `tokens` tokens that started at `variant`, from the `gearbox.migrations` of the answer.

    An answer that was not migrated has one part. Entries give the answer's tokens before the seam, and the next variant.
    """
    found, start = [], 0
    for entry in migrations:
        end = min(int(entry["at_token"]), tokens)
        found.append(Part(variant, start, end))
        variant, start = str(entry["to"]), end
    return [*found, Part(variant, start, tokens)]


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value that `share` of `values` do not exceed (nearest rank); None without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def longest_gap(moments: Sequence[float]) -> float | None:
    """Longest time between two events; None with fewer than two."""
    return max((later - earlier for earlier, later in pairwise(moments)), default=None)
