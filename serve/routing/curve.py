"""Piecewise linear interpolation of a profile's measured times."""

import itertools
from bisect import bisect_left
from collections.abc import Iterable


class Curve:
    """Milliseconds by x, piecewise linear: constant below the first point, along the last slope above the last, never falling.

    Less time for more work is taken as measurement noise.
    """

    __slots__ = ("_pieces", "_xs")

    def __init__(self, points: Iterable[tuple[float, float]]) -> None:
        highest, rising = 0.0, dict[float, float]()
        for x, y in sorted(points):
            rising[x] = highest = max(highest, y)
        self._xs = list(rising)
        pairs = itertools.pairwise(rising.items())
        self._pieces = [(x0, y0, (y1 - y0) / (x1 - x0)) for (x0, y0), (x1, y1) in pairs]  # by the index of their end
        first = (self._xs[0], rising[self._xs[0]], 0.0)
        self._pieces = [first, *self._pieces, self._pieces[-1] if self._pieces else first]

    def __call__(self, x: float) -> float:
        """The milliseconds at `x`."""
        at = bisect_left(self._xs, x)
        x0, y0, slope = self._pieces[at]
        return y0 + slope * (x - x0) if at else y0
