"""Cells of the live routing benchmark: what is compared, on which traces, and the journal of those measured."""

import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType

from benchmarks.routing.dispatchers import LIMITS, Dispatcher, InFlight, dispatcher
from benchmarks.routing.goodput_summary import ADMISSION, OURS, SQUARE_S, Cell
from benchmarks.routing.live_platform import SPLIT, Machine, Setup
from benchmarks.routing.workloads import (
    ABSOLUTE,
    Outcome,
    Request,
    admission,
    bursty,
    by_kind,
    mixed,
    poisson,
    predicted,
    prediction,
    ramp,
    square,
    summary,
    times,
)
from serve.card import Profile

PERIOD_S = 10.0  # of bursts
ARRIVALS: Mapping[str, Callable[[float, int, float], Iterator[float]]] = {  # by rate, seed and seconds of the cell
    "poisson": lambda rate, seed, _: poisson(rate, seed),
    "bursty": lambda rate, seed, _: bursty(rate, seed, period_s=PERIOD_S),
    "ramp": lambda rate, seed, seconds: ramp(rate, seed, period_s=seconds),
    "square": lambda rate, seed, _: square(rate, seed, period_s=SQUARE_S),
}
LOADS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
ROUTED = ("budget", "threshold", "fastest", "round-robin", "token-load")  # between all variants
ON_FULL = ("full", ADMISSION, "budget-full")  # with `full` alone; on a split machine it has all cores
ROUNDS, PUBLISHED, SECONDS = 5, 2, 20.0  # rounds of the whole, and the fewest that are published
WARM_S, WARM_LOAD = 12.0, 0.5


@dataclass(slots=True, frozen=True)
class Size:
    """Extent of the measurement."""

    loads: tuple[float, ...] = LOADS
    shapes: tuple[str, ...] = tuple(ARRIVALS)
    policies: tuple[str, ...] = (*ON_FULL, *ROUTED)
    rounds: int = ROUNDS
    seconds: float = SECONDS

    def part(self) -> list[str]:
        """What was chosen other than the whole benchmark."""
        whole = Size()
        return [name for name, value in asdict(self).items() if value != asdict(whole)[name]]


@dataclass(slots=True, frozen=True)
class Setting:
    """A compared policy, and what it is deployed on."""

    policy: str
    setup: Setup


def settings(platform: str, policies: Sequence[str], cores: int, names: Sequence[str]) -> list[Setting]:
    """All compared settings on a machine with `cores` cores; `names` are the variants of the default platform.

    A policy may be a variant's name: all requests go to it. `admission` is a setting for each limit in flight.
    """
    split = platform == "split"
    together = Setup(SPLIT, cores // len(SPLIT)) if split else Setup(tuple(names))
    found = []
    for policy in policies:
        own = [f"{ADMISSION}-{limit}" for limit in LIMITS] if policy == ADMISSION else [policy]
        for one in own:
            alone = None
            if policy in ON_FULL or policy.startswith(ADMISSION):
                alone = "full"
            elif policy in names or policy in SPLIT:
                alone = policy
            if alone and (split or policy == "budget-full"):
                found.append(Setting(one, Setup((alone,), cores if split else 0)))
            else:
                found.append(Setting(one, together))
    return found


def make_trace(shape: str, rate_per_s: float, seconds: float, seed: int) -> list[Request]:
    """The requests of one cell, with heavy-tailed prompts."""
    requests = mixed(ARRIVALS[shape](rate_per_s, seed, seconds), ABSOLUTE, seed + 1, heavy=True)
    return list(itertools.takewhile(lambda request: request.at < seconds * 1000, requests))


def seed_of(*parts: object) -> int:
    """A seed that depends only on what is measured, not on what else is."""
    return zlib.crc32("/".join(map(str, parts)).encode())


@dataclass(slots=True)
class Journal:
    """Cells measured so far, in a file: an interrupted run goes on after them."""

    path: Path
    cells: list[Cell] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> "Journal":
        """Read what the file has; a line may be cut off."""
        journal = cls(path)
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            journal.cells.append(Cell(**entry))
        return journal

    def write(self, cell: Cell) -> None:
        """Add a cell."""
        self.cells.append(cell)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(f"\n{json.dumps(asdict(cell))}\n")  # a new line, also after one that was cut off

    def has(self, where: str, number: int, setting: Setting, shape: str, load: float) -> bool:
        """Whether the cell is measured."""
        return Cell(where, number, shape, load, setting.policy, {}) in self.cells


def rotated(compared: Sequence[Setting], number: int) -> list[Setting]:
    """A different order in each round; settings that share a platform stay together."""
    setups = list(dict.fromkeys(one.setup for one in compared))
    turn = number % len(setups)
    order = []
    for setup in setups[turn:] + setups[:turn]:
        group = [one for one in compared if one.setup == setup]
        order += group[number % len(group) :] + group[: number % len(group)]
    return order


@dataclass(slots=True)
class Bench:
    """What all cells share."""

    machine: Machine
    full: Profile  # of `full` where it is alone
    size: Size
    journal: Journal
    per_s: float = 0.0  # requests per second that plain `full` sustains

    @property
    def qualities(self) -> dict[str, float]:
        """Quality of every variant."""
        return {name: self.machine.quality(name) for name, _ in self.machine.folders}

    @property
    def keys(self) -> list[tuple[str, float]]:
        """Shapes and loads."""
        return [(shape, load) for shape in self.size.shapes for load in self.size.loads]

    def trace(self, number: int, shape: str, load: float) -> list[Request]:
        """The trace of a cell: the same for every setting."""
        return make_trace(shape, self.per_s * load, self.size.seconds, seed_of(number, shape, f"{load:g}"))

    def warm_up(self, number: int) -> list[Request]:
        """What every setting gets before its cells of a round."""
        return make_trace("poisson", self.per_s * WARM_LOAD, WARM_S, seed_of(number, "warm"))

    def dispatcher(self, setting: Setting, seed: int) -> Dispatcher:
        """The client's side of `setting`."""
        names = setting.setup.variants
        profiles = {name: self.machine.profile(name, setting.setup) for name in names}
        price = {one.name: one.price_usd_per_hour for one in self.machine.config.variants}
        variants = [
            InFlight(name, self.machine.quality(name), profiles[name].cost_usd(60, 24, price.get(name)))
            for name in names
        ]
        return dispatcher(setting.policy, self.machine.config.model.name, variants, profiles, seed)

    def cell(
        self,
        where: str,
        number: int,
        setting: Setting,
        shape: str,
        load: float,
        outcomes: Sequence[Outcome],
        client: Mapping[str, float] = MappingProxyType({}),
    ) -> Cell:
        """A measured cell: all numbers and, for the router under a square wave, its predictions of each request."""
        row = {
            **summary(outcomes),
            **times(outcomes),
            **admission(outcomes),
            **prediction(outcomes),
            **by_kind(outcomes, self.full),
            **client,
        }
        requests = predicted(outcomes) if shape == "square" and setting.policy in OURS else []
        return Cell(where, number, shape, load, setting.policy, row, requests)
