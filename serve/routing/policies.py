"""Policies: which of the variants that could answer takes a request. `Router` calls them, in service and in the simulator.

A new one is a class with `choose` and a line in `POLICIES`.
"""

import math
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from serve.budget import Budget
from serve.routing.catalog import Variant
from serve.routing.router import Candidate, Policy

Choice = tuple[Candidate, str]
ENOUGH = 50  # answers after which a variant is known

ORDER: Mapping[str, Callable[[Candidate], tuple[float, ...]]] = {
    "quality": lambda c: (-c.quality, c.cost_usd),
    "cost": lambda c: (c.cost_usd, -c.quality),
    "latency": lambda c: (c.prediction.expected.e2e_ms, -c.quality, c.cost_usd),
}


class WithinBudget:
    """The default: of those that keep the whole budget, the best by its objective; ties go to quality, then cost.

    It moves up to a higher quality only when that has half the risk the budget allows, as long as the variant that the same
    budget got last still fits: near the edge, loads would else swing between the two. Until every variant has answered
    `ENOUGH` requests, a share `explore` of those whose budget is at no risk goes to the one that is known least.
    """

    def __init__(self, seed: int = 0, explore: float = 0.01, least: float = 0.8) -> None:
        self._random = random.Random(seed)
        self._explore = explore
        self._least = least  # chance of keeping the budget below which a request is refused, or degraded
        self._last: OrderedDict[tuple[object, ...], str] = OrderedDict()

    def choose(self, usable: Sequence[Candidate], budget: Budget) -> Choice | None:
        """See `router.Policy`."""
        best = self._best(usable, budget)
        if best is None:
            return self._likeliest(usable)
        if self._random.random() < self._explore:
            others = (c for c in usable if c is not best and _unknown(c.variant))
            safe = [c for c in others if c.ruled_out is None and c.chance >= 0.99]
            if safe:
                return min(safe, key=lambda c: c.variant.latency.observed), "explore"
        times = map(_about, (budget.ttft_ms, budget.tpot_ms, budget.e2e_ms))
        asked = (*times, budget.max_cost, budget.min_quality, budget.objective)
        last = self._last.get(asked)
        if last is not None and best.variant.name != last and best.chance < 0.975:
            held = next((c for c in usable if c.variant.name == last and c.ruled_out is None), None)
            if held is not None and held.quality < best.quality:
                best = held
        self._last[asked] = best.variant.name
        self._last.move_to_end(asked)
        if len(self._last) > 1000:
            self._last.popitem(last=False)
        return best, budget.objective

    def _best(self, usable: Sequence[Candidate], budget: Budget) -> Candidate | None:
        """The first that fits in the objective's order: those after it need no prediction."""
        for candidate in sorted(usable, key=ORDER[budget.objective]):
            if candidate.ruled_out is None:
                return candidate
        return None

    def _likeliest(self, usable: Sequence[Candidate]) -> Choice | None:
        """None is sure enough to keep its limits: the one that more likely than not does, if there is one."""
        chances = [(c.chance, c.quality, i) for i, c in enumerate(usable) if c.ruled_out in ("ttft", "tpot", "e2e")]
        chance, _, at = max(chances, default=(0.0, 0.0, 0))
        return (usable[at], "risk") if chance >= self._least else None


def _about(limit_ms: float | None) -> int | None:
    """The limit in steps of 5%: what the gateway itself took is off it already, a little more or less each time."""
    return None if limit_ms is None else round(20 * math.log(limit_ms))


def _unknown(variant: Variant) -> bool:
    """Whether it is worth a request to learn how fast it is; not when a replica would have to start for it."""
    return variant.latency.observed < ENOUGH and variant.live.replicas > 0


class AlwaysFull:
    """The highest quality, whatever it takes."""

    def choose(self, usable: Sequence[Candidate], budget: Budget) -> Choice | None:
        """See `router.Policy`."""
        return max(usable, key=lambda c: c.quality), "quality"


class AlwaysCheapest:
    """The lowest cost."""

    def choose(self, usable: Sequence[Candidate], budget: Budget) -> Choice | None:
        """See `router.Policy`."""
        return min(usable, key=lambda c: c.cost_usd), "cost"


class Fastest:
    """The lowest expected end-to-end time."""

    def choose(self, usable: Sequence[Candidate], budget: Budget) -> Choice | None:
        """See `router.Policy`."""
        return min(usable, key=ORDER["latency"]), "latency"


class Random:
    """Any of them."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def choose(self, usable: Sequence[Candidate], budget: Budget) -> Choice | None:
        """See `router.Policy`."""
        return self._random.choice(usable), "random"


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, usable: Sequence[Candidate], budget: Budget) -> Choice | None:
        """See `router.Policy`."""
        self._turn += 1
        return usable[self._turn % len(usable)], "turn"


class Threshold:
    """The highest quality that has fewer than `most` requests a replica, else the cheapest: what one would write first."""

    def __init__(self, most: int = 8) -> None:
        self._most = most

    def choose(self, usable: Sequence[Candidate], budget: Budget) -> Choice | None:
        """See `router.Policy`."""
        for candidate in sorted(usable, key=lambda c: -c.quality):
            load = candidate.variant.live.load()
            if load.requests < self._most * max(load.replicas, 1):
                return candidate, "quality"
        return min(usable, key=lambda c: c.cost_usd), "cost"


POLICIES: Mapping[str, Callable[[], Policy]] = {
    "budget": WithinBudget,
    "full": AlwaysFull,
    "cheapest": AlwaysCheapest,
    "fastest": Fastest,
    "random": Random,
    "round-robin": RoundRobin,
    "threshold": Threshold,
}
