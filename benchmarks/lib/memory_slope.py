"""Slope of a process's memory over time or requests, with its interval."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

MIN_POINTS = 20
_MAX_POINTS = 300
_DRAWS = 200


@dataclass(frozen=True, slots=True)
class Slope:
    """Slope of y over x, its 95% interval, and the number of points used."""

    slope: float
    low: float
    high: float
    points: int


def slope(points: Sequence[tuple[float, float]]) -> Slope | None:
    """Slope of `points`, (x, y) in order of x; None with fewer than `MIN_POINTS`.

    The Theil-Sen estimator, the median of the slopes of all pairs, is robust to single allocator jumps. Its 95% interval is from a
    moving-block bootstrap, because neighbouring samples depend on each other.
    """
    if len(points) < MIN_POINTS:
        return None
    points = points[:: max(1, len(points) // _MAX_POINTS)]
    estimate = _theil_sen(points)
    residuals = [y - estimate * x for x, y in points]
    block, source, slopes = max(2, round(len(points) ** 0.5)), random.Random(0), []
    for _ in range(_DRAWS):
        drawn: list[float] = []
        while len(drawn) < len(points):
            at = source.randrange(len(points) - block + 1)
            drawn += residuals[at : at + block]
        slopes.append(_theil_sen([(x, estimate * x + off) for (x, _), off in zip(points, drawn, strict=False)]))
    slopes.sort()
    return Slope(estimate, slopes[4], slopes[-5], len(points))


def _theil_sen(points: Sequence[tuple[float, float]]) -> float:
    slopes = [(y2 - y1) / (x2 - x1) for i, (x1, y1) in enumerate(points) for x2, y2 in points[i + 1 :: 3] if x2 != x1]
    return statistics.median(slopes) if slopes else 0.0
