"""A rate limit store that is down, slow or faulty fails no request, delays none, and is used again after it recovers."""

import asyncio
import logging
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest

from serve.config.sections import AccessConfig
from serve.errors import RequestError
from serve.gateway import shared_store
from serve.gateway.auth import Gatekeeper, hash_key
from serve.gateway.shared_store import PAUSE_S, StoreUnavailable
from serve.request.caller import Caller
from serve.routing.output_lengths import OutputLengths
from serve.telemetry.metrics import Metrics
from tests.support.answers import error_of, gearbox_of, streamed_or_not, text_of
from tests.support.gateway_server import Start, bearer

KEYS = [
    {"sha256": hash_key("limited"), "tenant": "acme", "requests_per_minute": 100, "tokens_per_minute": 1000},
    {"sha256": hash_key("free"), "tenant": "free"},
]
TIMEOUT_S = 0.1
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Go away without a word."""


async def dies_midway(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(10)
    writer.write(b"$100\r\nhalf of an ans")
    await writer.drain()


async def talks_nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(9999):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()


async def says_what_is_no_number(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(9999):
        writer.write(b"+OK\r\n" * 3)
        await writer.drain()


async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Always another byte, never the end."""
    while True:
        writer.write(b"+")
        await writer.drain()
        await asyncio.sleep(0.02)


FAULTS = [hangs, closes, dies_midway, talks_nonsense, says_what_is_no_number, drips]


