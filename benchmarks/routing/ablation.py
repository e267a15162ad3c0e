"""Take out each part of the router alone, on the simulated default platform: `python -m benchmarks.routing.ablation`.

All get the traces of `benchmarks.routing.goodput`, in all its shapes of arrivals. A part's gain is the requests within budget with
the whole router less those without it, with the same seed. With `--drift` the engines are slower than their profiles, now more and now less.
"""

import argparse
import functools
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

from benchmarks.lib.processes import command
from benchmarks.reporting import routing_plots
from benchmarks.reporting.results import Progress, save, spread
from benchmarks.routing import goodput_simulated
from benchmarks.routing.goodput_cells import Bench, Size
from benchmarks.routing.goodput_simulated import simulated
from benchmarks.routing.goodput_summary import Cell
from benchmarks.routing.live_platform import NoVariant
from benchmarks.routing.simulated_bench import bench, settings_of
from benchmarks.routing.simulated_platform import Platform
from serve.config.platform import ConfigError
from serve.routing import admission
from serve.routing.budget_classes import BudgetClass
from serve.routing.candidate import Candidate
from serve.routing.prediction import LatencyModel
from serve.routing.waiting_queue import Waiting, WaitingQueue

SIZE = Size(loads=(0.5, 1.0, 2.0, 4.0), rounds=5, seconds=20.0)
WHOLE = "whole router"
METRICS = ("attainment", "late", "worst_kind", "quality", "delivered")


def _apart(platform: Platform, *args: Any, initialize: Callable[..., None] = Platform.__init__, **kwargs: Any) -> None:
    """Make a platform whose router takes every variant to have hardware of its own."""
    initialize(platform, *args, **kwargs)
    for variant in platform.variants:
        variant.live.hardware = frozenset({variant.name})


def _rank_by_arrival(queue: WaitingQueue, waiting: Waiting) -> None:
    """Let requests wait in the order of their arrival."""
    waiting.rank = waiting.flow.tenant.over, waiting.arrived, next(queue._numbers)


def drift(at_ms: float) -> float:
    """Time of an engine over that of its profile: 1.25, by 30% more or less over 40 s."""
    return 1.25 * (1 + 0.3 * math.sin(2 * math.pi * at_ms / 40_000))


def _constant(value: object) -> property:
    return property(lambda _: value)


#: Changes that take out a part, by its name.
PARTS: Mapping[str, Callable[[], Sequence[AbstractContextManager[object]]]] = {
    "gears that rest": lambda: [patch.object(admission, "resting", lambda *_: frozenset())],
    "knowledge of shared hardware": lambda: [patch.object(Platform, "__init__", _apart)],
    "places": lambda: [patch.object(Candidate, "harm", _constant(0))],
    "drift from streamed chunks": lambda: [patch.object(LatencyModel, "observe_steps", lambda *_: None)],
    "deadlines in the engines": lambda: [patch.object(Candidate, "first_token_by_ms", lambda *_: 0.0)],
    "order of the latest start": lambda: [patch.object(WaitingQueue, "rank", _rank_by_arrival)],
    "learned margins": lambda: [
        patch.object(BudgetClass, "margin", _constant(1.0)),
        patch.object(BudgetClass, "step_margin", _constant(1.1)),  # what an unlearned one has
    ],
}


def drifting() -> AbstractContextManager[object]:
    """Run the block with engines that are not as fast as their profiles, see `drift`."""
    return patch.object(goodput_simulated, "Platform", functools.partial(Platform, drift=drift))


@contextmanager
def without(part: str) -> Iterator[None]:
    """Run the block without `part` of the router; with all of `WHOLE`."""
    with ExitStack() as stack:
        for change in PARTS[part]() if part != WHOLE else ():
            stack.enter_context(change)
        yield


def measure(bench: Bench) -> dict[str, Any]:
    """Simulate the whole router and the router without each part. Returns the result without the machine."""
    [setting] = settings_of(["budget"])
    names, seeds = [WHOLE, *PARTS], range(bench.size.rounds)
    progress = Progress([(f"{name}, seed {seed}", bench.size.seconds) for seed in seeds for name in names])
    by_name: dict[str, list[list[Cell]]] = {name: [] for name in names}
    for seed in seeds:
        for name in names:
            progress.step(f"{name}, seed {seed}")
            with without(name):
                by_name[name].append(simulated(bench, setting, seed))
    return {
        "loads": bench.size.loads,
        "shapes": bench.size.shapes,
        "seconds": bench.size.seconds,
        "seeds": len(seeds),
        **summarise(by_name, bench.size.loads),
    }


def summarise(by_name: Mapping[str, Sequence[Sequence[Cell]]], loads: Sequence[float]) -> dict[str, Any]:
    """Of each router and load the spread over the seeds; of each part also `gain`: the whole router less it, seed by seed.

    A seed's number is the mean over the shapes of arrivals. `worst_kind` is the lowest share within budget of any kind of request.
    """
    rows = {
        name: {load: [_mean([cell for cell in cells if cell.load == load]) for cells in seeds] for load in loads}
        for name, seeds in by_name.items()
    }

    def gain(name: str, load: float, metric: str) -> dict[str, float | int]:
        pairs = zip(rows[WHOLE][load], rows[name][load], strict=True)
        return spread([whole[metric] - other[metric] for whole, other in pairs], 4)

    return {
        "routers": {
            name: {
                f"{load:g}": {metric: spread([row[metric] for row in seeds], 4) for metric in METRICS}
                for load, seeds in by_load.items()
            }
            for name, by_load in rows.items()
        },
        "gain": {
            name: {f"{load:g}": {metric: gain(name, load, metric) for metric in METRICS} for load in loads}
            for name in rows
            if name != WHOLE
        },
    }


def _mean(cells: Sequence[Cell]) -> dict[str, float]:
    rows = [{**cell.row, "worst_kind": min(value for key, value in cell.row.items() if key.endswith(".kept"))} for cell in cells]  # fmt: skip
    return {metric: statistics.fmean(row[metric] for row in rows) for metric in METRICS}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drift", action="store_true", help="engines that are not as fast as their profiles")
    args = parser.parse_args(arguments)
    name, engines = ("ablation-drift", drifting()) if args.drift else ("ablation", nullcontext())
    with command((NoVariant, ConfigError), "nothing was saved"), engines:
        result = measure(bench(SIZE))
    save(name, result)
    routing_plots.ablation(result, name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
