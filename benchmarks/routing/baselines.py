"""Baselines of the router in the simulator: policies that choose without regard to the budget, and start everything at once."""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.routing.dispatchers import PER_REPLICA
from serve.budget import Budget
from serve.routing.admission import Admission
from serve.routing.candidate import Candidate
from serve.routing.catalog import Variant
from serve.routing.policy import WithinBudget
from serve.routing.router import Decision, Policy, Router
from serve.routing.waiting_queue import Waiting

Choice = Callable[[Sequence[Candidate]], Candidate]


@dataclass(slots=True, frozen=True)
class Baseline:
    """A policy that takes what `pick` returns."""

    pick: Choice

    def choose(self, usable: Sequence[Candidate], budget: Budget) -> tuple[Candidate, str]:
        """See `serve.routing.router.Policy`."""
        return self.pick(usable), "baseline"

    def on_admit(self, decision: Decision) -> None:
        """Nothing has to be noted."""


class Unscheduled(Admission):
    """Starts every request at once: nothing waits, and no variant rests."""

    def decide(self, variants: Sequence[Variant], waiting: Waiting, now: float) -> Decision:
        """See `Admission`."""
        return self.router.decide(variants, waiting.budget, waiting.features)

    def roll(self, variants: Sequence[Variant], now: float) -> None:
        """Nothing has to be updated."""


def admission(policy: Policy) -> Admission:
    """The admission that belongs to `policy`."""
    return (Admission if isinstance(policy, WithinBudget) else Unscheduled)(Router(policy))


def best(usable: Sequence[Candidate]) -> Candidate:
    """The highest quality, whatever the cost and latency."""
    return max(usable, key=lambda c: c.quality)


def cheapest(usable: Sequence[Candidate]) -> Candidate:
    """The lowest cost."""
    return min(usable, key=lambda c: c.cost_usd)


def fastest(usable: Sequence[Candidate]) -> Candidate:
    """The lowest expected end-to-end time; ties go to quality, then cost."""
    return min(usable, key=lambda c: (c.prediction.expected.e2e_ms, -c.quality, c.cost_usd))


def round_robin() -> Choice:
    """Each variant in turn."""
    turns = itertools.count(1)
    return lambda usable: usable[next(turns) % len(usable)]


def threshold(usable: Sequence[Candidate]) -> Candidate:
    """The highest quality with fewer than `PER_REPLICA` requests per replica, else the cheapest."""
    free = [c for c in usable if c.load.requests < PER_REPLICA * max(c.load.replicas, 1)]
    return best(free) if free else cheapest(usable)


POLICIES: Mapping[str, Callable[[], Policy]] = {
    "budget": WithinBudget,
    "full": lambda: Baseline(best),
    "cheapest": lambda: Baseline(cheapest),
    "fastest": lambda: Baseline(fastest),
    "random": lambda: Baseline(random.Random(0).choice),
    "round-robin": lambda: Baseline(round_robin()),
    "threshold": lambda: Baseline(threshold),
}
