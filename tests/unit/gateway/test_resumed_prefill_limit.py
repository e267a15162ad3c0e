"""The turns of continued streams to have their prompts read again: how many at a time, in which order, and no wait without end."""

import asyncio
from collections.abc import Callable

import pytest

from serve.gateway import resumed_prefill_limit as module
from serve.gateway.resumed_prefill_limit import ResumedPrefillLimit

Turn = asyncio.Task[Callable[[], None]]


class Places:
    """How many may read now."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self) -> int:
        return self.most


async def begun(*turns: Turn) -> list[bool]:
    for _ in range(5):
        await asyncio.sleep(0)
    return [turn.done() for turn in turns]


def waiting(turns: ResumedPrefillLimit, *due: float) -> list[Turn]:
    return [asyncio.create_task(turns.acquire(at)) for at in due]


async def test_those_that_should_go_on_first_are_read_first():
    turns = ResumedPrefillLimit(Places(1))
    release = await turns.acquire(9.0)
    late, soon, also_soon = waiting(turns, 3.0, 1.0, 1.0)
    assert await begun(late, soon, also_soon) == [False, False, False]
    release()
    release()  # gives one turn back, however often it is called
    assert await begun(late, soon, also_soon) == [False, True, False]
    soon.result()()
    assert await begun(late, also_soon) == [False, True]
    also_soon.result()()
    assert await begun(late) == [True]


async def test_where_more_may_read_more_do():
    places = Places(1)
    turns = ResumedPrefillLimit(places)
    release = await turns.acquire(0.0)
    waits = waiting(turns, 1.0, 2.0, 3.0, 4.0)
    await begun(*waits)
    places.most = 3
    release()
    assert await begun(*waits) == [True, True, True, False]


async def test_one_whose_client_has_gone_takes_no_turn():
    turns = ResumedPrefillLimit(Places(1))
    release = await turns.acquire(0.0)
    gone, next_one = waiting(turns, 1.0, 2.0)
    await begun(gone)
    gone.cancel()
    await begun(gone)
    release()
    assert await begun(next_one) == [True]


async def test_one_whose_client_goes_at_its_turn_passes_it_on():
    turns = ResumedPrefillLimit(Places(1))
    release = await turns.acquire(0.0)
    gone, next_one = waiting(turns, 1.0, 2.0)
    await begun(gone)
    release()
    gone.cancel()
    assert await begun(next_one) == [True]


async def test_after_a_while_one_is_read_without_a_turn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "WAIT_S", 0.01)
    turns = ResumedPrefillLimit(Places(1))
    held = await turns.acquire(0.0)
    beyond = await turns.acquire(1.0)
    monkeypatch.setattr(module, "WAIT_S", 60.0)
    (next_one,) = waiting(turns, 2.0)
    held()
    assert await begun(next_one) == [False], "one still reads"
    beyond()
    assert await begun(next_one) == [True]
