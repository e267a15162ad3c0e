"""The routing policy: of the usable variants, the best within the budget."""

import math
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter

from serve.budget import Budget
from serve.routing.candidate import Candidate
from serve.routing.catalog import Variant
from serve.routing.router import Decision

_HEADROOM = 1.1  # times the predicted times, with which a higher quality is taken again
EXPLORED_AFTER = 50  # responses after which a variant's latency counts as learned

_QUALITY = attrgetter("quality"), True
_COST = attrgetter("cost_usd"), False
_LATENCY = attrgetter("prediction.e2e_ms"), False
#: Keys to sort by and whether the highest comes first, the last key first: sorting is stable.
_ORDER: Mapping[str, Sequence[tuple[Callable[[Candidate], float], bool]]] = {
    "quality": (_COST, _QUALITY),
    "cost": (_QUALITY, _COST),
    "latency": (_COST, _QUALITY, _LATENCY),
}


class WithinBudget:
    """Of the variants that meet the whole budget, the best by its objective; ties go to quality, then cost.

    A variant that has room is preferred to one whose engines run as much as the budgets allow. Hysteresis, where quality is the
    objective: while the variant last chosen for the same budget still fits and has room, a higher quality is chosen only with a
    tenth of the limits to spare; otherwise load would oscillate between the two. Until every variant has answered
    `EXPLORED_AFTER` requests, a share `explore` of those whose budget is not at risk goes to the variant with the fewest observations.
    """

    def __init__(self, seed: int = 0, explore: float = 0.01) -> None:
        self._random = random.Random(seed)
        self._explore = explore
        self._draw = self._random.random()  # whether the next request explores
        self._last: OrderedDict[tuple[object, ...], str] = OrderedDict()

    def choose(self, usable: Sequence[Candidate], budget: Budget) -> tuple[Candidate, str] | None:
        """See `router.Policy`."""
        best = self._best(usable, budget)
        if best is None:
            return None
        if self._draw < self._explore:
            unexplored = (c for c in usable if c is not best and _needs_exploration(c.variant))
            safe = [c for c in unexplored if c.ruled_out is None and c.chance >= 0.99 and not c.harm]
            if safe:
                return min(safe, key=lambda c: c.variant.latency.observed), "explore"
        if budget.objective == "quality":
            last = self._last.get(_key(budget))
            if last is not None and best.variant.name != last and not best.fits(_HEADROOM):
                fitting = (c for c in usable if c.variant.name == last and c.ruled_out is None and not c.harm)
                previous = next(fitting, None)
                if previous is not None and previous.quality < best.quality:
                    best = previous
        return best, budget.objective

    def on_admit(self, decision: Decision) -> None:
        """See `router.Policy`."""
        self._draw = self._random.random()
        if decision.reason == "quality":
            key = _key(decision.chosen.budget)
            self._last[key] = decision.variant.name
            self._last.move_to_end(key)
            if len(self._last) > 1000:
                self._last.popitem(last=False)

    def _best(self, usable: Sequence[Candidate], budget: Budget) -> Candidate | None:
        """The first that fits and has room, else the first that fits, in the objective's order; the others need no prediction."""
        full = None
        ordered = list(usable)
        for key, highest_first in _ORDER[budget.objective]:
            ordered.sort(key=key, reverse=highest_first)
        for candidate in ordered:
            if candidate.ruled_out is None:
                if not candidate.harm:
                    return candidate
                full = full or candidate
        return full


def _key(budget: Budget) -> tuple[object, ...]:
    """The limits by which budgets count as the same."""
    times = map(_rounded_limit, (budget.ttft_ms, budget.tpot_ms, budget.e2e_ms))
    return (*times, budget.max_cost, budget.min_quality)


def _rounded_limit(limit_ms: float | None) -> int | None:
    """The limit in steps of 5%, because the gateway's own time, already subtracted, varies from request to request."""
    return None if limit_ms is None else round(20 * math.log(limit_ms))


def _needs_exploration(variant: Variant) -> bool:
    """Whether the variant has too few observations; False when a replica would have to start for it."""
    return variant.latency.observed < EXPLORED_AFTER and variant.live.replicas > 0
