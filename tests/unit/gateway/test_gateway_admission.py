"""Requests that wait in the gateway: what their clients, metrics and dry runs see."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import orjson
import pytest

from benchmarks.lib.sample_catalog import MODEL, make_live_variant, make_profile
from serve.budget import Budget
from serve.request import lifecycle
from serve.request.call import parse_call
from serve.request.caller import Caller
from serve.request.lifecycle import Attempt
from serve.routing.fair_shares import MEMORY_S
from tests.support.gateway_server import GatewayServer, Start, Started

PACED = {"tpot_ms": 60}  # two sequences run within it, with the margin of the beginning
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hello there"}]}


@pytest.fixture
def paced(start_gateway: Start) -> Started:
    """A gateway for one engine of 20 ms per token, and 20 more for each other sequence, that holds its answers."""
    profile = make_profile([(100, 1, 100)], [(1, 20), (8, 160)])
    gateway = start_gateway(variants=[make_live_variant("full", profile=profile, max_running=8, max_waiting=8)])
    gateway.engines["full"].behaviour = "hold"
    return gateway


def until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


class Client(threading.Thread):
    """A request in a thread of its own."""

    def __init__(self, gateway: Started, **body: Any) -> None:
        super().__init__(daemon=True)
        self._gateway, self._body = gateway, {**BODY, **body}
        self.response: httpx.Response | None = None
        self.start()

    def run(self) -> None:
        self.response = self._gateway.http.post("/v1/chat/completions", json=self._body)

    def answer(self) -> httpx.Response:
        self.join(30)
        assert self.response is not None
        return self.response


@contextmanager
def full_engine(gateway: Started) -> Iterator[list[Client]]:
    """Two requests at the engine, which are answered at the end."""
    engine = gateway.engines["full"]
    clients = [Client(gateway, budget=PACED) for _ in range(2)]
    until(lambda: engine.running == 2, "both are at the engine")
    try:
        yield clients
    finally:
        engine.behaviour = "answer"
        engine.let_go()
        for client in clients:
            assert client.answer().status_code == 200
        gateway.settle()


def gearbox_of(response: httpx.Response) -> dict[str, Any]:
    """The `gearbox` object of an answer, streamed or not."""
    if response.headers["content-type"].startswith("application/json"):
        return orjson.loads(response.content)["gearbox"]
    events = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    return next(found for event in reversed(events) if (found := orjson.loads(event).get("gearbox")))


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_waits_in_the_gateway_while_the_engine_is_at_its_places(
    paced: Started, _server: GatewayServer, stream: bool
):
    with full_engine(paced) as clients:
        waiting = Client(paced, budget=PACED, stream=stream)
        until(lambda: len(paced.app._admission._queue) == 1, "it waits")
        time.sleep(0.06)
        _server.refresh(paced)
        assert paced.sample("gearbox_admission_requests_waiting") == 1
        assert paced.engines["full"].running == 2 and paced.sample("gearbox_requests_in_flight", variant="full") == 2
    response = waiting.answer()
    paced.settle()
    found = gearbox_of(response)
    assert found["waited_ms"] >= 50
    assert found["ttft_ms"] >= found["waited_ms"] and found["predicted"]["ttft_ms"] >= found["waited_ms"]
    assert float(response.headers["x-gearbox-overhead-ms"]) < found["waited_ms"], (
        "waiting is not the gateway's own time"
    )
    _server.refresh(paced)
    assert paced.sample("gearbox_admission_requests_waiting") == 0
    assert paced.sample("gearbox_admission_wait_seconds_count", variant="full") == 1
    assert paced.sample("gearbox_admission_wait_seconds_sum", variant="full") == pytest.approx(
        found["waited_ms"] / 1000, abs=0.01
    )
    assert gearbox_of(clients[0].answer())["waited_ms"] == 0


def test_the_learned_margin_is_a_metric(paced: Started, _server: GatewayServer):
    paced.engines["full"].behaviour = "answer"
    paced.chat(budget={"e2e_ms": 60_000})
    paced.chat(model=f"{MODEL}@fast")
    _server.refresh(paced)
    assert 1.0 < paced.sample("gearbox_admission_margin_ratio", profile="custom") <= 1.25


def test_the_place_of_a_client_that_has_gone_is_free(paced: Started, _server: GatewayServer):
    admission = paced.app._admission._queue
    with full_engine(paced):
        _server.run_and_cancel(paced, {**BODY, "budget": PACED}, lambda: len(admission))
        _server.refresh(paced)
        assert paced.sample("gearbox_admission_requests_waiting") == 0
        assert not any(one.queued_ms for one in admission.classes.values())
        waiting = Client(paced, budget=PACED)
        until(lambda: len(admission) == 1, "another waits")
    assert waiting.answer().status_code == 200
    assert len(paced.engines["full"].requests) == 3
    assert paced.sample("gearbox_requests_total", outcome="cancelled") == 1


def test_one_that_would_wait_too_long_is_refused_at_once(paced: Started):
    with full_engine(paced):
        started = time.monotonic()
        tight = {**PACED, "e2e_ms": 330, "on_no_candidate": "reject"}
        response = paced.http.post("/v1/chat/completions", json={**BODY, "max_tokens": 11, "budget": tight})
        assert time.monotonic() - started < 5
        assert (response.status_code, response.json()["error"]["code"]) == (429, "budget_under_load")
        assert int(response.headers["retry-after"]) >= 1


def test_a_waiting_request_whose_variant_goes_gets_an_error(paced: Started, _server: GatewayServer):
    admission = paced.app._admission._queue
    with full_engine(paced):
        waiting = Client(paced, budget=PACED)
        until(lambda: len(admission) == 1, "it waits")
        paced.variants["full"].live.replicas = 0
        _server.refresh(paced)
        response = waiting.answer()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "no_healthy_variant")
        paced.variants["full"].live.replicas = 1


def test_a_dry_run_shows_the_wait_and_the_harm(paced: Started):
    def plan() -> dict[str, Any]:
        return paced.http.post("/v1/route", json={**BODY, "max_tokens": 11, "budget": PACED}).json()

    assert (plan()["wait_ms"], plan()["harm"]) == (0, 0)
    assert not paced.app._admission._queue.classes, "a dry run leaves no trace"
    with full_engine(paced):
        found = plan()
        assert found["wait_ms"] > 0 and found["harm"] == 2
        assert found["candidates"][0]["harm"] == 2
        assert len(paced.app._admission._queue) == 0


class Admitted:
    """Requests that ask the gateway's admission for a place, without a client or an engine."""

    def __init__(self, gateway: Started) -> None:
        self.admission = gateway.app._admission
        self.live = gateway.variants["full"].live
        self.live.in_flight = 2

    def ask(self) -> asyncio.Task[Any]:
        call = SimpleNamespace(
            prompt_tokens=100, prompt_chars=0, max_output_tokens=11, min_output_tokens=0, longest=1.0, limits_output=True,
            blocks=(), sequences=1, choices=1, ref=SimpleNamespace(variant=None, profile=None),
        )  # fmt: skip
        request = SimpleNamespace(
            call=call,
            caller=Caller("", "best"),
            attempts=[],
            budget=Budget(**PACED),
            arrived=time.perf_counter(),
            profile="custom",
        )
        return asyncio.ensure_future(self.admission.admit(request, frozenset()))

    def complete(self) -> None:
        self.live.on_complete()
        self.admission.start_waiting()


