"""Gateway overhead on a mock engine, part (b): requests to it bare, behind Gearbox, and behind LiteLLM's proxy.

Measures only the request path: requests per second, and the CPU time of every process on it.
"""

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.lib.load_generator import Load, Sample, run
from benchmarks.lib.processes import BACKGROUND, NotStarted, System, free_ports, python
from benchmarks.reporting.results import Progress, spread
from benchmarks.systems import litellm_proxy
from benchmarks.systems.engine_systems import PYTHON_PROXY
from benchmarks.systems.mock_engine import answers, body

CONNECTIONS = (1, 8, 32)
STREAMS = 32
#: How streams are paced, in the syntax of `benchmarks.systems.mock_engine`. A token each 50 ms is a human reading speed.
PACES = {"step": "step 50", "scatter": "scatter 50", "saturated": "now"}
AIMS_US = {"unary": 1200, "token": 100}


@dataclass(slots=True, frozen=True)
class Size:
    """How long each part takes."""

    repeats: int
    seconds: float  # of each unary point
    idle_s: float
    tokens: int  # of each stream
    waves: int  # streams one after another on each connection


QUICK = Size(repeats=1, seconds=2, idle_s=2, tokens=40, waves=1)
FULL = Size(repeats=3, seconds=3, idle_s=6, tokens=100, waves=1)


@dataclass(slots=True)
class Target:
    """A started system, and the processes on a request's path."""

    name: str
    url: str
    systems: tuple[System, ...]

    def cpu_during(self, load: Load, idle: Mapping[str, float]) -> tuple[Sample, dict[str, float]]:
        """Run `load`; return its CPU seconds by role, minus the idle use."""
        before = [system.cpu() for system in self.systems]
        sample = run(load)
        time.sleep(0.2)  # for the telemetry recorded after the last answer
        after = [system.cpu() for system in self.systems]
        used: dict[str, float] = {}
        for first, last in zip(before, after, strict=True):
            for role, seconds in last.since(first).items():
                used[role] = used.get(role, 0.0) + seconds - idle.get(role, 0.0) * (last.moment - first.moment)
        return sample, used

    def idle(self, seconds: float) -> dict[str, float]:
        """CPU seconds per second by role without requests."""
        before = [system.cpu() for system in self.systems]
        time.sleep(seconds)
        rates: dict[str, float] = {}
        for system, first in zip(self.systems, before, strict=True):
            last = system.cpu()
            for role, used in last.since(first).items():
                rates[role] = rates.get(role, 0.0) + used / (last.moment - first.moment)
        return rates


def measure(size: Size) -> dict[str, object]:
    """Measure all systems, interleaved; at the end, once, Gearbox over handles and over Ray's Python proxy.

    Returns the result document without the machine.
    """
    notes: list[str] = []
    baseline = _litellm_available(notes)
    names = ["bare", "gearbox", *(["litellm"] if baseline else [])]
    once = ["gearbox-over-handle", "gearbox-python-proxy"]
    point_s = size.seconds * len(CONNECTIONS) + size.tokens * 0.05 * size.waves * 2 + 4
    steps = [("start", 45.0), *[(name, point_s + size.idle_s / size.repeats) for name in names * size.repeats]]
    progress = Progress([*steps, *[step for name in once for step in (("start", 30.0), (name, point_s + size.idle_s))]])
    records: dict[str, list[dict[str, object]]] = {name: [] for name in [*names, *once]}
    idle: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        progress.step(f"starting {', '.join(names)}")
        targets = dict(_start(stack, names))
        for name, target in targets.items():
            idle[name] = target.idle(size.idle_s)
        for i in range(size.repeats):
            order = names[i % len(names) :] + names[: i % len(names)]
            for name in order:
                progress.step(f"{name}, repeat {i + 1} of {size.repeats}")
                records[name].append(_measure_once(targets[name], idle[name], size))
    for name in once:
        with ExitStack() as stack:
            progress.step(f"starting {name}")
            try:
                target = dict(_start(stack, [name]))[name]
                idle[name] = target.idle(size.idle_s)
                progress.step(f"{name}, once")
                records[name].append(_measure_once(target, idle[name], size))
            except NotStarted as error:
                notes.append(str(error))
                del records[name]
    return {
        "size": {"repeats": size.repeats, "seconds": size.seconds, "tokens": size.tokens, "waves": size.waves},
        "litellm": litellm_proxy.version() if baseline else None,
        "aims_us": AIMS_US,
        "notes": notes,
        "systems": {name: _summary(repeats_of, records["bare"], idle[name]) for name, repeats_of in records.items()},
    }


