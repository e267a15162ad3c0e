"""Online estimators: regression and quantiles in constant time and memory per observation, without dependencies."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

from serve.budget import LEVELS

_FORGETTING = 0.998  # factor on old observations for each new one: about the last five hundred count
_RIDGE = 0.2  # strength of the prior at zero, in observations
_MIN_SCALE = 0.005  # of log-ratios: with steps below half a percent the estimate would not adapt


class Regression:
    """Least squares on a few features with exponential forgetting and a ridge that pulls weights to zero.

    The normal equations are solved again for each observation: unlike the recursive form, whose inverse diverges after some
    hundred thousand observations, they stay positive definite. Errors are clipped at three times their mean (Huber), which
    bounds the effect of an outlier.
    """

    __slots__ = ("_moments", "_products", "scale", "weights")

    def __init__(self, size: int) -> None:
        self.weights = [0.0] * size
        self._moments = [[_RIDGE * (i == j) for j in range(size)] for i in range(size)]
        self._products = [0.0] * size
        self.scale = 0.2  # mean absolute error of the predictions

    def state(self) -> list[object]:
        """What was learned, for `restore`; only numbers and lists."""
        return [self.weights, self._moments, self._products, self.scale]

    def restore(self, state: Any) -> None:
        """Take over the state of an estimator of the same size."""
        weights, moments, products, scale = state
        if len(weights) != len(self.weights) or any(math.isnan(value) for value in [*weights, *products, scale]):
            raise ValueError("the state is of another estimator")
        self.weights, self._moments, self._products, self.scale = weights, moments, products, scale

    def predict(self, x: Sequence[float]) -> float:
        """The expected value at features `x`."""
        return sum(map(float.__mul__, self.weights, x))

    def observe(self, x: Sequence[float], value: float) -> float:
        """Update with `value` at `x`; returns the error of the prediction before the update."""
        predicted = self.predict(x)
        error = value - predicted
        value = predicted + max(-3 * self.scale, min(3 * self.scale, error))
        self.scale = max(0.95 * self.scale + 0.05 * min(abs(error), 5 * self.scale), _MIN_SCALE)
        for i, row in enumerate(self._moments):
            for j in range(i + 1):
                row[j] = _FORGETTING * row[j] + x[i] * x[j]
            row[i] += (1 - _FORGETTING) * _RIDGE
            self._products[i] = _FORGETTING * self._products[i] + x[i] * value
        self.weights = _solve(self._moments, self._products)
        return error

    def decay(self, share: float) -> None:
        """Move the weights towards zero by `share`; later observations count accordingly more."""
        factor = 1 - share
        for i, row in enumerate(self._moments):
            for j in range(i + 1):
                row[j] *= factor
            row[i] += share * _RIDGE
            self._products[i] *= factor * factor
        self.weights = _solve(self._moments, self._products)


def _solve(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """Solve `matrix` x = `right` by Cholesky decomposition; only the lower half of the matrix is read."""
    lower: list[list[float]] = []
    y: list[float] = []
    for i, row in enumerate(matrix):
        entries: list[float] = []
        for j in range(i):
            entries.append((row[j] - sum(map(float.__mul__, entries, lower[j]))) / lower[j][j])
        entries.append(math.sqrt(row[i] - sum(map(float.__mul__, entries, entries))))
        y.append((right[i] - sum(map(float.__mul__, entries, y))) / entries[i])
        lower.append(entries)
    for i in reversed(range(len(y))):
        y[i] = (y[i] - sum(lower[j][i] * y[j] for j in range(i + 1, len(y)))) / lower[i][i]
    return y


class Quantiles:
    """Quantiles of a stream by stochastic approximation: up by `level` of a step when exceeded, else down by `1 - level`.

    Over T observations the share at or below an estimate differs from its level by at most (range / step + 1) / T, for any
    sequence (Gibbs and Candès 2021, Adaptive Conformal Inference Under Distribution Shift; Angelopoulos et
    al. 2023, Conformal PID Control): this is the coverage guarantee of the predicted bounds.
    """

    __slots__ = ("_scale", "_start", "_step_boost", "values")

    def __init__(self, start: Sequence[float]) -> None:
        self.values = list(start)
        self._start = list(start)
        self._scale = max(abs(start[-1] - start[0]) / 4, _MIN_SCALE)
        self._step_boost = 1.2  # steps are longer at first, because the initial values are a guess

    def state(self) -> list[object]:
        """What was learned, for `restore`; only numbers and lists."""
        return [self.values, self._scale, self._step_boost]

    def restore(self, state: Any) -> None:
        """Take over the state of other quantiles at the same levels."""
        self.values, self._scale, self._step_boost = state

    def observe(self, value: float) -> None:
        """Update with one observation."""
        self._scale = max(0.98 * self._scale + 0.02 * min(abs(value - self.values[0]), 10 * self._scale), _MIN_SCALE)
        self._step_boost *= 0.98
        step = self._scale * (0.1 + self._step_boost)
        for i, level in enumerate(LEVELS):
            if value != self.values[i]:
                self.values[i] += step * level if value > self.values[i] else -step * (1 - level)
        for i in range(1, len(LEVELS)):  # they are updated independently and must not cross
            self.values[i] = max(self.values[i], self.values[i - 1])

    def decay(self, share: float) -> None:
        """Move the values back towards their start by `share`."""
        self.values = [value + share * (start - value) for value, start in zip(self.values, self._start, strict=True)]

    def share_below(self, value: float) -> float:
        """Share of the stream at or below `value`: linear between the levels, 0.995 above the highest."""
        values = self.values
        if value < values[0]:
            # quantiles below the median are not estimated: assume symmetry
            return 1 - self.share_below(2 * values[0] - value)
        for i in range(1, len(values)):
            if value <= values[i]:
                return LEVELS[i - 1] + (LEVELS[i] - LEVELS[i - 1]) * (value - values[i - 1]) / (
                    values[i] - values[i - 1]
                )
        return 0.995


class RecentQuantile:
    """A quantile of the last observations: it follows a change of the stream within as many of them."""

    __slots__ = ("_level", "_recent", "_start", "value")

    def __init__(self, level: float, start: float, count: int = 30) -> None:
        self._level, self._start = level, start
        self._recent: deque[float] = deque([start], maxlen=count)
        self.value = start

    def observe(self, value: float) -> None:
        """Update with one observation."""
        self._recent.append(value)
        self._update()

    def decay(self, share: float) -> None:
        """Move the observations back towards the start by `share`."""
        recent = [value + share * (self._start - value) for value in self._recent]
        self._recent.clear()
        self._recent.extend(recent)
        self._update()

    def _update(self) -> None:
        self.value = sorted(self._recent)[int(self._level * len(self._recent))]

    def state(self) -> list[float]:
        """What was learned, for `restore`."""
        return list(self._recent)

    def restore(self, state: Sequence[float]) -> None:
        """Take over the observations of another."""
        for value in state:
            self.observe(float(value))


def normal_start(median: float, p95: float) -> list[float]:
    """Quantiles at `LEVELS` of a normal distribution given by its median and its 95% quantile."""
    sigma = (p95 - median) / 1.645
    return [median + sigma * z for z in (0.0, 0.842, 1.282, 1.645, 2.326)]


def log_ratio(observed: float, expected: float) -> float:
    """log(observed / expected), within e^±5: so that a clock that jumped does not distort the estimates."""
    return max(-5.0, min(5.0, math.log(max(observed, 1e-6) / max(expected, 1e-6))))
