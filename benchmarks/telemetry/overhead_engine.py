"""Telemetry overhead on a real engine: gateways without telemetry and with all of it, before the same engine.

`python -m benchmarks.telemetry.overhead_engine --config FILE --state FOLDER` is Gearbox's supervisor with those two beside its own gateway.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

import deployments.supervisor
from benchmarks.lib.metrics_scraper import scraped
from benchmarks.lib.processes import System, free_ports, python
from benchmarks.lib.vllm_bench import Point, bench_serve
from benchmarks.reporting.results import Progress, spread
from benchmarks.systems.engine_systems import serving
from benchmarks.systems.full_weights import full_weights
from benchmarks.systems.paired_gateways import gateways, metrics_port

COLLECTOR = "BENCHMARK_COLLECTOR"
COMPARED = ("off", "traces")
START_S = 60.0
FLUSH_S = 5.5  # spans are sent at the latest 5 s after they ended
WARM_UP = Point(8, 8, 24, 4)


@dataclass(slots=True, frozen=True)
class Shape:
    """The measurements of one round, and the number of rounds."""

    rounds: int
    points: tuple[Point, ...]


QUICK = Shape(1, (Point(1, 2, 24, 8), Point(8, 8, 24, 8)))
FULL = Shape(8, (Point(1, 5, 24, 48), Point(8, 24, 24, 48)))


class SideBySide(deployments.supervisor.Supervisor):
    """Deploys the compared gateways beside the platform's own, which gets no requests."""

    def _deploy(self, folders: Mapping[str, Path]) -> None:
        super()._deploy(folders)
        metrics = self._folder / "metrics"
        targets = gateways(
            self._config, self._catalog, self._routing, self._token, metrics, os.environ[COLLECTOR], COMPARED
        )
        with self._serve_lock:
            deployments.supervisor.run_apps(targets)


def measure(shape: Shape, config_file: Path, weights: Path | None) -> dict[str, Any]:
    """Measure all rounds on one start. Returns the result document without the machine. Raises `NoWeights`, `NotStarted`."""
    config, folder = full_weights(config_file, weights)
    log = Path(tempfile.mkdtemp(prefix="gb-")) / "bench-serve.log"
    steps_s = len(COMPARED) * sum(p.requests * p.output_tokens / (20 * p.streams**0.7) for p in shape.points)
    progress = Progress([("start", START_S), *[("round", steps_s)] * shape.rounds])
    found: dict[str, dict[str, list[dict[str, float]]]] = {
        name: {str(point.streams): [] for point in shape.points} for name in COMPARED
    }
    collector_port = free_ports(20)[-1]
    collector = f"http://127.0.0.1:{collector_port}"
    sink = System("collector", python("-m", "benchmarks.lib.otlp_sink", "--port", str(collector_port)))
    progress.step("starting the engine and the gateways before it")
    with (
        sink,
        serving("gearbox", config, folder, "benchmarks.telemetry.overhead_engine", {COLLECTOR: collector}) as server,
    ):
        port = int(server.url.rpartition(":")[2])
        for name in COMPARED:
            server.system.wait(lambda name=name: _ready(f"{server.url}/{name}"), 120)
            bench_serve(f"{server.url}/{name}", server.model, folder, WARM_UP, f"warm-up {name}", log)
        for i in range(shape.rounds):
            progress.step(f"round {i + 1} of {shape.rounds}")
            for point in shape.points:
                for name in COMPARED if i % 2 == 0 else COMPARED[::-1]:
                    pages = [f"http://127.0.0.1:{metrics_port(port + 1, name)}/metrics"] if name == "traces" else []
                    with scraped(pages):
                        seed = f"{i}/{point.streams}/{name}"  # the engine caches prefixes: no prompt is repeated
                        outcome = bench_serve(f"{server.url}/{name}", server.model, folder, point, seed, log)
                    found[name][str(point.streams)].append(
                        {
                            "ttft_p50_ms": statistics.median(outcome.ttfts_ms),
                            "tpot_p50_ms": outcome.tpot_ms,
                            "tokens_per_s": outcome.tokens_per_s,
                        }
                    )
        time.sleep(FLUSH_S)
        arrived = httpx.get(collector, timeout=60).json()["traces"]
    prompt_count = WARM_UP.requests + shape.rounds * sum(point.requests for point in shape.points)
    return {
        "rounds": shape.rounds,
        "shape": [
            {
                "streams": p.streams,
                "requests": p.requests,
                "prompt_words": p.prompt_words,
                "output_tokens": p.output_tokens,
            }
            for p in shape.points
        ],
        "traces_arrived": arrived / prompt_count,
        "systems": summary(found),
    }


def _ready(url: str) -> bool:
    return httpx.get(f"{url}/readyz").status_code == 200


def summary(found: Mapping[str, Mapping[str, list[dict[str, float]]]]) -> dict[str, Any]:
    """By name and number of streams: medians over the rounds, and their difference from and ratio to `off` in the same round."""
    systems: dict[str, Any] = {}
    for name, by_streams in found.items():
        systems[name] = {}
        for streams, rows in by_streams.items():
            pairs = list(zip(rows, found["off"][streams], strict=True))
            systems[name][streams] = {
                **{key: spread([row[key] for row in rows], 2) for key in rows[0]},
                "added_ttft_ms": spread([row["ttft_p50_ms"] - base["ttft_p50_ms"] for row, base in pairs], 2),
                "ratio": spread([row["tokens_per_s"] / base["tokens_per_s"] for row, base in pairs], 4),
            }
    return systems


def summary_text(result: Mapping[str, Any]) -> str:
    """Summary of the result in a few lines."""
    lines = []
    for streams, row in result["systems"]["traces"].items():
        ratio, added = row["ratio"], row["added_ttft_ms"]
        lines.append(
            f"{streams} streams: {ratio['median']:.3f} [{ratio['min']:.3f}, {ratio['max']:.3f}] of the tokens/s, "
            f"{added['median']:+.1f} [{added['min']:+.1f}, {added['max']:+.1f}] ms to the first"
        )
    lines.append(f"{result['traces_arrived']:.1%} of the traces arrived")
    return "\n".join(lines)


def main() -> None:
    """Run Gearbox's supervisor with the compared gateways."""
    deployments.supervisor.Supervisor = SideBySide  # type: ignore[misc]
    deployments.supervisor.main()


if __name__ == "__main__":
    main()
