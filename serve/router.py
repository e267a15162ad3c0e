"""The router: (variants, budget, features, live state) -> decision. A pure function, the same in service and simulation."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from serve.budget import Budget
from serve.catalog import Variant
from serve.errors import RequestError, overloaded
from serve.prediction import Features, Latency

#: Rules that rule a variant out whatever the budget says, with the status they lead to when nothing is left.
HARD_RULES = ("failed", "unavailable", "context", "full")
REASONS = ("pinned", "quality", "cost", "latency", "nearest_miss")


@dataclass(slots=True, frozen=True)
class Candidate:
    """One variant as the router saw it for one request."""

    variant: Variant
    latency: Latency
    cost_usd: float
    ruled_out: str | None  # the rule, None if it fits
    why: str | None  # the rule in words
    miss: float  # how far outside the budget, as a sum of relative excesses; 0 if it fits

    def public(self) -> dict[str, object]:
        """As shown by the dry run."""
        return {
            "variant": self.variant.name,
            "quality": self.variant.quality.quality,
            "predicted_ttft_ms": round(self.latency.ttft_ms, 2),
            "predicted_tpot_ms": round(self.latency.tpot_ms, 2),
            "predicted_e2e_ms": round(self.latency.e2e_ms, 2),
            "cost_usd": self.cost_usd,
            "in_flight": self.variant.live.load,
            "ruled_out": self.ruled_out,
            "why": self.why,
        }


@dataclass(slots=True, frozen=True)
class Decision:
    """Where a request goes and why."""

    chosen: Candidate
    reason: str  # one of REASONS
    candidates: tuple[Candidate, ...]

    @property
    def variant(self) -> Variant:
        """The chosen variant."""
        return self.chosen.variant

    def public(self) -> dict[str, object]:
        """As shown by the dry run."""
        return {
            "variant": self.variant.name,
            "reason": self.reason,
            **{
                key: value
                for key, value in self.chosen.public().items()
                if key.startswith(("predicted", "quality", "cost"))
            },
            "candidates": [candidate.public() for candidate in self.candidates],
        }


def decide(
    variants: Iterable[Variant],
    budget: Budget,
    features: Features,
    *,
    pinned: str | None = None,
    failed: Collection[str] = (),
) -> Decision:
    """Choose the variant for one request.

    Among the variants that keep every limit of the budget, the one that is best by its objective; ties go to higher
    quality, then lower cost. A pinned variant is taken whatever the budget says. When nothing fits, `degrade` takes
    the variant nearest to the limits and `reject` refuses.

    Raises:
        RequestError: 413 when the prompt is too long for every variant, 503 when none is healthy, 429 when all are
            full or a latency limit can't be met under the present load, 422 when the budget can't be met at all.
    """
    candidates = tuple(
        _assess(variant, budget, features, failed) for variant in variants if pinned in (None, variant.name)
    )
    usable = [candidate for candidate in candidates if candidate.ruled_out not in HARD_RULES]
    if not usable:
        raise _nothing_usable(candidates, features)
    if pinned is not None:
        return Decision(usable[0], "pinned", candidates)
    fitting = [candidate for candidate in usable if candidate.ruled_out is None]
    if fitting:
        return Decision(min(fitting, key=_ORDER[budget.objective]), budget.objective, candidates)
    if budget.on_no_candidate == "reject":
        raise _rejected(usable, budget, features)
    return Decision(min(usable, key=lambda c: (c.miss, -c.variant.quality.quality)), "nearest_miss", candidates)


_ORDER = {
    "quality": lambda c: (-c.variant.quality.quality, c.cost_usd, c.latency.e2e_ms),
    "cost": lambda c: (c.cost_usd, -c.variant.quality.quality, c.latency.e2e_ms),
    "latency": lambda c: (c.latency.e2e_ms, -c.variant.quality.quality, c.cost_usd),
}


def _assess(variant: Variant, budget: Budget, features: Features, failed: Collection[str]) -> Candidate:
    live = variant.live
    latency = variant.latency.predict(features, live.load, live.replicas)
    cost = variant.cost_usd(features.prompt_tokens, features.output_tokens)
    if hard := _hard_rule(variant, features, failed):
        return Candidate(variant, latency, cost, *hard, 0.0)
    misses = list(_misses(variant, budget, latency, cost))
    if not misses:
        return Candidate(variant, latency, cost, None, None, 0.0)
    rule, why, _ = misses[0]
    return Candidate(variant, latency, cost, rule, why, sum(miss for _, _, miss in misses))


def _hard_rule(variant: Variant, features: Features, failed: Collection[str]) -> tuple[str, str] | None:
    live = variant.live
    if variant.name in failed:
        return "failed", "it failed this request already"
    if features.prompt_tokens >= variant.max_model_len:
        return "context", f"about {features.prompt_tokens} prompt tokens, at most {variant.max_model_len - 1} fit"
    if live.replicas == 0 and not variant.scales_to_zero:
        return "unavailable", "no healthy replica"
    if live.load >= (capacity := max(live.replicas, 1) * (variant.max_running + variant.max_waiting)):
        return "full", f"{live.load} requests there already, {capacity} are allowed"
    return None


def _misses(variant: Variant, budget: Budget, latency: Latency, cost: float) -> Iterable[tuple[str, str, float]]:
    """Each limit that is not kept: its rule, in words, and how far off relative to the limit."""
    quality = variant.quality.quality
    if budget.min_quality is not None and quality < budget.min_quality:
        yield "min_quality", f"quality {quality:.3f} < {budget.min_quality:g}", 1 - quality / budget.min_quality
    if budget.max_cost is not None and cost > budget.max_cost:
        yield "max_cost", f"cost {cost:.3g} USD > {budget.max_cost:g} USD", cost / max(budget.max_cost, 1e-12) - 1
    for rule, limit, value in (
        ("ttft", budget.ttft_ms, latency.ttft_ms),
        ("tpot", budget.tpot_ms, latency.tpot_ms),
        ("e2e", budget.e2e_ms, latency.e2e_ms),
    ):
        if limit is not None and value > limit:
            yield rule, f"predicted {rule} {value:.0f} ms > {limit:g} ms", value / limit - 1


def _nothing_usable(candidates: tuple[Candidate, ...], features: Features) -> RequestError:
    rules = {candidate.ruled_out for candidate in candidates}
    if "full" in rules:
        wait_s = min(c.latency.tpot_ms * features.output_tokens for c in candidates if c.ruled_out == "full") / 1000
        return overloaded("every variant that could answer is at its limit; retry later", wait_s, "overloaded")
    if rules == {"context"}:
        longest = max(candidate.variant.max_model_len for candidate in candidates)
        return too_long(f"the prompt has about {features.prompt_tokens} tokens", longest)
    names = ", ".join(f"{c.variant.name}: {c.why}" for c in candidates) or "none is up yet"
    return RequestError(503, f"no healthy variant ({names})", code="no_healthy_variant", headers={"retry-after": "5"})


def too_long(what: str, longest: int) -> RequestError:
    """413: the prompt does not fit the variant with the longest context."""
    message = f"{what}; the longest context of any variant is {longest} tokens, the answer included"
    return RequestError(413, message, param="messages", code="context_length_exceeded")


def _rejected(usable: list[Candidate], budget: Budget, features: Features) -> RequestError:
    why = "; ".join(f"{c.variant.name}: {c.why}" for c in usable)
    for candidate in usable:
        variant = candidate.variant
        idle = variant.latency.predict(features, 0, max(variant.live.replicas, 1))
        if not any(_misses(variant, budget, idle, candidate.cost_usd)):
            wait_s = (candidate.latency.e2e_ms - idle.e2e_ms) / 1000
            return overloaded(
                f"no variant meets the budget under the present load ({why})", wait_s, "budget_under_load"
            )
    return RequestError(422, f"no variant can meet the budget ({why})", param="budget", code="impossible_budget")
