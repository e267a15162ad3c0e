"""Measure the goodput of the router and of baselines on the live platform, idle to overload: `python -m benchmarks.routing.goodput`.

`--platform default` deploys the variants of deployments/local.yaml as `gearbox up` does: all share the cores. `--platform split`
deploys two variants with a core each, and compares them with one on all cores. All policies get the same traces. Loads are in
units of the Poisson rate that plain `full` sustains, which is measured first. Times are measured at the client.

Interrupted, the same command goes on where it stopped. A result of fewer rounds than the default is saved as
`goodput-PLATFORM-part`, which makes no claims.
"""

import argparse
import asyncio
import hashlib
import itertools
import json
import os
import sys
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from benchmarks.lib.processes import RESUMES, NotStarted, command
from benchmarks.reporting import claims, plots
from benchmarks.reporting.claim_rows_goodput import goodput as figures_of
from benchmarks.reporting.results import Progress, save
from benchmarks.routing import simulate
from benchmarks.routing.dispatchers import LIMITS, Dispatcher, InFlight, dispatcher
from benchmarks.routing.goodput_summary import ADMISSION, Cell, summarise
from benchmarks.routing.live_platform import SPLIT, WORK, Machine, NoVariant, Platform, Setup, machine, serving
from benchmarks.routing.load_client import Replayed, replay
from benchmarks.routing.workloads import (
    ABSOLUTE,
    Outcome,
    Request,
    admission,
    bursty,
    by_kind,
    full_load,
    mixed,
    poisson,
    prediction,
    ramp,
    square,
    summary,
)
from benchmarks.systems.full_weights import CONFIG
from compression.build.subprocesses import SubprocessFailed
from serve.card import Profile, load_card
from serve.config.platform import ConfigError, load_config
from serve.config.sections import VariantConfig
from serve.routing.catalog import make_variant
from serve.routing.policies import POLICIES

PERIOD_S = 10.0  # of bursts and square waves
ARRIVALS: Mapping[str, Callable[[float, int, float], Iterator[float]]] = {  # by rate, seed and seconds of the cell
    "poisson": lambda rate, seed, _: poisson(rate, seed),
    "bursty": lambda rate, seed, _: bursty(rate, seed, period_s=PERIOD_S),
    "ramp": lambda rate, seed, seconds: ramp(rate, seed, period_s=seconds),
    "square": lambda rate, seed, _: square(rate, seed, period_s=PERIOD_S),
}
LOADS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
ROUTED = ("budget", "threshold", "fastest", "round-robin", "token-load")  # between all variants
ON_FULL = ("full", ADMISSION, "budget-full")  # with `full` alone; on a split machine it has all cores
ROUNDS, SECONDS = 5, 20.0
SIMULATED = {"budget-full": "budget", **{name: name for name in POLICIES}}  # the simulator's policy by ours
WARM_S, WARM_LOAD = 12.0, 0.5
DRAIN_S = 60.0  # between the cells of a simulation; live runs wait for the last answer
KEPT, PROBE_S, STEP, PROBES = 0.95, 20.0, 1.15, 10  # search of the rate that `full` sustains


Part = TypeVar("Part")


