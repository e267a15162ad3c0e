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
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from typing import Any, NamedTuple

from serve.budget import LEVELS
from serve.card import Profile
from serve.routing.curve import Curve
from serve.routing.online_estimators import Quantiles, Regression, log_ratio, normal_start


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
    are in the prefix cache of `replica` (its base URL), which the request goes to, with the load that is there; without one, every
    replica is taken to have the same load.
    """

    requests: float = 0
    pending_prefill_tokens: int = 0
    replicas: int = 1
    colocated_busy_variants: float = 0
    prefill_per_token: float = 0.0
    replica: str = ""
    replica_requests: float = 0.0
    replica_prefill_tokens: float = 0.0
    cached_tokens: int = 0

    @property
    def here(self) -> float:
        """Sequences in flight at the replica that the request goes to."""
        return self.replica_requests if self.replica else self.requests / (self.replicas or 1)

    @property
    def prefill_here(self) -> float:
        """Prompt tokens to prefill there."""
        return self.replica_prefill_tokens if self.replica else self.pending_prefill_tokens / (self.replicas or 1)


class Latency(NamedTuple):
    """Times in ms."""

    ttft_ms: float
    tpot_ms: float
    e2e_ms: float


class Prediction:
    """Predicted distributions of the times of one request at one variant; its attributes are the medians."""

    __slots__ = ("_batch", "_e2e", "_model", "_prior", "_prompt", "_ttft", "e2e_ms", "tpot_ms", "ttft_ms")

    def __init__(self, model: "LatencyModel", batch: "_Batch", features: Features, cached_tokens: int) -> None:
        output, uncached = features.output_tokens, features.prompt_tokens - cached_tokens
        prior = (model.ttft_by_prompt(uncached) * batch.slowdown + batch.pending_ms) * batch.shared
        prior += batch.before * output * batch.tpot_prior
        prior += batch.startup_ms
        prompt = uncached / 1000
        self._model, self._batch, self._prior, self._prompt = model, batch, prior, prompt
        a, b, c = batch.medians
        self._ttft = ttft = prior * _factor(batch.log_ttft + batch.log_ttft_per_prompt * prompt)
        self.ttft_ms, self.tpot_ms = ttft_ms, tpot_ms = ttft * a, batch.tpot * b
        self._e2e = e2e = ttft_ms + tpot_ms * ((output - 1 if output > 1 else 0) + batch.after * output)
        self.e2e_ms = e2e_ms if (e2e_ms := e2e * c) > ttft_ms else ttft_ms

    @property
    def _points(self) -> tuple[float, float, float]:
        """The predicted times before the medians of what was observed of them."""
        return self._ttft, self._batch.tpot, self._e2e

    @property
    def alone_ms(self) -> float:
        """Time per token of the request alone, with all its sequences, see `LatencyModel.step_ms`."""
        return self._batch.alone_ms

    @property
    def expected(self) -> Latency:
        """The medians."""
        return Latency(self.ttft_ms, self.tpot_ms, self.e2e_ms)

    def within(self, ttft_ms: float | None, tpot_ms: float | None, e2e_ms: float | None) -> float:
        """Probability that every given limit is met: the minimum over the limits, since the same load decides them all."""
        limits = (ttft_ms, tpot_ms, e2e_ms)
        return min(
            (
                spread.share_below(math.log(limit) - math.log(point))
                for limit, point, spread in zip(limits, self._points, self._batch.spreads, strict=True)
                if limit is not None
            ),
            default=1.0,
        )

    def tail(self, level: float) -> Latency:
        """The predicted times at one of `budget.LEVELS`."""
        if level == LEVELS[_P95]:
            ttft_ms, tpot_ms, e2e_ms = map(mul, self._points, self._batch.bounds)
        else:
            index, spreads = LEVELS.index(level), self._batch.spreads
            ttft_ms, tpot_ms, e2e_ms = (ms * one.factors[index] for ms, one in zip(self.expected, spreads, strict=True))
        return Latency(ttft_ms, tpot_ms, max(e2e_ms, ttft_ms))

    def observe(self, ttft_ms: float, tpot_ms: float | None, e2e_ms: float) -> None:
        """Learn from the observed times; `tpot_ms` is None for an output of one token."""
        model, batch, points, bounds = self._model, self._batch, self._points, self.tail(LEVELS[_P95])
        ttft, tpot, e2e = batch.spreads
        model.ttft.observe((1.0, batch.full, batch.colocated, self._prompt), log_ratio(ttft_ms, self._prior))
        ttft.observe(points[0], bounds[0], ttft_ms)
        if tpot_ms is not None:
            model.tpot.observe((1.0, batch.full, batch.colocated, batch.prefill), log_ratio(tpot_ms, batch.tpot_prior))
            tpot.observe(points[1], bounds[1], tpot_ms)
        e2e.observe(points[2], bounds[2], e2e_ms)
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
_LOAD_BANDS = (0.125, 0.4, 1.0)  # batch utilization; the residuals of each band have separate quantiles


class LatencyModel:
    """Latency model of one variant: its profile and the corrections learned since."""

    __slots__ = (
        "_at_last_tick", "_batch", "_drift", "_places", "_speed", "_stepped", "_tpot", "max_running", "ms_per_prefill_token",
        "observed", "spreads", "startup_ms", "tpot", "ttft", "ttft_by_prompt", "ttft_slowdown",
    )  # fmt: skip

    def __init__(self, profile: Profile, max_running: int) -> None:
        alone = [point for point in profile.ttft if point.concurrency == 1] or profile.ttft
        crowd_length = max((point.prompt_tokens for point in profile.ttft if point.concurrency > 1), default=0)
        crowded = [(p.concurrency, p.p50_ms) for p in profile.ttft if p.prompt_tokens == crowd_length] or [(1, 1.0)]
        one_ms = Curve(crowded)(1)
        crowd = Curve((concurrency, ms / one_ms) for concurrency, ms in crowded)
        tpot = Curve((point.concurrency, point.p50_ms) for point in profile.tpot)
        self.ttft_by_prompt = Curve((point.prompt_tokens, point.p50_ms) for point in alone)
        # by batch size; one entry more than the maximum, for interpolation
        self.ttft_slowdown = [crowd(batch) for batch in range(max_running + 2)]
        self._tpot = [tpot(batch) for batch in range(max_running + 2)]
        self.ms_per_prefill_token = 1000 / profile.prefill_tokens_per_s
        self.startup_ms = profile.startup_s * 1000
        self.max_running = max_running
        # log(observed / prior) by load: 1, batch utilization, log(1 + colocated busy variants), and for TTFT thousands of
        # prompt tokens, for TPOT the share of the time spent on prefills
        self.ttft, self.tpot = Regression(4), Regression(4)
        first = max(point.p95_ms / point.p50_ms for point in profile.ttft)
        rest = max(point.p95_ms / point.p50_ms for point in profile.tpot)
        self.spreads = tuple((_Spread(first), _Spread(rest), _Spread(_E2E_SPREAD)) for _ in range(len(_LOAD_BANDS) + 1))
        self._places: dict[tuple[float, float, float], int] = {}  # see `places`
        self._batch: _Batch | None = None  # of the last prediction
        self.drift = 0.0
        self.observed = 0
        self._at_last_tick = 0
        self._stepped = False  # whether steps were observed since the last tick

    def state(self) -> dict[str, object]:
        """What was learned, for `restore`; only numbers, lists and names."""
        spreads = [[spread.state() for spread in band] for band in self.spreads]
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
        for band, its in zip(self.spreads, state["spreads"], strict=True):
            for spread, one in zip(band, its, strict=True):
                spread.restore(one)

    def tick(self) -> None:
        """Decay the corrections by 1% if there was no observation since the last call; so with the drift. Call it regularly.

        Otherwise a variant that was overloaded, and gets no requests for that reason, would never be chosen again.
        """
        if self.observed == self._at_last_tick:
            self.ttft.decay(0.01)
            self.tpot.decay(0.01)
            for spread in itertools.chain(*self.spreads):
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
        self._batch = None

    def step_ms(self, load: Load, batch: float, colocated: float | None = None) -> float:
        """Time per token of each of `batch` running sequences of a replica, ms, with the prefills that keep so many running.

        Physics and one learned factor, without a bound. `colocated` busy variants on the hardware, by default those of `load`.
        """
        limit, tpots = self.max_running, self._tpot
        batch = batch if batch < limit else limit
        whole = int(batch)
        decode_ms = tpots[whole] + (batch - whole) * (tpots[whole + 1] - tpots[whole])
        prefill_ms = (batch - 1 if batch > 1 else 0.0) * load.prefill_per_token * self.ms_per_prefill_token
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
        low, high = 0, self.max_running
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
        batch = self._batch
        if (
            batch is None
            or (batch.load is not load and batch.load[:-1] != load[:-1])  # whatever is cached of the prompt
            or batch.sequences != features.sequences
            or batch.weights is not self.ttft.weights
        ):
            self._batch = batch = _Batch(self, load, features.sequences)
        return Prediction(self, batch, features, load.cached_tokens)


class _Batch:
    """The batch that a request would be in: what its prediction needs of the load and of what was learned, not of its lengths.

    Kept for the next request at the same load until the drift changes or `weights`, those of the TTFT, are replaced, as by every
    learned answer.
    `before` and `after`: batches that are generated before the request's first sequence and, for the others, after it.
    `full`, `colocated` and `prefill` are the features of the regressions.
    """

    __slots__ = (
        "after", "alone_ms", "before", "bounds", "colocated", "full", "load", "log_ttft", "log_ttft_per_prompt", "medians", "pending_ms",
        "prefill", "sequences", "shared", "slowdown", "spreads", "startup_ms", "tpot", "tpot_prior", "weights",
    )  # fmt: skip

    def __init__(self, model: LatencyModel, load: Load, sequences: int) -> None:
        self.load, self.sequences = load, sequences
        ahead, colocated, prefill_per_token = load.here, load.colocated_busy_variants, load.prefill_per_token
        limit, slowdown = model.max_running, model.ttft_slowdown
        here = ahead + sequences
        size, self.before, self.after = here, 0.0, 0.0
        if here > limit:
            queued = max(ahead + 1 - limit, 0.0)  # ahead of the request's first sequence
            size, self.before, self.after = limit, queued / limit, (here - limit - queued) / limit
        whole = int(size)
        self.slowdown = slowdown[whole] + (size - whole) * (slowdown[whole + 1] - slowdown[whole])
        self.pending_ms = load.prefill_here * model.ms_per_prefill_token
        self.startup_ms = 0.0 if load.replicas else model.startup_ms
        self.shared = 1 + colocated
        self.tpot_prior, self.alone_ms = model.step_ms(load, size), model.step_ms(load, sequences)
        full, others = size / limit, math.log1p(colocated)
        self.full, self.colocated, self.prefill = full, others, prefill_per_token / 10
        a, b, c, self.log_ttft_per_prompt = self.weights = model.ttft.weights
        self.log_ttft = a + b * full + c * others  # of the learned factor, without what the prompt adds
        a, b, c, d = model.tpot.weights
        self.tpot = self.tpot_prior * _factor(a + b * full + c * others + d * prefill_per_token / 10)
        self.spreads = x, y, z = model.spreads[bisect_left(_LOAD_BANDS, here / limit)]
        self.medians, self.bounds = (x.median, y.median, z.median), (x.bound, y.bound, z.bound)


def _factor(log_ratio: float) -> float:
    """e^`log_ratio`, clipped like `online_estimators.log_ratio`."""
    return math.exp(5.0 if log_ratio > 5.0 else -5.0 if log_ratio < -5.0 else log_ratio)
