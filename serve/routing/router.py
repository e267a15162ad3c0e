"""The router: (variants, budget, features, live state) -> decision. The same object in service and in the simulator.

The router decides which variants a request may use; a policy chooses among them, see `serve.routing.policy`.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from serve.budget import Budget
from serve.errors import RequestError, overloaded
from serve.routing.catalog import LiveState, Variant
from serve.routing.prediction import Features, Load, Prediction

#: Rules that exclude a variant whatever the budget is.
HARD_RULES = ("failed", "unavailable", "sequences", "context", "full", "resting")
REASONS = ("pinned", "quality", "cost", "latency", "explore", "nearest_miss")
_NOT_EVALUATED = "not evaluated"
_MOST_STEP = 1.26  # of a time per token, which `step_limit_ms` is at most where it is derived from it
_NEARLY = 0.75  # of the places of an engine
CONFIDENCE = 0.95  # of the predicted bounds; one of `budget.LEVELS`


class Candidate:
    """One variant as the router sees it for one request. Its prediction is computed on first use."""

    __slots__ = (
        "_hard_violation", "_harm", "_misses", "_neighbours", "_prediction", "_ruled_out", "budget", "features", "load", "margin",
        "step_limit_ms", "variant",
    )  # fmt: skip

    def __init__(
        self,
        variant: Variant,
        budget: Budget,
        features: Features,
        load: Load,
        hard: tuple[str, str] | None = None,
        margin: float = 1.0,
        step_limit_ms: float = math.inf,
        neighbours: "Sequence[Candidate]" = (),
    ) -> None:
        self.variant, self.budget, self.features, self.load = variant, budget, features, load
        self._hard_violation, self._neighbours = hard, neighbours
        self.margin, self.step_limit_ms = margin, step_limit_ms
        self._harm: int | None = None
        self._prediction: Prediction | None = None
        self._ruled_out: str | None = _NOT_EVALUATED
        self._misses: list[tuple[str, float, float]] | None = None

    @property
    def quality(self) -> float:
        """Quality of the variant, relative to `full`."""
        return self.variant.quality.quality

    @property
    def cost_usd(self) -> float:
        """Cost of the request at this variant, at the expected output length, for all sequences."""
        return self.variant.cost_usd(self.features.prompt_tokens, self.features.total_output_tokens)

    @property
    def overflows(self) -> bool:
        """Whether the variant's context is too short, by estimate; only the engine counts tokens exactly."""
        return self.features.context_tokens > self.variant.max_model_len

    @property
    def affordable(self) -> bool:
        """Whether it has the quality, at the cost."""
        floor, ceiling = self.budget.min_quality, self.budget.max_cost
        return (floor is None or self.quality >= floor) and (ceiling is None or self.cost_usd <= ceiling)

    def rest(self) -> None:
        """Exclude this variant because others use its hardware better now."""
        self._hard_violation = "resting", "under the present load, other variants use its hardware better"
        self._ruled_out = _NOT_EVALUATED

    def exclude_if_too_short(self) -> None:
        """Exclude this variant if its context is too short, because one with a longer context was preferred."""
        if self.overflows:
            tokens, limit = self.features.context_tokens, self.variant.max_model_len
            self._hard_violation = "context", f"about {tokens} tokens by estimate, {limit} fit"
            self._ruled_out = _NOT_EVALUATED

    @property
    def uncached_tokens(self) -> int:
        """Prompt tokens that the engine has to prefill: those not in its prefix cache."""
        return self.features.prompt_tokens - self.load.cached_tokens

    @property
    def prediction(self) -> Prediction:
        """Predicted times of the request at this variant."""
        if (prediction := self._prediction) is None:
            self._prediction = prediction = self.variant.latency.predict(self.features, self.load)
        return prediction

    @property
    def ruled_out(self) -> str | None:
        """The first rule that excludes the variant; None if it fits."""
        if self._ruled_out is _NOT_EVALUATED:
            if self._hard_violation:
                self._ruled_out = self._hard_violation[0]
            elif not self.affordable:  # without predicting times
                self._ruled_out = next(self._violations())[0]
            else:
                self._ruled_out = misses[0][0] if (misses := self._missed()) else None
        return self._ruled_out

    def _missed(self) -> list[tuple[str, float, float]]:
        if self._misses is None:
            self._misses = list(self._violations())
        return self._misses

    @property
    def evaluated_rule(self) -> str | None:
        """`ruled_out` without evaluating it: None also where the decision did not need to know."""
        if self._hard_violation:
            return self._hard_violation[0]
        return None if self._ruled_out is _NOT_EVALUATED else self._ruled_out

    @property
    def explanation(self) -> str | None:
        """The rule in words; of limits, every one that is not met."""
        if self._hard_violation:
            return self._hard_violation[1]
        return ", ".join(_in_words(*miss) for miss in self._missed()) or None

    @property
    def violation(self) -> float:
        """Distance from the budget: the sum of relative excesses over its limits; 0 if the variant fits."""
        if self._hard_violation:
            return 0.0
        return sum(
            1 - value / limit if rule == "min_quality" else value / max(limit, 1e-12) - 1
            for rule, value, limit in self._missed()
        )

    def fits(self, headroom: float) -> bool:
        """Whether it would meet the limits if it took `headroom` times what is predicted."""
        limits = (self.budget.ttft_ms, self.budget.tpot_ms, self.budget.e2e_ms)
        pairs = zip(limits, self.prediction.expected, strict=True)
        return all(limit is None or headroom * self.margin * time <= limit for limit, time in pairs)

    @property
    def chance(self) -> float:
        """Probability that all latency limits are met."""
        return self.prediction.within(self.budget.ttft_ms, self.budget.tpot_ms, self.budget.e2e_ms)

    @property
    def harm(self) -> int:
        """Number of sequences under way that would take longer per token than the budgets allow because of this request.

        Those in its batch, and those at other variants whose hardware it would wake this one on.
        """
        if self._harm is None:
            self._harm = 0 if self.step_limit_ms == math.inf else self._count_harmed()
        return self._harm

    @property
    def fills(self) -> bool:
        """Whether its engines run nearly as many sequences with it as the limit of the time per token allows."""
        here = (self.load.requests + self.features.sequences) / (self.load.replicas or 1)
        return self.step_limit_ms < math.inf and here >= _NEARLY * self._places

    @property
    def _places(self) -> int:
        """Sequences that a replica can run within `step_limit_ms`; 0 without such a limit, or where one takes longer."""
        if self.step_limit_ms == math.inf:
            return 0
        return self.variant.latency.places(self.load, self.step_limit_ms)

    def _keeps(self, tpot_ms: float) -> bool:
        """Whether its engines run sequences within `tpot_ms` if they run no more than they may."""
        return self._places > 0 and self.step_limit_ms <= _MOST_STEP * tpot_ms

    def _count_harmed(self) -> int:
        load, crowded = self.load, 0
        places = max(self._places, 1) * (load.replicas or 1)
        if load.requests and (load.requests + self.features.sequences > places or self._stalls()):
            crowded += round(load.requests)
        if not load.requests:
            for other in self._neighbours:
                its = other.load
                if other is not self and its.requests and _share_hardware(self.variant, other.variant):
                    left = other.variant.latency.places(its, self.step_limit_ms, its.colocated_busy_variants + 1)
                    crowded += round(its.requests) if its.requests > left * (its.replicas or 1) else 0
        return crowded

    def _stalls(self) -> bool:
        """Whether its prompt is longer than usual, so long that reading it would take the others' time."""
        live, latency, load = self.variant.live, self.variant.latency, self.load
        longer = self.uncached_tokens - (live.usual_prompt or math.inf)
        if longer <= 0:
            return False
        stall_ms = longer * latency.ms_per_prefill_token / live.usual_output
        return stall_ms + latency.step_ms(load, load.requests / (load.replicas or 1) + 1) > self.step_limit_ms

    def _violations(self) -> Iterator[tuple[str, float, float]]:
        """Each violated limit: rule, value, limit. Times come last, because predicting them is the most expensive."""
        budget = self.budget
        if (floor := budget.min_quality) is not None and (quality := self.quality) < floor:
            yield "min_quality", quality, floor
        if (limit := budget.max_cost) is not None and (cost := self.cost_usd) > limit:
            yield "max_cost", cost, limit
        if budget.timed:
            ttft, tpot, e2e = self.prediction.expected
            margin = self.margin
            if (limit := budget.ttft_ms) is not None and margin * ttft > limit:
                yield "ttft", margin * ttft, limit
            if (limit := budget.tpot_ms) is not None and margin * tpot > limit and not self._keeps(limit):
                yield "tpot", margin * tpot, limit
            if (limit := budget.e2e_ms) is not None and margin * e2e > limit:
                yield "e2e", margin * e2e, limit

    def predictions(self, waited_ms: float = 0.0) -> dict[str, float]:
        """Predicted medians and 95% bounds, ms, of a request that starts after `waited_ms`."""
        expected, tail = self.prediction.expected, self.prediction.tail(CONFIDENCE)
        return {
            "ttft_ms": round(waited_ms + expected.ttft_ms, 2),
            "tpot_ms": round(expected.tpot_ms, 2),
            "e2e_ms": round(waited_ms + expected.e2e_ms, 2),
            "ttft_p95_ms": round(waited_ms + tail.ttft_ms, 2),
            "tpot_p95_ms": round(tail.tpot_ms, 2),
            "e2e_p95_ms": round(waited_ms + tail.e2e_ms, 2),
        }

    def public(self) -> dict[str, object]:
        """The object that the dry run returns."""
        return {
            "variant": self.variant.name,
            "quality": self.quality,
            **{f"predicted_{name}": value for name, value in self.predictions().items()},
            "chance": round(self.chance, 3),
            "harm": self.harm,
            "cost_usd": self.cost_usd,
            "in_flight": self.load.requests,
            "cached_tokens": self.load.cached_tokens,
            "ruled_out": self.ruled_out,
            "why": self.explanation,
        }


