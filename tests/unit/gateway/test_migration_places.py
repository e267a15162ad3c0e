"""The bound on how many continued streams read their prompts at a time."""

import asyncio

import pytest

from benchmarks.lib.sample_catalog import make_config, make_live_variant
from serve.gateway import migration as module
from serve.gateway.continuation import NotContinuable
from serve.gateway.migration import MIN_READING, SHARE, Migration
from serve.telemetry.metrics import Metrics


def migration(in_flight: int) -> Migration:
    variant = make_live_variant("full", load=in_flight)
    return Migration(make_config(), {"full": variant}, None, None, Metrics())  # type: ignore[arg-type]


@pytest.mark.parametrize(("in_flight", "places"), [(0, MIN_READING), (100, round(100 * SHARE))])
async def test_a_share_of_the_requests_in_flight_reads_at_a_time(in_flight, places):
    continued = migration(in_flight)
    held = [await continued._place() for _ in range(places)]
    waiting = [asyncio.create_task(continued._place()) for _ in range(2)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    held[0]()
    held[0]()  # gives one place back, however often it is called
    await asyncio.sleep(0.01)
    assert [task.done() for task in waiting] == [True, False], "in order"
    waiting[0].result()()
    await asyncio.sleep(0.01)
    assert waiting[1].done()


async def test_one_whose_client_has_gone_takes_no_place():
    continued = migration(0)
    held = [await continued._place() for _ in range(MIN_READING)]
    gone, next_one = (asyncio.create_task(continued._place()) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    held[0]()
    await asyncio.wait_for(next_one, 1)


async def test_one_whose_client_goes_at_its_turn_passes_it_on():
    continued = migration(0)
    held = [await continued._place() for _ in range(MIN_READING)]
    gone, next_one = (asyncio.create_task(continued._place()) for _ in range(2))
    await asyncio.sleep(0)
    held[0]()
    gone.cancel()
    await asyncio.wait_for(next_one, 1)


async def test_the_wait_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "WAIT_S", 0.01)
    continued = migration(0)
    for _ in range(MIN_READING):
        await continued._place()
    with pytest.raises(NotContinuable, match="too many"):
        await continued._place()
