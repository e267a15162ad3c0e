"""Learning from one observation after another, in constant time and memory: no arrays, no dependencies."""

import math
from collections.abc import Sequence

from serve.budget import LEVELS

_FORGET = 0.998  # weight of an observation after the next one: the last five hundred count
_RIDGE = 0.2  # observations that a weight of zero counts for
_SMALLEST_SCALE = 0.005  # of log-ratios: steps below half a percent would follow nothing


class Regression:
    """Least squares on a few features with exponential forgetting and a ridge that pulls weights to zero.

    The normal equations are kept and solved anew each time: unlike the recursive form, whose inverse drifts apart after some
    hundred thousand observations, they stay positive definite whatever comes. Observations further from the prediction than
    three times the usual distance count as if they were there (Huber): an outlier moves it no more than a surprise does.
    """

    __slots__ = ("_moments", "_products", "scale", "weights")

    def __init__(self, size: int) -> None:
        self.weights = [0.0] * size
        self._moments = [[_RIDGE * (i == j) for j in range(size)] for i in range(size)]
        self._products = [0.0] * size
        self.scale = 0.2  # mean distance of observations from their predictions

    def predict(self, x: Sequence[float]) -> float:
        """The expected value at features `x`."""
        return sum(map(float.__mul__, self.weights, x))

    def observe(self, x: Sequence[float], value: float) -> float:
        """Take in `value` at `x`; returns how far it was from the prediction made before."""
        predicted = self.predict(x)
        error = value - predicted
        value = predicted + max(-3 * self.scale, min(3 * self.scale, error))
        self.scale = max(0.95 * self.scale + 0.05 * min(abs(error), 5 * self.scale), _SMALLEST_SCALE)
        for i, row in enumerate(self._moments):
            for j in range(i + 1):
                row[j] = _FORGET * row[j] + x[i] * x[j]
            row[i] += (1 - _FORGET) * _RIDGE
            self._products[i] = _FORGET * self._products[i] + x[i] * value
        self.weights = _solved(self._moments, self._products)
        return error

    def fade(self, share: float) -> None:
        """Forget `share` of what was learnt: the weights are as much smaller, and what comes next counts as much more."""
        kept = 1 - share
        for i, row in enumerate(self._moments):
            for j in range(i + 1):
                row[j] *= kept
            row[i] += share * _RIDGE
            self._products[i] *= kept * kept
        self.weights = _solved(self._moments, self._products)


def _solved(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """x of `matrix` x = `right` by Cholesky; of the positive definite matrix only the lower half is read."""
    lower: list[list[float]] = []
    y: list[float] = []
    for i, row in enumerate(matrix):
        own: list[float] = []
        for j in range(i):
            own.append((row[j] - sum(map(float.__mul__, own, lower[j]))) / lower[j][j])
        own.append(math.sqrt(row[i] - sum(map(float.__mul__, own, own))))
        y.append((right[i] - sum(map(float.__mul__, own, y))) / own[i])
        lower.append(own)
    for i in reversed(range(len(y))):
        y[i] = (y[i] - sum(lower[j][i] * y[j] for j in range(i + 1, len(y)))) / lower[i][i]
    return y


class Quantiles:
    """Quantiles of a stream, each followed by its own step: up by `level` of a step when exceeded, down by the rest if not.

    Over T observations the share at or below the followed quantile differs from its level by at most (range / step + 1) / T,
    for any sequence whatsoever (Gibbs and Candès 2021, Adaptive Conformal Inference Under Distribution Shift; Angelopoulos et
    al. 2023, Conformal PID Control): the guarantee behind the tail that the router promises.
    """

    __slots__ = ("_haste", "_scale", "_start", "values")

    def __init__(self, start: Sequence[float]) -> None:
        self.values = list(start)
        self._start = list(start)
        self._scale = max(abs(start[-1] - start[0]) / 4, _SMALLEST_SCALE)
        self._haste = 1.2  # steps are longer at first: the start is a guess

    def observe(self, value: float) -> None:
        """Take in one observation."""
        self._scale = max(
            0.98 * self._scale + 0.02 * min(abs(value - self.values[0]), 10 * self._scale), _SMALLEST_SCALE
        )
        self._haste *= 0.98
        step = self._scale * (0.1 + self._haste)
        for i, level in enumerate(LEVELS):
            if value != self.values[i]:
                self.values[i] += step * level if value > self.values[i] else -step * (1 - level)
        for i in range(1, len(LEVELS)):  # each is followed alone; they must not cross
            self.values[i] = max(self.values[i], self.values[i - 1])

    def fade(self, share: float) -> None:
        """Forget `share` of what was learnt."""
        self.values = [value + share * (start - value) for value, start in zip(self.values, self._start, strict=True)]

    def share_below(self, value: float) -> float:
        """Share of the stream at or below `value`: linear between the levels, 0.995 above the highest."""
        known = self.values
        if value < known[0]:
            # the lower half is not followed: as far below the median as the mirrored level is above
            return 1 - self.share_below(2 * known[0] - value)
        for i in range(1, len(known)):
            if value <= known[i]:
                return LEVELS[i - 1] + (LEVELS[i] - LEVELS[i - 1]) * (value - known[i - 1]) / (known[i] - known[i - 1])
        return 0.995


def normal_start(median: float, p95: float) -> list[float]:
    """Quantiles at `LEVELS` of a normal distribution given by its median and its 95% quantile."""
    sigma = (p95 - median) / 1.645
    return [median + sigma * z for z in (0.0, 0.842, 1.282, 1.645, 2.326)]


def log_ratio(observed: float, expected: float) -> float:
    """log(observed / expected), within e^±5: a clock that jumped must not be learnt."""
    return max(-5.0, min(5.0, math.log(max(observed, 1e-6) / max(expected, 1e-6))))