class Store:
    """A TCP server in the place of Redis."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.connections = self.open = 0

    async def start(self, port: int = 0) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        return f"async+redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    async def stop(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            await self.answer(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            writer.close()


@pytest.fixture
async def store(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Store, str]]:
    store = Store(getattr(request, "param", hangs))
    yield store, await store.start()
    await store.stop()


def refusing() -> str:
    """The URI of a store at an address where nobody listens."""
    return "async+redis://127.0.0.1:9/0"


def settings(uri: str, **more: object) -> dict[str, object]:
    return {"keys": KEYS, "rate_limit_store": uri, "rate_limit_store_timeout_s": TIMEOUT_S, **more}


def gatekeeper(uri: str, **more: object) -> tuple[Gatekeeper, Caller, Metrics]:
    metrics = Metrics()
    keeper = Gatekeeper(AccessConfig.model_validate(settings(uri, **more)), metrics=metrics)
    return keeper, keeper.authenticate(bearer("limited")), metrics


def failures(metrics: Metrics, operation: str) -> float:
    return metrics.registry.get_sample_value("gearbox_rate_limit_store_failures_total", {"operation": operation}) or 0


@contextmanager
def stopped(redis: tuple[str, subprocess.Popen[bytes]], keeper: Gatekeeper) -> Iterator[None]:
    """Redis stands still for the block, and `keeper` waits for it no longer than `TIMEOUT_S`; after it, for 5 s again."""
    uri, process = redis
    process.send_signal(signal.SIGSTOP)
    keeper.reconfigure(AccessConfig.model_validate(settings(uri)))
    yield
    process.send_signal(signal.SIGCONT)
    keeper.reconfigure(AccessConfig.model_validate(settings(uri, rate_limit_store_timeout_s=5)))


async def refused(keeper: Gatekeeper, caller: Caller) -> float:
    """Seconds until 503."""
    started = time.monotonic()
    with pytest.raises(RequestError) as caught:
        await keeper.admit(caller)
    assert (caught.value.status, caught.value.code) == (503, "limits_unavailable")
    assert int(caught.value.headers["retry-after"]) >= 1
    return time.monotonic() - started


def test_a_store_that_would_block_the_gateway_is_refused():
    with pytest.raises(ValueError, match="rate_limit_store"):
        Gatekeeper(AccessConfig(allow_anonymous=True, rate_limit_store="memory://"))


@pytest.mark.parametrize("store", FAULTS, indirect=True, ids=lambda fault: fault.__name__)
async def test_a_failing_store_refuses_keys_with_limits_soon(store):
    keeper, caller, metrics = gatekeeper(store[1])
    assert await refused(keeper, caller) < TIMEOUT_S + 2
    assert failures(metrics, "admit") == 1


async def test_a_store_that_is_not_there_refuses_at_once():
    keeper, caller, _ = gatekeeper(refusing(), rate_limit_store_timeout_s=5)
    assert await refused(keeper, caller) < 4


@pytest.mark.parametrize("store", FAULTS, indirect=True, ids=lambda fault: fault.__name__)
async def test_where_it_is_to_fail_open_they_pass(store):
    keeper, caller, metrics = gatekeeper(store[1], on_rate_limit_store_failure="fail_open")
    for _ in range(200):
        await keeper.admit(caller)
    assert failures(metrics, "admit") == 200


async def test_a_key_without_limits_never_touches_the_store(store):
    keeper, _, metrics = gatekeeper(store[1])
    free = keeper.authenticate(bearer("free"))
    await keeper.admit(free)
    await keeper.charge(free, 100)
    assert store[0].connections == 0
    assert failures(metrics, "admit") == failures(metrics, "charge") == 0


@pytest.mark.parametrize("store", FAULTS, indirect=True, ids=lambda fault: fault.__name__)
async def test_a_charge_that_fails_is_counted_and_logged_but_not_raised(store, caplog):
    keeper, caller, metrics = gatekeeper(store[1])
    for _ in range(5):
        await keeper.charge(caller, 10)
    assert failures(metrics, "charge") == 5
    assert len([line for line in caplog.records if line.levelno >= logging.ERROR]) == 1, "not a line for each"


async def test_a_charge_outlives_the_caller_that_goes_away(redis):
    keeper, caller, _ = gatekeeper(redis[0], rate_limit_store_timeout_s=5)
    charging = asyncio.create_task(keeper.charge(caller, 250))
    await asyncio.sleep(0)
    charging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await charging
    deadline = time.monotonic() + 5
    while ("acme", "tokens", 0.25) not in await keeper.used(["acme"]):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_the_use_of_limits_is_not_known_while_the_store_fails(store):
    keeper, _, metrics = gatekeeper(store[1])
    with pytest.raises(StoreUnavailable):
        await keeper.used(["acme"])
    assert failures(metrics, "read") == 1


async def test_many_requests_at_once_do_not_pile_up_at_a_store_that_hangs(store):
    keeper, caller, _ = gatekeeper(store[1], rate_limit_store_timeout_s=0.2)
    assert max(await asyncio.gather(*(refused(keeper, caller) for _ in range(300)))) < 5, (
        "one after the other takes 60 s"
    )
    connections = store[0].connections
    quick = [await refused(keeper, caller) for _ in range(300)]
    probes = 1 + int(sum(quick) / PAUSE_S)  # of requests that try whether it is back
    waited = sum(seconds >= 0.2 for seconds in quick)
    assert waited <= 1 + probes, "once it is known to be down nobody else waits for it"
    assert store[0].connections - connections <= 2 * probes
    deadline = time.monotonic() + 5
    while store[0].open:
        assert time.monotonic() < deadline, "what was given up is closed"
        await asyncio.sleep(0.01)


async def test_a_burst_at_a_healthy_store_is_admitted_whole(redis):
    keeper, caller, metrics = gatekeeper(redis[0], rate_limit_store_timeout_s=5)
    await asyncio.gather(*(keeper.charge(caller, 1) for _ in range(900)))
    assert failures(metrics, "charge") == 0
    assert ("acme", "tokens", 0.9) in await keeper.used(["acme"])


async def test_one_slow_answer_does_not_shut_the_store_out(store, redis):
    """Two in a row may be chance: the next request tries again."""
    keeper, caller, _ = gatekeeper(redis[0], rate_limit_store_timeout_s=5)
    await keeper.admit(caller)
    with stopped(redis, keeper):
        await refused(keeper, caller)
    await keeper.admit(caller)


async def test_a_redis_that_hangs_dies_and_comes_back_is_used_again(redis, caplog, monkeypatch):
    monkeypatch.setattr(shared_store, "PAUSE_S", 0.3)
    keeper, caller, _ = gatekeeper(redis[0], rate_limit_store_timeout_s=5)
    await keeper.charge(caller, 500)
    with stopped(redis, keeper):
        for _ in range(20):
            await refused(keeper, caller)
    await _until(keeper, caller)
    assert "answers again" in caplog.text
    assert ("acme", "tokens", 0.5) in await keeper.used(["acme"]), "what was counted before is known"
    await keeper.charge(caller, 500)
    with pytest.raises(RequestError) as caught:
        await keeper.admit(caller)
    assert (caught.value.status, caught.value.code) == (429, "tokens_per_minute")


async def test_a_redis_that_is_killed_and_started_again_counts_anew_and_needs_no_new_gateway(redis):
    uri, process = redis
    keeper, caller, _ = gatekeeper(uri, rate_limit_store_timeout_s=5)
    await keeper.charge(caller, 1000)
    with pytest.raises(RequestError):
        await keeper.admit(caller)
    process.kill()
    process.wait()
    await refused(keeper, caller)
    with subprocess.Popen(process.args, stdout=subprocess.DEVNULL) as again:
        try:
            await _until(keeper, caller)
            await keeper.charge(caller, 400)
            assert ("acme", "tokens", 0.4) in await keeper.used(["acme"])
        finally:
            again.kill()


async def test_limits_hold_across_gateways_that_share_a_redis(redis):
    (first, caller, _), (second, _, _) = (gatekeeper(redis[0], rate_limit_store_timeout_s=5) for _ in range(2))
    for keeper in (first, second) * 50:
        await keeper.admit(caller)
    for keeper in (first, second):
        with pytest.raises(RequestError) as caught:
            await keeper.admit(caller)
        assert (caught.value.status, caught.value.code) == (429, "requests_per_minute")


async def _until(keeper: Gatekeeper, caller: Caller) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            return await keeper.admit(caller)
        except RequestError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


class TestInTheGateway:
    @streamed_or_not
    def test_keys_with_limits_get_503_and_others_their_answer(self, start_gateway: Start, stream):
        gateway = start_gateway(access=settings(refusing()))
        response = gateway.chat(headers=bearer("limited"), stream=stream)
        assert error_of(response, 503)["code"] == "limits_unavailable"
        assert int(response.headers["retry-after"]) >= 1
        assert text_of(gateway.chat(headers=bearer("free"), stream=stream), stream)
        assert gateway.sample("gearbox_requests_rejected_total", code="limits_unavailable") == 1

    @streamed_or_not
    def test_the_answer_is_whole_and_learnt_from_although_it_cannot_be_charged(
        self, start_gateway: Start, stream, monkeypatch: pytest.MonkeyPatch
    ):
        gateway = start_gateway(access=settings(refusing(), on_rate_limit_store_failure="fail_open"))
        learnt = []
        monkeypatch.setattr(OutputLengths, "observe", lambda self, *what: learnt.append(what))
        for _ in range(3):
            response = gateway.chat(headers=bearer("limited"), stream=stream)
            assert text_of(response, stream) == "You said: hello there"
            assert gearbox_of(response, stream)["attempts"] == 1
        gateway.settle()
        assert learnt == [("acme", "balanced", 6)] * 3
        assert gateway.sample("gearbox_rate_limit_store_failures_total", operation="charge") == 3
        assert gateway.sample("gearbox_requests_total", outcome="answered") == 3
        assert gateway.sample("gearbox_requests_rejected_total", status="500") == 0

    def test_embeddings_and_searches_are_refused_as_well(self, start_gateway: Start):
        gateway = start_gateway(access=settings(refusing()))
        for path in ("/v1/embeddings", "/v1/search", "/v1/documents"):
            response = gateway.post(path, {}, bearer("limited"))
            assert error_of(response, 503)["code"] == "limits_unavailable"
