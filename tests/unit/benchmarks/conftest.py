"""Fixtures of the benchmarks' tests: a small OpenAI server as a system under faults."""

import subprocess
from collections.abc import AsyncIterator, Iterator

import aiohttp
import psutil
import pytest

from benchmarks.cluster.fault_run import Bench
from benchmarks.cluster.fault_systems import Site
from tests.support.greedy_engine import EMBEDDINGS, GROUNDED, STREAM, UNARY, GreedyEngine


class Victims:
    """A process that a loop starts again, as the platform does with its engines."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.ended = False

    def find(self) -> dict[str, list[psutil.Process]]:
        if not self.ended and (not self.processes or self.processes[-1].poll() is not None):
            self.processes.append(subprocess.Popen(["sleep", "60"]))
        return {"engine core": [psutil.Process(self.processes[-1].pid)]}

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
async def engine() -> AsyncIterator[GreedyEngine]:
    engine = GreedyEngine()
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
async def session(engine: GreedyEngine) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(engine.url) as session:
        yield session


@pytest.fixture
def site(engine: GreedyEngine) -> Iterator[Site]:
    victims = Victims()
    pinned = {"full": "m:full", "int8": "m:int8"}
    yield Site("gearbox", engine.url, {}, (STREAM, UNARY, GROUNDED, EMBEDDINGS), victims.find, pinned, 2, grounds=True)
    victims.end()


@pytest.fixture
def bench(site: Site, session: aiohttp.ClientSession) -> Bench:
    """Some requests a second, and patience for a moment."""
    return Bench(site, session, 30.0, prompts=2, patience_s=5.0)
