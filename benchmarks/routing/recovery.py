"""Predictions after a jump of the load, in the simulator: `python -m benchmarks.routing.recovery`.

The default platform under a square wave between the loads `LOW` and `HIGH`. The same of the live platform is part of
`benchmarks.routing.goodput`'s result, where it measures square waves; the plot shows both.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.lib.processes import command
from benchmarks.reporting import routing_plots
from benchmarks.reporting.results import Progress, load, save
from benchmarks.routing.goodput_cells import Bench, Size, seed_of
from benchmarks.routing.goodput_simulated import platform
from benchmarks.routing.live_platform import NoVariant
from benchmarks.routing.recovery_windows import since_jump
from benchmarks.routing.simulated_bench import bench, settings_of
from benchmarks.routing.workloads import ABSOLUTE, mixed, predicted, square
from serve.config.platform import ConfigError

LOW, HIGH = 0.25, 2.0
PERIOD_S, PERIODS, SEEDS = 40.0, 15, 5


def measure(bench: Bench, periods: int = PERIODS, seeds: int = SEEDS) -> dict[str, Any]:
    """Simulate all seeds. Returns the result without the machine."""
    [setting] = settings_of(["budget"])
    mean, depth = (LOW + HIGH) / 2, (HIGH - LOW) / (HIGH + LOW)
    progress = Progress([(f"seed {seed}", periods * PERIOD_S) for seed in range(seeds)])
    requests: list[list[float]] = []
    for seed in range(seeds):
        progress.step(f"seed {seed}")
        simulator = platform(bench.machine, setting, seed)
        assert simulator is not None
        arrivals = square(bench.per_s * mean, seed_of(seed, "arrivals"), depth, PERIOD_S)
        until = itertools.takewhile(lambda at: at < periods * PERIOD_S * 1000, arrivals)
        requests += predicted(list(simulator.run(mixed(until, ABSOLUTE, seed_of(seed, "mix"), heavy=True))))
    size = {"low": LOW, "high": HIGH, "period_s": PERIOD_S, "periods": periods, "seeds": seeds}
    return {**size, "simulated": since_jump(requests, PERIOD_S)}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    with command((NoVariant, ConfigError), "nothing was saved"):
        result = measure(bench(Size()))
    save("recovery", result)
    routing_plots.recovery(result, load("goodput-default"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
