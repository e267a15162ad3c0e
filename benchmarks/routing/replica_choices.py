"""Ways to choose the replica of a variant for a turn of a chat: the platform's, and the baselines that it is compared with."""

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from serve.routing.catalog import Variant
from serve.routing.prediction import Features, Load

IMBALANCED = (
    10  # difference of queue lengths from which Ray's prefix-aware router balances; its default was this, then infinity
)
OURS = "prefix+load"
LEAST_MATCH = 0.1  # of a prompt, from which Ray's prefix-aware router follows the cache


@dataclass(slots=True, frozen=True)
class Arriving:
    """A turn at a gateway: its chat, its features, the gateway's variant and the requests at each replica, by its name."""

    chat: int
    features: Features
    variant: Variant
    queues: Mapping[str, int]


class Choice(Protocol):
    """Chooses the replica."""

    def __call__(self, turn: Arriving) -> str:
        """Name of the replica for `turn`."""


def platform(turn: Arriving) -> str:
    """The platform's choice: cached prefix and load together, from what the gateway knows."""
    return turn.variant.load(turn.features).replica


def round_robin() -> Choice:
    """Each replica in turn."""
    turns = itertools.count()
    return lambda turn: list(turn.queues)[next(turns) % len(turn.queues)]


def power_of_two(drawn: random.Random) -> Choice:
    """The shorter queue of two random replicas, as Ray Serve chooses by default."""

    def choose(turn: Arriving) -> str:
        two = drawn.sample(list(turn.queues), min(2, len(turn.queues)))
        return min(two, key=lambda name: turn.queues[name])

    return choose


def sticky(turn: Arriving) -> str:
    """The same replica for all turns of a chat, whatever its load is."""
    return list(turn.queues)[hash((turn.chat, 0)) % len(turn.queues)]


class PrefixTree:
    """The rule of Ray Serve LLM's `PrefixCacheAffinityRouter`, on blocks, with one tree for all gateways and no eviction.

    With queues that differ by more than `imbalanced`, the shorter of two random ones; else the replicas that share most with the
    prompt; where that is little, those that were sent least text.
    """

    def __init__(self, drawn: random.Random, imbalanced: float = math.inf) -> None:
        self._balance, self._imbalanced = power_of_two(drawn), imbalanced
        self._sent: dict[str, set[int]] = {}

    def __call__(self, turn: Arriving) -> str:
        """See `Choice`."""
        for name in turn.queues:
            self._sent.setdefault(name, set())
        chosen = self._choose(turn)
        self._sent[chosen].update(turn.features.blocks)
        return chosen

    def _choose(self, turn: Arriving) -> str:
        queues, blocks = turn.queues, turn.features.blocks
        if max(queues.values()) - min(queues.values()) > self._imbalanced:
            return self._balance(turn)
        matches = {name: _common(blocks, self._sent[name]) for name in queues}
        most = max(matches.values())
        if most < LEAST_MATCH * max(len(blocks), 1):
            least = min(len(self._sent[name]) for name in queues)
            best = [name for name in queues if len(self._sent[name]) == least]
        else:
            best = [name for name in queues if matches[name] == most]
        return min(best, key=lambda name: queues[name])


def _common(blocks: Sequence[int], sent: set[int]) -> int:
    return next((i for i, block in enumerate(blocks) if block not in sent), len(blocks))


CHOICES: Mapping[str, Callable[[int], Choice]] = {
    "round-robin": lambda seed: round_robin(),
    "power-of-two": lambda seed: power_of_two(random.Random(seed)),
    "sticky": lambda seed: sticky,
    "prefix-tree": lambda seed: PrefixTree(random.Random(seed)),
    "prefix-tree-10": lambda seed: PrefixTree(random.Random(seed), IMBALANCED),
    OURS: lambda seed: platform,
}  # by name, from a seed


def load_at(turn: Arriving, replica: str) -> Load:
    """The load that `turn` meets at `replica`, as its gateway knows it."""
    return turn.variant.load(turn.features, avoid=turn.queues.keys() - {replica})