class Unsustained(Exception):
    """Plain `full` does not keep its budgets at any rate that was tried."""


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

    A policy may be a variant's name: all requests go to it. `admission` is one setting for each limit in flight.
    """
    split = platform == "split"
    together = Setup(SPLIT, cores // len(SPLIT)) if split else Setup(tuple(names))
    found = []
    for policy in policies:
        own = [f"{ADMISSION}-{limit}" for limit in LIMITS] if policy == ADMISSION else [policy]
        for one in own:
            alone = "full" if policy in ON_FULL else policy if policy in names or policy in SPLIT else None
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
    search: dict[str, object] | None = None  # the result of the search for load 1

    @classmethod
    def open(cls, path: Path) -> "Journal":
        """Read what the file has; the last line may be cut off."""
        journal = cls(path)
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if "search" in entry:
                journal.search = entry["search"]
            else:
                journal.cells.append(Cell(**entry))
        return journal

    def write(self, entry: Cell | dict[str, object]) -> None:
        """Add an entry."""
        if isinstance(entry, Cell):
            self.cells.append(entry)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(entry) if isinstance(entry, Cell) else entry) + "\n")

    def has(self, where: str, number: int, setting: Setting, shape: str, load: float) -> bool:
        """Whether the cell is measured."""
        return Cell(where, number, shape, load, setting.policy, {}) in self.cells


@dataclass(slots=True)
class Bench:
    """What all cells share."""

    machine: Machine
    full: Profile  # of `full` where it is alone
    size: Size
    journal: Journal
    per_s: float = 0.0  # requests per second that plain `full` sustains

    def keys(self) -> list[tuple[str, float]]:
        """Shapes and loads."""
        return [(shape, load) for shape in self.size.shapes for load in self.size.loads]

    def trace(self, number: int, shape: str, load: float) -> list[Request]:
        """The trace of a cell: the same for every setting."""
        return make_trace(shape, self.per_s * load, self.size.seconds, seed_of(number, shape, f"{load:g}"))

    def dispatcher(self, setting: Setting, number: int) -> Dispatcher:
        """The client's side of `setting`."""
        names = setting.setup.variants
        profiles = {name: self.machine.profile(name, setting.setup) for name in names}
        price = {one.name: one.price_usd_per_hour for one in self.machine.config.variants}
        variants = [
            InFlight(name, self.machine.quality(name), profiles[name].cost_usd(60, 24, price.get(name)))
            for name in names
        ]
        return dispatcher(setting.policy, self.machine.config.model.name, variants, profiles, number)

    async def replay(self, platform: Platform, setting: Setting, trace: Sequence[Request], number: int) -> Replayed:
        """Send `trace`."""
        qualities = {name: self.machine.quality(name) for name in setting.setup.variants}
        return await replay(platform.url, self.dispatcher(setting, number), trace, qualities, number)

    def row(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """All numbers of a cell."""
        return {**summary(outcomes), **admission(outcomes), **prediction(outcomes), **by_kind(outcomes, self.full)}


async def sustained(kept_at: Callable[[float], Awaitable[float]], start: float) -> tuple[float, list[dict[str, float]]]:
    """The highest rate of a geometric series at which a share of at least `KEPT` is kept, and all that were tried.

    From `start` the rate goes up while the share is kept, else down until it is. Raises `Unsustained`.
    """
    tried: list[dict[str, float]] = []
    rate, rising, best = start, None, None
    for _ in range(PROBES):
        kept = await kept_at(rate)
        tried.append({"per_s": round(rate, 3), "kept": round(kept, 4)})
        print(f"    full keeps {kept:.1%} at {rate:.2f}/s", flush=True)
        well = kept >= KEPT
        if well:
            best = rate
        rising = well if rising is None else rising
        if rising != well:
            break
        rate *= STEP if rising else 1 / STEP
    if best is None:
        raise Unsustained(f"plain full keeps less than {KEPT:.0%} of its budgets even at {tried[-1]['per_s']}/s")
    return best, tried


def find_load_1(bench: Bench, setting: Setting) -> dict[str, object]:
    """Measure the Poisson rate that plain `full` sustains; or what the journal has. Raises `Unsustained`, `NotStarted`."""
    if bench.journal.search is None:
        by_profile = full_load(bench.full, make_trace("poisson", 1.0, 2000.0, 0))
        print(f"full sustains {by_profile:.2f} requests a second by its profile; measuring", flush=True)
        with serving(bench.machine, setting.setup) as platform:

            async def kept_at(rate: float) -> float:
                trace = make_trace("poisson", rate, PROBE_S, seed_of("search"))
                return summary((await bench.replay(platform, setting, trace, 0)).outcomes)["attainment"]

            async def search() -> tuple[float, list[dict[str, float]]]:
                await kept_at(by_profile * WARM_LOAD)
                return await sustained(kept_at, by_profile)

            per_s, tried = asyncio.run(search())
        bench.journal.search = {
            "full_per_s": round(per_s, 3),
            "by_profile_per_s": round(by_profile, 3),
            "kept": KEPT,
            "tried": tried,
        }
        bench.journal.write({"search": bench.journal.search})
    return bench.journal.search


async def live(bench: Bench, platform: Platform, setting: Setting, number: int, progress: Progress) -> None:
    """Measure the cells of a setting in a round that are not in the journal."""
    warm = make_trace("poisson", bench.per_s * WARM_LOAD, WARM_S, seed_of(number, "warm"))
    await bench.replay(platform, setting, warm, number)
    for shape, load in bench.keys():
        name = _name(number, setting, shape, load)
        if bench.journal.has("live", number, setting, shape, load):
            progress.skip(name)
            continue
        progress.step(name)
        replayed = await bench.replay(platform, setting, bench.trace(number, shape, load), number)
        row = {**bench.row(replayed.outcomes), **replayed.client()}
        bench.journal.write(Cell("live", number, shape, load, setting.policy, row))
        print(f"    {_line(row)}", flush=True)


def _name(number: int, setting: Setting, shape: str, load: float) -> str:
    return f"round {number + 1}, {setting.policy}, {shape}, load {load:g}"


def _line(row: Mapping[str, float]) -> str:
    kinds = ", ".join(f"{kind} {row[f'{kind}.kept']:.2f}" for kind in ABSOLUTE if f"{kind}.kept" in row)
    refusal = f", refusal p99 {row['refusal_p99_ms']:.0f} ms" if "refusal_p99_ms" in row else ""
    return (
        f"kept {row['attainment']:.2f}, late {row['late']:.2f}, refused {row['refused']:.2f} "
        f"({kinds}), quality {row['quality']:.2f}{refusal}, client {row['client_cpu_share']:.0%} of a core"
    )


def simulated(bench: Bench, setting: Setting, number: int) -> list[Cell]:
    """The cells of a setting in the simulator; none for a policy that it does not have."""
    alone = setting.policy in setting.setup.variants
    if not alone and setting.policy not in SIMULATED:
        return []
    variants = []
    for name in setting.setup.variants:
        if alone and name != setting.policy:
            continue
        args = bench.machine.config.engine_args(bench.machine.config.variants[0])
        waiting = bench.machine.config.server.max_waiting_per_replica
        config = VariantConfig(
            name=name, recipe=name, price_usd_per_hour=bench.machine.config.variants[0].price_usd_per_hour
        )
        variants.append(make_variant(config, load_card(bench.machine.folder(name, setting.setup)), args, waiting))
    names = [variant.name for variant in variants]
    places = [[name] for name in names] if setting.setup.cores else [names]  # a core each, or shared
    policy = POLICIES["full" if alone else SIMULATED[setting.policy]]()
    platform = simulate.Platform(variants, places, policy, number)
    trace: list[Request] = []
    ends: list[int] = []
    cells = [bench.trace(number, shape, load) for shape, load in bench.keys()]
    warm = make_trace("poisson", bench.per_s * WARM_LOAD, WARM_S, seed_of(number, "warm"))
    for i, cell in enumerate([warm, *cells]):
        offset = i * (bench.size.seconds + DRAIN_S) * 1000
        trace += [replace(request, at=request.at + offset) for request in cell]
        ends.append(len(trace))
    outcomes = list(platform.run(trace))
    found = []
    for i, (shape, load) in enumerate(bench.keys(), 1):
        its, offset = outcomes[ends[i - 1] : ends[i]], i * (bench.size.seconds + DRAIN_S) * 1000
        for outcome in its:
            outcome.request = replace(outcome.request, at=outcome.request.at - offset)
        found.append(Cell("simulated", number, shape, load, setting.policy, bench.row(its)))
    return found


def rotated(compared: Sequence[Setting], number: int) -> list[Setting]:
    """A different order in each round; settings that share a platform stay together."""
    setups = list(dict.fromkeys(one.setup for one in compared))
    turn = number % len(setups)
    order = []
    for setup in setups[turn:] + setups[:turn]:
        group = [one for one in compared if one.setup == setup]
        order += group[number % len(group) :] + group[: number % len(group)]
    return order


def measure(platform: str, size: Size, save_round: Callable[[dict[str, object], int], None]) -> None:
    """Measure all settings; `save_round` gets the result and the number of rounds after each.

    Raises:
        NoVariant, SubprocessFailed, NotStarted, Unsustained, ConfigError: one line that says what is missing.
    """
    cores = len(os.sched_getaffinity(0))
    if platform == "split" and cores < len(SPLIT):
        raise NoVariant(f"{len(SPLIT)} variants need as many cores; this machine has {cores}")
    names = [variant.name for variant in load_config(CONFIG).variants]
    compared = settings(platform, size.policies, cores, names)
    [plain] = settings(platform, ["full"], cores, names)
    its = machine(platform, [one.setup for one in [plain, *compared]])
    path = WORK / f"{platform}-{_digest(platform, size, its)}.jsonl"
    bench = Bench(its, its.profile("full", plain.setup), size, Journal.open(path))
    print(f"the client runs at nice {os.nice(0)}; measured cells are kept in {path} until the end", flush=True)
    search = find_load_1(bench, plain)
    bench.per_s = float(str(search["full_per_s"]))
    print(f"load 1 is {bench.per_s:.2f} requests a second", flush=True)
    steps = [
        (_name(number, one, *key), size.seconds * 1.5)
        for number in range(size.rounds)
        for one in rotated(compared, number)
        for key in bench.keys()
    ]
    progress = Progress(steps)
    for number in range(size.rounds):
        for setup, group in itertools.groupby(rotated(compared, number), lambda one: one.setup):
            _measure_group(bench, setup, list(group), number, progress)
        done = [cell for cell in bench.journal.cells if cell.number <= number]
        save_round(_result(platform, bench, search, done), number + 1)
    path.unlink(missing_ok=True)


def _measure_group(bench: Bench, setup: Setup, group: Sequence[Setting], number: int, progress: Progress) -> None:
    """Measure the settings of one platform in one round; it is not started if all are in the journal."""

    def missing(where: str) -> list[Setting]:
        return [one for one in group if not all(bench.journal.has(where, number, one, *key) for key in bench.keys())]

    to_measure = missing("live")
    for one in group:
        if one not in to_measure:
            for key in bench.keys():
                progress.skip(_name(number, one, *key))
    if to_measure:
        with serving(bench.machine, setup) as platform:
            for one in to_measure:
                asyncio.run(live(bench, platform, one, number, progress))
    for one in missing("simulated"):
        for cell in simulated(bench, one, number):
            bench.journal.write(cell)


def _result(platform: str, bench: Bench, search: Mapping[str, object], cells: Sequence[Cell]) -> dict[str, object]:
    size, names = bench.size, list(dict.fromkeys(name for name, _ in bench.machine.folders))
    return {
        "platform": platform,
        "size": {**asdict(size), "rounds_measured": len({cell.number for cell in cells})},
        "part": size.part(),
        "client_nice": os.nice(0),
        "full_per_s": search["full_per_s"],
        "search": search,
        "variants": {
            name: {
                "quality": bench.machine.quality(name),
                "cores": {
                    "shared" if cores == 0 else str(cores): _speeds(bench.machine.profile(name, Setup((name,), cores)))
                    for one, cores in bench.machine.folders
                    if one == name
                },
            }
            for name in names
        },
        "budgets": {
            kind: {"share": share, **budget.model_dump(exclude_none=True)} for kind, (share, budget) in ABSOLUTE.items()
        },
        **summarise(cells),
    }


def _speeds(profile: Profile) -> dict[str, float]:
    return {
        "tokens_per_s": profile.decode_tokens_per_s,
        "prefill_tokens_per_s": profile.prefill_tokens_per_s,
        "tpot_ms": profile.tpot[0].p50_ms,
    }


def _digest(platform: str, size: Size, its: Machine) -> str:
    """Names what is measured and with which code: cells of other code are not mixed in."""
    root = Path(__file__).parents[2]
    sources = sorted([*(root / "serve").rglob("*.py"), *(root / "benchmarks" / "routing").glob("*.py"), CONFIG])
    parts = [platform, repr(size), *map(str, its.folders.values()), *(source.read_text() for source in sources)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def print_aims(result: Mapping[str, object]) -> None:
    """Print the missed aims, then how many were met."""
    aims = [(one, claims.meets(one.aim, one.measured)) for one in figures_of(result) if one.aim]
    for one, met in aims:
        if not met:
            print(f"missed: {one.claim}: {one.measured:.3g} {one.unit} (aim {one.aim})")
    print(f"{sum(not met for _, met in aims)} aims missed, {sum(bool(met) for _, met in aims)} met", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    whole = Size()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platform", choices=("default", "split"), default="default", help="what is deployed")
    parser.add_argument("--loads", type=_list_of(_positive), default=whole.loads, help="times what `full` sustains")
    parser.add_argument("--shapes", type=_list_of(_one_of(ARRIVALS)), default=whole.shapes, help=", ".join(ARRIVALS))
    parser.add_argument(
        "--policies",
        type=_list_of(str),
        default=whole.policies,
        help=f"{', '.join(whole.policies)}, random, or a variant",
    )
    parser.add_argument("--rounds", type=int, default=whole.rounds)
    parser.add_argument("--seconds", type=_positive, default=whole.seconds, help="of arrivals in a cell")
    args = parser.parse_args(arguments)
    known = {*whole.policies, "random", *SPLIT, *(variant.name for variant in load_config(CONFIG).variants)}
    if unknown := [policy for policy in args.policies if policy not in known]:
        parser.error(f"unknown policy {unknown[0]}; there are {', '.join(sorted(known))}")
    size = Size(args.loads, args.shapes, args.policies, args.rounds, args.seconds)

    def save_round(result: dict[str, object], rounds: int) -> None:
        name = f"goodput-{args.platform}" if rounds >= ROUNDS else f"goodput-{args.platform}-part"
        print_aims(result)
        save(name, result)
        plots.goodput_shapes(result, name)

    with command((NoVariant, SubprocessFailed, NotStarted, ConfigError, Unsustained), RESUMES):
        measure(args.platform, size, save_round)
    return 0


def _positive(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise ValueError(text)
    return value


def _one_of(known: Mapping[str, object]) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"{text} is none of {', '.join(known)}")
        return text

    return check


def _list_of(parse: Callable[[str], Part]) -> Callable[[str], tuple[Part, ...]]:
    def parse_all(text: str) -> tuple[Part, ...]:
        return tuple(parse(part) for part in text.split(","))

    return parse_all


if __name__ == "__main__":
    sys.exit(main())
