"""Workloads of routing benchmarks, simulated or live: arrival processes, requests with budgets, outcomes and their summary."""

import json
import math
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from serve.budget import Budget
from serve.card import Profile
from serve.routing.prediction import Features, Latency, LatencyModel, Load


@dataclass(slots=True, frozen=True)
class Request:
    """One request of a trace: `at` in ms, lengths in tokens. Its answer's length is predicted by `kind`.

    `blocks` identify the prompt's complete blocks of `prefix_cache.BLOCK_TOKENS`, each with all before it; `all_blocks` also those
    of the answer.
    """

    at: float
    prompt_tokens: int
    output_tokens: int
    budget: Budget
    kind: str = ""
    tenant: str = ""
    weight: float = 1.0  # of the tenant
    blocks: Sequence[int] = ()
    all_blocks: Sequence[int] = ()


@dataclass(slots=True)
class Outcome:
    """Outcome of a request; times in ms. `variant` is empty when it was rejected."""

    request: Request
    variant: str = ""
    reason: str = ""
    quality: float = 0.0
    cost_usd: float = 0.0
    took: Latency | None = None  # None: rejected or failed
    expected: Latency | None = None
    tail: Latency | None = None  # the predicted 95% bound
    first_token: bool = False  # whether one arrived
    refused_ms: float | None = None  # from its arrival to its refusal, where it was refused

    @property
    def missed(self) -> set[str]:
        """The times that were longer than their limits: ttft, tpot, e2e."""
        if self.took is None:
            return set()
        limits = (
            ("ttft", self.request.budget.ttft_ms),
            ("tpot", self.request.budget.tpot_ms),
            ("e2e", self.request.budget.e2e_ms),
        )
        return {
            name for (name, limit), took in zip(limits, self.took, strict=True) if limit is not None and took > limit
        }

    @property
    def within_budget(self) -> bool:
        """Whether every limit of its budget was met."""
        budget = self.request.budget
        return (
            self.took is not None
            and not self.missed
            and self.quality >= (budget.min_quality or 0.0)
            and (budget.max_cost is None or self.cost_usd <= budget.max_cost)
        )


def after_wait(waited_ms: float, times: Latency) -> Latency:
    """The times of a request that started `waited_ms` after its arrival."""
    return Latency(times.ttft_ms + waited_ms, times.tpot_ms, times.e2e_ms + waited_ms)


class TraceError(Exception):
    """A recorded trace cannot be read; the message names the line."""


def poisson(rate_per_s: float, seed: int) -> Iterator[float]:
    """Arrival times in ms of a Poisson process."""
    drawn, at = random.Random(seed), 0.0
    while True:
        at += drawn.expovariate(rate_per_s) * 1000
        yield at


def bursty(rate_per_s: float, seed: int, burst: float = 4.0, period_s: float = 20.0) -> Iterator[float]:
    """Arrival times in ms: `burst` times as many in the first quarter of each period as in the rest."""

    def rate(at: float) -> float:
        return rate_per_s * 4 / (burst + 3) * (burst if at % period_s < period_s / 4 else 1.0)

    return _thinned(rate, rate_per_s * 4 * burst / (burst + 3), seed)


def diurnal(rate_per_s: float, seed: int, depth: float = 0.8, period_s: float = 600.0) -> Iterator[float]:
    """Arrival times in ms: a day of `period_s` in which the rate swings by `depth` of its mean, lowest at the start."""

    def rate(at: float) -> float:
        return rate_per_s * (1 - depth * math.cos(2 * math.pi * at / period_s))

    return _thinned(rate, rate_per_s * (1 + depth), seed)


def ramp(rate_per_s: float, seed: int, depth: float = 0.75, period_s: float = 20.0) -> Iterator[float]:
    """Arrival times in ms: in each period the rate rises steadily from `depth` below its mean to `depth` above it."""

    def rate(at: float) -> float:
        return rate_per_s * (1 - depth + 2 * depth * (at % period_s) / period_s)

    return _thinned(rate, rate_per_s * (1 + depth), seed)


def square(rate_per_s: float, seed: int, depth: float = 0.6, period_s: float = 10.0) -> Iterator[float]:
    """Arrival times in ms: half of each period `depth` below the mean rate, then half of it `depth` above."""

    def rate(at: float) -> float:
        return rate_per_s * (1 - depth if at % period_s < period_s / 2 else 1 + depth)

    return _thinned(rate, rate_per_s * (1 + depth), seed)


ARRIVALS: Mapping[str, Callable[[float, int], Iterator[float]]] = {
    "poisson": poisson,
    "bursty": bursty,
    "diurnal": diurnal,
}

Kinds = Mapping[str, tuple[float, Budget]]  # share of the requests and budget, by kind

