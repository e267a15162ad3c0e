"""Soak and overload of a platform: what its gateway and supervisor use over time, and whether it stays bounded."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from benchmarks.cluster.fault_load import OUTCOMES, Record, first_success
from benchmarks.cluster.fault_run import Bench, strike
from benchmarks.cluster.fault_schedule import Fault
from benchmarks.cluster.fault_systems import Site
from benchmarks.lib.memory_slope import slope
from serve.telemetry.prometheus_text import parse

INTERVAL_S = 120.0  # of a soak, with one fault each
#: Killed, these take the connections with them that they have: nothing behind them can save a request. `faults` without `--soak`
#: kills them.
NOT_IN_SOAK = ("kill gateway", "kill haproxy")
FACTOR = 5.0  # of an overload, of what saturates the platform
RECOVERY_S = 10.0  # the aim
BOUNDED = 1.1  # median of the last third over that of the second: up to this, it does not grow
MEASURES = ("rss_mb", "fds", "sockets", "threads", "in_flight", "waiting")
WARM_UP = 0.2  # of a soak: until caches, connections and the allocator's pools are filled
_QUEUES = {"in_flight": "gearbox_requests_in_flight", "waiting": "gearbox_admission_requests_waiting"}
_SAMPLE_S, _IDLE_S, _PATIENCE_S = 1.0, 10.0, 120.0

Sample = dict[str, Any]  # `at_s`, `pids` by role, and MEASURES by role or in total


@dataclass
class Sampler:
    """Samples of a platform's processes and queues."""

    site: Site
    samples: list[Sample] = field(default_factory=list)
    every_s: float = _SAMPLE_S

    @asynccontextmanager
    async def running(self, session: aiohttp.ClientSession) -> AsyncIterator[None]:
        """Sample in the background. An error ends the samples and is raised at the end."""
        task = asyncio.create_task(self._run(session))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self, session: aiohttp.ClientSession) -> None:
        supervisor = [psutil.Process(self.site.supervisor)] if self.site.supervisor else []
        while True:
            started = time.monotonic()
            roles = {"gateway": (await asyncio.to_thread(self.site.find))["gateway"], "supervisor": supervisor}
            sample = {"at_s": round(time.time(), 2), **used(roles), **await self._queues(session)}
            self.samples.append(sample)
            await asyncio.sleep(max(self.every_s - (time.monotonic() - started), 0.1))

    async def _queues(self, session: aiohttp.ClientSession) -> dict[str, float]:
        if self.site.metrics_url is None:
            return {}
        with suppress(aiohttp.ClientError, TimeoutError, ValueError):
            async with asyncio.timeout(5), session.get(f"{self.site.metrics_url}/metrics") as response:
                page = parse(await response.text(), tuple(_QUEUES.values()))
                return {name: sum(page.get(metric, {}).values()) for name, metric in _QUEUES.items()}
        return {}


def used(roles: Mapping[str, Sequence[psutil.Process]]) -> dict[str, Any]:
    """What the processes of each role use together, by measure and role; their pids by role."""
    found: dict[str, Any] = {"pids": {}, **{name: {} for name in ("rss_mb", "fds", "sockets", "threads")}}
    for role, processes in roles.items():
        for process in processes:
            with suppress(psutil.NoSuchProcess, OSError):
                rss, fds = process.memory_info().rss / 1e6, list(_descriptors(process.pid))
                threads = process.num_threads()
                found["pids"].setdefault(role, []).append(process.pid)
                values = (("rss_mb", rss), ("fds", len(fds)), ("sockets", sum(fds)), ("threads", threads))
                for name, value in values:
                    found[name][role] = round(found[name].get(role, 0) + value, 3)
    return found


def _descriptors(pid: int) -> Iterator[bool]:
    """For every open file of a process: whether it is a socket."""
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            yield str(file.readlink()).startswith("socket:")