def _litellm_available(notes: list[str]) -> bool:
    try:
        litellm_proxy.install()
    except litellm_proxy.NotInstalled as error:
        notes.append(f"LiteLLM could not be installed: {error}")
        print(notes[-1])
        return False
    return True


def _start(stack: ExitStack, names: list[str]) -> Iterator[tuple[str, Target]]:
    """Start systems one after another and check that each answers as the bare engine does."""
    first, *ports = free_ports(20)
    bare = System("bare", python("-m", "benchmarks.systems.mock_engine", "--port", str(first)))
    for name in names:
        port = {"bare": first, "litellm": ports[0]}.get(name, ports[1])
        if name == "bare":
            system = bare
        elif name == "litellm":
            system = litellm_proxy.proxy(port, f"http://127.0.0.1:{first}")
        else:
            env = PYTHON_PROXY if name == "gearbox-python-proxy" else {}
            flags = ["--over-handle"] if name == "gearbox-over-handle" else []
            system = System(
                name, python("-m", "benchmarks.systems.mock_engine_platform", "--port", str(port), *flags), env
            )
        stack.enter_context(system)
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        system.wait(lambda url=url: answers(url), 180)
        yield name, Target(name, url, (bare, system) if name == "litellm" else (system,))


def _measure_once(target: Target, idle: Mapping[str, float], size: Size) -> dict[str, object]:
    """Measure each unary and each streaming point once, after a warm-up."""
    run(Load(target.url, body(16), 32, count=200))
    run(Load(target.url, body(16, "now"), 8, count=16))
    record: dict[str, object] = {}
    for connections in CONNECTIONS:
        sample, used = target.cpu_during(Load(target.url, body(16), connections, seconds=size.seconds), idle)
        record[f"unary-{connections}"] = {
            "per_s": sample.per_s,
            "p50_ms": statistics.median(sample.latencies_ms),
            "p99_ms": statistics.quantiles(sample.latencies_ms, n=100)[98],
            "client_share": sample.client_share,
            "cpu_us": {role: seconds / sample.requests * 1e6 for role, seconds in used.items()},
        }
    for pace, words in PACES.items():
        load = Load(target.url, body(size.tokens, words), STREAMS, count=STREAMS * size.waves)
        sample, used = target.cpu_during(load, idle)
        tokens = sample.requests * size.tokens
        record[pace] = {
            "per_s": tokens / sample.elapsed_s,
            "p50_ms": statistics.median(sample.first_ms),
            "client_share": sample.client_share,
            "cpu_us": {role: seconds / tokens * 1e6 for role, seconds in used.items()},
        }
    return record


def _summary(
    records: list[dict[str, object]], bare: list[dict[str, object]], idle: Mapping[str, float]
) -> dict[str, object]:
    """Medians and spread over the repeats, and totals over the request path."""
    points: dict[str, object] = {}
    for point in records[0]:
        rows = [record[point] for record in records]
        bare_cpu = statistics.median(sum(record[point]["cpu_us"].values()) for record in bare)
        bare_p50 = statistics.median(record[point]["p50_ms"] for record in bare)
        roles = sorted({role for one in rows for role in one["cpu_us"]})
        on_way = [sum(us for role, us in one["cpu_us"].items() if not role.startswith(BACKGROUND)) for one in rows]
        total = [sum(one["cpu_us"].values()) for one in rows]
        points[point] = {
            "per_s": spread([one["per_s"] for one in rows], 1),
            "p50_ms": spread([one["p50_ms"] for one in rows], 3),
            "added_p50_ms": spread([one["p50_ms"] - bare_p50 for one in rows], 3),
            "client_share": spread([one["client_share"] for one in rows]),
            "cpu_us": {role: spread([one["cpu_us"].get(role, 0.0) for one in rows], 1) for role in roles},
            "on_the_way_us": spread(on_way, 1),
            "with_background_us": spread(total, 1),
            "added_us": spread([value - bare_cpu for value in on_way], 1),
        }
    return {"idle_cpu_share": {role: round(rate, 4) for role, rate in idle.items() if rate >= 0.0005}, "points": points}
