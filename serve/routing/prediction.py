"""How long a request will take at a variant: the card's profile first, corrected by every request that ends.

What a request took over what the profile says is learnt as a function of the load it met (`learning.Regression`); what that
leaves unexplained has quantiles of its own (`learning.Quantiles`), so that a bound is predicted beside the median. How often the
bounds held is measured by `benchmarks.routing.goodput` and `benchmarks.routing.simulate`: live, beyond saturation, far less often than they say.
Constant time and memory for each request.
"""

import itertools
import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from serve.budget import LEVELS
from serve.card import Profile
from serve.routing.online_estimators import Quantiles, Regression, log_ratio, normal_start

Curve = Sequence[tuple[float, float]]  # (x, milliseconds), sorted by x


@dataclass(slots=True, frozen=True)
class Features:
    """What is known of a request before it runs, in tokens.

    `prompt_tokens` are those of all its prompts. The engine writes `sequences` answers to it (choices times prompts), each of
    which is expected to have `output_tokens`. `context_tokens` is what its longest sequence takes of a context by estimate.
    `blocks` stand for the whole blocks of the prompt's text, each with all that comes before it, see `protocol.Call`.
    """

    prompt_tokens: int
    output_tokens: int
    blocks: Sequence[int] = ()
    sequences: int = 1
    context_tokens: int = 0

    @property
    def total_output_tokens(self) -> int:
        """Expected of all sequences."""
        return self.output_tokens * self.sequences


class Load(NamedTuple):
    """What a request meets at a variant: sequences there, prompt tokens not yet read, and replicas that share them.

    `busy_others` is how many other variants have requests: they may run on the same machine. `prompt_rate` is how many prompt
    tokens a second came lately: answers under way stand still while prompts are read. `cached_tokens` of its own prompt are
    in the engines' prefix cache already.
    """

    requests: int = 0
    unread_tokens: int = 0
    replicas: int = 1
    busy_others: int = 0
    prompt_rate: float = 0.0
    cached_tokens: int = 0


class Latency(NamedTuple):
    """Times in ms."""

    ttft_ms: float
    tpot_ms: float
    e2e_ms: float


class Prediction:
    """Times of one request at one variant as distributions. `expected` are their medians."""

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
        ttft_ms, tpot_ms = ttft * a.middle, tpot * b.middle
        e2e = ttft_ms + tpot_ms * steps
        self._points = (ttft, tpot, e2e)
        self._tail = Latency(ttft * a.bound, tpot * b.bound, e2e * c.bound)
        self.expected = Latency(ttft_ms, tpot_ms, e2e * c.middle)

    def within(self, ttft_ms: float | None, tpot_ms: float | None, e2e_ms: float | None) -> float:
        """Probability that every given limit is kept: the least of them, since one load decides them all."""
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
        """The times at one of `learning.LEVELS`."""
        if level == LEVELS[_P95]:
            return self._tail
        at, (ttft, tpot, e2e), expected = LEVELS.index(level), self._spreads, self.expected
        return Latency(expected[0] * ttft.factors[at], expected[1] * tpot.factors[at], expected[2] * e2e.factors[at])

    def observe(self, ttft_ms: float, tpot_ms: float | None, e2e_ms: float) -> None:
        """Learn from what the request really took; `tpot_ms` is None for an answer of one token."""
        model, (ttft, tpot, e2e) = self._model, self._spreads
        model.ttft.observe(self._ttft_at, log_ratio(ttft_ms, self._priors[0]))
        ttft.observe(self._points[0], self._tail[0], ttft_ms)
        if tpot_ms is not None:
            model.tpot.observe(self._rest_at, log_ratio(tpot_ms, self._priors[1]))
            tpot.observe(self._points[1], self._tail[1], tpot_ms)
        e2e.observe(self._points[2], self._tail[2], e2e_ms)
        model.observed += 1