def _in_words(rule: str, value: float, limit: float) -> str:
    match rule:
        case "min_quality":
            return f"quality {value:.3f} < {limit:g}"
        case "max_cost":
            return f"cost {value:.3g} USD > {limit:g} USD"
        case _:
            return f"predicted {rule} {value:.0f} ms > {limit:g} ms"


class Policy(Protocol):
    """Chooses one of the variants that a request may use: `serve.routing.policy` in service, others in the simulator."""

    def choose(self, usable: Sequence[Candidate], budget: Budget) -> tuple[Candidate, str] | None:
        """The chosen candidate and the reason, one of `REASONS`; None when none fits. `usable` is not empty."""


@dataclass(slots=True)
class Decision:
    """The variant chosen for a request, the reason, and all candidates. `wait_ms`: predicted wait in the gateway before it."""

    chosen: Candidate
    reason: str  # one of REASONS
    candidates: Sequence[Candidate]
    features: Features
    wait_ms: float = 0.0
    waited: bool = False  # whether it has waited

    @property
    def variant(self) -> Variant:
        """The chosen variant."""
        return self.chosen.variant

    def public(self) -> dict[str, object]:
        """The object that the dry run returns."""
        return {
            "variant": self.variant.name,
            "reason": self.reason,
            "sequences": self.features.sequences,
            "wait_ms": round(self.wait_ms, 1),
            "harm": self.chosen.harm,
            **{
                key: value
                for key, value in self.chosen.public().items()
                if key.startswith(("predicted", "quality", "cost", "chance"))
            },
            "candidates": [candidate.public() for candidate in self.candidates],
        }


