"""A candidate: one variant as the router sees it for one request, with what rules it out, its predicted times and its harm."""

import math
from collections.abc import Sequence

from serve.budget import BEST_EFFORT_WAIT_MS, Budget
from serve.routing.catalog import Variant
from serve.routing.prediction import Features, Load, Prediction

CONFIDENCE = 0.95  # of the predicted bounds; one of `budget.LEVELS`
_MOST_STEP = 1.26  # of a time per token, which `step_limit_ms` is at most where it is derived from it
_NEARLY = 0.75  # of the places of an engine
_NOT_EVALUATED = "not evaluated"


class Limits:
    """What one request asks of every variant: its features, and the limits of its budget, infinite where it has none.

    Predicted times, `margin` times as long, must be within them. `step_limit_ms` is the time per token that the budgets of the
    traffic allow. The request may use `variants`, and would meet `loads` there. Computed once for all variants.
    """

    __slots__ = (
        "budget", "e2e_ms", "features", "loads", "margin", "max_cost", "min_quality", "step_limit_ms", "step_limit_suffices",
        "timed", "tpot_ms", "ttft_ms", "variants",
    )  # fmt: skip

    def __init__(
        self,
        budget: Budget,
        features: Features,
        margin: float,
        step_limit_ms: float,
        variants: Sequence[Variant] = (),
        loads: Sequence[Load] = (),
    ) -> None:
        self.budget, self.features, self.timed = budget, features, budget.timed
        self.variants, self.loads = variants, loads
        self.margin, self.step_limit_ms = margin, step_limit_ms
        self.min_quality, self.max_cost = budget.min_quality or 0.0, _upper(budget.max_cost)
        self.ttft_ms, self.tpot_ms, self.e2e_ms = map(_upper, (budget.ttft_ms, budget.tpot_ms, budget.e2e_ms))
        # whether engines that keep `step_limit_ms` keep `tpot_ms` too
        self.step_limit_suffices = step_limit_ms <= _MOST_STEP * self.tpot_ms


def _upper(limit: float | None) -> float:
    return math.inf if limit is None else limit


