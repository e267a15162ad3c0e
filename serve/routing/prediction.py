"""Latency prediction: the card's profile, corrected online by every completed request.

The ratio of observed to profiled time is learned as a function of the load (`online_estimators.Regression`); the quantiles
of the residuals (`online_estimators.Quantiles`) give a bound beside the median. The coverage of the bounds is measured by
`benchmarks.routing.goodput` and `benchmarks.routing.simulate`: beyond saturation it is far below its nominal level on a live
platform.
Constant time and memory per request.
"""

import itertools
import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from serve.budget import LEVELS
from serve.card import Profile
from serve.routing.online_estimators import Quantiles, Regression, log_ratio, normal_start

Curve = Sequence[tuple[float, float]]  # (x, milliseconds), sorted by x


@dataclass(slots=True, frozen=True)
class Features:
    """Features of a request that are known before it runs, in tokens.

    `prompt_tokens` counts all prompts. The engine generates `sequences` sequences (choices times prompts), each of an expected
    `output_tokens`. `context_tokens` estimates the context length of the longest sequence. `blocks` are the hashes of the
    prompt's prefix blocks, see `request.call.Call`.
    """

    prompt_tokens: int
    output_tokens: int
    blocks: Sequence[int] = ()
    sequences: int = 1
    context_tokens: int = 0

    @property
    def total_output_tokens(self) -> int:
        """Expected output tokens of all sequences."""
        return self.output_tokens * self.sequences


class Load(NamedTuple):
    """Load that a request meets at a variant: sequences in flight, prompt tokens to prefill, and replicas that share both.

    `colocated_busy_variants` counts the other variants with requests on the same hardware. `prefill_per_token`
    prompt tokens are read for each token that is generated: prefills delay running decodes. `cached_tokens` of the request's prompt
    are in the engines' prefix cache.
    """

    requests: float = 0
    pending_prefill_tokens: int = 0
    replicas: int = 1
    colocated_busy_variants: float = 0
    prefill_per_token: float = 0.0
    cached_tokens: int = 0


class Latency(NamedTuple):
    """Times in ms."""

    ttft_ms: float
    tpot_ms: float
    e2e_ms: float


class Prediction:
    """Predicted distributions of the times of one request at one variant. `expected` holds the medians."""

    __slots__ = ("_model", "_points", "_priors", "_rest_at", "_spreads", "_tail", "_ttft_at", "expected")

    def __init__(
        self,
        model: "LatencyModel",
        spreads: "tuple[_Spread, _Spread, _Spread]",
        priors: tuple[float, float],
        points: tuple[float, float],
        steps: float,
        ttft_at: Sequence[float],
        rest_at: Sequence[float],
    ) -> None:
        self._model, self._spreads, self._priors = model, spreads, priors
        self._ttft_at, self._rest_at = ttft_at, rest_at
        a, b, c = spreads
        ttft, tpot = points
        ttft_ms, tpot_ms = ttft * a.median, tpot * b.median
        e2e = ttft_ms + tpot_ms * steps
        self._points = (ttft, tpot, e2e)
        self._tail = Latency(ttft * a.bound, tpot * b.bound, e2e * c.bound)
        self.expected = Latency(ttft_ms, tpot_ms, e2e * c.median)

    def within(self, ttft_ms: float | None, tpot_ms: float | None, e2e_ms: float | None) -> float:
        """Probability that every given limit is met: the minimum over the limits, since the same load decides them all."""
        limits = (ttft_ms, tpot_ms, e2e_ms)
        return min(
            (
                spread.share_below(math.log(limit) - math.log(point))
                for limit, point, spread in zip(limits, self._points, self._spreads, strict=True)
                if limit is not None
            ),
            default=1.0,
        )

    def tail(self, level: float) -> Latency:
        """The predicted times at one of `budget.LEVELS`."""
        if level == LEVELS[_P95]:
            return self._tail
        index, (ttft, tpot, e2e), expected = LEVELS.index(level), self._spreads, self.expected
        return Latency(
            expected[0] * ttft.factors[index], expected[1] * tpot.factors[index], expected[2] * e2e.factors[index]
        )

    def observe(self, ttft_ms: float, tpot_ms: float | None, e2e_ms: float) -> None:
        """Learn from the observed times; `tpot_ms` is None for an output of one token."""
        model, (ttft, tpot, e2e) = self._model, self._spreads
        model.ttft.observe(self._ttft_at, log_ratio(ttft_ms, self._priors[0]))
        ttft.observe(self._points[0], self._tail[0], ttft_ms)
        if tpot_ms is not None:
            model.tpot.observe(self._rest_at, log_ratio(tpot_ms, self._priors[1]))
            tpot.observe(self._points[1], self._tail[1], tpot_ms)
        e2e.observe(self._points[2], self._tail[2], e2e_ms)
        model.observed += 1


