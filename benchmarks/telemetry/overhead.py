"""Measure telemetry overhead: `python -m benchmarks.telemetry.overhead`; with `--engine` on the real engine instead.

Four gateways before one mock engine, in one Ray cluster behind one HAProxy: one without telemetry, one with metrics,
one with metrics and a log line for each request (the default), one that also exports a trace of every request.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.lib.load_generator import Load, LoadError, Sample, run
from benchmarks.lib.metrics_scraper import EACH_S, scraped
from benchmarks.lib.processes import BACKGROUND, NotStarted, System, command, free_ports, python
from benchmarks.reporting import plots
from benchmarks.reporting.results import Progress, load, save, spread
from benchmarks.systems.full_weights import CONFIG, NoWeights
from benchmarks.systems.mock_engine import answers, body
from benchmarks.systems.paired_gateways import NAMES, metrics_port
from benchmarks.telemetry import overhead_engine
from benchmarks.telemetry.overhead_engine import FLUSH_S
from deployments.ray_internals import replica_app

AIM = 0.01  # maximum share of a real request's time
USUAL_SCRAPE_S = 15.0
START_S = 45.0


@dataclass(slots=True, frozen=True)
class Size:
    """Durations and repeats. Processes differ between starts, the machine between minutes: both are repeated."""

    starts: int
    rounds: int  # in each start
    seconds: float  # of each point
    idle_s: float
    tokens: int  # of each stream that counts by tokens


QUICK = Size(starts=1, rounds=1, seconds=1, idle_s=3, tokens=50)
FULL = Size(starts=3, rounds=5, seconds=3, idle_s=15, tokens=150)
SHORT = 16  # tokens where requests are counted


@dataclass(slots=True, frozen=True)
class Point:
    """A load, and its unit of cost: requests or their tokens."""

    connections: int
    tokens: int
    pace: str | None = None  # of a stream; None: answered in one piece
    by_token: bool = False

    def load(self, url: str, seconds: float) -> Load:
        """One paced stream per connection, else as many requests as possible in `seconds`."""
        request = body(self.tokens, self.pace)
        if self.pace is not None and self.pace != "now":
            return Load(url, request, self.connections, count=self.connections)
        return Load(url, request, self.connections, seconds=seconds)


def points(size: Size) -> dict[str, Point]:
    """The loads for every gateway."""
    return {
        "unary": Point(8, SHORT),
        "first": Point(1, SHORT, "now"),
        "saturated": Point(8, size.tokens, "now", by_token=True),
        "paced": Point(32, size.tokens, "scatter 20", by_token=True),
    }


@dataclass(slots=True)
class Platform:
    """The running gateways."""

    system: System
    port: int
    collector: str
    gateways: dict[str, int]  # process ids
    idle: dict[int, float] = field(default_factory=dict)  # CPU seconds per second by process, without requests
    scrape_s: dict[str, float] = field(default_factory=dict)  # CPU seconds per scrape of each gateway

    def url(self, name: str) -> str:
        """URL of the gateway `name`."""
        return f"http://127.0.0.1:{self.port}/{name}/v1/chat/completions"

    def page(self, name: str) -> str:
        """URL of the metrics page of `name`."""
        return f"http://127.0.0.1:{metrics_port(self.port + 1, name)}/metrics"

    def measure_idle(self, seconds: float) -> None:
        """Measure `idle` for that time, and `scrape_s` for the same time again."""
        observed = [name for name in NAMES if name != "off"]
        self.idle, _ = self._rates(seconds)
        with scraped([self.page(name) for name in observed]) as scrapes_ms:
            rates, took = self._rates(seconds)
        for name in observed:
            pid = self.gateways[name]
            self.scrape_s[name] = (rates[pid] - self.idle[pid]) * took / (len(scrapes_ms) / len(observed))

    def cost(self, load: Load, name: str, settle_s: float) -> tuple[Sample, float, float]:
        """Run `load`; return the CPU seconds of the gateway, and of all processes on the request path.

        Metrics are scraped meanwhile; scraping and idle CPU time are subtracted.
        """
        before = self.system.cpu()
        with scraped([self.page(name)] if name != "off" else []) as scrapes_ms:
            sample = run(load)
            time.sleep(settle_s)
        after = self.system.cpu()
        took = after.moment - before.moment
        spent = {
            pid: used - before.used.get(pid, ("", used))[1] - self.idle.get(pid, 0.0) * took
            for pid, (role, used) in after.used.items()
            if not role.startswith(BACKGROUND)
        }
        own, others = self.gateways[name], set(self.gateways.values()) - {self.gateways[name]}
        spent[own] -= self.scrape_s.get(name, 0.0) * len(scrapes_ms)
        return sample, spent[own], sum(seconds for pid, seconds in spent.items() if pid not in others)

    def _rates(self, seconds: float) -> tuple[dict[int, float], float]:
        """CPU seconds per second by process for `seconds` from now, and how long it was."""
        before = self.system.cpu()
        time.sleep(seconds)
        after = self.system.cpu()
        took = after.moment - before.moment
        used = {pid: used - before.used.get(pid, ("", used))[1] for pid, (_, used) in after.used.items()}
        return {pid: one / took for pid, one in used.items()}, took


def measure(size: Size) -> dict[str, Any]:
    """Measure all starts and rounds, gateways interleaved at each point. Returns the result document without the machine."""
    real = load("overhead-engine")
    if real is None:
        raise NotStarted("there is no result of 'python -m benchmarks.overhead.gateway engine' to set this against")
    loads = points(size)
    paced_s = size.tokens * 0.02 + 1
    round_s = len(NAMES) * (3 * (size.seconds + 0.5) + paced_s) + FLUSH_S
    steps = [("start", START_S + 2 * size.idle_s), *[("round", round_s)] * size.rounds] * size.starts
    progress = Progress(steps)
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    scrapes: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES if name != "off"}
    for start in range(size.starts):
        progress.step(f"start {start + 1} of {size.starts}, and what it uses idle")
        with _platform() as platform:
            for name in NAMES:
                run(Load(platform.url(name), body(SHORT), 32, count=200))
                run(Load(platform.url(name), body(SHORT, "now"), 8, count=16))
            platform.measure_idle(size.idle_s)
            for name, found in scrapes.items():
                page = httpx.get(platform.page(name))
                found.append(
                    {
                        "cpu_ms": platform.scrape_s[name] * 1000,
                        "took_ms": page.elapsed.total_seconds() * 1000,
                        "page_kb": len(page.content) / 1000,
                    }
                )
            for i in range(size.rounds):
                progress.step(f"start {start + 1}, round {i + 1} of {size.rounds}")
                turn = i % len(NAMES)
                for name, record in _round(platform, loads, size, (*NAMES[turn:], *NAMES[:turn])).items():
                    records[name].append(record)
    systems = summary(records, loads)
    costs = {name: {key: spread([one[key] for one in found], 2) for key in found[0]} for name, found in scrapes.items()}
    return {
        "size": dataclasses.asdict(size),
        "points": {name: dataclasses.asdict(point) for name, point in loads.items()},
        "scrape_each_s": EACH_S,
        "aim": AIM,
        "systems": systems,
        "scrapes": costs,
        "real": {name: shares(systems[name], costs[name]["cpu_ms"]["median"], real) for name in costs},
    }


@contextmanager
def _platform() -> Iterator[Platform]:
    """Start the mock engine, the four gateways before it, and the collector. Raises `NotStarted`."""
    port, *more = free_ports(20)
    collector = f"http://127.0.0.1:{more[-1]}"
    sink = System("collector", python("-m", "benchmarks.lib.otlp_sink", "--port", str(more[-1])))
    flags = ["--port", str(port), "--side-by-side", collector]
    system = System("gateways", python("-m", "benchmarks.systems.mock_engine_platform", *flags))
    with sink, system:
        sink.wait(lambda: httpx.get(collector).status_code == 200, 30)
        platform = Platform(system, port, collector, {})
        for name in NAMES:
            system.wait(lambda name=name: answers(platform.url(name)), 180)
        apps = {replica_app(process.cmdline()): process.pid for process in system.processes()}
        platform.gateways.update({name: apps[f"gateway-{name}"] for name in NAMES})
        yield platform


def _round(
    platform: Platform, points_by_name: Mapping[str, Point], size: Size, order: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """Measure every point once at every gateway, one right after the other."""
    found: dict[str, dict[str, Any]] = {name: {} for name in order}
    httpx.get(platform.collector)  # counts from here
    requests = 0
    for what, point in points_by_name.items():
        for name in order:
            settle_s = FLUSH_S if name == "traces" and what == "paced" else 0.2
            sample, own_s, whole_s = platform.cost(point.load(platform.url(name), size.seconds), name, settle_s)
            requests += sample.requests if name == "traces" else 0
            counted = sample.requests * (point.tokens if point.by_token else 1)
            found[name][what] = {
                "per_s": counted / sample.elapsed_s,
                "p50_ms": statistics.median(sample.first_ms),
                "gateway_us": own_s / counted * 1e6,
                "whole_us": whole_s / counted * 1e6,
                "client_share": sample.client_share,
            }
    arrived = httpx.get(platform.collector, timeout=60).json()
    found["traces"]["arrived"] = arrived["traces"] / requests
    return found


def summary(records: Mapping[str, list[dict[str, Any]]], points_by_name: Mapping[str, Point]) -> dict[str, Any]:
    """Medians and spread over the rounds, of each number and of its difference from `off` in the same round.

    `token_us` excludes the fixed part of a request: `request_us` divided by the stream's tokens is subtracted.
    """
    systems: dict[str, Any] = {}
    for name, found in records.items():
        pairs = list(zip(found, records["off"], strict=True))
        system: dict[str, Any] = {"points": {}}
        for point in points_by_name:
            rows = [(one[point], base[point]) for one, base in pairs]
            system["points"][point] = {
                **{key: spread([row[key] for row, _ in rows], 3) for key in rows[0][0]},
                "per_s_ratio": spread([row["per_s"] / base["per_s"] for row, base in rows], 4),
                "added_us": spread([row["gateway_us"] - base["gateway_us"] for row, base in rows], 2),
                "added_p50_ms": spread([row["p50_ms"] - base["p50_ms"] for row, base in rows], 3),
            }
        once = [one["unary"]["gateway_us"] - base["unary"]["gateway_us"] for one, base in pairs]
        each = [one["paced"]["gateway_us"] - base["paced"]["gateway_us"] for one, base in pairs]
        system["request_us"] = spread(once, 1)
        system["token_us"] = spread(
            [all_us - request / points_by_name["paced"].tokens for all_us, request in zip(each, once, strict=True)], 2
        )
        if "arrived" in found[0]:
            system["traces_arrived"] = spread([one["arrived"] for one in found], 3)
        systems[name] = system
    return systems


def shares(added: Mapping[str, Any], scrape_ms: float, real: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The added time relative to real requests' time, by the number of streams: computed, not measured.

    `time`: as if the client waited for all the added CPU time of a request. `cpu`: of all cores at that rate of
    requests, with a scrape each `USUAL_SCRAPE_S`. A negative median is noise around zero, and counts as zero.
    """
    request_us, token_us = (max(added[key]["median"], 0.0) for key in ("request_us", "token_us"))
    cores, found = real["machine"]["cores"], {}
    for shape in real["shape"]:
        point, tokens = real["systems"]["gearbox"][str(shape["streams"])], shape["output_tokens"]
        ttft_us, tpot_us = (point[key]["median"] * 1000 for key in ("ttft_p50_ms", "tpot_p50_ms"))
        took_us, added_us = ttft_us + (tokens - 1) * tpot_us, request_us + tokens * token_us
        rate = point["tokens_per_s"]["median"] / tokens
        found[str(shape["streams"])] = {
            "request_ms": round(took_us / 1000, 1),
            "tokens": tokens,
            "added_us": round(added_us, 1),
            "of_ttft": request_us / ttft_us,
            "of_token": token_us / tpot_us,
            "time": added_us / took_us,
            "cpu": (added_us * rate / 1e6 + max(scrape_ms, 0.0) / 1000 / USUAL_SCRAPE_S) / cores,
        }
    return found