async def soak_interval(bench: Bench, fault: Fault, number: int, sampler: Sampler) -> dict[str, Any]:
    """One interval of a soak: load, a fault, the recovery, load until the interval is over. Returns a row for the journal."""
    started = time.monotonic()
    async with sampler.running(bench.session):
        row = await strike(bench, fault, f"soak {number}")
        left = INTERVAL_S - (time.monotonic() - started)
        rest = await strike(bench, None, f"soak {number} after", seconds=max(left, 0.0))
    samples, sampler.samples = sampler.samples, []
    return {"after": {key: rest[key] for key in ("requests", "problems", "tokens")}, "samples": samples, **row}


def memory(samples: Sequence[Sample], role: str) -> dict[str, Any] | None:
    """Slope of the memory of `role` after the warm-up, MB an hour, with its 95% interval; None with too few samples.

    Of the processes that had that role at the longest, if they were replaced.
    """
    own = [one for one in samples if role in one["rss_mb"]]
    lives: dict[tuple[int, ...], list[Sample]] = {}
    for one in own:
        lives.setdefault(tuple(sorted(one["pids"][role])), []).append(one)
    if not lives:
        return None
    longest = max(lives.values(), key=len)
    begin = longest[0]["at_s"]
    warm = begin + WARM_UP * (longest[-1]["at_s"] - begin)
    found = slope([((one["at_s"] - begin) / 3600, one["rss_mb"][role]) for one in longest if one["at_s"] >= warm])
    if found is None:
        return None
    return {
        "mb_per_h": round(found.slope, 3),
        "ci95": [round(found.low, 3), round(found.high, 3)],
        "hours": round((longest[-1]["at_s"] - begin) / 3600, 3),
        "points": found.points,
        "processes": len(lives),
    }


async def overload(bench: Bench, seconds: float, sampler: Sampler) -> dict[str, Any]:
    """`FACTOR` times load 1 for `seconds`; then the time until a new request is answered as fast as before."""
    counts, site = dict.fromkeys(OUTCOMES, 0), bench.site

    def on_record(record: Record) -> None:
        counts[record.outcome] += 1

    async with sampler.running(bench.session):
        await asyncio.sleep(_IDLE_S)
        idle_s = await _answer_time(bench)
        started = time.time()
        load = bench.load("overload", FACTOR * bench.per_s)
        load.on_record = on_record
        async with load:
            await asyncio.sleep(seconds)
        ended = time.time()
        limit_s = max(3 * idle_s, 1.0)

        async def as_before() -> bool:
            begun = time.monotonic()
            return await site.answers(bench.session) and time.monotonic() - begun <= limit_s

        recovered_s = await first_success(as_before, 0.25, _PATIENCE_S)
        await load.finish()
        await asyncio.sleep(_IDLE_S)
    under = [one for one in sampler.samples if started <= one["at_s"] <= ended]
    return {
        "per_s": round(FACTOR * bench.per_s, 2),
        "seconds": round(ended - started, 1),
        "requests": counts,
        "idle_answer_s": round(idle_s, 3),
        "recovered_s": round(_PATIENCE_S if recovered_s is None else recovered_s, 2),
        "bounds": {name: bound for name in MEASURES if (bound := growth(under, name)) is not None},
        "samples": [{key: value for key, value in one.items() if key != "pids"} for one in sampler.samples],
        "began_s": started,
        "ended_s": ended,
    }


async def _answer_time(bench: Bench) -> float:
    times = []
    for _ in range(5):
        begun = time.monotonic()
        await bench.site.answers(bench.session)
        times.append(time.monotonic() - begun)
    return statistics.median(times)


def growth(samples: Sequence[Sample], name: str) -> dict[str, float] | None:
    """Largest value of a measure under load, all roles together, and its growth: the last third's median over the second's.

    The first third is the time in which queues and connections fill. None with fewer than nine samples.
    """
    values = [
        sum(one[name].values()) if isinstance(one[name], Mapping) else one[name] for one in samples if name in one
    ]
    third = len(values) // 3
    if third < 3:
        return None
    second, last = statistics.median(values[third:-third]), statistics.median(values[-third:])
    ratio = last / second if second else (1.0 if last == 0 else float(last))
    return {"max": round(max(values), 2), "growth": round(ratio, 3)}
