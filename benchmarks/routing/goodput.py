"""Measure the goodput of the router and of baselines on the live platform, idle to overload: `python -m benchmarks.routing.goodput`.

`--platform default` deploys the variants of deployments/local.yaml as `gearbox up` does: all share the cores. `--platform split`
deploys two variants with a core each, and compares them with one on all cores. All policies get the same traces. Loads are in
units of the rate whose work, by its profile, `full` does alone at its best batch. Times are measured at the client.

Interrupted, the same command goes on where it stopped. A single round is saved as `goodput-PLATFORM-part`, which makes no claims.
"""

import argparse
import asyncio
import hashlib
import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from benchmarks.lib.processes import RESUMES, NotStarted, command
from benchmarks.reporting import claims, plots
from benchmarks.reporting.claim_rows_goodput import goodput as figures_of
from benchmarks.reporting.results import Progress, save
from benchmarks.routing.dispatchers import LIMITS
from benchmarks.routing.goodput_cells import (
    ARRIVALS,
    PUBLISHED,
    Bench,
    Journal,
    Setting,
    Size,
    make_trace,
    rotated,
    seed_of,
    settings,
)
from benchmarks.routing.goodput_simulated import simulated
from benchmarks.routing.goodput_summary import ADMISSION, Cell, summarise
from benchmarks.routing.live_platform import SPLIT, WORK, Machine, NoVariant, Setup, machine, serving
from benchmarks.routing.load_client import Replayed, replay
from benchmarks.routing.workloads import ABSOLUTE, Request, full_load
from benchmarks.systems.full_weights import CONFIG
from compression.build.subprocesses import SubprocessFailed
from serve.card import Profile
from serve.config.platform import ConfigError, load_config

Part = TypeVar("Part")


async def send(bench: Bench, url: str, setting: Setting, trace: Sequence[Request], *cell: object) -> Replayed:
    """Replay `trace` on the platform of `setting` at `url`. No two cells have equal prompts: the engines' prefix caches would have them."""
    seed = seed_of(setting.policy, *cell)
    return await replay(url, bench.dispatcher(setting, seed), trace, bench.qualities, seed)


async def live(bench: Bench, url: str, setting: Setting, number: int, progress: Progress) -> None:
    """Measure the cells of a setting in a round that are not in the journal."""
    await send(bench, url, setting, bench.warm_up(number), number, "warm")
    for shape, load in bench.keys:
        name = _name(number, setting, shape, load)
        if bench.journal.has("live", number, setting, shape, load):
            progress.skip(name)
            continue
        progress.step(name)
        replayed = await send(bench, url, setting, bench.trace(number, shape, load), number, shape, load)
        cell = bench.cell("live", number, setting, shape, load, replayed.outcomes, replayed.client())
        bench.journal.write(cell)
        print(f"    {_line(cell.row)}", flush=True)


def _name(number: int, setting: Setting, shape: str, load: float) -> str:
    return f"round {number + 1}, {setting.policy}, {shape}, load {load:g}"


def _line(row: Mapping[str, float]) -> str:
    kinds = ", ".join(f"{kind} {row[f'{kind}.kept']:.2f}" for kind in ABSOLUTE if f"{kind}.kept" in row)
    refusal = f", refusal p99 {row['refusal_p99_ms']:.0f} ms" if "refusal_p99_ms" in row else ""
    return (
        f"within budget {row['attainment']:.2f}, late {row['late']:.2f}, refused {row['refused']:.2f} "
        f"({kinds}), quality {row['quality']:.2f}{refusal}, client {row['client_cpu_share']:.0%} of a core"
    )


