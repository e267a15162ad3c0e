"""Measure the goodput of every routing policy on the live platform, from idle to overload: `python -m benchmarks.routing.goodput`.

All policies get the same bursty traces. The machine is split between two variants, one core each; `full` on the whole
machine is measured too, so that no policy has more hardware than another. Loads are in units of the rate that `full` on the
whole machine sustains. Times are measured at the client.
"""

import argparse
import asyncio
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import httpx
import orjson
import yaml

from benchmarks.lib.processes import NotStarted, System, command, free_ports, python
from benchmarks.reporting import plots
from benchmarks.reporting.results import Progress, save, spread
from benchmarks.routing import simulate
from benchmarks.routing.workloads import Outcome, Request, bursty, full_load, mixed, prediction, summary
from benchmarks.systems.full_weights import CONFIG
from compression.build.subprocesses import SubprocessFailed, run_subprocess
from deployments.state import cache_folder, load_state
from serve.card import Profile, load_card
from serve.config.platform import ConfigError, PlatformConfig, load_config
from serve.config.sections import VariantConfig
from serve.routing.catalog import make_variant
from serve.routing.policies import POLICIES
from serve.routing.prediction import Latency

GEARS = ("full", "lora-healed")
SPLIT = ("budget", "threshold", "fastest", "round-robin", "random")  # policies between the variants, one core each
WORK = cache_folder() / "benchmarks" / "goodput"
BURST_S = 10.0  # period of the bursts
WARM_S, WARM_LOAD = 12.0, 0.5
DRAIN_S = 60.0  # between the cells of a simulation; live runs wait for the last answer
PATIENCE_S = 600.0
VOCABULARY = 40_000  # token ids in random prompts


class NoVariant(Exception):
    """A variant is not in the cache; the message says how to build it."""


@dataclass(slots=True, frozen=True)
class Size:
    """Extent of the measurement."""

    loads: tuple[float, ...]
    rounds: int
    seconds: float


FULL = Size((0.3, 1.0, 2.0, 3.0), 2, 20.0)
QUICK = Size((0.5, 2.0), 1, 10.0)


def gear(name: str, config: PlatformConfig, cores: int) -> Path:
    """The weights of variant `name` with a card profiled on `cores` cores. Raises `NoVariant`, `SubprocessFailed`."""
    folders = sorted(
        (cache_folder() / config.model.name).glob(f"{name}-????????????"), key=lambda one: one.stat().st_mtime
    )
    measured = [folder for folder in folders if (card := load_card(folder)).quality and card.name == name]
    if not measured:
        raise NoVariant(
            f"no variant '{name}' has been made and measured: run 'python -m benchmarks.compression.techniques' first"
        )
    folder = WORK / f"{measured[-1].name}-{cores}"
    if not folder.exists():
        scratch = folder.with_suffix(".part")
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(measured[-1], scratch, copy_function=_link_weights)
        engine = ["--engine-args", orjson.dumps(config.engine_args(config.variants[0])).decode()]
        command = [
            sys.executable,
            "-m",
            "compression.measure.variant",
            "--variant",
            str(scratch),
            "--only",
            "profile",
            *engine,
        ]
        run_subprocess(
            command, {**config.env, "OMP_NUM_THREADS": str(cores)}, folder.with_suffix(".log"), lambda _: None
        )
        scratch.rename(folder)
    return folder


