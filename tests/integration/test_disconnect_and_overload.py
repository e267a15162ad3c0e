"""Clients that leave, and overload, with real engines; see `tests/e2e/test_migration.py` for engines that are killed."""

import asyncio
import contextlib

import httpx
import pytest

from tests.support.platform import KEYS, Platform
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
