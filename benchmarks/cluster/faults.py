"""Faults in a running platform and in its peers, under a mixed load: `python -m benchmarks.cluster.faults`.

A seeded schedule kills and stops engines, gateway, HAProxy and database, slows the way between gateway and engine, and fills the disk,
while streams, unary, grounded and embedding requests arrive. LiteLLM and Ray Serve LLM get the faults of the parts that they have.

    --soak 1h        load 0.7 and a fault each two minutes: requests lost, memory over time
    --overload 5m    five times what saturates the platform: memory, sockets and queues, and the recovery
    --short          one stop and one kill of an engine, in less than a minute; saves nothing

Interrupted, the same command goes on where it stopped. The platform that `gearbox up` has running is used, with its disk left alone;
otherwise one is started on a small disk, which needs root.
"""

import argparse
import asyncio
import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.cluster import fault_endurance as endurance
from benchmarks.cluster.fault_injection import small_disk
from benchmarks.cluster.fault_load import saturation
from benchmarks.cluster.fault_run import Bench, NoReference, opened, strike
from benchmarks.cluster.fault_schedule import Fault, endless, schedule
from benchmarks.cluster.fault_summary import line, numbers, summary
from benchmarks.cluster.fault_systems import TARGETS, Site, gearbox, litellm, narrowed, ray_serve_llm
from benchmarks.lib.platform_session import NoPlatform
from benchmarks.lib.processes import RESUMES, NotStarted, command
from benchmarks.reporting import fault_plots, fault_tables
from benchmarks.reporting.results import Progress, save
from benchmarks.systems.full_weights import CONFIG, NoWeights, full_weights
from benchmarks.systems.litellm_proxy import NotInstalled
from deployments.state import cache_folder, is_running, load_state, state_folder
from serve.config.platform import ConfigError, load_config

WORK = cache_folder() / "benchmarks" / "faults"
UNDISTURBED_S = 40.0
LOAD, SOAK_LOAD = 0.5, 0.7  # of what saturates the system
CLIENTS, SATURATION_S = 24, 30.0
AIMS = {"lost": 0, "silently_truncated": 0, "tokens": 0, "recovery_s": endurance.RECOVERY_S, "over_prefix_s": 1.0}
SLOW_NETWORK = "stops of 0.3 s of the engine's HTTP server, 0.3 s apart"
_SHORT = (Fault("stop", "engine core", 3.0, 3.0, 0.0), Fault("kill", "engine core", 3.0, 0.0, 0.0))
_SHORT_PER_S, _SHORT_PATIENCE_S = 1.5, 30.0
_START_S, _ENGINE_S, _OTHER_S = 120.0, 75.0, 25.0  # first estimates for the time left


class Busy(Exception):
    """Another platform would be measured, too; the message says what to do."""


@dataclass(slots=True)
class Journal:
    """Rows measured so far by their key, in a file: an interrupted run goes on after them."""

    path: Path
    rows: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> "Journal":
        """Read what the file has; its last line may be cut off."""
        journal = cls(path)
        for text in path.read_text().splitlines() if path.exists() else ():
            try:
                journal.rows.update(json.loads(text))
            except ValueError:
                continue
        return journal

    def write(self, key: str, row: object) -> None:
        """Add a row."""
        self.rows[key] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(f"\n{json.dumps({key: row})}\n")  # a new line, also after one that was cut off


def steps(system: str, seed: int, rounds: int) -> list[tuple[str, Fault | None]]:
    """Keys and faults of a system's run: first its load without a fault."""
    faults = schedule(seed, rounds, TARGETS[system])
    return [(f"{system}/undisturbed", None), *((f"{system}/{i} {one.name}", one) for i, one in enumerate(faults))]


def _estimate_s(fault: Fault | None) -> float:
    if fault is None:
        return UNDISTURBED_S
    return _ENGINE_S if fault.action == "kill" and fault.target.startswith("engine") else _OTHER_S + fault.hold_s


async def load_1(bench: Bench, journal: Journal) -> float:
    """Requests a second that saturate the system, measured once."""
    key = f"{bench.site.name}/saturation"
    if key not in journal.rows:
        print(f"measuring what saturates {bench.site.name}", flush=True)
        journal.write(key, await saturation(bench.session, bench.site.kinds, CLIENTS, SATURATION_S))
    per_s: float = journal.rows[key]
    if not per_s:
        raise NoReference(f"{bench.site.name} answers no request")
    print(f"{bench.site.name}: load 1 is {per_s:.2f} requests a second", flush=True)
    return per_s


async def run_schedule(
    site: Site, plan: Sequence[tuple[str, Fault | None]], load: float, journal: Journal, progress: Progress
) -> None:
    """Run the steps of `plan`; ends early after a fault that the system does not recover from."""
    async with opened(site) as bench:
        await bench.prepare()
        bench.per_s = load * await load_1(bench, journal)
        for key, fault in plan:
            progress.step(key)
            row = await strike(bench, fault, key, UNDISTURBED_S)
            journal.write(key, row)
            print(f"    {line(row)}", flush=True)
            if row["recovery"] and row["recovery"]["healthy_s"] is None:
                print(f"    {site.name} is started anew for the next fault", flush=True)
                return