class _Spread:
    """Quantiles of log(observed / predicted) for requests at about the same load.

    `stretch` widens them after an observation above its predicted 95% bound and narrows them after one below: in the long run
    5% are above (adaptive conformal inference, Gibbs and Candès 2021), but it lags behind a jump in load. `median`,
    `factors` and `bound` are precomputed for decisions: the median, each level divided by it, and the 95% bound.
    """

    __slots__ = ("_quantiles", "bound", "factors", "median", "stretch")

    def __init__(self, p95_over_p50: float) -> None:
        self._quantiles = Quantiles(normal_start(0.0, math.log(max(p95_over_p50, _MIN_SPREAD))))
        self.stretch = 1.0
        self._refresh()

    def share_below(self, log_ratio: float) -> float:
        """Predicted share of requests that take at most e^`log_ratio` times the point prediction."""
        median = self._quantiles.values[0]
        return self._quantiles.share_below(median + (log_ratio - median) / self.stretch)

    def state(self) -> list[object]:
        return [self.stretch, self._quantiles.state()]

    def restore(self, state: Any) -> None:
        self.stretch, quantiles = state
        self._quantiles.restore(quantiles)
        self._refresh()

    def observe(self, point_ms: float, tail_ms: float, observed_ms: float) -> None:
        self._quantiles.observe(log_ratio(observed_ms, point_ms))
        self.stretch = min(max(self.stretch + _STRETCH_STEP * ((observed_ms > tail_ms) - 0.05), 0.5), 5.0)
        self._refresh()

    def decay(self, share: float) -> None:
        self._quantiles.decay(share)
        self.stretch += share * (1 - self.stretch)
        self._refresh()

    def _refresh(self) -> None:
        values = self._quantiles.values
        median = values[0]
        self.median = math.exp(median)
        self.factors = [math.exp((value - median) * self.stretch) for value in values]
        self.bound = self.median * self.factors[_P95]


_MIN_SPREAD = 1.4  # initial 95% bound over the median: production load varies more than the profiling run
_E2E_SPREAD = 2.0  # the same for the end-to-end time, because the output length is a guess
_P95 = LEVELS.index(0.95)
_STRETCH_STEP = 0.03
_MAX_PLACES = 256  # results of `places` that are kept until the drift changes
_DRIFT_TOKENS = 250  # streamed tokens that count as much as all before them
_KEPT_LENGTHS = 500  # tenants and profiles whose output lengths a new gateway begins with
_LOAD_BANDS = (0.125, 0.4, 1.0)  # batch utilization; the residuals of each band have separate quantiles