class Candidate:
    """One variant as the router sees it for one request. Its prediction is computed on first use."""

    __slots__ = (
        "_harm", "_misses", "_prediction", "_ruled_out", "_violation", "cost_usd", "excluded", "limits", "load", "overflows",
        "quality", "variant",
    )  # fmt: skip

    def __init__(self, variant: Variant, load: Load, limits: Limits, excluded: tuple[str, str] | None = None) -> None:
        features = limits.features
        self.variant, self.load, self.limits = variant, load, limits
        self.excluded = excluded  # by a hard rule: its name, and in words
        self.quality = variant.quality.quality  # relative to `full`
        # at the expected output length, for all sequences
        self.cost_usd = variant.cost_usd(features.prompt_tokens, features.output_tokens * features.sequences)
        # whether the variant's context is too short, by estimate; only the engine counts tokens exactly
        self.overflows = features.context_tokens > variant.max_model_len
        self._harm: int | None = None
        self._prediction: Prediction | None = None
        self._ruled_out: str | None = _NOT_EVALUATED
        self._misses: tuple[str, ...] | None = None

    @property
    def features(self) -> Features:
        """The features of the request."""
        return self.limits.features

    @property
    def budget(self) -> Budget:
        """The budget of the request."""
        return self.limits.budget

    @property
    def step_limit_ms(self) -> float:
        """The time per token that the budgets of the traffic allow."""
        return self.limits.step_limit_ms

    @property
    def affordable(self) -> bool:
        """Whether it has the quality, at the cost."""
        return self.quality >= self.limits.min_quality and self.cost_usd <= self.limits.max_cost

    def rest(self) -> None:
        """Exclude this variant because others use its hardware better now."""
        self.excluded = "resting", "under the present load, other variants use its hardware better"
        self._ruled_out = _NOT_EVALUATED

    def exclude_if_silent(self) -> None:
        """Exclude this variant if nothing has come from its engines for longer than predicted, because another was preferred."""
        if self.variant.live.silent:
            self.excluded = "silent", "its engines have been silent for longer than predicted"
            self._ruled_out = _NOT_EVALUATED

    def exclude_if_too_short(self) -> None:
        """Exclude this variant if its context is too short, because one with a longer context was preferred."""
        if self.overflows:
            tokens, limit = self.features.context_tokens, self.variant.max_model_len
            self.excluded = "context", f"about {tokens} tokens by estimate, {limit} fit"
            self._ruled_out = _NOT_EVALUATED

    @property
    def uncached_tokens(self) -> int:
        """Prompt tokens that the engine has to prefill: those not in its prefix cache."""
        return self.features.prompt_tokens - self.load.cached_tokens

    @property
    def prediction(self) -> Prediction:
        """Predicted times of the request at this variant."""
        if (prediction := self._prediction) is None:
            self._prediction = prediction = self.variant.latency.predict(self.limits.features, self.load)
        return prediction

    @property
    def ruled_out(self) -> str | None:
        """The first rule that excludes the variant; None if it fits."""
        if self._ruled_out is _NOT_EVALUATED:
            if self.excluded:
                self._ruled_out = self.excluded[0]
            elif self.quality < self.limits.min_quality:  # like the cost, without predicting times
                self._ruled_out = "min_quality"
            elif self.cost_usd > self.limits.max_cost:
                self._ruled_out = "max_cost"
            else:
                self._ruled_out = misses[0] if (misses := self._missed()) else None
        return self._ruled_out

    @property
    def evaluated_rule(self) -> str | None:
        """`ruled_out` without evaluating it: None also where the decision did not need to know."""
        if self.excluded:
            return self.excluded[0]
        return None if self._ruled_out is _NOT_EVALUATED else self._ruled_out

    @property
    def explanation(self) -> str | None:
        """The rule in words; of limits, every one that is not met."""
        if self.excluded:
            return self.excluded[1]
        return ", ".join(map(self._in_words, self._missed())) or None

    @property
    def violation(self) -> float:
        """Distance from the budget: the sum of relative excesses over its limits; 0 if the variant fits."""
        if self.excluded:
            return 0.0
        if self._misses is None:
            self._missed()
        return self._violation

    def fits(self, headroom: float) -> bool:
        """Whether it would meet the limits if it took `headroom` times what is predicted."""
        limits, times, factor = self.limits, self.prediction, headroom * self.limits.margin
        return (
            factor * times.ttft_ms <= limits.ttft_ms
            and factor * times.tpot_ms <= limits.tpot_ms
            and factor * times.e2e_ms <= limits.e2e_ms
        )

    def first_token_by_ms(self, budget: Budget) -> float:
        """Deadline of the first token at the engine, ms after the arrival of the request, which had `budget` then.

        Where a time limit has passed or is predicted to be missed, not before that of a request without limits: those that can
        be in time go first.
        """
        left, expected = self.limits.budget, self.prediction.expected
        by_ms = budget.first_token_by_ms(expected.e2e_ms - expected.ttft_ms)
        passed = (left.ttft_ms, left.e2e_ms).count(None) > (budget.ttft_ms, budget.e2e_ms).count(None)
        late = passed or not {"ttft", "e2e"}.isdisjoint(self._missed())
        return max(by_ms, BEST_EFFORT_WAIT_MS) if late else by_ms

    @property
    def chance(self) -> float:
        """Probability that all latency limits are met."""
        budget = self.limits.budget
        return self.prediction.within(budget.ttft_ms, budget.tpot_ms, budget.e2e_ms)

    @property
    def harm(self) -> int:
        """Number of sequences under way that would take longer per token than the budgets allow because of this request.

        Those in its batch, and those at other variants whose hardware it would wake this one on.
        """
        if self._harm is None:
            self._harm = 0 if self.limits.step_limit_ms == math.inf else self._count_harmed()
        return self._harm

    @property
    def fills(self) -> bool:
        """Whether its engines run nearly as many sequences with it as the limit of the time per token allows."""
        here = self.load.here + self.features.sequences
        return self.limits.step_limit_ms < math.inf and here >= _NEARLY * self._places

    @property
    def _places(self) -> int:
        """Sequences that a replica can run within `step_limit_ms`; 0 where one takes longer."""
        return self.variant.latency.places(self.load, self.limits.step_limit_ms)

    def _count_harmed(self) -> int:
        load, crowded, limit_ms = self.load, 0, self.limits.step_limit_ms
        if load.requests:
            places, here = max(self._places, 1), load.here if load.replica else load.requests // (load.replicas or 1)
            if here and (here + self.features.sequences > places or self._stalls()):
                crowded = round(here)
        else:
            for other, its in zip(self.limits.variants, self.limits.loads, strict=True):
                if its.requests and _share_hardware(self.variant, other):
                    left = other.latency.places(its, limit_ms, its.colocated_busy_variants + 1)
                    crowded += round(its.requests) if its.requests > left * (its.replicas or 1) else 0
        return crowded

    def _stalls(self) -> bool:
        """Whether its prompt is longer than usual, so long that reading it would take the others' time."""
        live, latency, load = self.variant.live, self.variant.latency, self.load
        longer = self.uncached_tokens - (live.usual_prompt or math.inf)
        if longer <= 0:
            return False
        stall_ms = longer * latency.ms_per_prefill_token / live.usual_output
        step_ms = latency.step_ms(load, load.here + 1)
        return stall_ms + step_ms > self.limits.step_limit_ms

    def _missed(self) -> tuple[str, ...]:
        """The rules of the violated limits. Times come last, because predicting them is the most expensive."""
        if self._misses is None:
            limits, distance = self.limits, 0.0
            misses: tuple[str, ...] = ()
            if (quality := self.quality) < (limit := limits.min_quality):
                misses += ("min_quality",)
                distance += 1 - quality / limit
            if (cost := self.cost_usd) > (limit := limits.max_cost):
                misses += ("max_cost",)
                distance += cost / max(limit, 1e-12) - 1
            if limits.timed:
                times, margin = self.prediction, limits.margin
                if (ttft := margin * times.ttft_ms) > (limit := limits.ttft_ms):
                    misses += ("ttft",)
                    distance += ttft / limit - 1
                if (tpot := margin * times.tpot_ms) > (limit := limits.tpot_ms) and not (
                    limits.step_limit_suffices and times.alone_ms <= limits.step_limit_ms
                ):  # an engine that runs no more sequences than it may, at least the request's own, keeps the limit
                    misses += ("tpot",)
                    distance += tpot / limit - 1
                if (e2e := margin * times.e2e_ms) > (limit := limits.e2e_ms):
                    misses += ("e2e",)
                    distance += e2e / limit - 1
            self._misses, self._violation = misses, distance
        return self._misses

    def _in_words(self, rule: str) -> str:
        """A violated limit, with the value that violates it."""
        limits = self.limits
        if rule == "min_quality":
            return f"quality {self.quality:.3f} < {limits.min_quality:g}"
        if rule == "max_cost":
            return f"cost {self.cost_usd:.3g} USD > {limits.max_cost:g} USD"
        value, limit = (getattr(one, f"{rule}_ms") for one in (self.prediction, limits))
        return f"predicted {rule} {limits.margin * value:.0f} ms > {limit:g} ms"

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

    @property
    def _replica_number(self) -> int | None:
        """Which of the replicas that run now it would go to, from 1; None where none is known. Addresses are not for clients."""
        running = list(self.variant.live.by_replica)
        return running.index(self.load.replica) + 1 if self.load.replica in running else None

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
            "replica": self._replica_number,
            "replica_in_flight": round(self.load.here, 1),
            "cached_tokens": self.load.cached_tokens,
            "ruled_out": self.ruled_out,
            "why": self.explanation,
        }


def _share_hardware(one: Variant, other: Variant) -> bool:
    return not one.live.hardware or not other.live.hardware or not one.live.hardware.isdisjoint(other.live.hardware)