# share of the requests, quality floor, and limits in units of what `full` takes when idle: TTFT, TPOT, E2E
KINDS: Mapping[str, tuple[float, float | None, float | None, float | None, float | None]] = {
    "chat": (0.6, None, 8.0, 3.0, None),
    "careful": (0.2, 0.9, 15.0, 4.5, None),
    "patient": (0.2, None, None, None, 20.0),
}
# the live platform's: what people notice, on any hardware
ABSOLUTE: Kinds = {
    "interactive": (0.55, Budget(ttft_ms=800, tpot_ms=90, on_no_candidate="reject")),
    "careful": (0.2, Budget(min_quality=0.9, e2e_ms=8000, on_no_candidate="reject")),
    "patient": (0.25, Budget(e2e_ms=15_000, on_no_candidate="reject")),
}
PROMPT, ANSWER = (60, 0.7), (24, 0.5)  # medians in tokens and sigmas of log-normal lengths
TAIL = (0.03, 150, 1.5)  # of heavy-tailed prompts: share, shortest in tokens and exponent of a Pareto distribution
LONGEST_PROMPT, LONGEST_ANSWER = 1000, 120


def relative(full: Profile) -> Kinds:
    """`KINDS` with limits in ms, by the speed of `full`."""
    idle = LatencyModel(full, 1).predict(Features(PROMPT[0], ANSWER[0]), Load()).expected
    kinds = {}
    for kind, (share, floor, *factors) in KINDS.items():
        limits = [round(x * unit, 1) if x else None for x, unit in zip(factors, idle, strict=True)]
        kinds[kind] = (
            share,
            Budget(min_quality=floor, ttft_ms=limits[0], tpot_ms=limits[1], e2e_ms=limits[2], on_no_candidate="reject"),
        )
    return kinds


def mixed(arrivals: Iterable[float], kinds: Kinds, seed: int, heavy: bool = False) -> Iterator[Request]:
    """Requests of all `kinds`; with `heavy`, some prompts are from the Pareto distribution `TAIL`."""
    drawn = random.Random(seed)
    shares = [share for share, _ in kinds.values()]
    for at in arrivals:
        kind = drawn.choices(list(kinds), shares)[0]
        prompt = drawn.lognormvariate(math.log(PROMPT[0]), PROMPT[1])
        if heavy and drawn.random() < TAIL[0]:
            prompt = TAIL[1] * drawn.paretovariate(TAIL[2])
        answer = drawn.lognormvariate(math.log(ANSWER[0]), ANSWER[1])
        lengths = max(8, min(LONGEST_PROMPT, round(prompt))), max(2, min(LONGEST_ANSWER, round(answer)))
        yield Request(at, *lengths, kinds[kind][1], kind)


def work_s(full: Profile, request: Request) -> float:
    """Seconds of `full` that a request takes by its profile, at the throughput of many requests at once."""
    return request.prompt_tokens / full.prefill_tokens_per_s + request.output_tokens / full.decode_tokens_per_s


def full_load(full: Profile, requests: Sequence[Request]) -> float:
    """Requests per second, with the lengths of `requests`, that one replica of `full` sustains by its profile."""
    return 1 / statistics.fmean(work_s(full, request) for request in requests)


def recorded(path: Path) -> Iterator[Request]:
    """A recorded trace: JSON lines with `at` (ms), `prompt_tokens`, `output_tokens` and optionally `budget` and `kind`.

    Raises:
        TraceError: a line that is not such an object, or earlier than the one before it.
    """
    before = 0.0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            budget = Budget.model_validate(row.get("budget", {}))
            one = Request(
                float(row["at"]), int(row["prompt_tokens"]), int(row["output_tokens"]), budget, row.get("kind", "")
            )
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise TraceError(f"{path}, line {number}: {type(error).__name__}: {error}") from error
        if one.at < before or one.prompt_tokens < 1 or one.output_tokens < 1:
            raise TraceError(f"{path}, line {number}: times must not fall and lengths must be positive")
        before = one.at
        yield one


