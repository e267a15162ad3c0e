"""Requests with an Idempotency-Key are done once, over several gateways and their failures, and never answer another tenant."""

import asyncio
import math
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis as redis_py

from benchmarks.lib.sample_catalog import MODEL
from benchmarks.lib.scripted_retrieval import FakeRetrieval
from serve.config.sections import AccessConfig
from serve.errors import RequestError
from serve.gateway import idempotency, shared_store
from serve.gateway.auth import hash_key
from serve.gateway.http import Send, reply
from serve.gateway.idempotency import Idempotency, MemoryAnswers
from serve.gateway.shared_store import SharedStore
from serve.telemetry.metrics import Metrics
from tests.support.answers import error_of
from tests.support.gateway_server import Start, bearer

KEYS = [
    {"sha256": hash_key("one"), "tenant": "acme", "requests_per_minute": 1, "tokens_per_minute": 1000},
    {"sha256": hash_key("other"), "tenant": "other"},
]
MEMORY = "async+memory://"
KEY = "8e03978e-40d5-43dd-bc93-6894a57f9324"
PATH, BODY = "/v1/chat/completions", b'{"model": "m", "messages": ["a secret"]}'
Work = Callable[[Send], Awaitable[None]]


@dataclass
class Client:
    """A gateway's idempotency, and what it did."""

    uri: str
    settings: dict[str, Any] = field(default_factory=dict)
    done: int = 0
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        access = AccessConfig.model_validate(
            {"rate_limit_store": self.uri, "rate_limit_store_timeout_s": 2, **self.settings}
        )
        store = SharedStore(access, self.metrics.rate_limit_store_failures)
        self.idempotency = Idempotency(store, self.metrics.idempotent)

    async def post(
        self, body: bytes = BODY, *, key: str | None = KEY, tenant: str = "acme", path: str = PATH, work: Work | None = None,
        **headers: str,
    ) -> tuple[int, bytes, dict[bytes, bytes]]:  # fmt: skip
        sent: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def answer(send: Send) -> None:
            self.done += 1
            await reply(send, 200, f"answer {self.done}".encode(), [("x-gearbox-variant", "full")])

        given = {**headers, **({} if key is None else {"idempotency-key": key})}
        await self.idempotency.answer(tenant, path, given, body, send, work or answer)
        start, end = sent
        return start["status"], end["body"], dict(start["headers"])

    def count(self, outcome: str) -> float:
        return self.metrics.registry.get_sample_value("gearbox_idempotent_requests_total", {"outcome": outcome}) or 0


@pytest.fixture(params=["memory", "redis"])
def uri(request: pytest.FixtureRequest) -> str:
    return MEMORY if request.param == "memory" else request.getfixturevalue("redis")[0]


async def under_way(client: Client) -> tuple[asyncio.Task[Any], asyncio.Event]:
    """A request that is being answered, until the event is set."""
    started, finish = asyncio.Event(), asyncio.Event()

    async def work(send: Send) -> None:
        started.set()
        await finish.wait()
        await reply(send, 200, b"slow")

    request = asyncio.create_task(client.post(work=work))
    await started.wait()
    return request, finish


def stored_in(redis: tuple[str, Any]) -> redis_py.Redis:
    """A client of the test's own for what the gateways have stored."""
    return redis_py.Redis.from_url(redis[0].removeprefix("async+"))


async def refusal(work: Awaitable[Any]) -> tuple[int, str | None]:
    with pytest.raises(RequestError) as caught:
        await work
    return caught.value.status, caught.value.code


async def test_the_same_request_gets_the_same_answer_again(uri):
    client = Client(uri)
    status, body, headers = await client.post()
    assert (status, body) == (200, b"answer 1")
    assert b"idempotent-replayed" not in headers
    for _ in range(3):
        again = await client.post()
        assert again[:2] == (200, b"answer 1")
        assert again[2] == headers | {b"idempotent-replayed": b"true"}
    assert (client.done, client.count("stored"), client.count("replayed")) == (1, 1, 3)


