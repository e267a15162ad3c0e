"""Latency prediction from a card's profile. The prior; later observations refine it."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from serve.card import Profile

Curve = Sequence[tuple[float, float]]  # (x, milliseconds), sorted by x


@dataclass(slots=True, frozen=True)
class Features:
    """What is known of a request before it runs, in tokens."""

    prompt_tokens: int
    output_tokens: int


@dataclass(slots=True, frozen=True)
class Latency:
    """Expected times in ms."""

    ttft_ms: float
    tpot_ms: float
    e2e_ms: float


class LatencyModel:
    """Expected latency of one variant on the hardware its card was profiled on."""

    def __init__(self, profile: Profile, max_running: int) -> None:
        alone = [point for point in profile.ttft if point.concurrency == 1] or profile.ttft
        crowd_length = max((point.prompt_tokens for point in profile.ttft if point.concurrency > 1), default=0)
        crowd = [point for point in profile.ttft if point.prompt_tokens == crowd_length]
        self._ttft_by_prompt = _rising((point.prompt_tokens, point.p50_ms) for point in alone)
        self._ttft_by_batch = _rising((point.concurrency, point.p50_ms) for point in crowd)
        self._tpot_by_batch = _rising((point.concurrency, point.p50_ms) for point in profile.tpot)
        self._startup_ms = profile.startup_s * 1000
        self._max_running = max_running

    def predict(self, features: Features, load: int, replicas: int) -> Latency:
        """What `features` would take with `load` other requests at the variant, spread over `replicas`.

        TTFT is the profile's at this prompt length, scaled by how it grows with concurrency, plus the wait for a place
        in the batch when the engines are full, plus the start-up time when no replica runs. TPOT is the profile's at
        the concurrency the request would share.
        """
        per_replica = load / max(replicas, 1)
        batch = min(per_replica + 1, self._max_running)
        tpot_ms = _interpolate(self._tpot_by_batch, batch)
        ttft_ms = _interpolate(self._ttft_by_prompt, features.prompt_tokens)
        if len(self._ttft_by_batch) > 1:
            ttft_ms *= _interpolate(self._ttft_by_batch, batch) / _interpolate(self._ttft_by_batch, 1)
        if (queued := per_replica + 1 - self._max_running) > 0:
            ttft_ms += queued / self._max_running * features.output_tokens * tpot_ms
        if replicas == 0:
            ttft_ms += self._startup_ms
        return Latency(ttft_ms, tpot_ms, ttft_ms + tpot_ms * max(features.output_tokens - 1, 0))


def _rising(points: Iterable[tuple[float, float]]) -> Curve:
    """Points by x, one for each, made to rise: that more work takes less time is noise of the measurement."""
    curve: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if curve and curve[-1][0] == x:
            curve[-1] = (x, max(y, curve[-1][1]))
        else:
            curve.append((x, max(y, curve[-1][1]) if curve else y))
    return curve


def _interpolate(points: Curve, x: float) -> float:
    """Piecewise linear through `points`; constant below the first, along the last slope above the last, never falling."""
    if x <= points[0][0] or len(points) == 1:
        return points[0][1]
    i = min(bisect_left(points, (x,)), len(points) - 1)
    (x0, y0), (x1, y1) = points[i - 1], points[i]
    y = y0 + (y1 - y0) / (x1 - x0) * (x - x0)
    return max(y, y1) if x > x1 else y