def summary(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Shares of all requests: `attainment` (within budget), `late` (answered, but over it), `refused`.

    `quality` is the mean over answered requests; `delivered` the mean over all requests, those outside their budget as 0.
    """
    served = [outcome for outcome in outcomes if outcome.took]
    within_budget = [outcome for outcome in outcomes if outcome.within_budget]
    seconds = max((o.request.at + (o.took.e2e_ms if o.took else 0) for o in outcomes), default=1000.0) / 1000
    count = max(len(outcomes), 1)
    return {
        "requests": len(outcomes),
        "attainment": len(within_budget) / count,
        "late": (len(served) - len(within_budget)) / count,
        "refused": 1 - len(served) / count,
        "quality": statistics.fmean(o.quality for o in served) if served else 0.0,
        "delivered": sum(o.quality for o in within_budget) / count,
        "goodput_per_s": len(within_budget) / seconds,
        "usd_per_1000": sum(o.cost_usd for o in served) / max(len(served), 1) * 1000,
    }


def prediction(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Median absolute percentage error of each predicted time, and the share of answers within its 95% bound.

    `e2e_known_length_error` is the error of the end-to-end time from the predicted TTFT and TPOT at the answer's true length.
    """
    errors = {}
    known = [o for o in outcomes if o.took and o.expected and o.tail]
    if known:
        errors["e2e_known_length_error"] = statistics.median(
            abs((o.expected.ttft_ms + o.expected.tpot_ms * (o.request.output_tokens - 1)) / o.took.e2e_ms - 1)  # type: ignore[union-attr]
            for o in known
        )
    for i, time in enumerate(Latency._fields):
        pairs = [(o.expected[i], o.tail[i], o.took[i]) for o in known if o.took[i] > 0]  # type: ignore[index]
        if pairs:
            errors[f"{time}_error"] = statistics.median(abs(expected / took - 1) for expected, _, took in pairs)
            errors[f"{time}_covered"] = statistics.fmean(took <= tail for _, tail, took in pairs)
    return errors


def times(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Median and 95th percentile of TTFT and TPOT of the answered requests, ms; of nothing, none."""
    found: dict[str, float] = {}
    for i, time in enumerate(("ttft", "tpot")):
        if took := sorted(outcome.took[i] for outcome in outcomes if outcome.took and outcome.took[i] > 0):
            found[f"{time}_p50_ms"] = statistics.median(took)
            found[f"{time}_p95_ms"] = took[math.ceil(0.95 * len(took)) - 1]
    return found


def predicted(outcomes: Sequence[Outcome]) -> list[list[float]]:
    """Of each answered request: arrival, then for TTFT and TPOT the measured time, its predicted median and 95% bound; all in ms."""
    known = [(o.request.at, o.took, o.expected, o.tail) for o in outcomes if o.took and o.expected and o.tail]
    return [
        [round(value, 1) for value in (at, took[0], expected[0], tail[0], took[1], expected[1], tail[1])]
        for at, took, expected, tail in known
    ]


def max_min(offered: Mapping[str, float], capacity: float) -> dict[str, float]:
    """The max-min fair share of `capacity` for each kind of `offered` work: no kind gets more than it offers.

    Water-filling: what the smallest kinds do not need is divided equally among the others.
    """
    shares, left = {}, capacity
    for place, kind in enumerate(sorted(offered, key=lambda kind: offered[kind])):
        shares[kind] = min(offered[kind], left / (len(offered) - place))
        left -= shares[kind]
    return shares


def by_kind(outcomes: Sequence[Outcome], full: Profile) -> dict[str, float]:
    """`KIND.METRIC` of each kind of request: shares `kept` (within budget), `late`, `refused`; work in seconds, `offered_s` and `kept_s`."""
    found: dict[str, float] = {}
    for kind in dict.fromkeys(outcome.request.kind for outcome in outcomes):
        of_kind = [outcome for outcome in outcomes if outcome.request.kind == kind]
        row = summary(of_kind)
        found |= {
            f"{kind}.requests": row["requests"],
            f"{kind}.kept": row["attainment"],
            f"{kind}.late": row["late"],
            f"{kind}.refused": row["refused"],
            f"{kind}.offered_s": sum(work_s(full, o.request) for o in of_kind),
            f"{kind}.kept_s": sum(work_s(full, o.request) for o in of_kind if o.within_budget),
        }
    return found


def admission(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """`kept_of_admitted`, and median, 99th percentile and largest time in ms until a refusal reached the client.

    Shares and times of nothing are left out.
    """
    found: dict[str, float] = {}
    if served := [outcome for outcome in outcomes if outcome.took]:
        found["kept_of_admitted"] = statistics.fmean(outcome.within_budget for outcome in served)
    if times := sorted(outcome.refused_ms for outcome in outcomes if outcome.refused_ms is not None):
        found["refusal_p50_ms"] = statistics.median(times)
        found["refusal_p99_ms"] = times[math.ceil(0.99 * len(times)) - 1]
        found["refusal_max_ms"] = times[-1]
    return found


def _thinned(rate: Callable[[float], float], highest: float, seed: int) -> Iterator[float]:
    """Arrival times in ms of a Poisson process whose `rate` per second varies with the time in seconds."""
    drawn, at = random.Random(seed), 0.0
    while True:
        at += drawn.expovariate(highest)
        if drawn.random() * highest < rate(at):
            yield at * 1000