class LatencyModel:
    """Latency model of one variant: its profile and the corrections learned since."""

    __slots__ = (
        "_at_last_tick", "_crowd", "_drift", "_max_running", "_places", "_speed", "_spreads", "_startup_ms", "_stepped",
        "_tpot", "_ttft_by_prompt", "ms_per_prefill_token", "observed", "tpot", "ttft",
    )  # fmt: skip

    def __init__(self, profile: Profile, max_running: int) -> None:
        alone = [point for point in profile.ttft if point.concurrency == 1] or profile.ttft
        crowd_length = max((point.prompt_tokens for point in profile.ttft if point.concurrency > 1), default=0)
        crowd = rising((p.concurrency, p.p50_ms) for p in profile.ttft if p.prompt_tokens == crowd_length)
        self._ttft_by_prompt = rising((point.prompt_tokens, point.p50_ms) for point in alone)
        crowd = [(x, y / interpolate(crowd, 1)) for x, y in crowd] if len(crowd) > 1 else [(1.0, 1.0)]
        tpot = rising((point.concurrency, point.p50_ms) for point in profile.tpot)
        # by batch size; one entry more than the maximum, for interpolation
        self._crowd = [interpolate(crowd, batch) for batch in range(max_running + 2)]
        self._tpot = [interpolate(tpot, batch) for batch in range(max_running + 2)]
        self.ms_per_prefill_token = 1000 / profile.prefill_tokens_per_s
        self._startup_ms = profile.startup_s * 1000
        self._max_running = max_running
        # log(observed / prior) by load: 1, batch utilization, log(1 + colocated busy variants), and for TTFT thousands of
        # prompt tokens, for TPOT the share of the time spent on prefills
        self.ttft, self.tpot = Regression(4), Regression(4)
        first = max(point.p95_ms / point.p50_ms for point in profile.ttft)
        rest = max(point.p95_ms / point.p50_ms for point in profile.tpot)
        self._spreads = tuple(
            (_Spread(first), _Spread(rest), _Spread(_E2E_SPREAD)) for _ in range(len(_LOAD_BANDS) + 1)
        )
        self._places: dict[tuple[float, float, float], int] = {}  # see `places`
        self.drift = 0.0
        self.observed = 0
        self._at_last_tick = 0
        self._stepped = False  # whether steps were observed since the last tick

    def state(self) -> dict[str, object]:
        """What was learned, for `restore`; only numbers, lists and names."""
        spreads = [[spread.state() for spread in band] for band in self._spreads]
        return {
            "drift": self.drift,
            "ttft": self.ttft.state(),
            "tpot": self.tpot.state(),
            "spreads": spreads,
            "observed": self.observed,
        }

    def restore(self, state: Any) -> None:
        """Take over the state of a model of the same variant."""
        self.drift, self.observed = float(state["drift"]), int(state["observed"])
        self.ttft.restore(state["ttft"])
        self.tpot.restore(state["tpot"])
        for band, its in zip(self._spreads, state["spreads"], strict=True):
            for spread, one in zip(band, its, strict=True):
                spread.restore(one)

    def tick(self) -> None:
        """Decay the corrections by 1% if there was no observation since the last call; so with the drift. Call it regularly.

        Otherwise a variant that was overloaded, and gets no requests for that reason, would never be chosen again.
        """
        if self.observed == self._at_last_tick:
            self.ttft.decay(0.01)
            self.tpot.decay(0.01)
            for spread in itertools.chain(*self._spreads):
                spread.decay(0.01)
        if not self._stepped:
            self.drift *= 0.99
        self._at_last_tick, self._stepped = self.observed, False

    def observe_steps(self, mean_ms: float, tokens: float, in_flight: float, load: Load) -> None:
        """Follow the present speed: `tokens` were streamed, `mean_ms` apart, while `in_flight` sequences ran.

        It is learned within seconds, long before the requests under way are complete.
        """
        if tokens > 0:
            self._stepped = True
            error = log_ratio(mean_ms, self.step_ms(load, in_flight)) + self.drift
            self.drift += tokens / (tokens + _DRIFT_TOKENS) * (error - self.drift)

    @property
    def drift(self) -> float:
        """log(observed time per token of late / `step_ms` without it), see `observe_steps`."""
        return self._drift

    @drift.setter
    def drift(self, drift: float) -> None:
        self._drift, self._speed = drift, math.exp(drift)
        self._places.clear()

    def step_ms(self, load: Load, batch: float, colocated: float | None = None) -> float:
        """Time per token of each of `batch` running sequences of a replica, ms, with the prefills that keep so many running.

        Physics and one learned factor, without a bound. `colocated` busy variants on the hardware, by default those of `load`.
        """
        limit = self._max_running
        batch = batch if batch < limit else limit
        whole = int(batch)
        tpots = self._tpot
        decode_ms = tpots[whole] + (batch - whole) * (tpots[whole + 1] - tpots[whole])
        prefill_ms = max(batch - 1, 0.0) * load.prefill_per_token * self.ms_per_prefill_token
        crowd = 1 + (load.colocated_busy_variants if colocated is None else colocated)
        return (decode_ms + prefill_ms) * crowd * self._speed

    def places(self, load: Load, limit_ms: float, colocated: float | None = None) -> int:
        """Sequences that a replica can run within `limit_ms` per token; 0 where one is too slow."""
        key = (
            limit_ms,
            load.colocated_busy_variants if colocated is None else colocated,
            round(load.prefill_per_token, 1),
        )
        if (known := self._places.get(key)) is not None:
            return known
        low, high = 0, self._max_running
        while low < high:
            middle = (low + high + 1) // 2
            if self.step_ms(load, middle, colocated) <= limit_ms:
                low = middle
            else:
                high = middle - 1
        if len(self._places) >= _MAX_PLACES:
            self._places.clear()
        self._places[key] = low
        return low

    def predict(self, features: Features, load: Load) -> Prediction:
        """Predict the times of a request with `features` at this load.

        TTFT is the profile's for the uncached part of the prompt, scaled by concurrency, plus the prefill of the prompts
        ahead, the wait for a place in the batch when the engines are full, and the start-up time when no replica runs. TPOT
        is the profile's at the resulting concurrency, extended by the share of the time spent on prefills. Sequences of the
        request that exceed the batch are generated after the others.
        """
        replicas, output = load.replicas or 1, features.output_tokens
        before = load.requests / replicas
        here = before + features.sequences
        limit = self._max_running
        batch = here if here < limit else limit
        full, whole = batch / limit, int(batch)
        tpot, crowds = self.step_ms(load, batch), self._crowd
        uncached = features.prompt_tokens - load.cached_tokens
        ttft = interpolate(self._ttft_by_prompt, uncached)
        ttft *= crowds[whole] + (batch - whole) * (crowds[whole + 1] - crowds[whole])
        ttft += load.pending_prefill_tokens / replicas * self.ms_per_prefill_token
        ttft *= 1 + load.colocated_busy_variants
        steps = float(output - 1 if output > 1 else 0)
        if here > limit:
            queued = max(before + 1 - limit, 0.0)  # ahead of the request's first sequence
            ttft += queued / limit * output * tpot
            steps += (here - limit - queued) / limit * output
        prompt, crowd = uncached / 1000, math.log1p(load.colocated_busy_variants)
        if not load.replicas:
            ttft += self._startup_ms
        a, b, c, d = self.ttft.weights
        ttft_ms = ttft * _factor(a + b * full + c * crowd + d * prompt)
        a, b, c, d = self.tpot.weights
        tpot_ms = tpot * _factor(a + b * full + c * crowd + d * load.prefill_per_token / 10)
        return Prediction(
            self,
            self._spreads[bisect_left(_LOAD_BANDS, here / limit)],
            (ttft, tpot),
            (ttft_ms, tpot_ms),
            steps,
            (1.0, full, crowd, prompt),
            (1.0, full, crowd, load.prefill_per_token / 10),
        )