async def test_without_the_header_every_request_is_done(uri):
    client = Client(uri)
    assert [(await client.post(key=None))[1] for _ in range(2)] == [b"answer 1", b"answer 2"]


async def test_a_key_is_for_one_request_of_one_tenant(uri):
    client = Client(uri)
    await client.post()
    reused = (422, "idempotency_key_reused")
    assert await refusal(client.post(b'{"model": "m", "messages": ["other"]}')) == reused
    assert await refusal(client.post(path="/v1/completions")) == reused
    assert await refusal(client.post(**{"x-gearbox-ttft-ms": "5"})) == reused
    assert (await client.post(tenant="other"))[1] == b"answer 2", "another tenant's own"
    assert (await client.post(tenant="other"))[1] == b"answer 2"
    assert (await client.post(**{"x-request-id": "second", "user-agent": "retry"}))[1] == b"answer 1"


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there", "caf\xe9", "\x7f"])
async def test_a_key_that_is_none_is_refused(key):
    assert await refusal(Client(MEMORY).post(key=key)) == (400, "invalid_idempotency_key")
    assert (await Client(MEMORY).post(key="x" * 255))[0] == 200


async def test_many_at_once_over_two_gateways_are_done_once(redis):
    gateways = [Client(redis[0]), Client(redis[0])]
    first, finish = await under_way(gateways[0])
    others = [asyncio.create_task(gateways[i % 2].post()) for i in range(20)]
    await asyncio.sleep(0.3)
    assert not any(one.done() for one in others)
    finish.set()
    assert {(await one)[:2] for one in [first, *others]} == {(200, b"slow")}
    assert [gateway.done for gateway in gateways] == [0, 0]


async def test_an_error_is_not_stored(uri):
    client = Client(uri)

    async def overloaded(send: Send) -> None:
        await reply(send, 429, b"{}")

    async def raises(send: Send) -> None:
        raise RequestError(503, "why", code="store_unavailable")

    assert (await client.post(work=overloaded))[0] == 429
    assert await refusal(client.post(work=raises)) == (503, "store_unavailable")
    assert (await client.post())[1] == b"answer 1"


async def test_one_that_waits_takes_over_when_the_first_client_leaves(uri):
    client = Client(uri)
    first, _ = await under_way(client)
    second = asyncio.create_task(client.post())
    await asyncio.sleep(0.1)
    first.cancel()
    left = time.monotonic()
    assert (await second)[1] == b"answer 1"
    assert time.monotonic() - left < 4, "at once, not when the lease ends"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_an_answer_over_the_bound_is_sent_and_not_stored(uri):
    client = Client(uri)
    large = b"x" * (idempotency.MAX_ANSWER_BYTES + 1)

    async def work(send: Send) -> None:
        await reply(send, 200, large)

    assert (await client.post(work=work))[1] == large
    assert (await client.post())[1] == b"answer 1"
    assert client.count("too_large") == 1


async def test_memory_is_bounded_and_answers_go_after_a_minute(monkeypatch: pytest.MonkeyPatch):
    client = Client(MEMORY)
    memory = client.idempotency.memory
    body = b"x" * idempotency.MAX_ANSWER_BYTES

    async def work(send: Send) -> None:
        await reply(send, 200, body)

    for number in range(100):
        await client.post(key=str(number), work=work)
        assert memory.bytes <= idempotency.MAX_MEMORY_BYTES
    assert (await client.post(key="99"))[1] == body
    assert (await client.post(key="0"))[1] == b"answer 1", "the oldest has gone"
    now = time.monotonic()
    monkeypatch.setattr(idempotency, "monotonic", lambda: now + idempotency.ANSWER_TTL_S + 1)
    memory.expire()
    assert (len(memory), memory.bytes) == (0, 0)


async def test_the_number_of_small_answers_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(idempotency, "MAX_MEMORY_ANSWERS", 10)
    memory = MemoryAnswers()
    for number in range(50):
        await memory.claim(str(number), b"marker")
        await memory.swap(str(number), b"marker", b"answer", 60)
    assert len(memory) == 10