def _link_weights(source: str, target: str) -> None:
    if source.endswith(".safetensors"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


@dataclass(slots=True)
class Platform:
    """A platform whose policy can be changed while it runs."""

    url: str
    model: str
    system: System
    file: Path
    document: dict[str, object]

    def use(self, policy: str) -> None:
        """Route by `policy` from now on."""
        self.file.write_text(yaml.safe_dump({**self.document, "router": {"policy": policy}}))
        os.kill(self.system.pid, signal.SIGHUP)
        in_a_row = 0
        started = time.monotonic()
        while in_a_row < 5:
            if time.monotonic() - started > PATIENCE_S:
                raise NotStarted(f"the gateway does not change to policy '{policy}'")
            time.sleep(0.2)
            try:
                model = httpx.get(f"{self.url}/v1/models", timeout=10).raise_for_status().json()["data"][0]
            except httpx.HTTPError:
                in_a_row = 0
                continue
            in_a_row = in_a_row + 1 if model["gearbox"]["policy"] == policy else 0


@contextmanager
def serving(config: PlatformConfig, gears: Mapping[str, Path], cores: int) -> Iterator[Platform]:
    """A platform of `gears`, each on `cores` cores; it is stopped after the block. Raises `NotStarted`."""
    ports = free_ports(10)
    folder = Path(tempfile.mkdtemp(prefix="gb-"))
    document: dict[str, object] = {
        "model": {"name": config.model.name, "source": config.model.source},
        "server": {"port": ports[0], "metrics_port": ports[0] + 1},
        "access": {"allow_anonymous": True},
        "engine": config.engine,
        "env": {**config.env, "OMP_NUM_THREADS": str(cores)},
        "variants": [{"name": name, "weights": str(weights)} for name, weights in gears.items()],
    }
    file = folder / "gearbox.yaml"
    file.write_text(yaml.safe_dump(document))
    command = python("-m", "deployments.supervisor", "--config", str(file), "--state", str(folder))
    with System("gearbox", command, {"GEARBOX_RUN_ID": folder.name}) as system:

        def up() -> bool:
            state = load_state(folder)
            return state is not None and all(one.phase == "ready" for one in state.variants.values())

        system.wait(up, PATIENCE_S)
        yield Platform(f"http://127.0.0.1:{ports[0]}", config.model.name, system, file, document)


async def replay(
    platform: Platform, trace: Sequence[Request], qualities: Mapping[str, float], seed: int
) -> list[Outcome]:
    """Send the requests of `trace` at their times; return every outcome as the client saw it."""
    drawn = random.Random(seed)
    prompts = [[drawn.randrange(100, VOCABULARY) for _ in range(request.prompt_tokens)] for request in trace]
    timeout = aiohttp.ClientTimeout(total=None, sock_read=300)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(platform.url, timeout=timeout, connector=connector) as session:
        started = time.perf_counter()

        async def one(request: Request, prompt: list[int]) -> Outcome:
            await asyncio.sleep(started + request.at / 1000 - time.perf_counter())
            return await ask(session, platform.model, request, prompt, qualities)

        return list(await asyncio.gather(*(one(*pair) for pair in zip(trace, prompts, strict=True))))


async def ask(
    session: aiohttp.ClientSession, model: str, request: Request, prompt: list[int], qualities: Mapping[str, float]
) -> Outcome:
    """Stream one answer of exactly the request's length; an error is an outcome too."""
    body = {
        "model": f"{model}@best",
        "prompt": prompt,
        "max_tokens": request.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "user": request.kind,
        "budget": request.budget.model_dump(exclude_none=True),
    }
    outcome = Outcome(request)
    sent_at = time.perf_counter()
    first = last = 0.0
    async with session.post("/v1/completions", json=body) as response:
        if response.status != 200:
            outcome.reason = str(response.status)
            await response.read()
            return outcome
        outcome.variant, outcome.reason = response.headers["x-gearbox-variant"], response.headers["x-gearbox-reason"]
        async for line in response.content:
            if not line.startswith(b"data: {"):
                if line.startswith(b"event: error"):
                    outcome.reason = "interrupted"
                    return outcome
                continue
            last = time.perf_counter()
            first = first or last
            metadata = orjson.loads(line[6:]).get("gearbox", {}) if b'"gearbox"' in line else {}
    outcome.quality, outcome.cost_usd = qualities[outcome.variant], metadata["cost_usd"]
    steps = request.output_tokens - 1
    outcome.took = Latency(*((first - sent_at) * 1000, (last - first) * 1000 / max(steps, 1), (last - sent_at) * 1000))
    predicted = metadata["predicted"]
    outcome.expected = Latency(predicted["ttft_ms"], predicted["tpot_ms"], predicted["e2e_ms"])
    outcome.tail = Latency(predicted["ttft_p95_ms"], predicted["tpot_p95_ms"], predicted["e2e_p95_ms"])
    return outcome


def make_trace(full: Profile, rate_per_s: float, seconds: float, seed: int) -> list[Request]:
    """The requests of one cell."""
    requests = mixed(bursty(rate_per_s, seed, period_s=BURST_S), full, seed + 1000)
    return list(itertools.takewhile(lambda request: request.at < seconds * 1000, requests))


@dataclass(slots=True, frozen=True)
class Setting:
    """A compared set-up: variants with the cores of each, and a policy between them."""

    label: str
    gears: tuple[str, ...]
    cores: int
    policy: str


def settings(cores: int) -> list[Setting]:
    """All compared set-ups on a machine with `cores` cores."""
    on_all_cores = [Setting(f"{name} on all cores", (name,), cores, "full") for name in GEARS]
    return on_all_cores + [Setting(policy, GEARS, cores // len(GEARS), policy) for policy in SPLIT]


@dataclass(slots=True)
class Bench:
    """Inputs that all cells share."""

    config: PlatformConfig
    folders: Mapping[tuple[str, int], Path]  # by variant and cores
    full: Profile  # of `full` on all cores
    per_s: float  # requests per second that it sustains
    size: Size

    def cells(self, number: int) -> list[tuple[str, list[Request]]]:
        """The traces of one round, the first to warm up: the same for every setting."""
        warm = make_trace(self.full, self.per_s * WARM_LOAD, WARM_S, 100 * number)
        loads = [
            (f"{load:g}", make_trace(self.full, self.per_s * load, self.size.seconds, 100 * number + i))
            for i, load in enumerate(self.size.loads, 1)
        ]
        return [("", warm), *loads]


async def live(bench: Bench, platform: Platform, number: int) -> dict[str, list[Outcome]]:
    """Outcomes by load on a running platform."""
    qualities = {name: quality_of(folder) for (name, _), folder in bench.folders.items()}
    outcomes = {}
    for i, (load, trace) in enumerate(bench.cells(number)):
        outcomes[load] = await replay(platform, trace, qualities, 1000 * number + i)
    return outcomes


def simulated(bench: Bench, setting: Setting, number: int) -> dict[str, list[Outcome]]:
    """Outcomes by load in the simulator."""
    variants = []
    for name in setting.gears:
        card = load_card(bench.folders[name, setting.cores])
        args = bench.config.engine_args(bench.config.variants[0])
        waiting = bench.config.server.max_waiting_per_replica
        config = VariantConfig(name=name, recipe=name, price_usd_per_hour=bench.config.variants[0].price_usd_per_hour)
        variants.append(make_variant(config, card, args, waiting))
    platform = simulate.Platform(variants, [[name] for name in setting.gears], POLICIES[setting.policy](), number)
    trace: list[Request] = []
    ends: list[tuple[str, int]] = []
    offset = 0.0
    for load, cell in bench.cells(number):
        trace += [replace(request, at=request.at + offset) for request in cell]
        ends.append((load, len(trace)))
        offset += (bench.size.seconds + DRAIN_S) * 1000
    outcomes = list(platform.run(trace))
    begins = [0, *(end for _, end in ends)]
    found = {}
    for (load, end), begin in zip(ends, begins, strict=False):
        first = trace[begin].at if begin < len(trace) else 0.0
        cell = outcomes[begin:end]
        for outcome in cell:
            outcome.request = replace(outcome.request, at=outcome.request.at - first)
        found[load] = cell
    return found


def measure(size: Size) -> dict[str, object]:
    """Measure all settings. Returns the result without the machine. Raises `NoVariant`, `SubprocessFailed`, `NotStarted`."""
    config = load_config(CONFIG)
    cores = len(os.sched_getaffinity(0))
    if cores < len(GEARS):
        raise NoVariant(f"{len(GEARS)} gears need as many cores; this machine has {cores}")
    compared = settings(cores)
    missing = sorted({(name, one.cores) for one in compared for name in one.gears})
    folders = {}
    for name, its in missing:
        print(f"profile of {name} on {its} cores", flush=True)
        folders[name, its] = gear(name, config, its)
    full = profile_of(folders["full", cores])
    per_s = full_load(full, make_trace(full, 1.0, 2000.0, 0))
    bench = Bench(config, folders, full, per_s, size)
    print(f"full sustains {per_s:.2f} such requests a second by its profile", flush=True)
    cell_s = WARM_S + len(size.loads) * size.seconds * 1.4
    plan = [(number, one) for number in range(size.rounds) for one in _rotated(compared, number)]
    progress = Progress([(f"{one.label}, round {number + 1}", cell_s + 30) for number, one in plan])
    found: dict[str, dict[str, dict[str, list[list[Outcome]]]]] = {"live": {}, "simulated": {}}
    for number in range(size.rounds):
        for gears, group in itertools.groupby(_rotated(compared, number), lambda one: (one.gears, one.cores)):
            with serving(config, {name: folders[name, gears[1]] for name in gears[0]}, gears[1]) as platform:
                for one in group:
                    progress.step(f"{one.label}, round {number + 1}")
                    platform.use(one.policy)
                    outcomes = {
                        "live": asyncio.run(live(bench, platform, number)),
                        "simulated": simulated(bench, one, number),
                    }
                    for where, by_load in outcomes.items():
                        for load, cell in by_load.items():
                            if load:
                                found[where].setdefault(load, {}).setdefault(one.label, []).append(cell)
                    print(f"    {_line(outcomes['live'])}", flush=True)
    return {
        "size": {"loads": size.loads, "rounds": size.rounds, "seconds": size.seconds},
        "full_per_s": round(per_s, 3),
        "gears": {
            name: {
                "quality": quality_of(folders[name, cores]),
                "cores": {its: _speeds(folders[name, its]) for its in sorted({c for n, c in folders if n == name})},
            }
            for name in GEARS
        },
        "budgets": {r.kind: r.budget.model_dump(exclude_none=True) for r in make_trace(full, 1.0, 100.0, 0)},
        **{
            where: {
                load: {label: _summary(cells) for label, cells in by_label.items()}
                for load, by_label in by_load.items()
            }
            for where, by_load in found.items()
        },
    }


def profile_of(folder: Path) -> Profile:
    """The profile on a card that has one."""
    profile = load_card(folder).profile
    if profile is None:
        raise NoVariant(f"{folder} has no profile")
    return profile


def quality_of(folder: Path) -> float:
    """The quality on a card that has one."""
    quality = load_card(folder).quality
    if quality is None:
        raise NoVariant(f"{folder} has no quality")
    return quality.quality


def _speeds(folder: Path) -> dict[str, float]:
    profile = profile_of(folder)
    return {
        "tokens_per_s": profile.decode_tokens_per_s,
        "prefill_tokens_per_s": profile.prefill_tokens_per_s,
        "tpot_ms": profile.tpot[0].p50_ms,
    }


def _summary(cells: Sequence[Sequence[Outcome]]) -> dict[str, object]:
    """Median and spread of each number over the rounds."""
    rows = [{**summary(cell), **prediction(cell)} for cell in cells]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: spread([row[name] for row in rows if name in row], 4) for name in names}


def _line(by_load: Mapping[str, Sequence[Outcome]]) -> str:
    rows = {load: summary(cell) for load, cell in by_load.items() if load}
    return "; ".join(
        f"load {load}: {row['attainment']:.2f} within budget, quality {row['quality']:.2f}"
        for load, row in rows.items()
    )


def _rotated(compared: Sequence[Setting], number: int) -> list[Setting]:
    """A different order in each round; settings that share a platform stay together."""
    on_all_cores = [one for one in compared if len(one.gears) == 1]
    split = [one for one in compared if len(one.gears) > 1]
    turn = number % len(split)
    split = split[turn:] + split[:turn]
    return [*on_all_cores, *split] if number % 2 == 0 else [*split, *on_all_cores]


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds of each: to see that it works")
    args = parser.parse_args()
    with command((NoVariant, SubprocessFailed, NotStarted, ConfigError), "only the gears' profiles were saved"):
        result = measure(QUICK if args.quick else FULL)
    if args.quick:
        return 0
    save("goodput", result)
    plots.goodput(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