def _factor(log_ratio: float) -> float:
    """e^`log_ratio`, clipped like `online_estimators.log_ratio`."""
    return math.exp(5.0 if log_ratio > 5.0 else -5.0 if log_ratio < -5.0 else log_ratio)


class OutputLengths:
    """Output length prediction: the running median for the same tenant and profile, else over all requests.

    Bounded: the least recently seen pair is evicted first.
    """

    def __init__(self, max_entries: int = 10_000) -> None:
        self._seen: OrderedDict[tuple[str, str], Quantiles] = OrderedDict()
        self._all: Quantiles | None = None
        self._max_entries = max_entries

    def expect(self, tenant: str, profile: str, max_tokens: int) -> int:
        """Expected output tokens, at most `max_tokens`; `max_tokens` before the first observation."""
        seen = self._seen.get((tenant, profile)) or self._all
        if seen is None:
            return max_tokens
        return max(1, min(max_tokens, round(math.exp(seen.values[0]))))

    def state(self) -> list[object]:
        """What was learned of all requests, and of the tenants and profiles seen last, for `restore`."""
        newest = itertools.islice(reversed(self._seen.items()), _KEPT_LENGTHS)
        return [self._all and self._all.state(), [[*key, lengths.state()] for key, lengths in newest]]

    def restore(self, state: Any) -> None:
        """Take over the state of another gateway; what was learned here already stays."""
        overall, seen = state
        if overall is not None and self._all is None:
            self._all = _restored(overall)
        for tenant, profile, lengths in reversed(seen):
            self._seen.setdefault((tenant, profile), _restored(lengths))

    def observe(self, tenant: str, profile: str, tokens: int) -> None:
        """Update with the length of an output that ended by itself or at its limit."""
        length = math.log(max(tokens, 1))
        self._all = _updated(self._all, length)
        self._seen[tenant, profile] = _updated(self._seen.pop((tenant, profile), None), length)
        if len(self._seen) > self._max_entries:
            self._seen.popitem(last=False)


def _restored(state: Any) -> Quantiles:
    lengths = Quantiles(normal_start(0.0, 1.0))
    lengths.restore(state)
    return lengths


def _updated(lengths: Quantiles | None, length: float) -> Quantiles:
    lengths = lengths or Quantiles(normal_start(length, length + 1))
    lengths.observe(length)
    return lengths


def rising(points: Iterable[tuple[float, float]]) -> Curve:
    """Sort points by x, one per x, and make them monotonic: less time for more work is measurement noise."""
    curve: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if curve and curve[-1][0] == x:
            curve[-1] = (x, max(y, curve[-1][1]))
        else:
            curve.append((x, max(y, curve[-1][1]) if curve else y))
    return curve


def interpolate(points: Curve, x: float) -> float:
    """Piecewise linear through `points`; constant below the first, along the last slope above the last, never falling."""
    if x <= points[0][0] or len(points) == 1:
        return points[0][1]
    i = min(bisect_left(points, (x,)), len(points) - 1)
    (x0, y0), (x1, y1) = points[i - 1], points[i]
    y = y0 + (y1 - y0) / (x1 - x0) * (x - x0)
    return max(y, y1) if x > x1 else y
