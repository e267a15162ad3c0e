"""Gateway overhead on a real engine, part (a): the same requests to bare vLLM, Ray Serve LLM and Gearbox.

One system runs at a time. A round starts each of them once, the order rotates over the rounds; the prompts of a round are
the same for all systems and never repeat within one, so that no prefix cache helps.
"""

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lib.vllm_bench import Outcome, Point, bench_serve
from benchmarks.reporting.results import Progress, spread
from benchmarks.systems.engine_systems import Server, serving
from benchmarks.systems.full_weights import full_weights

COMPARED = ("bare", "stock", "gearbox")
ONCE = "stock-python-proxy"
AIMS = {"added_ttft_ms": 5.0, "tokens_per_s_ratio_at_32": 0.95}
START_S, STOP_S = 50.0, 10.0  # first estimates for the time left


@dataclass(slots=True, frozen=True)
class Shape:
    """The measurements of one system in one round, and the number of rounds."""

    repeats: int
    points: tuple[Point, ...]

    @property
    def seconds(self) -> float:
        """A rough time for one system, for the estimate of the time left."""
        return START_S + STOP_S + sum(p.requests * p.output_tokens / (20 * p.streams**0.7) for p in self.points)


QUICK = Shape(1, (Point(1, 2, 24, 8), Point(8, 8, 24, 8), Point(32, 32, 24, 8)))
FULL = Shape(2, (Point(1, 10, 24, 48), Point(8, 32, 24, 48), Point(32, 96, 24, 48)))


def measure(shape: Shape, config_file: Path, weights: Path | None) -> dict[str, object]:
    """Measure all systems. Returns the result document without the machine. Raises `NoWeights`, `NotStarted`."""
    config, folder = full_weights(config_file, weights)
    log = Path(tempfile.mkdtemp(prefix="gb-")) / "bench-serve.log"
    plan = []
    for i in range(shape.repeats):
        turn = i % len(COMPARED)
        plan += [(name, i) for name in (*COMPARED[turn:], *COMPARED[:turn], *((ONCE,) if i == 0 else ()))]
    progress = Progress([(name, shape.seconds) for name, _ in plan])
    outcomes: dict[str, dict[int, list[Outcome]]] = {}
    for name, i in plan:
        progress.step(f"{name}, round {i + 1} of {shape.repeats}")
        with serving(name, config, folder) as server:
            for point, outcome in _measure_once(server, folder, shape, i, log):
                outcomes.setdefault(name, {}).setdefault(point.streams, []).append(outcome)
                print(
                    f"    {point.streams:2} streams: {outcome.tokens_per_s:7.1f} tok/s, "
                    f"TTFT p50 {statistics.median(outcome.ttfts_ms):7.1f} ms",
                    flush=True,
                )
    return {
        "shape": [
            {
                "streams": point.streams,
                "requests": point.requests,
                "prompt_words": point.prompt_words,
                "output_tokens": point.output_tokens,
            }
            for point in shape.points
        ],
        "rounds": shape.repeats,
        "engine_args": config.engine_args(config.variants[0]),
        "aims": AIMS,
        "systems": {name: _summary(by_streams, outcomes["bare"]) for name, by_streams in outcomes.items()},
    }


def _measure_once(
    server: Server, weights: Path, shape: Shape, number: int, log: Path
) -> Iterator[tuple[Point, Outcome]]:
    """Measure every point once, after a warm-up with different prompts."""
    crowd = max(point.streams for point in shape.points)
    bench_serve(server.url, server.model, weights, Point(crowd, crowd, 24, 4), "warm-up", log)
    for point in shape.points:
        yield point, bench_serve(server.url, server.model, weights, point, f"{number}/{point.streams}", log)


def _summary(outcomes: dict[int, list[Outcome]], bare: dict[int, list[Outcome]]) -> dict[str, object]:
    """By number of streams: medians over the rounds, and their ratios to and differences from the bare server in the same round."""
    points: dict[str, object] = {}
    for streams, rounds in outcomes.items():
        pairs = list(zip(rounds, bare[streams], strict=False))
        ttft = [statistics.median(outcome.ttfts_ms) for outcome in rounds]
        points[str(streams)] = {
            "ttft_p50_ms": spread(ttft),
            "added_ttft_ms": spread(
                [statistics.median(one.ttfts_ms) - statistics.median(base.ttfts_ms) for one, base in pairs]
            ),
            "tpot_p50_ms": spread([outcome.tpot_ms for outcome in rounds]),
            "tokens_per_s": spread([outcome.tokens_per_s for outcome in rounds], 1),
            "ratio": spread([one.tokens_per_s / base.tokens_per_s for one, base in pairs], 3),
        }
    return points
