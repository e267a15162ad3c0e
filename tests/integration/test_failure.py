"""Client disconnects, engine failures and overload, with real engines that are killed."""

import asyncio
import contextlib

import httpx
import openai
import pytest

from tests.support.platform import KEYS, Platform, engine_processes
from tests.support.waiting import eventually

pytestmark = pytest.mark.platform
LONG = [{"role": "user", "content": "Count from one to one thousand in words, without leaving any number out."}]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_stops_its_generation(platform: Platform, stream: bool) -> None:
    def running() -> float:
        return platform.running_in_engine("full")

    assert await asyncio.to_thread(running) == 0
    body = {
        "model": f"{platform.model}:full",
        "messages": LONG,
        "max_tokens": 1500,
        "ignore_eos": True,
        "stream": stream,
    }
    headers = {"authorization": f"Bearer {KEYS['alice']['key']}"}
    async with httpx.AsyncClient(base_url=platform.url, headers=headers, timeout=120) as http:
        request = asyncio.create_task(http.post("/v1/chat/completions", json=body))
        await asyncio.to_thread(eventually, lambda: running() == 1, 15, "the engine runs the request")
        request.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await request
        # the whole answer would take the engine more than 20 s
        await asyncio.to_thread(eventually, lambda: running() == 0, 5, "the engine gave the request up")


async def test_a_killed_replica_under_load_costs_nobody_their_answer(platform: Platform) -> None:
    """Streams that had begun at the killed engine go on at another variant, as all else that would have gone there."""
    outcomes: list[str] = []
    streaming = asyncio.Event()

    async def ask(client: openai.AsyncOpenAI) -> None:
        try:
            stream = await client.chat.completions.create(
                model=f"{platform.model}@best", messages=LONG, max_tokens=24, stream=True
            )
            async for chunk in stream:
                last = chunk
                streaming.set()
            outcomes.append(last.model_extra["gearbox"]["variant"])
        except openai.APIStatusError as error:
            outcomes.append(f"status {error.status_code}: {error.message}")
        except openai.APIError as error:
            outcomes.append(f"interrupted: {error.message}")

    async with platform.async_client() as client:
        engine = await asyncio.to_thread(engine_processes, platform, "full")
        load = [asyncio.create_task(ask(client)) for _ in range(6)]
        await asyncio.wait_for(streaming.wait(), 60)
        for process in engine:
            process.kill()
        for _ in range(12):
            load.append(asyncio.create_task(ask(client)))
            await asyncio.sleep(0.15)
        await asyncio.wait_for(asyncio.gather(*load), 120)
    failed = [outcome for outcome in outcomes if outcome.startswith(("interrupted", "status"))]
    assert not failed, failed
    assert outcomes.count("int8") >= 9, outcomes  # one request in a hundred explores another variant


def test_a_pinned_request_is_not_moved(platform: Platform) -> None:
    """Runs right after the engine of `full` was killed: 503 in shape, at once, until Serve has restarted it."""
    with platform.http() as http:
        body = {"model": f"{platform.model}:full", "messages": LONG, "max_tokens": 2}
        response = http.post("/v1/chat/completions", json=body)
        if response.status_code != 200:
            assert response.status_code == 503
            assert response.json()["error"]["code"] in ("no_healthy_variant", "engine_unavailable")
        eventually(lambda: http.post("/v1/chat/completions", json=body).status_code == 200, 180, "full is back")


async def test_overload_is_refused_with_a_time_to_retry(platform: Platform) -> None:
    """One variant takes 32 running and 8 waiting requests here; the rest must not pile up."""
    body = {"model": f"{platform.model}:distilled", "messages": LONG, "max_tokens": 48, "ignore_eos": True}
    headers = {"authorization": f"Bearer {KEYS['bob']['key']}"}
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=platform.url, headers=headers, timeout=120, limits=limits) as http:
        answers = await asyncio.gather(*(http.post("/v1/chat/completions", json=body) for _ in range(56)))
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 429} and codes.count(200) >= 40, codes
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "overloaded" and int(refused.headers["retry-after"]) >= 1
