"""Half of the platform dies: its streams go on at the one replica that remains, none is lost, and new requests make room."""

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import pytest

from benchmarks.lib.sample_catalog import MODEL, make_config, make_live_variant
from serve.budget import Budget
from serve.gateway.migration import MAX_RESUMED_PREFILL_SHARE, MIN_RESUMED_PREFILLS, Migration
from serve.gateway.request_admission import RequestAdmission
from serve.request.call import parse_call
from serve.request.caller import Caller
from serve.request.json_body import dump_json
from serve.request.lifecycle import Arrival, Attempt, Request
from serve.telemetry.metrics import Metrics
from tests.support.answers import MESSAGES, chunks, text_of
from tests.support.gateway_server import Start

STREAMS = 40
DEAD, LEFT = "http://dead", "http://left"


@dataclass
class Stream:
    """What a client has got of an answer."""

    prompt: Sequence[int]
    tokens: Sequence[int]
    first_token: Callable[[], None] = lambda: None

    @property
    def continuation(self) -> "Stream":
        return self

    async def cut(self, detokenize: Callable[[Sequence[int]], Awaitable[str]]) -> None:
        await detokenize(self.tokens)

    def drop_check(self) -> None:
        pass


@dataclass
class Engines:
    """One replica that remains. It reads what waits for it when it is told to; detokenizing takes turns of the event loop."""

    reading: list[tuple[Attempt, Stream]] = field(default_factory=list)

    def has_replica(self, variant: object, avoid: object) -> bool:
        return True

    async def detokenize(self, *_: object) -> str:
        await asyncio.sleep(0)
        return ""


class Site:
    """A gateway's migration and admission, real ones, with `STREAMS` streams at a replica and `others` at another one."""

    def __init__(self, others: int, budgets: Sequence[Budget]) -> None:
        self.full = make_live_variant("full", max_running=16, max_waiting=8, replicas=2)
        self.full.live.update_replicas({DEAD: 0, LEFT: 0})
        variants = {"full": self.full}
        self.engines, metrics = Engines(), Metrics()
        self.admission = RequestAdmission(variants, metrics)
        self.migration = Migration(make_config(), variants, self.engines, self.admission, metrics)  # type: ignore[arg-type]
        self.most_reading = 0
        self.order: list[Attempt] = []
        for _ in range(others):
            self.full.live.on_dispatch(0, 1, 50, LEFT)
        self.attempts = [self._begun(i, budgets[i % len(budgets)]) for i in range(STREAMS)]

    def request(self, number: int, budget: Budget, ago_s: float = 0.0) -> Request:
        body = {"model": MODEL, "messages": MESSAGES, "stream": True, "max_tokens": 100}
        arrived = perf_counter() - ago_s
        call = parse_call(dump_json(body), "chat", "")
        return Request(call, Caller("", "best"), f"r{number}", Arrival(arrived, arrived, arrived), budget, "best")

    def _begun(self, number: int, budget: Budget) -> Attempt:
        """An attempt that has written a part of its answer."""
        request = self.request(number, budget, ago_s=5.0)
        attempt = Attempt(request, self.admission.decide_begun(request, {LEFT}, True), reached=DEAD)
        attempt.first_token_at = perf_counter() - 1.0
        request.attempts.append(attempt)
        return attempt

    async def go_on(self, last: Attempt) -> Attempt:
        """As `Generation` continues a stream: it is dispatched at once when it may read."""
        stream = Stream([1] * 50, [2] * 20)
        attempt = await self.migration.next_attempt(stream, last, {DEAD}, "connection")  # type: ignore[arg-type]
        self.full.live.on_dispatch(70, 1, 0, attempt.replica)
        self.order.append(attempt)
        self.engines.reading.append((attempt, stream))
        return attempt

    def read(self) -> int:
        """One step of the engine: all prompts that it has are read. Returns how many."""
        read, self.engines.reading = self.engines.reading, []
        for _, stream in read:
            stream.first_token()
        self.most_reading = max(self.most_reading, len(read))
        return len(read)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def simulate(site: Site) -> int:
    """The replica dies. Returns the steps until all of its streams go on."""
    tasks = [asyncio.create_task(site.go_on(attempt)) for attempt in site.attempts]
    await settle()
    steps = 0
    while site.read():
        steps += 1
        await settle()
    assert [task.done() and task.exception() is None for task in tasks] == [True] * STREAMS, "none is lost"
    return steps