def test_a_place_is_given_once_before_the_request_has_started(paced: Started):
    site = Admitted(paced)

    async def play() -> None:
        submitted = [site.ask() for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(one.done() for one in submitted)
        site.complete()
        site.complete()
        site.admission.start_waiting()
        await asyncio.sleep(0.01)
        assert [one.done() for one in submitted] == [True, True, False]
        submitted[2].cancel()
        await asyncio.wait(submitted)
        assert site.live.in_flight == 0

    asyncio.run(play())


def test_the_place_of_a_client_that_goes_as_it_gets_it_is_passed_on(paced: Started):
    site = Admitted(paced)

    async def play() -> None:
        gone, other = site.ask(), site.ask()
        await asyncio.sleep(0)
        site.complete()
        gone.cancel()
        await asyncio.sleep(0.01)
        assert gone.cancelled() and other.done()
        assert site.live.in_flight == 1
        site.live.on_complete()

    asyncio.run(play())


def test_an_error_in_starting_others_does_not_spoil_an_answer(paced: Started, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    paced.engines["full"].behaviour = "answer"
    monkeypatch.setattr(type(paced.app._admission._queue), "pump", fail)
    assert paced.http.post("/v1/chat/completions", json=BODY).status_code == 200
    paced.settle()
    assert paced.variants["full"].live.in_flight == 0


def test_several_sequences_teach_no_margin(paced: Started):
    paced.engines["full"].behaviour = "answer"
    budget = {"e2e_ms": 60_000}
    assert (
        paced.http.post("/v1/chat/completions", json={**BODY, "n": 2, "stream": False, "budget": budget}).status_code
        == 200
    )
    paced.settle()
    (budget_class,) = paced.app._admission._queue.classes.values()
    assert budget_class.waits.state() == [0.0]


def test_only_the_tokens_after_the_first_count_as_steps(paced: Started, monkeypatch: pytest.MonkeyPatch):
    """Not the role, the usage and the end: short answers would make the engine look many times as fast as it is."""
    monkeypatch.setattr(lifecycle, "_BLOCKED", 1e6)  # also where this client reads slowly
    events = []
    with paced.http.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                events.append(line[6:])
            if "said" in line:  # so that not all tokens arrive at once
                paced.engines["full"].let_go()
    paced.settle()
    deltas = [choice["delta"] for event in events for choice in orjson.loads(event)["choices"]]
    tokens = sum("role" not in delta and bool(delta.get("content")) for delta in deltas)
    assert tokens == 6
    # the first two, which may arrive together or each by itself, and the four others
    assert paced.variants["full"].live.take_steps()[1] in (5, 6)


def test_a_request_that_fails_over_is_offered_and_admitted_once(start_gateway: Start):
    gateway = start_gateway(variants=[make_live_variant(name) for name in ("full", "small")])
    gateway.engines["full"].behaviour = "die"
    response = gateway.http.post("/v1/chat/completions", json={**BODY, "budget": {"e2e_ms": 60_000}})
    assert response.status_code == 200 and response.headers["x-gearbox-variant"] == "small"
    gateway.settle()
    assert gateway.sample("gearbox_failovers_total", variant="full", cause="engine") == 1
    admission = gateway.app._admission._queue
    (budget_class,) = admission.classes.values()
    (flow,) = budget_class.flows.values()
    admitted_ms = flow.tenant.admitted_ms
    budget_class.roll(1.0, [])
    assert budget_class.requests == pytest.approx(1 - math.exp(-1 / MEMORY_S)), "one request in that second"
    assert admitted_ms * MEMORY_S == pytest.approx(flow.offered_ms / (1 - math.exp(-1 / MEMORY_S)))


def test_a_client_that_does_not_read_teaches_nothing_about_the_engine(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(lifecycle, "perf_counter", lambda: now)
    live = make_live_variant("full").live
    attempt = Attempt(
        SimpleNamespace(call=SimpleNamespace(sequences=1)), SimpleNamespace(variant=SimpleNamespace(live=live))
    )
    attempt.first_token_at = attempt._streamed_at = now
    attempt.on_sent(now)
    now += 0.02
    attempt.on_tokens(1)
    assert live.take_steps()[:2] == (pytest.approx(20), 1) and not attempt.client_blocked
    sending = now
    now += 0.1
    attempt.on_sent(sending)
    attempt.on_tokens(3)
    assert live.take_steps()[1] == 0 and attempt.client_blocked
    now += 0.02
    attempt.on_tokens(1)
    assert live.take_steps()[1] == 1, "it reads again"


def test_answers_to_clients_that_do_not_read_are_not_learned_from(paced: Started, monkeypatch: pytest.MonkeyPatch):
    paced.engines["full"].behaviour = "answer"
    latency = paced.variants["full"].latency
    monkeypatch.setattr(Attempt, "client_blocked", property(lambda _: True))
    paced.chat(budget={"e2e_ms": 60_000})
    paced.settle()
    assert latency.observed == 0
    monkeypatch.undo()
    paced.chat(budget={"e2e_ms": 60_000})
    paced.settle()
    assert latency.observed == 1


def test_the_share_of_each_tenant_is_a_metric(paced: Started, _server: GatewayServer):
    paced.engines["full"].behaviour = "answer"
    tenant = paced.app._gatekeeper.tenants[0]
    _server.refresh(paced)
    assert paced.sample("gearbox_admission_tenant_share_ratio", tenant=tenant) == 0
    paced.chat()
    time.sleep(0.01)
    _server.refresh(paced)
    assert paced.sample("gearbox_admission_tenant_share_ratio", tenant=tenant) > 0


def test_a_request_waits_as_one_of_its_tenant_with_its_weight(paced: Started):
    admission = paced.app._admission
    call = parse_call(orjson.dumps(BODY), "chat", "acme")
    waiting = admission._waiting(call, Caller("acme", "best", weight=4.0), Budget(), 0.0, (), lambda _: None)
    assert (waiting.tenant, waiting.weight, waiting.counted) == ("acme", 4.0, False)


def test_the_time_that_sending_a_stream_takes_is_noted(paced: Started, monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(type(paced.app._admission), "observe", lambda _, attempt: seen.append(attempt))
    paced.engines["full"].behaviour = "answer"
    paced.http.post("/v1/chat/completions", json={**BODY, "stream": True})
    paced.settle()
    assert 0 < seen[0].sent_s < seen[0].e2e_ms / 1000