@dataclass(slots=True)
class Router:
    """Chooses a variant for each request: excludes those that cannot take it, then applies the policy."""

    policy: Policy

    def _candidates(
        self,
        variants: Iterable[Variant],
        budget: Budget,
        features: Features,
        failed: Collection[str] = (),
        pinned: str | None = None,
        margin: float = 1.0,
        step_limit_ms: float = math.inf,
    ) -> list[Candidate]:
        """All variants as the request sees them, or only the pinned one."""
        candidates: list[Candidate] = []
        for variant, load in self.loads(variants, features):
            if pinned is None or pinned == variant.name:
                hard = _hard_rule(variant, load, features, failed)
                candidates.append(Candidate(variant, budget, features, load, hard, margin, step_limit_ms, candidates))
        return candidates

    def loads(self, variants: Iterable[Variant], features: Features | None = None) -> list[tuple[Variant, Load]]:
        """Each variant with the load that a request of `features` would meet now."""
        variants = list(variants)
        busy: dict[str, int] = {}
        for variant in variants:
            if variant.live.busy:
                for hardware in variant.live.hardware or _UNKNOWN:
                    busy[hardware] = busy.get(hardware, 0) + 1
        return [(v, v.live.load(_colocated(v.live, busy) if busy else 0, features)) for v in variants]

    def decide(
        self,
        variants: Iterable[Variant],
        budget: Budget,
        features: Features,
        *,
        pinned: str | None = None,
        failed: Collection[str] = (),
        margin: float = 1.0,
        step_limit_ms: float = math.inf,
        resting: Collection[str] = (),
    ) -> Decision:
        """Choose the variant for one request that starts now.

        Predicted times, `margin` times as long, must be within the limits. `step_limit_ms` is the time per token that the
        budgets of the traffic allow: it bounds how many requests an engine should run. Variants in `resting` are used only
        where no other has the quality at the cost.

        A pinned variant is chosen whatever the budget is. Variants whose context is long enough by estimate are preferred.
        When no variant fits, `degrade` chooses the variant nearest to the limits and `reject` raises.

        Raises:
            RequestError: 400 when the request has more sequences than a replica admits, 503 when no variant is healthy, 429 when
                all are full or a latency limit can't be met under the present load, 422 when the budget can't be met at all.
        """
        candidates = self._candidates(variants, budget, features, failed, pinned, margin, step_limit_ms)
        usable = [candidate for candidate in candidates if candidate.evaluated_rule is None]
        if not usable:
            raise _nothing_usable(candidates, features)
        if pinned is not None:
            return Decision(usable[0], "pinned", candidates, features)
        if resting:
            awake = [c for c in usable if c.variant.name not in resting]
            if any(c.affordable for c in awake):
                for candidate in usable:
                    if candidate.variant.name in resting:
                        candidate.rest()
                usable = awake
        roomy = [candidate for candidate in usable if not candidate.overflows]
        if 0 < len(roomy) < len(usable) and (choice := self.policy.choose(roomy, budget)) is not None:
            for candidate in usable:
                candidate.exclude_if_too_short()
            return Decision(*choice, candidates, features)
        if (choice := self.policy.choose(usable, budget)) is not None:
            return Decision(*choice, candidates, features)
        if budget.on_no_candidate == "reject":
            raise _rejected(usable, budget, features)
        nearest = min(usable, key=lambda c: (c.overflows, c.violation, c.harm, -c.quality))
        return Decision(nearest, "nearest_miss", candidates, features)


