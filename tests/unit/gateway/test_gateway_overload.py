"""What a gateway holds does not grow with the number of requests that it refuses, nor with clients that leave."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Iterator

import aiohttp
import psutil
import pytest

from benchmarks.lib.sample_catalog import MODEL, make_live_variant, make_profile
from serve.request.call import Call
from tests.support.gateway_server import GatewayServer, Start, Started
from tests.support.waiting import eventually

PLACES, QUEUE = 8, 8
MIB = 1 << 20
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "gears " * 2000}], "budget": {"tpot_ms": 60}}


@pytest.fixture
def small(start_gateway: Start) -> Iterator[Started]:
    """One engine with a few places, which holds its answers until the end."""
    profile = make_profile([(100, 1, 100)], [(1, 20), (8, 160)])
    variant = make_live_variant("full", profile=profile, max_running=PLACES, max_waiting=QUEUE)
    gateway = start_gateway(variants=[variant])
    gateway.engines["full"].behaviour = "hold"
    yield gateway
    gateway.engines["full"].let_go()


def calls() -> int:
    """Requests that are still in memory."""
    gc.collect()
    return sum(isinstance(one, Call) for one in gc.get_objects())


async def flood(gateway: Started, requests: int, connections: int) -> AsyncIterator[int]:
    """Statuses of so many requests; every third client leaves after 50 ms."""
    connector = aiohttp.TCPConnector(limit=connections)
    numbers = iter(range(requests))
    async with aiohttp.ClientSession(gateway.url, connector=connector) as session:

        async def client() -> list[int]:
            statuses = []
            for number in numbers:
                body = {**BODY, "stream": number % 2 == 0}
                seconds = 0.05 if number % 3 == 0 else 60
                try:
                    timeout = aiohttp.ClientTimeout(total=seconds)
                    async with session.post("/v1/chat/completions", json=body, timeout=timeout) as response:
                        await response.read()
                        statuses.append(response.status)
                except TimeoutError:
                    statuses.append(0)
            return statuses

        for statuses in await asyncio.gather(*(client() for _ in range(connections))):
            for status in statuses:
                yield status


@pytest.mark.slow
async def test_memory_and_tasks_return_after_5000_requests_from_500_connections(small: Started, _server: GatewayServer):
    engine, queue = small.engines["full"], small.app._admission._queue
    process = psutil.Process()
    most = {"waiting": 0, "engine": 0}

    async def watch() -> None:
        while True:
            most["waiting"] = max(most["waiting"], len(queue))
            most["engine"] = max(most["engine"], engine.running)
            await asyncio.sleep(0.01)

    async def round_of(requests: int) -> list[int]:
        engine.hold.clear()
        letting_go = asyncio.get_running_loop().call_later(2, engine.let_go)
        statuses = [status async for status in flood(small, requests, 500)]
        letting_go.cancel()
        engine.let_go()
        await asyncio.to_thread(small.settle)
        return statuses

    watching = asyncio.create_task(watch())
    await round_of(1000)  # allocators and caches reach their size
    before = process.memory_info().rss, len(asyncio.all_tasks(_server._loop)), calls()
    statuses = await round_of(5000)
    watching.cancel()
    assert len(statuses) == 5000
    assert set(statuses) <= {0, 200, 429}, set(statuses)
    assert statuses.count(429) > 2000
    assert 0 < most["waiting"] <= QUEUE and most["engine"] <= PLACES + QUEUE
    tasks = before[1]
    eventually(lambda: len(asyncio.all_tasks(_server._loop)) <= tasks + 5, 10, "the tasks have ended")
    eventually(lambda: len(_server._uvicorn.server_state.connections) <= 5, 10, "the connections are closed")
    assert calls() <= before[2], "no request is held"
    assert process.memory_info().rss - before[0] < 30 * MIB, "of 60 MB of bodies"


def test_an_answer_that_came_sooner_than_predicted_is_not_held_back(start_gateway: Start):
    profile = make_profile([(100, 1, 100_000)], [(1, 20)])
    gateway = start_gateway(variants=[make_live_variant("full", profile=profile)])
    before = calls()
    response = gateway.post("/v1/chat/completions", {**BODY, "messages": [{"role": "user", "content": "hello"}]})
    assert json.loads(response.content)["gearbox"]["predicted"]["ttft_ms"] > 50_000
    gateway.settle()
    assert calls() == before
