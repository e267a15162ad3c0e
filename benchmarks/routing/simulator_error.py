"""Compare the simulator with what was measured live: `python -m benchmarks.routing.simulator_error`.

The cells of the last `python -m benchmarks.routing.goodput` are simulated with the same profiles, traces and policies.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.lib.processes import command
from benchmarks.reporting.results import Progress, load, save
from benchmarks.routing.goodput import speeds
from benchmarks.routing.goodput_cells import Size, settings
from benchmarks.routing.goodput_simulated import simulated
from benchmarks.routing.goodput_summary import Cell, summarise
from benchmarks.routing.live_platform import Machine, NoVariant
from benchmarks.routing.simulated_bench import bench, default_setup
from serve.config.platform import ConfigError

SHARES = ("attainment", "late", "refused")  # compared by their difference
TIMES = ("ttft_p50_ms", "tpot_p50_ms")  # and these by their ratio


class NoLiveResult(Exception):
    """Nothing was measured live that could be simulated; the message says why."""


def measure(live: Mapping[str, Any], machine: Machine | None = None) -> dict[str, Any]:
    """Simulate the cells of the result `live`. Returns the result without the machine.

    Raises:
        NoLiveResult: it is of other profiles than those in the cache.
        NoVariant, ConfigError: a variant is not in the cache.
    """
    size = live["size"]
    shapes, policies = tuple(size["shapes"]), tuple(size["policies"])
    measured = bench(Size(tuple(size["loads"]), shapes, policies, size["rounds_measured"], size["seconds"]), machine)
    setup = default_setup()
    for name, variant in live["variants"].items():
        if variant["cores"].get("shared") != speeds(measured.machine.profile(name, setup)):
            raise NoLiveResult(f"goodput was measured with another profile of '{name}' than that in the cache")
    compared = settings("default", policies, len(os.sched_getaffinity(0)), setup.variants)
    rounds = range(size["rounds_measured"])
    progress = Progress([(f"round {i + 1}, {one.policy}", size["seconds"]) for i in rounds for one in compared])
    cells: list[Cell] = []
    for number in rounds:
        for one in compared:
            progress.step(f"round {number + 1}, {one.policy}")
            cells += simulated(measured, one, number)
    found = summarise(cells)["simulated"]
    errors = {
        shape: {
            at: {policy: errors_of(live["live"][shape][at][policy], row) for policy, row in by_policy.items()}
            for at, by_policy in by_load.items()
        }
        for shape, by_load in found.items()
    }
    return {"live_measured": live["machine"]["measured"], "rounds": len(rounds), "errors": errors}


def errors_of(live: Mapping[str, Any], simulated: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """`live`, `simulated` (medians) and `error` of each metric that both have: simulated less live; of times, as a share of live."""
    found = {}
    for metric in (*SHARES, *TIMES):
        if metric in live and metric in simulated:
            there, here = live[metric]["median"], simulated[metric]["median"]
            error = here - there if metric in SHARES else here / there - 1
            found[metric] = {"live": there, "simulated": here, "error": round(error, 4)}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    with command((NoLiveResult, NoVariant, ConfigError), "nothing was saved"):
        live = load("goodput-default")
        if live is None:
            raise NoLiveResult("measure it first: python -m benchmarks.routing.goodput")
        save("simulator-error", measure(live))
    return 0


if __name__ == "__main__":
    sys.exit(main())