async def test_too_many_that_wait_are_refused(monkeypatch: pytest.MonkeyPatch):
    client = Client(MEMORY)
    first, finish = await under_way(client)
    monkeypatch.setattr(idempotency, "MAX_WAITING", 2)
    waiting = [asyncio.create_task(client.post()) for _ in range(2)]
    await asyncio.sleep(0)
    assert await refusal(client.post()) == (409, "idempotency_key_in_use")
    monkeypatch.setattr(idempotency, "MAX_WAITING", 9)
    monkeypatch.setattr(idempotency, "MAX_WAITING_BYTES", 3 * len(BODY) - 1)
    assert await refusal(client.post()) == (409, "idempotency_key_in_use")
    finish.set()
    await asyncio.gather(first, *waiting)
    assert client.idempotency._waiting == client.idempotency._waiting_bytes == 0


async def test_a_request_that_takes_longer_than_the_lease_is_not_done_twice(redis, monkeypatch: pytest.MonkeyPatch):
    """Its gateway renews the lease, however little of it was left."""
    monkeypatch.setattr(idempotency, "LEASE_S", 30.0)
    monkeypatch.setattr(idempotency, "_RENEW_S", 0.05)
    gateways = [Client(redis[0]), Client(redis[0])]
    first, finish = await under_way(gateways[0])
    second = asyncio.create_task(gateways[1].post())
    with stored_in(redis) as stored:
        (lease,) = stored.scan_iter()
        for _ in range(3):
            stored.pexpire(lease, 15_000)
            async with asyncio.timeout(10):
                while stored.pttl(lease) <= 15_000:
                    await asyncio.sleep(0.01)
    assert not second.done()
    finish.set()
    assert (await second)[1] == (await first)[1] == b"slow"


async def test_the_request_of_a_killed_gateway_is_done_by_another(redis, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(idempotency, "LEASE_S", 1.5)
    script = f"""
import asyncio
from serve.gateway import idempotency
from tests.unit.gateway.test_idempotency import Client
async def work(send):
    print("under way", flush=True)
    await asyncio.sleep(60)
idempotency.LEASE_S, idempotency._RENEW_S = 1.5, 0.4
asyncio.run(Client({redis[0]!r}).post(work=work))
"""
    gateway = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert gateway.stdout is not None
        assert await asyncio.to_thread(gateway.stdout.readline) == b"under way\n"
    finally:
        gateway.kill()
        gateway.wait()
    client = Client(redis[0])
    with stored_in(redis) as stored:
        assert list(stored.scan_iter()), "its lease"
    started = time.monotonic()
    assert (await client.post())[1] == b"answer 1"
    assert time.monotonic() - started < idempotency.LEASE_S + 4


async def test_a_store_that_is_down_refuses_the_key_or_fails_open():
    down = "async+redis://127.0.0.1:9/0"
    closed = Client(down)
    assert await refusal(closed.post()) == (503, "idempotency_unavailable")
    assert (await closed.post(key=None))[0] == 200
    opened = Client(down, {"on_rate_limit_store_failure": "fail_open"})
    assert [(await opened.post())[1] for _ in range(2)] == [b"answer 1", b"answer 2"]
    failed = {"operation": "idempotency"}
    assert opened.metrics.registry.get_sample_value("gearbox_rate_limit_store_failures_total", failed) == 2


@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGKILL])
async def test_a_store_that_fails_during_a_request_costs_it_little_time_and_not_its_answer(
    redis, fault, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(idempotency, "LEASE_S", 0.4)
    monkeypatch.setattr(idempotency, "_RENEW_S", 0.1)
    monkeypatch.setattr(shared_store, "PAUSE_S", 0.2)
    client = Client(redis[0])
    request, finish = await under_way(client)
    redis[1].send_signal(fault)
    monkeypatch.setattr(client.idempotency._store, "_timeout_s", 0.25)
    await asyncio.sleep(0.5)
    finish.set()
    async with asyncio.timeout(5):
        assert (await request)[1] == b"slow"
    assert await refusal(client.post()) == (503, "idempotency_unavailable")
    if fault == signal.SIGSTOP:
        redis[1].send_signal(signal.SIGCONT)
        await _until_answered(client)


async def test_answers_in_memory_need_no_store_of_limits():
    """One that is neither Redis nor in memory holds limits alone."""
    client = Client(MEMORY)
    request, finish = await under_way(client)
    store = client.idempotency._store
    store._failed, store._retry_at = 3, math.inf
    finish.set()
    assert (await request)[1] == b"slow"
    assert (await client.post())[1] == b"slow"
    assert client.done == 0


async def _until_answered(client: Client) -> None:
    deadline = time.monotonic() + 8
    while True:
        try:
            await client.post()
            return
        except RequestError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)