def measure(
    systems: Mapping[str, int | None], seed: int, rounds: int, load: float, config: Path | None, journal: Journal
) -> dict[str, Any]:
    """Run the schedule of faults on each system, one system at a time. Returns the result without the machine.

    Args:
        systems: names and numbers of engines; None: as many as the platform has variants.
    """
    variants = len(load_config(config or CONFIG).variants)
    plans = {system: steps(system, seed, rounds) for system in systems}
    progress = Progress([(key, _estimate_s(fault)) for plan in plans.values() for key, fault in plan])
    for system, plan in plans.items():
        for key, _ in plan:
            if key in journal.rows:
                progress.skip(key)
        while left := [(key, fault) for key, fault in plan if key not in journal.rows]:
            with _started(system, config, alone=len(systems) > 1, engines=systems[system]) as site:
                asyncio.run(run_schedule(site, left, load, journal, progress))
    return {
        "seed": seed,
        "rounds": rounds,
        "load": load,
        "aims": AIMS,
        "slow_network": SLOW_NETWORK,
        "engines": variants,
        "systems": {
            system: {
                "engines": systems[system] or variants,
                "saturation_per_s": round(journal.rows[f"{system}/saturation"], 3),
                **summary([journal.rows[key] for key, _ in plan]),
                "lost_requests": [[key, *one] for key, _ in plan for one in journal.rows[key]["lost"]],
            }
            for system, plan in plans.items()
        },
    }


def soak(seconds: float, seed: int, load: float, config: Path | None, journal: Journal) -> dict[str, Any]:
    """Load with a fault in each interval. Returns the result without the machine."""
    count = max(1, round(seconds / endurance.INTERVAL_S))
    keys = [f"interval {i + 1} of {count}" for i in range(count)]
    progress = Progress([(key, endurance.INTERVAL_S) for key in keys])
    with _started("gearbox", config, alone=False) as site:
        targets = [target for target in TARGETS["gearbox"] if target != "disk" or site.disk]
        faults = itertools.islice(endless(seed, targets, endurance.NOT_IN_SOAK), count)

        async def run() -> None:
            async with opened(site) as bench:
                await bench.prepare()
                bench.per_s = load * await load_1(bench, journal)
                for number, (key, fault) in enumerate(zip(keys, faults, strict=True)):
                    if key in journal.rows:
                        progress.skip(key)
                        continue
                    progress.step(f"{key}: {fault.name}")
                    row = await endurance.soak_interval(bench, fault, number, endurance.Sampler(site))
                    journal.write(key, row)
                    print(f"    {line(row)}", flush=True)

        asyncio.run(run())
    rows = [journal.rows[key] for key in keys]
    samples = [sample for row in rows for sample in row["samples"]]
    return soak_result(rows, samples, seed, load, journal.rows["gearbox/saturation"])


