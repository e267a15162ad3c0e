"""Faults of a run, drawn from a seed: what is hit, how, when and for how long."""

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Target = Literal["engine core", "engine server", "gateway", "haproxy", "database", "disk"]
Action = Literal["kill", "stop", "slow network", "disk full"]

#: Kinds of fault. A network that is slow between gateway and engine is short stops of the engine's HTTP server, while its core
#: goes on: delays of packets need a kernel with netem. The disk is the platform's state folder with the database.
KINDS: tuple[tuple[Action, Target], ...] = (
    *(("kill", target) for target in ("engine core", "engine server", "gateway", "haproxy", "database")),
    *(("stop", target) for target in ("engine core", "engine server", "gateway", "haproxy", "database")),
    ("slow network", "engine server"),
    ("disk full", "disk"),
)  # type: ignore[assignment]
PULSE_S = 0.3  # of a slow network: stopped and running in turn
_AFTER_S = (3.0, 6.0)  # of load before a fault
_HOLD_S = (3.0, 9.0)  # of a stop, a slow network, a full disk


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault."""

    action: Action
    target: Target
    after_s: float  # of load before it
    hold_s: float  # it lasts; 0 for a kill
    draw: float  # 0 to 1: which of the processes

    @property
    def name(self) -> str:
        """Its kind: `kill gateway`."""
        return self.action if self.action in ("slow network", "disk full") else f"{self.action} {self.target}"


def schedule(seed: int, rounds: int, targets: Collection[str]) -> list[Fault]:
    """Every kind of fault of `targets` once a round, each round in an order of its own. Depends on the arguments alone."""
    source, faults = random.Random(f"faults {seed}"), []
    for _ in range(rounds):
        for action, target in source.sample(KINDS, len(KINDS)):
            fault = _fault(source, action, target)
            if target in targets:
                faults.append(fault)
    return faults


def endless(seed: int, targets: Collection[str], left_out: Sequence[str] = ()) -> Iterator[Fault]:
    """Faults without end, but for kinds with a name in `left_out`. Raises `ValueError` where there are none."""
    number = 0
    while True:
        found = [fault for fault in schedule(seed + number, 1, targets) if fault.name not in left_out]
        if not found:
            raise ValueError("no kind of fault is possible")
        yield from found
        number += 1


def _fault(source: random.Random, action: Action, target: Target) -> Fault:
    after_s, hold_s, draw = source.uniform(*_AFTER_S), source.uniform(*_HOLD_S), source.random()
    return Fault(action, target, round(after_s, 2), 0.0 if action == "kill" else round(hold_s, 2), round(draw, 4))
