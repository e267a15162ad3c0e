"""The router: (variants, budget, features, live state) -> decision. The same object in service and in the simulator.

The router decides which variants a request may use; a policy chooses among them, see `serve.routing.policy`.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from serve.budget import Budget
from serve.errors import RequestError, overloaded
from serve.routing.candidate import Candidate, Limits
from serve.routing.catalog import Variant
from serve.routing.prediction import Features, Load

#: Rules that exclude a variant whatever the budget is.
HARD_RULES = ("failed", "unavailable", "sequences", "context", "full", "resting", "silent")
REASONS = ("pinned", "quality", "cost", "latency", "explore", "nearest_miss")
_AWAY = ("failed", "unavailable")  # hard rules of variants that may be back soon
_NEVER = ("sequences", "context")  # that no time changes


class Policy(Protocol):
    """Chooses one of the variants that a request may use: `serve.routing.policy` in service, others in the simulator."""

    def choose(self, usable: Sequence[Candidate], budget: Budget) -> tuple[Candidate, str] | None:
        """The chosen candidate and the reason, one of `REASONS`; None when none fits. `usable` is not empty.

        In service it changes nothing: many decisions are not followed, as of dry runs and of waiting requests without a place.
        """

    def on_admit(self, decision: "Decision") -> None:
        """Note that a request starts by `decision`."""


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
        variants: Sequence[Variant],
        budget: Budget,
        features: Features,
        failed: Collection[str] = (),
        pinned: str | None = None,
        margin: float = 1.0,
        step_limit_ms: float = math.inf,
        full: bool = False,
    ) -> list[Candidate]:
        """All variants as the request sees them, or only the pinned one."""
        colocated = _colocated(variants)
        loads = [v.load(features, others, step_limit_ms, failed) for v, others in zip(variants, colocated, strict=True)]
        if pinned is not None:
            loads = [load for variant, load in zip(variants, loads, strict=True) if variant.name == pinned]
            variants = [variant for variant in variants if variant.name == pinned]
        limits = Limits(budget, features, margin, step_limit_ms, variants, loads)
        return [
            Candidate(variant, load, limits, _hard_rule(variant, load, features, failed, full))
            for variant, load in zip(variants, loads, strict=True)
        ]

    def loads(self, variants: Sequence[Variant]) -> list[tuple[Variant, Load]]:
        """Each variant with its load now."""
        return [(v, v.live.load(others)) for v, others in zip(variants, _colocated(variants), strict=True)]

    def decide(
        self,
        variants: Sequence[Variant],
        budget: Budget,
        features: Features,
        *,
        pinned: str | None = None,
        failed: Collection[str] = (),
        margin: float = 1.0,
        step_limit_ms: float = math.inf,
        resting: Collection[str] = (),
        full: bool = False,
    ) -> Decision:
        """Choose the variant for one request that starts now.

        Predicted times, `margin` times as long, must be within the limits. `step_limit_ms` is the time per token that the
        budgets of the traffic allow: it bounds how many requests an engine should run. Variants in `resting` are used only
        where no other has the quality at the cost. `full`: also variants that may not take more requests.

        A pinned variant is chosen whatever the budget is. Variants whose engines are not silent are preferred, and those whose
        context is long enough by estimate.
        When no variant fits, `degrade` chooses the variant nearest to the limits and `reject` raises.

        Raises:
            RequestError: 400 when the request has more sequences than a replica admits, 503 when no variant is healthy, 429 when
                all are full or a latency limit can't be met under the present load, 422 when the budget can't be met at all.
        """
        candidates = self._candidates(variants, budget, features, failed, pinned, margin, step_limit_ms, full)
        usable = [candidate for candidate in candidates if candidate.excluded is None]
        if not usable:
            raise _nothing_usable(candidates, features)
        if pinned is not None:
            return Decision(usable[0], "pinned", candidates, features)
        if resting:
            awake = [c for c in usable if c.variant.name not in resting]
            if any(c.affordable and not c.variant.live.silent for c in awake):
                for candidate in usable:
                    if candidate.variant.name in resting:
                        candidate.rest()
                usable = awake
        steady = [candidate for candidate in usable if not candidate.variant.live.silent]
        if 0 < len(steady) < len(usable) and (choice := self._choose(steady, budget)) is not None:
            for candidate in usable:
                candidate.exclude_if_silent()
            return Decision(*choice, candidates, features)
        if (choice := self._choose(usable, budget)) is not None:
            return Decision(*choice, candidates, features)
        if budget.on_no_candidate == "reject":
            raise _rejected(candidates, budget, features, margin)
        misses = steady or usable
        misses = [candidate for candidate in misses if not candidate.overflows] or misses
        violations = [candidate.violation for candidate in misses]
        least = min(violations)
        tied = (candidate for candidate, violation in zip(misses, violations, strict=True) if violation == least)
        nearest = min(tied, key=lambda c: (c.harm, -c.quality))
        return Decision(nearest, "nearest_miss", candidates, features)

    def _choose(self, usable: Sequence[Candidate], budget: Budget) -> tuple[Candidate, str] | None:
        """The policy's choice, of those whose context is long enough if one of them fits."""
        roomy = [candidate for candidate in usable if not candidate.overflows]
        if 0 < len(roomy) < len(usable) and (choice := self.policy.choose(roomy, budget)) is not None:
            for candidate in usable:
                candidate.exclude_if_too_short()
            return choice
        return self.policy.choose(usable, budget)