def worst(by_streams: Mapping[str, Mapping[str, float]]) -> float:
    """The largest share of a real request's time or of the cores."""
    return max(row[key] for row in by_streams.values() for key in ("time", "cpu"))


def summary_text(result: Mapping[str, Any]) -> str:
    """Summary of the result in a few lines, with its verdict."""
    lines = []
    for name, system in result["systems"].items():
        if name == "off":
            continue
        share = worst(result["real"][name])
        verdict = "under" if share < result["aim"] else "NOT under"
        lines.append(
            f"{name:8} {system['request_us']['median']:+7.1f} µs a request, {system['token_us']['median']:+6.2f} µs a token, "
            f"{system['points']['first']['added_p50_ms']['median']:+.3f} ms to the first, "
            f"{system['points']['unary']['per_s_ratio']['median']:.3f} of the requests/s, "
            f"{result['scrapes'][name]['cpu_ms']['median']:.1f} ms a scrape; "
            f"at most {share:.3%} of a real request (computed): {verdict} {result['aim']:.0%}"
        )
    arrived = result["systems"]["traces"]["traces_arrived"]
    lines.append(f"{arrived['median']:.1%} of the traces arrived, in the worst round {arrived['min']:.1%}")
    return "\n".join(lines)


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", action="store_true", help="on the real engine: off and everything, in turn")
    parser.add_argument("--quick", action="store_true", help="once, and short: shows that it works, proves nothing")
    parser.add_argument("--rounds", type=int, help="over all gateways, in each start")
    parser.add_argument("--config", type=Path, default=CONFIG, help="engine arguments, for --engine")
    parser.add_argument("--weights", type=Path, help="folder of `full`, for --engine; else the one 'gearbox up' built")
    args = parser.parse_args()
    with command((NotStarted, LoadError, NoWeights), "everything that was started is stopped"):
        if args.engine:
            shape = overhead_engine.QUICK if args.quick else overhead_engine.FULL
            shape = dataclasses.replace(shape, rounds=args.rounds or shape.rounds)
            result = overhead_engine.measure(shape, args.config, args.weights)
            print(overhead_engine.summary_text(result))
            save("observing-engine", result)
        else:
            size = QUICK if args.quick else FULL
            result = measure(dataclasses.replace(size, rounds=args.rounds or size.rounds))
            print(summary_text(result))
            save("observing", result)
            plots.observing(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