def measure(platform: str, size: Size, save_round: Callable[[dict[str, object], int], None]) -> None:
    """Measure all settings; `save_round` gets the result and the number of rounds after each.

    Raises:
        NoVariant, SubprocessFailed, NotStarted, ConfigError: one line that says what is missing.
    """
    cores = len(os.sched_getaffinity(0))
    if platform == "split" and cores < len(SPLIT):
        raise NoVariant(f"{len(SPLIT)} variants need as many cores; this machine has {cores}")
    names = [variant.name for variant in load_config(CONFIG).variants]
    compared = settings(platform, size.policies, cores, names)
    [plain] = settings(platform, ["full"], cores, names)
    hardware = machine(platform, [one.setup for one in [plain, *compared]])
    path = WORK / f"{platform}-{_digest(platform, size, hardware)}.jsonl"
    bench = Bench(hardware, hardware.profile("full", plain.setup), size, Journal.open(path))
    print(f"the client runs at nice {os.nice(0)}; measured cells are stored in {path} until the end", flush=True)
    bench.per_s = full_load(bench.full, make_trace("poisson", 1.0, 2000.0, 0))
    print(f"load 1 is {bench.per_s:.2f} requests a second", flush=True)
    steps = [
        (_name(number, one, *key), size.seconds * 1.5)
        for number in range(size.rounds)
        for one in rotated(compared, number)
        for key in bench.keys
    ]
    progress = Progress(steps)
    for number in range(size.rounds):
        for setup, group in itertools.groupby(rotated(compared, number), lambda one: one.setup):
            _measure_group(bench, setup, list(group), number, progress)
        done = [cell for cell in bench.journal.cells if cell.number <= number]
        save_round(_result(platform, bench, done), number + 1)
    path.unlink(missing_ok=True)


def _measure_group(bench: Bench, setup: Setup, group: Sequence[Setting], number: int, progress: Progress) -> None:
    """Measure the settings of one platform in one round; it is not started if all are in the journal."""

    def missing(where: str) -> list[Setting]:
        return [one for one in group if not all(bench.journal.has(where, number, one, *key) for key in bench.keys)]

    to_measure = missing("live")
    for one in group:
        if one not in to_measure:
            for key in bench.keys:
                progress.skip(_name(number, one, *key))
    if to_measure:
        with serving(bench.machine, setup) as url:
            for one in to_measure:
                asyncio.run(live(bench, url, one, number, progress))
    for one in missing("simulated"):
        for cell in simulated(bench, one, number):
            bench.journal.write(cell)


def _result(platform: str, bench: Bench, cells: Sequence[Cell]) -> dict[str, object]:
    size, names = bench.size, list(dict.fromkeys(name for name, _ in bench.machine.folders))
    return {
        "platform": platform,
        "size": {**asdict(size), "rounds_measured": len({cell.number for cell in cells})},
        "part": size.part(),
        "client_nice": os.nice(0),
        "full_per_s": round(bench.per_s, 3),
        "variants": {
            name: {
                "quality": bench.machine.quality(name),
                "cores": {
                    "shared" if cores == 0 else str(cores): speeds(bench.machine.profile(name, Setup((name,), cores)))
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


def speeds(profile: Profile) -> dict[str, float]:
    """What results say of a profile."""
    return {
        "tokens_per_s": profile.decode_tokens_per_s,
        "prefill_tokens_per_s": profile.prefill_tokens_per_s,
        "tpot_ms": profile.tpot[0].p50_ms,
    }


def _digest(platform: str, size: Size, hardware: Machine) -> str:
    """Names what is measured and with which code: cells of other code are not mixed in."""
    root = Path(__file__).parents[2]
    sources = sorted([*(root / "serve").rglob("*.py"), *(root / "benchmarks" / "routing").glob("*.py"), CONFIG])
    parts = [platform, repr(size), *map(str, hardware.folders.values()), *(source.read_text() for source in sources)]
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
        help=f"{', '.join(whole.policies)}, random, admission-K, or a variant",
    )
    parser.add_argument("--rounds", type=int, default=whole.rounds)
    parser.add_argument("--seconds", type=_positive, default=whole.seconds, help="of arrivals in a cell")
    args = parser.parse_args(arguments)
    known = {
        *whole.policies,
        "random",
        *(f"{ADMISSION}-{limit}" for limit in LIMITS),
        *(SPLIT if args.platform == "split" else ()),
        *(variant.name for variant in load_config(CONFIG).variants),
    }
    if unknown := [policy for policy in args.policies if policy not in known]:
        parser.error(f"unknown policy {unknown[0]}; there are {', '.join(sorted(known))}")
    size = Size(args.loads, args.shapes, args.policies, args.rounds, args.seconds)

    def save_round(result: dict[str, object], rounds: int) -> None:
        name = f"goodput-{args.platform}" if rounds >= PUBLISHED else f"goodput-{args.platform}-part"
        print_aims(result)
        save(name, result)
        plots.goodput_shapes(result, name)

    with command((NoVariant, SubprocessFailed, NotStarted, ConfigError), RESUMES):
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
