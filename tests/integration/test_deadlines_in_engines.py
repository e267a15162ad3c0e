"""A full engine with priority scheduling: the request that is due first gets the next place in the batch."""

import asyncio

import pytest

from serve.budget import BEST_EFFORT_WAIT_MS
from tests.support.platform import Platform

pytestmark = pytest.mark.platform
BATCH = 32  # `max_num_seqs` of deployments/local.yaml


async def test_an_urgent_request_overtakes_patient_ones_at_a_full_engine(platform: Platform) -> None:
    client, answered = platform.async_client(), []

    async def ask(name: str, tokens: int, **body: object) -> None:
        extra = {"ignore_eos": True, **body}
        await client.completions.create(
            model=f"{platform.model}:distilled", prompt="Once upon a time", max_tokens=tokens, extra_body=extra
        )
        answered.append(name)

    def load() -> float:
        return platform.running_in_engine("distilled")

    async def wait_for(requests: int) -> None:
        async with asyncio.timeout(30):
            while await asyncio.to_thread(load) < requests:
                await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as group:
        # of different lengths, so that places become free one after another
        running = [group.create_task(ask("running", 100 + 10 * i)) for i in range(BATCH)]
        await wait_for(BATCH)
        patient = [group.create_task(ask("patient", 1)) for _ in range(5)]
        await wait_for(BATCH + len(patient))
        # due before the patient ones although it comes later
        await ask("urgent", 1, budget={"ttft_ms": BEST_EFFORT_WAIT_MS / 2})
        jumped = [task for task in patient if task.done()]
        for task in (*running, *patient):
            task.cancel()
    assert not jumped, f"answered in this order: {answered}"


async def test_a_clients_own_priority_does_not_reach_the_engine(platform: Platform) -> None:
    """Which refuses one that is no number."""
    body = {"model": platform.model, "prompt": "hello", "max_tokens": 1, "priority": "first"}
    with platform.http() as http:
        assert (await asyncio.to_thread(http.post, "/v1/completions", json=body)).status_code == 200
