"""Pareto front of variants. Pure functions."""

from collections.abc import Sequence


def dominators(points: Sequence[Sequence[float]]) -> list[int | None]:
    """For each point the index of the first one that dominates it; None for the points of the Pareto front.

    In every coordinate more is better (negate what should be small). A point dominates another when it is nowhere worse
    and somewhere better; equal points do not dominate each other.
    """
    return [next((at for at, other in enumerate(points) if _dominates(other, point)), None) for point in points]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)