_UNKNOWN = ("",)  # variants whose place is not known count as neighbours


def _colocated(live: LiveState, busy: dict[str, int]) -> float:
    """Mean number of other busy variants on the hardware of each replica."""
    hardware = live.hardware or _UNKNOWN
    return sum(busy.get(one, 0) for one in hardware) / len(hardware) - live.busy


def _share_hardware(one: Variant, other: Variant) -> bool:
    return not one.live.hardware or not other.live.hardware or not one.live.hardware.isdisjoint(other.live.hardware)


def _hard_rule(variant: Variant, load: Load, features: Features, failed: Collection[str]) -> tuple[str, str] | None:
    if variant.name in failed:
        return "failed", "it already failed for this request"
    if load.replicas == 0 and not variant.scales_to_zero:
        return "unavailable", "no healthy replica"
    limit = variant.max_running + variant.max_waiting
    if features.sequences > limit:
        return "sequences", f"{features.sequences} sequences, one replica admits {limit}"
    if load.requests + features.sequences > (capacity := (load.replicas or 1) * limit):
        return "full", f"{load.requests} sequences in flight already, {capacity} are allowed"
    return None


def _nothing_usable(candidates: Sequence[Candidate], features: Features) -> RequestError:
    rules = {candidate.ruled_out for candidate in candidates}
    if "full" in rules:
        full = (c.prediction.expected.tpot_ms for c in candidates if c.ruled_out == "full")
        wait_s = min(full) * features.output_tokens / 1000  # until the running sequences are complete
        return overloaded("every variant that could answer is at its limit; retry later", wait_s, "overloaded")
    if candidates and features.sequences > (
        most := _max_sequences(candidates)
    ):  # whatever else is wrong: never anywhere
        return too_many_sequences(features.sequences, most)
    names = ", ".join(f"{c.variant.name}: {c.explanation}" for c in candidates) or "none is up yet"
    return RequestError(503, f"no healthy variant ({names})", code="no_healthy_variant", headers={"retry-after": "5"})


def too_many_sequences(sequences: int, most: int) -> RequestError:
    """400: a replica never takes so many."""
    message = f"'n' times the prompts are {sequences} sequences; at most {most} are allowed"
    return RequestError(400, message, param="n", code="too_many_sequences")


def _max_sequences(candidates: Sequence[Candidate]) -> int:
    return max(candidate.variant.max_running + candidate.variant.max_waiting for candidate in candidates)


def _rejected(usable: Sequence[Candidate], budget: Budget, features: Features) -> RequestError:
    reasons = "; ".join(f"{c.variant.name}: {c.explanation}" for c in usable)
    for candidate in usable:
        variant = candidate.variant
        idle = Candidate(
            variant, budget, features, Load(replicas=max(variant.live.replicas, 1)), margin=candidate.margin
        )
        if idle.ruled_out is None:
            wait_s = (candidate.prediction.expected.e2e_ms - idle.prediction.expected.e2e_ms) / 1000
            return overloaded(
                f"no variant meets the budget under the present load ({reasons})", wait_s, "budget_under_load"
            )
    return RequestError(422, f"no variant can meet the budget ({reasons})", param="budget", code="impossible_budget")