async def test_neither_prompts_nor_keys_are_stored(redis):
    client = Client(redis[0])
    request, finish = await under_way(client)
    with stored_in(redis) as stored:

        def all_of_it() -> Iterator[bytes]:
            for name in stored.scan_iter():
                yield name
                yield stored.get(name)

        for wait in (False, True):
            if wait:
                finish.set()
                await request
            stored_bytes = b" ".join(all_of_it())
            assert b"secret" not in stored_bytes
            assert KEY.encode() not in stored_bytes
            assert (b"slow" in stored_bytes) is wait
        (name,) = stored.scan_iter()
        assert 0 < stored.ttl(name) <= idempotency.ANSWER_TTL_S


class TestInTheGateway:
    def test_a_chat_is_generated_and_counted_once(self, start_gateway: Start, redis):
        access = {"keys": KEYS, "rate_limit_store": redis[0], "rate_limit_store_timeout_s": 5}
        headers = bearer("one") | {"idempotency-key": KEY}
        gateway = start_gateway(access=access)
        first = gateway.chat(headers=headers)
        second = gateway.chat(headers=headers)
        assert first.status_code == second.status_code == 200, "of one request a minute"
        assert first.content == second.content
        assert second.headers["idempotent-replayed"] == "true"
        assert second.headers["x-gearbox-variant"] == first.headers["x-gearbox-variant"]
        assert sum(gateway.engine_calls().values()) == 1
        assert gateway.sample("gearbox_requests_total") == gateway.sample("gearbox_tenant_requests_total") == 1
        another = start_gateway(access=access)
        assert another.chat(headers=headers).content == first.content
        assert another.engine_calls() == {}
        assert error_of(another.chat("other", headers=headers), 422)["type"] == "invalid_request_error"
        theirs = another.chat(headers=bearer("other") | {"idempotency-key": KEY})
        assert "idempotent-replayed" not in theirs.headers

    def test_completions_and_embeddings_as_well(self, start_gateway: Start, retrieval: FakeRetrieval):
        gateway = start_gateway(searches=retrieval, retrieval={"collection": "docs"})
        for path, body in (
            ("/v1/completions", {"model": MODEL, "prompt": "hello"}),
            ("/v1/embeddings", {"input": "hello"}),
        ):
            headers = {"idempotency-key": f"{KEY} {path}"}
            first, second = gateway.post(path, body, headers), gateway.post(path, body, headers)
            assert first.status_code == 200
            assert second.content == first.content
            assert second.headers["idempotent-replayed"] == "true"
        assert error_of(gateway.post("/v1/embeddings", {}, {"idempotency-key": "x" * 256}), 400)

    def test_streams_are_not_stored(self, start_gateway: Start):
        gateway = start_gateway()
        for _ in range(2):
            response = gateway.chat(headers={"idempotency-key": KEY}, stream=True)
            assert response.status_code == 200
            assert "idempotent-replayed" not in response.headers
        assert sum(gateway.engine_calls().values()) == 2
        error = error_of(gateway.chat(headers={"idempotency-key": "x" * 256}, stream=True), 400)
        assert error["code"] == "invalid_idempotency_key"
