"""Compare every routing policy, and an oracle, on the simulated platform: `python -m benchmarks.routing.simulate`."""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import track

from benchmarks.lib.processes import command
from benchmarks.reporting import plots
from benchmarks.reporting.results import load, save, spread
from benchmarks.routing.baselines import POLICIES
from benchmarks.routing.simulated_platform import Platform
from benchmarks.routing.workloads import (
    ARRIVALS,
    Outcome,
    Request,
    TraceError,
    full_load,
    mixed,
    prediction,
    recorded,
    relative,
    summary,
)
from serve.budget import Budget
from serve.card import Card
from serve.config.sections import VariantConfig
from serve.routing.candidate import Candidate
from serve.routing.catalog import Variant, make_variant
from serve.routing.prediction import Latency
from serve.routing.router import Decision

GEARS = ("full", "vocabulary", "narrow", "lora-healed")
MAX_RUNNING, MAX_WAITING, MAX_LEN = 32, 32, 2048
LOADS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
MARGINS = (0.0, 0.2, 0.4, 0.6, 0.8)  # of the oracle
SECONDS, SEEDS = 200.0, (0, 1, 2)
SCALE = (1000, 1_000_000)  # replicas, requests


@dataclass
class Oracle:
    """Oracle policy with the true lengths and times, ignoring later arrivals: the best variant by objective within the budget.

    `margin` is the share of the time limits reserved for later arrivals. When no variant fits, the request is rejected.
    Only possible in the simulator: it reads the engines' state.
    """

    margin: float = 0.0
    platform: Platform | None = field(default=None)

    def choose(self, usable: Sequence[Candidate], budget: Budget) -> tuple[Candidate, str] | None:
        """See `serve.routing.router.Policy`."""
        platform = self.platform
        if platform is None or platform.request is None:
            raise AssertionError("an oracle needs its platform")
        request = platform.request
        for candidate in sorted(usable, key=lambda c: (-c.quality, c.cost_usd)):
            if candidate.ruled_out in ("min_quality", "max_cost"):
                continue
            engine, machine = platform.place(candidate.variant.name)
            machine.advance(platform.now)
            slow = sum(one.busy or one is engine for one in machine.engines)
            platform.foreseen = alone = engine.alone(request, slow)
            took = Latency(*(one / (1 - self.margin) for one in alone))
            quality, cost = candidate.quality, candidate.cost_usd
            if Outcome(request, candidate.variant.name, "", quality, cost, took).within_budget:
                return candidate, "quality"
        return None

    def on_admit(self, decision: Decision) -> None:
        """Nothing has to be noted."""


@dataclass(slots=True, frozen=True)
class Cell:
    """One simulation: a policy on some machines under some load."""

    label: str
    policy: str  # a name in `POLICIES`, or `oracle:MARGIN`
    gears: tuple[str, ...]  # one per machine
    arrivals: str
    rate_per_s: float
    seconds: float
    seed: int


def catalog(names: Iterable[str]) -> list[Variant]:
    """Variants with the cards measured by `benchmarks.compression.techniques`."""
    result = load("compression")
    if result is None:
        raise FileNotFoundError("results/compression.json")
    cards = {name: Card.model_validate(card) for name, card in result["variants"].items()}  # type: ignore[attr-defined]
    args = {"max_num_seqs": MAX_RUNNING, "max_model_len": MAX_LEN}
    return [make_variant(VariantConfig(name=name, recipe=name), cards[name], args, MAX_WAITING) for name in names]


def simulate(cell: Cell, trace: Iterable[Request] | None = None) -> list[Outcome]:
    """Simulate one cell; return its outcomes."""
    variants = catalog(dict.fromkeys(cell.gears))
    if trace is None:
        full = catalog(["full"])[0].profile
        endless = mixed(ARRIVALS[cell.arrivals](cell.rate_per_s, cell.seed), relative(full), cell.seed + 1000)
        trace = itertools.takewhile(lambda request: request.at < cell.seconds * 1000, endless)
    name, _, margin = cell.policy.partition(":")
    policy = Oracle(float(margin)) if name == "oracle" else POLICIES[name]()
    platform = Platform(variants, [[gear] for gear in cell.gears], policy, cell.seed)
    if isinstance(policy, Oracle):
        policy.platform = platform
    return list(platform.run(trace))


def measured(cell: Cell) -> tuple[Cell, dict[str, float]]:
    """Metrics of a cell's outcomes."""
    outcomes = simulate(cell)
    return cell, {**summary(outcomes), **prediction(outcomes)}