def soak_result(
    rows: Sequence[Mapping[str, Any]], samples: Sequence[endurance.Sample], seed: int, load: float, per_s: float
) -> dict[str, Any]:
    """The result of a soak: requests of all intervals, memory of gateway and supervisor."""
    between = [{**row["after"], "fault": None, "recovery": {}, "gaps_s": [], "skipped": ""} for row in rows]
    begin = samples[0]["at_s"] if samples else 0.0
    return {
        "seed": seed,
        "load": load,
        "saturation_per_s": round(per_s, 3),
        "intervals": len(rows),
        "hours": round((samples[-1]["at_s"] - begin) / 3600, 3) if samples else 0.0,
        "aims": AIMS,
        **numbers([*rows, *between]),
        "faults": len(rows),
        "by_fault": summary(rows)["faults"],
        "lost_requests": [[i, *one] for i, row in enumerate(rows) for one in row["lost"]],
        "memory": {role: endurance.memory(samples, role) for role in ("gateway", "supervisor")},
        "samples": [
            [round((one["at_s"] - begin) / 3600, 4), one["rss_mb"].get("gateway"), one["rss_mb"].get("supervisor")]
            for one in samples[:: max(1, len(samples) // 500)]
        ],
    }


def overload(seconds: float, config: Path | None, journal: Journal) -> dict[str, Any]:
    """Several times what saturates the platform. Returns the result without the machine."""
    with _started("gearbox", config, alone=False) as site:

        async def run() -> dict[str, Any]:
            async with opened(site) as bench:
                bench.per_s = await load_1(bench, journal)
                print(f"{endurance.FACTOR:g} times that for {seconds:.0f} s", flush=True)
                return await endurance.overload(bench, seconds, endurance.Sampler(site))

        result = asyncio.run(run())
    return {"factor": endurance.FACTOR, "aims": AIMS, "bounded": endurance.BOUNDED, **result}


async def short(site: Site, variant: str, seed: int) -> dict[str, Any]:
    """One stop and one kill of the engine of `variant`. Does not wait until the killed engine is back."""
    hit = narrowed(site, variant)
    async with opened(hit) as bench:
        bench.per_s, bench.prompts, bench.patience_s = _SHORT_PER_S, 1, _SHORT_PATIENCE_S
        await bench.prepare()
        return summary([await strike(bench, fault, f"short {seed} {fault.name}") for fault in _SHORT])


@contextmanager
def _started(system: str, config: Path | None, alone: bool, engines: int | None = None) -> Iterator[Site]:
    """A running system; its processes are stopped after the block. Raises `Busy`."""
    running = is_running(load_state(state_folder()))
    if running and (alone or system != "gearbox"):
        raise Busy("a platform runs on this machine: 'gearbox down' first, or '--systems gearbox' for that one")
    if system == "gearbox":
        with small_disk() as disk, _state_on(disk, running), gearbox(config, disk) as site:
            yield site
        return
    platform = load_config(config or CONFIG)
    start = {"litellm": litellm, "stock": ray_serve_llm}[system]
    with start(*full_weights(config or CONFIG, None), engines or len(platform.variants)) as site:
        yield site


@contextmanager
def _state_on(disk: Path | None, running: bool) -> Iterator[None]:
    """Let the platform that is started next have its state on `disk`, if there is one; a running one keeps its own."""
    if running or disk is None:
        yield
        return
    before = os.environ.get("GEARBOX_STATE_DIR")
    os.environ["GEARBOX_STATE_DIR"] = str(disk / "state")
    try:
        yield
    finally:
        del os.environ["GEARBOX_STATE_DIR"]
        if before is not None:
            os.environ["GEARBOX_STATE_DIR"] = before


def _journal_path(*parts: object) -> Path:
    """Named by what is measured and with which code: rows of other code are not mixed in."""
    root = Path(__file__).parents[2]
    folders = (root / "serve", root / "deployments")
    sources = [path for folder in folders for path in folder.rglob("*.py")] + list(Path(__file__).parent.glob("fault*"))
    texts = [repr(part) for part in parts] + [path.read_text() for path in sorted(sources) if path.is_file()]
    return WORK / f"{parts[0]}-{hashlib.sha256(chr(0).join(texts).encode()).hexdigest()[:12]}.jsonl"


def duration(text: str) -> float:
    """Seconds of `90s`, `5m`, `1h`. Raises `ValueError`."""
    if not (match := re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)) or not float(match[1]):
        raise ValueError(f"{text!r} is no duration such as 90s, 5m or 1h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def systems(text: str) -> dict[str, int | None]:
    """Numbers of engines by system, of `gearbox,stock:2`. Raises `argparse.ArgumentTypeError`."""
    found: dict[str, int | None] = {}
    for part in text.split(","):
        name, colon, engines = part.partition(":")
        if name not in TARGETS:
            raise argparse.ArgumentTypeError(f"unknown system {name}; there are {', '.join(TARGETS)}")
        if colon and (name == "gearbox" or not engines.isdecimal() or not int(engines)):
            raise argparse.ArgumentTypeError(f"{part}: a number of engines is possible for the others than gearbox")
        found[name] = int(engines) if colon else None
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Code 1: a stream was cut silently, or its tokens are wrong (`--short`)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--soak", type=duration, metavar="TIME")
    mode.add_argument("--overload", type=duration, metavar="TIME")
    mode.add_argument("--short", action="store_true")
    every = ",".join(TARGETS)
    parser.add_argument("--systems", type=systems, default=every, help=f"default: {every}; stock:2 has two engines")
    parser.add_argument("--seed", type=int, default=0, help="of the schedule and of the load")
    parser.add_argument("--rounds", type=int, default=1, help="of the schedule: every kind of fault once in each")
    parser.add_argument("--load", type=float, help=f"1 saturates; default {LOAD}, of a soak {SOAK_LOAD}")
    parser.add_argument("--config", type=Path, help="another configuration than the demo's")
    args = parser.parse_args(arguments)
    known = (Busy, NoPlatform, NoReference, NoWeights, NotInstalled, NotStarted, ConfigError, aiohttp.ClientError)
    with command(known, RESUMES):
        if args.short:
            with _started("gearbox", args.config, alone=False) as site:
                result = asyncio.run(short(site, next(iter(site.pinned)), args.seed))
            print(json.dumps(result, indent=1))
            tokens = result["all"]["tokens"]
            return 1 if result["all"]["silently_truncated"] or tokens["lost"] or tokens["doubled"] else 0
        load = args.load or (SOAK_LOAD if args.soak else LOAD)
        name = "faults-soak" if args.soak else "faults-overload" if args.overload else "faults"
        settings = args.systems, args.seed, args.rounds, args.soak, args.overload, load, args.config
        journal = Journal.open(_journal_path(name, *settings))
        print(f"rows are kept in {journal.path} until the end", flush=True)
        if args.soak:
            result = soak(args.soak, args.seed, load, args.config, journal)
        elif args.overload:
            result = overload(args.overload, args.config, journal)
        else:
            result = measure(args.systems, args.seed, args.rounds, load, args.config, journal)
        save(name, result)
        journal.path.unlink(missing_ok=True)
        fault_plots.PLOTS[name](result)
    print(fault_tables.TABLES[name](result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
