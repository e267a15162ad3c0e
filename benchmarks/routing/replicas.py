"""Compare ways to choose a variant's replica for the turns of chats: `python -m benchmarks.routing.replicas`.

In the simulator, or with `--live URL URL ...` at running engines: OpenAI servers of `full`, e.g. started by `vllm serve`.
"""

import argparse
import asyncio
import itertools
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import aiohttp
from rich.progress import track

from benchmarks.lib.processes import command
from benchmarks.reporting import plots
from benchmarks.reporting.results import save, spread
from benchmarks.routing.chats import chats_per_s
from benchmarks.routing.live_replicas import serve
from benchmarks.routing.replica_choices import CHOICES, OURS
from benchmarks.routing.simulate import catalog
from benchmarks.routing.simulated_replicas import VARIANT, Cell, Served, simulate
from serve.card import Profile

REPLICAS, LOADS, SEEDS = (2, 4, 8), (0.5, 0.8, 1.1), (0, 1, 2, 3, 4)
GATEWAYS = (4, 0.8, 3)  # replicas, load and gateways of the comparison with several gateways
BASELINES = ("power-of-two", "sticky")  # that the gain is stated against


@dataclass(slots=True, frozen=True)
class Key:
    """Where a cell is in the result."""

    replicas: int
    load: float
    label: str


def summary(served: Sequence[Served], replicas: int, profile: Profile) -> dict[str, float]:
    """Times in ms of the complete turns, share of the prompts' tokens that were cached, work of the busiest replica over the mean."""
    done = [(one, one.took) for one in served if one.took]
    ttfts = sorted(took.ttft_ms for _, took in done)
    work = dict.fromkeys(range(replicas), 0.0)
    numbers: dict[str, int] = {}
    for one, _ in done:
        number = numbers.setdefault(one.replica, len(numbers))
        read_s = (one.prompt_tokens - one.cached_tokens) / profile.prefill_tokens_per_s
        work[number] += read_s + one.output_tokens / profile.decode_tokens_per_s
    return {
        "turns": len(served),
        "turns_complete": len(done),
        "ttft_p50_ms": statistics.median(ttfts),
        "ttft_p95_ms": ttfts[math.ceil(0.95 * len(ttfts)) - 1],
        "e2e_mean_ms": statistics.fmean(took.e2e_ms for _, took in done),
        "hit_share": sum(one.cached_tokens for one, _ in done) / sum(one.prompt_tokens for one, _ in done),
        "busiest": max(work.values()) / statistics.fmean(work.values()),
        "ttft_error": statistics.median(abs(one.expected.ttft_ms / took.ttft_ms - 1) for one, took in done),
    }


def cells() -> list[tuple[Key, Cell]]:
    """All simulations."""
    grid = [
        (Key(replicas, load, choice), Cell(choice, replicas, load, seed))
        for replicas, load, choice, seed in itertools.product(REPLICAS, LOADS, CHOICES, SEEDS)
    ]
    replicas, load, gateways = GATEWAYS
    for choice, exchange, seed in itertools.product(CHOICES, (True, False), SEEDS):
        if exchange or choice == OURS:
            label = choice if exchange else f"{choice}, each gateway alone"
            grid.append((Key(0, load, label), Cell(choice, replicas, load, seed, gateways, exchange)))
    return grid


def measured(key: Key, cell: Cell) -> tuple[Key, Cell, dict[str, float]]:
    """The summary of one simulation."""
    return key, cell, summary(simulate(cell), cell.replicas, catalog([VARIANT])[0].profile)


def measure() -> dict[str, Any]:
    """Simulate all cells. Returns the result without the machine."""
    rows: dict[Key, dict[int, dict[str, float]]] = {}
    with ProcessPoolExecutor() as pool:
        futures = [pool.submit(measured, *one) for one in cells()]
        for future in track(as_completed(futures), "simulations", len(futures)):
            key, cell, row = future.result()
            rows.setdefault(key, {})[cell.seed] = row
    simulated: dict[str, dict[str, dict[str, Any]]] = {}
    several: dict[str, Any] = {}
    for key, _ in cells():  # in order
        found = _with_spread(rows[key])
        if key.replicas:
            simulated.setdefault(str(key.replicas), {}).setdefault(f"{key.load:g}", {})[key.label] = found
        else:
            several[key.label] = found
    example = Cell(OURS, 0, 0, 0)
    replicas, load, gateways = GATEWAYS
    return {
        "seconds": example.seconds,
        "warmup_s": example.warmup_s,
        "seeds": SEEDS,
        "chats_per_s_at_1": round(chats_per_s(catalog([VARIANT])[0].profile), 4),
        "simulated": simulated,
        "gains": {
            str(replicas): {f"{load:g}": _gains(rows, replicas, load) for load in LOADS} for replicas in REPLICAS
        },
        "several": {"replicas": replicas, "load": load, "gateways": gateways, "choices": several},
    }


def _with_spread(by_seed: Mapping[int, Mapping[str, float]]) -> dict[str, dict[str, float | int]]:
    rows = [by_seed[seed] for seed in sorted(by_seed)]
    return {name: spread([row[name] for row in rows], 4) for name in rows[0]}


def _gains(rows: Mapping[Key, Mapping[int, Mapping[str, float]]], replicas: int, load: float) -> dict[str, Any]:
    """TTFT of the baselines over that of the platform's choice, in the same seed."""
    ours = rows[Key(replicas, load, OURS)]
    return {
        baseline: {
            metric: spread([rows[Key(replicas, load, baseline)][seed][metric] / ours[seed][metric] for seed in ours], 3)
            for metric in ("ttft_p50_ms", "ttft_p95_ms")
        }
        for baseline in BASELINES
    }


def live(urls: Sequence[str], load: float, seconds: float, rounds: int) -> dict[str, Any]:
    """Run every choice in turn at the engines. Returns the result without the machine."""
    rows: dict[str, dict[int, dict[str, float]]] = {}
    profile = catalog([VARIANT])[0].profile
    for seed, choice in itertools.product(range(rounds), CHOICES):
        print(f"round {seed + 1} of {rounds}: {choice}", flush=True)
        served = asyncio.run(serve(choice, urls, load, seed, seconds, seconds / 3))
        rows.setdefault(choice, {})[seed] = summary(served, len(urls), profile)
    return {
        "seconds": seconds, "seeds": tuple(range(rounds)), "replicas": len(urls), "load": load,
        "live": {choice: _with_spread(by_seed) for choice, by_seed in rows.items()},
    }  # fmt: skip


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--live", nargs="+", metavar="URL", help="base URLs of engines, instead of the simulator")
    parser.add_argument("--load", type=float, default=0.8, help="with --live")
    parser.add_argument("--seconds", type=float, default=300.0, help="of each choice, with --live")
    parser.add_argument("--rounds", type=int, default=3, help="with --live")
    args = parser.parse_args()
    with command((OSError, aiohttp.ClientError), "nothing was saved"):
        if args.live:
            result = live([url.rstrip("/") for url in args.live], args.load, args.seconds, args.rounds)
            print(json.dumps(result["live"], indent=1))
            save("replicas-live", result)
            return 0
        result = measure()
    save("replicas", result)
    plots.replicas(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