def cells(seconds: float = SECONDS) -> list[Cell]:
    """All cells of the benchmark, `seconds` of arrivals each, with the same number of machines."""
    full = catalog(["full"])[0].profile
    sample = list(itertools.islice(mixed(ARRIVALS["poisson"](1.0, 0), relative(full), 0), 4000))
    sustained = full_load(full, sample) * len(GEARS)
    settings = [(f"{name} everywhere", "full", (name,) * len(GEARS)) for name in (GEARS[0], GEARS[-1])]
    settings += [(name, name, GEARS) for name in POLICIES if name not in ("full", "cheapest")]
    settings += [(f"oracle:{margin:g}", f"oracle:{margin:g}", GEARS) for margin in MARGINS]
    return [
        Cell(label, policy, gears, arrivals, sustained * x, seconds, seed)
        for arrivals in ("bursty", "poisson")
        for x in LOADS
        for label, policy, gears in settings
        for seed in SEEDS
        if arrivals == "bursty" or label == "budget"
    ]


def measure(seconds: float = SECONDS, requests: int = SCALE[1]) -> dict[str, Any]:
    """Simulate all cells and the run at scale, of `requests`. Returns the result without the machine."""
    plan = cells(seconds)
    max_rate_per_s = max(cell.rate_per_s for cell in plan)
    base = max_rate_per_s / max(LOADS)
    rows: dict[str, dict[str, dict[str, list[dict[str, float]]]]] = {}
    with ProcessPoolExecutor() as pool:
        scale = pool.submit(at_scale, base, requests)
        futures = [pool.submit(measured, cell) for cell in plan]
        for future in track(as_completed(futures), "simulations", len(futures)):
            cell, row = future.result()
            at = rows.setdefault(cell.arrivals, {}).setdefault(f"{cell.rate_per_s / base:g}", {})
            at.setdefault(cell.label, []).append(row)
        print("waiting for the run at scale", flush=True)
        large = scale.result()
    found = {
        arrivals: {
            load: {
                label: {name: spread([row[name] for row in runs], 4) for name in runs[0]}
                for label, runs in _with_best_oracle(by_label).items()
            }
            for load, by_label in sorted(by_load.items(), key=lambda one: float(one[0]))
        }
        for arrivals, by_load in rows.items()
    }
    return {
        "gears": GEARS,
        "seconds": seconds,
        "seeds": SEEDS,
        "requests_per_s_at_1": round(base, 3),
        **found,
        "scale": large,
    }


def at_scale(base: float, requests: int) -> dict[str, float]:
    """Simulate many replicas and `requests` at load 1, and measure the CPU time that it takes."""
    replicas = SCALE[0]
    started = time.process_time()
    rate = base / len(GEARS) * replicas
    cell = Cell("budget", "budget", GEARS * (replicas // len(GEARS)), "bursty", rate, requests / rate, 0)
    outcomes = simulate(cell)
    took = time.process_time() - started
    return {
        "replicas": replicas,
        "requests": len(outcomes),
        "seconds": round(took, 1),
        "us_per_request": round(took / len(outcomes) * 1e6, 1),
        "attainment": round(summary(outcomes)["attainment"], 4),
    }


def _with_best_oracle(by_label: Mapping[str, list[dict[str, float]]]) -> dict[str, list[dict[str, float]]]:
    """Of the oracles, only the one whose margin delivers most at this load: chosen in hindsight."""
    policies = {label: rows for label, rows in by_label.items() if not label.startswith("oracle")}
    oracles = [rows for label, rows in by_label.items() if label.startswith("oracle")]
    if oracles:
        policies["oracle"] = max(oracles, key=lambda rows: sum(row["delivered"] for row in rows))
    return policies


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--trace", type=Path, help="a recorded trace (see benchmarks/routing/workloads.py) instead of the benchmark"
    )
    parser.add_argument("--policy", choices=POLICIES, default="budget", help="with --trace")
    parser.add_argument("--replicas", type=int, default=1, help="of each gear, with --trace")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of arrivals in a simulation")
    parser.add_argument("--requests", type=int, default=SCALE[1], help=f"of the run with {SCALE[0]} replicas")
    args = parser.parse_args()
    with command((TraceError, OSError), "nothing was saved"):
        if args.trace:
            gears = GEARS * args.replicas
            outcomes = simulate(Cell(args.policy, args.policy, gears, "", 0.0, 0.0, 0), recorded(args.trace))
            print(json.dumps({**summary(outcomes), **prediction(outcomes)}, indent=1))
            return 0
        result = measure(args.seconds, args.requests)
    save("simulate", result)
    plots.policies(result["bursty"], "simulate", "load, full everywhere = 1")
    return 0


if __name__ == "__main__":
    sys.exit(main())
