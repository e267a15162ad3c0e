"""Measure the gateway's overhead over a bare engine: `python -m benchmarks.overhead.gateway engine`, `… instant`, or both.

engine   the same requests to one vLLM server, to Ray Serve LLM's own app, and to Gearbox (benchmarks.overhead.gateway_engine)
instant  a mock engine that takes no time: CPU per request and per token of every process (benchmarks.overhead.gateway_mock_engine)
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from benchmarks.lib.processes import NotStarted, command
from benchmarks.overhead.gateway import gateway_engine, gateway_mock_engine
from benchmarks.reporting import plots
from benchmarks.reporting.results import save
from benchmarks.systems.full_weights import CONFIG, NoWeights


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("engine", "instant", "all"), default="all")
    parser.add_argument(
        "--quick", action="store_true", help="a few requests, once: shows that it works, proves nothing"
    )
    parser.add_argument("--repeats", type=int, help="rounds over all systems")
    parser.add_argument("--config", type=Path, default=CONFIG, help="engine arguments, for both sides")
    parser.add_argument("--weights", type=Path, help="folder of `full`; else the one that `gearbox up` has built")
    args = parser.parse_args()
    with command((NotStarted, NoWeights), "everything that was started is stopped"):
        if args.part in ("instant", "all"):
            size = gateway_mock_engine.QUICK if args.quick else gateway_mock_engine.FULL
            size = dataclasses.replace(size, repeats=args.repeats or size.repeats)
            result = gateway_mock_engine.measure(size)
            save("overhead-instant", result)
            plots.overhead_instant(result)
        if args.part in ("engine", "all"):
            shape = gateway_engine.QUICK if args.quick else gateway_engine.FULL
            shape = dataclasses.replace(shape, repeats=args.repeats or shape.repeats)
            result = gateway_engine.measure(shape, args.config, args.weights)
            save("overhead-engine", result)
            plots.overhead_engine(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