class _Spread:
    """Quantiles of log(observed / predicted) for requests that met about the same load, relative to what was said then.

    `stretch` widens them after an answer above the 95% bound that was predicted for it, and narrows them after one below: in the
    long run 5% are above (adaptive conformal inference, Gibbs and Candès 2021), but it lags behind a jump of load.
    `middle`, `factors` and `bound` are kept ready for decisions: the median, each level over it, and the 95% bound.
    """

    __slots__ = ("_quantiles", "bound", "factors", "middle", "stretch")

    def __init__(self, p95_over_p50: float) -> None:
        self._quantiles = Quantiles(normal_start(0.0, math.log(max(p95_over_p50, _LEAST_SPREAD))))
        self.stretch = 1.0
        self._refresh()

    def share_below(self, log_ratio: float) -> float:
        """Predicted share of requests that take at most e^`log_ratio` times what was predicted."""
        median = self._quantiles.values[0]
        return self._quantiles.share_below(median + (log_ratio - median) / self.stretch)

    def observe(self, point_ms: float, tail_ms: float, observed_ms: float) -> None:
        self._quantiles.observe(log_ratio(observed_ms, point_ms))
        self.stretch = min(max(self.stretch + _STRETCH_STEP * ((observed_ms > tail_ms) - 0.05), 0.5), 5.0)
        self._refresh()

    def fade(self, share: float) -> None:
        self._quantiles.fade(share)
        self.stretch += share * (1 - self.stretch)
        self._refresh()

    def _refresh(self) -> None:
        values = self._quantiles.values
        median = values[0]
        self.middle = math.exp(median)
        self.factors = [math.exp((value - median) * self.stretch) for value in values]
        self.bound = self.middle * self.factors[_P95]


_LEAST_SPREAD = (
    1.4  # 95% bound over the median to begin with: a service is less steady than what its profile was measured in
)
_UNKNOWN_LENGTH = 2.0  # the same of the whole answer, whose length is a guess
_P95 = LEVELS.index(0.95)
_STRETCH_STEP = 0.03
_MOST_READING = 0.8  # share of the time: beyond it the queue, not the reading, is what answers wait for
_CROWDED = (0.125, 0.4, 1.0)  # shares of the batch in use that part requests into groups with quantiles of their own