_UNKNOWN = ("",)  # variants whose place is not known count as neighbours


def _colocated(variants: Sequence[Variant]) -> list[float]:
    """For each variant, the number of other busy variants on its hardware: on each part of it, on average."""
    is_busy = [variant.live.busy for variant in variants]
    busy: dict[frozenset[str], int] = {}
    for variant, one in zip(variants, is_busy, strict=True):
        hardware = variant.live.hardware
        busy[hardware] = busy.get(hardware, 0) + one
    by_part: dict[str, int] = {}
    for hardware, count in busy.items():
        for part in hardware or _UNKNOWN:
            by_part[part] = by_part.get(part, 0) + count
    crowds = {on: sum(map(by_part.__getitem__, on or _UNKNOWN)) / len(on or _UNKNOWN) for on in busy}
    return [crowds[variant.live.hardware] - one for variant, one in zip(variants, is_busy, strict=True)]


def _hard_rule(
    variant: Variant, load: Load, features: Features, failed: Collection[str], full: bool
) -> tuple[str, str] | None:
    if variant.name in failed:
        return "failed", "it already failed for this request"
    if load.replicas == 0 and not variant.scales_to_zero:
        return "unavailable", "no healthy replica"
    limit = variant.max_running + variant.max_waiting
    if features.sequences > limit:
        return "sequences", f"{features.sequences} sequences, one replica admits {limit}"
    if not full and load.requests + features.sequences > (capacity := (load.replicas or 1) * limit):
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


def _rejected(candidates: Sequence[Candidate], budget: Budget, features: Features, margin: float) -> RequestError:
    """The error where no usable candidate fits: 422 if none could ever, also none of those that are away or full now."""

    def message(what: str) -> str:
        reasons = "; ".join(f"{c.variant.name}: {c.explanation}" for c in candidates)
        return f"no variant {what} ({reasons})"

    limits, away = Limits(budget, features, margin, math.inf), False
    for candidate in candidates:
        load = Load(replicas=max(candidate.variant.live.replicas, 1))
        idle = Candidate(candidate.variant, load, limits)
        if (candidate.excluded and candidate.excluded[0] in _NEVER) or idle.ruled_out is not None:
            continue
        if candidate.excluded and candidate.excluded[0] in _AWAY:
            away = True
            continue
        wait_s = (candidate.prediction.e2e_ms - idle.prediction.e2e_ms) / 1000
        return overloaded(partial(message, "meets the budget under the present load"), wait_s, "budget_under_load")
    if away:
        what = partial(message, "that is healthy meets the budget")
        return RequestError(503, what, code="no_healthy_variant", headers={"retry-after": "5"})
    why = partial(message, "can meet the budget")
    return RequestError(422, why, param="budget", code="impossible_budget", kind="budget_error")