@pytest.mark.parametrize("others", [0, 24])
async def test_all_streams_go_on_without_waiting_for_places_at_the_engine(others):
    """The replica runs 16 sequences and queues 8: it is full with those that it had."""
    site = Site(others, [Budget()])
    steps = await simulate(site)
    assert site.most_reading == max(MIN_RESUMED_PREFILLS, math.ceil(MAX_RESUMED_PREFILL_SHARE * (STREAMS + others)))
    assert steps == math.ceil(STREAMS / site.most_reading), "as soon as one has been read, the next one is"
    assert {attempt.replica for attempt in site.order} == {LEFT}
    assert site.full.live.in_flight == STREAMS + others


async def test_those_that_can_keep_their_time_per_token_go_on_when_they_must():
    """After 1 s and 20 tokens: at 1 s per token in 19 s, at 75 ms in half a second; at 10 ms it is too late for that."""
    slow, urgent, late, none = (Budget(tpot_ms=tpot) for tpot in (1000, 75, 10, None))
    site = Site(0, [slow, urgent, late, none])
    await simulate(site)
    at_once = site.most_reading
    limits = [attempt.request.budget.tpot_ms for attempt in site.order]
    rest = limits[at_once:]  # the first ones found turns free
    assert rest[: rest.count(75)] == [75] * rest.count(75)
    assert rest[-rest.count(1000) :] == [1000] * rest.count(1000)
    deadlines = [attempt.resume_by for attempt in site.order[at_once:]]
    assert deadlines == sorted(deadlines)


async def test_new_requests_wait_while_streams_go_on():
    site = Site(0, [Budget()])
    tasks = [asyncio.create_task(site.go_on(attempt)) for attempt in site.attempts]
    await settle()
    assert len(site.order) < STREAMS
    site.full.live.replicas = 1
    new = asyncio.create_task(site.admission.admit(site.request(99, Budget()), {DEAD}))
    await settle()
    assert new.done() and "limit" in str(new.exception()), "streams whose turn has not come count, too"
    while site.read():
        await settle()
    assert all(task.done() for task in tasks)


def test_a_gateway_continues_all_of_them(start_gateway: Start, _server):
    """Real connections to real servers; the replica that remains has as many requests of other gateways as it may take."""
    variants = [make_live_variant("full", max_running=30, max_waiting=10), make_live_variant("distilled")]
    gateway = start_gateway(variants=variants)
    full, other = gateway.engines["full"], gateway.engines["distilled"]
    full.behaviour, other.behaviour = "hold", "hang"

    def ask(number: int) -> Any:
        messages = [{"role": "user", "content": f"hello {number}"}]
        body = {"model": f"{MODEL}:full", "messages": messages, "stream": True}
        return gateway.http.post("/v1/chat/completions", json=body)

    def until(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.005)

    ejected = threading.Event()

    def kill() -> None:
        gateway.replicas.by_variant["full"].append(other.url)
        variants[0].live.remote_in_flight = 40
        gateway.app._engines.eject(variants[0], full.url, "unreachable")
        ejected.set()

    with ThreadPoolExecutor(STREAMS) as clients:
        answers = [clients.submit(ask, number) for number in range(STREAMS)]
        until(lambda: full.running == STREAMS and not variants[0].live.pending_prefill_tokens)
        _server._loop.call_soon_threadsafe(kill)
        assert ejected.wait(30)
        until(lambda: other.running == math.ceil(MAX_RESUMED_PREFILL_SHARE * STREAMS))
        other.let_go()
        responses = [answer.result(60) for answer in answers]
    full.let_go()
    assert [text_of(one, True) for one in responses] == [f"You said: hello {n}" for n in range(STREAMS)]
    assert all(len(chunks(one)[-1]["gearbox"]["migrations"]) == 1 for one in responses)
    gateway.settle()