class LatencyModel:
    """Times of one variant on the hardware its card was profiled on, and what was learnt since."""

    __slots__ = (
        "_at_last_tick", "_crowd", "_max_running", "_ms_per_unread_token", "_spreads", "_startup_ms", "_tpot",
        "_ttft_by_prompt", "observed", "tpot", "ttft",
    )  # fmt: skip

    def __init__(self, profile: Profile, max_running: int) -> None:
        alone = [point for point in profile.ttft if point.concurrency == 1] or profile.ttft
        crowd_length = max((point.prompt_tokens for point in profile.ttft if point.concurrency > 1), default=0)
        crowd = rising((p.concurrency, p.p50_ms) for p in profile.ttft if p.prompt_tokens == crowd_length)
        self._ttft_by_prompt = rising((point.prompt_tokens, point.p50_ms) for point in alone)
        crowd = [(x, y / interpolate(crowd, 1)) for x, y in crowd] if len(crowd) > 1 else [(1.0, 1.0)]
        tpot = rising((point.concurrency, point.p50_ms) for point in profile.tpot)
        # by the size of the batch, one more than there can be for what lies between
        self._crowd = [interpolate(crowd, batch) for batch in range(max_running + 2)]
        self._tpot = [interpolate(tpot, batch) for batch in range(max_running + 2)]
        self._ms_per_unread_token = 1000 / profile.prefill_tokens_per_s
        self._startup_ms = profile.startup_s * 1000
        self._max_running = max_running
        # log(observed / prior) by what a request met: 1, share of the batch in use, log(1 + busy others), and for the first
        # token thousands of prompt tokens, for the others the share of the time that goes to reading prompts
        self.ttft, self.tpot = Regression(4), Regression(4)
        first = max(point.p95_ms / point.p50_ms for point in profile.ttft)
        rest = max(point.p95_ms / point.p50_ms for point in profile.tpot)
        self._spreads = tuple(
            (_Spread(first), _Spread(rest), _Spread(_UNKNOWN_LENGTH)) for _ in range(len(_CROWDED) + 1)
        )
        self.observed = 0
        self._at_last_tick = 0

    def tick(self) -> None:
        """To be called regularly: what is not observed any more goes back to the profile, a hundredth at a time.

        Else a variant that was once overloaded, and gets nothing for that reason, would never be found to have recovered.
        """
        if self.observed == self._at_last_tick:
            self.ttft.fade(0.01)
            self.tpot.fade(0.01)
            for spread in itertools.chain(*self._spreads):
                spread.fade(0.01)
        self._at_last_tick = self.observed

    def predict(self, features: Features, load: Load) -> Prediction:
        """What `features` would take at this load.

        By the profile, TTFT is that of as long a prompt as is not cached, scaled by how it grows with concurrency, plus reading the prompts
        that came before, the wait for a place in the batch when the engines are full, and the start-up when no replica
        runs. TPOT is the profile's at the concurrency the request would share, while no prompts are read. Sequences of its
        own that find no place in the batch are written after the others.
        """
        replicas, output = load.replicas or 1, features.output_tokens
        before = load.requests / replicas
        here = before + features.sequences
        most = self._max_running
        batch = here if here < most else most
        reading = load.prompt_rate / replicas * self._ms_per_unread_token / 1000
        if reading > _MOST_READING:
            reading = _MOST_READING
        whole = int(batch)
        part = batch - whole
        tpots, crowds = self._tpot, self._crowd
        tpot = (tpots[whole] + part * (tpots[whole + 1] - tpots[whole])) / (1 - reading)
        unread = features.prompt_tokens - load.cached_tokens
        ttft = interpolate(self._ttft_by_prompt, unread)
        ttft *= crowds[whole] + part * (crowds[whole + 1] - crowds[whole])
        ttft += load.unread_tokens / replicas * self._ms_per_unread_token
        steps = float(output - 1 if output > 1 else 0)
        if here > most:
            queued = max(before + 1 - most, 0.0)  # ahead of its first sequence
            ttft += queued / most * output * tpot
            steps += (here - most - queued) / most * output
        full, prompt, crowd = batch / most, unread / 1000, math.log1p(load.busy_others)
        if not load.replicas:
            ttft += self._startup_ms
        a, b, c, d = self.ttft.weights
        ttft_ms = ttft * _factor(a + b * full + c * crowd + d * prompt)
        a, b, c, d = self.tpot.weights
        tpot_ms = tpot * _factor(a + b * full + c * crowd + d * reading)
        return Prediction(
            self,
            self._spreads[bisect_left(_CROWDED, here / most)],
            (ttft, tpot),
            (ttft_ms, tpot_ms),
            steps,
            (1.0, full, crowd, prompt),
            (1.0, full, crowd, reading),
        )


def _factor(log_ratio: float) -> float:
    """e^`log_ratio`, at most as far from 1 as `learning.log_ratio` ever goes."""
    return math.exp(5.0 if log_ratio > 5.0 else -5.0 if log_ratio < -5.0 else log_ratio)


class OutputLengths:
    """How many tokens an answer will have: the median of those before it from the same tenant and profile, else of all.

    Bounded: the pair seen longest ago is forgotten first.
    """

    def __init__(self, most: int = 10_000) -> None:
        self._seen: OrderedDict[tuple[str, str], Quantiles] = OrderedDict()
        self._all: Quantiles | None = None
        self._most = most

    def expect(self, tenant: str, profile: str, max_tokens: int) -> int:
        """Tokens expected of an answer that may have `max_tokens`; that many before there was any answer."""
        seen = self._seen.get((tenant, profile)) or self._all
        if seen is None:
            return max_tokens
        return max(1, min(max_tokens, round(math.exp(seen.values[0]))))

    def observe(self, tenant: str, profile: str, tokens: int) -> None:
        """Take in the length of an answer that ended by itself or at its limit."""
        length = math.log(max(tokens, 1))
        self._all = _followed(self._all, length)
        self._seen[tenant, profile] = _followed(self._seen.pop((tenant, profile), None), length)
        if len(self._seen) > self._most:
            self._seen.popitem(last=False)


def _followed(lengths: Quantiles | None, length: float) -> Quantiles:
    lengths = lengths or Quantiles(normal_start(length, length + 1))
    lengths.observe(length)
    return lengths


def rising(points: Iterable[tuple[float, float]]) -> Curve:
    """Points by x, one for each, made to rise: that more work takes less time is noise of the measurement."""
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
