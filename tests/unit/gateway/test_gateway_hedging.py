"""Hedged requests: which are sent to a second replica, whose answer is used, and what is counted."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from benchmarks.lib.sample_catalog import MODEL, make_config, make_live_variant
from serve.budget import Budget
from serve.gateway import hedging
from serve.gateway.hedging import MAX_TOKENS, TOKEN_RATIO, Hedging
from serve.routing.admission import Admission
from serve.routing.catalog import Variant
from serve.routing.prediction import Latency
from serve.telemetry.metrics import Metrics
from tests.support.answers import MESSAGES, chunks, error_of, gearbox_of, streamed_or_not, text_of
from tests.support.engine_stub import EngineStub
from tests.support.gateway_server import Start, Started

LATE = {"ttft_ms": 30_000}
PINNED = f"{MODEL}:full"
ANSWER = "You said: hello there"


def catalog(others_ttft_ms: float = 2) -> list[Variant]:
    """First tokens within 2 ms, or 4 at most: a request at an engine that holds it is late at once."""
    return [
        make_live_variant("full", quality=1.0, ttft_ms=2, tpot_ms=1),
        make_live_variant("int8", quality=0.9, ttft_ms=others_ttft_ms, tpot_ms=1),
        make_live_variant("distilled", quality=0.8, ttft_ms=others_ttft_ms, tpot_ms=1),
    ]


@pytest.fixture
def single(start_gateway: Start, monkeypatch: pytest.MonkeyPatch) -> Started:
    """A gateway that may hedge one request, as soon as its first token is late. Each variant has one replica."""
    return start_hedging(start_gateway, monkeypatch, catalog())


@pytest.fixture
def hedged(single: Started) -> Started:
    """The same where `full` has a second replica: the engine of `int8`."""
    urls = [single.engines["full"].url, second(single).url]
    single.replicas.by_variant["full"] = urls
    live = single.variants["full"].live
    live.update_from_engines(2, 0, 0, 0.0)
    live.update_replicas(dict.fromkeys(urls, 0))
    return single


def start_hedging(start_gateway: Start, monkeypatch: pytest.MonkeyPatch, variants: list[Variant]) -> Started:
    monkeypatch.setattr(hedging, "SPARE", 1e6)
    gateway = start_gateway(variants=variants, server={"hedging": True})
    tokens(gateway, 1)
    return gateway


def second(gateway: Started) -> EngineStub:
    return gateway.engines["int8"]


def tokens(gateway: Started, value: float) -> None:
    gateway.app._generation._hedging._tokens = value


def send(gateway: Started, stream: bool = True, **body: Any) -> httpx.Response:
    """A request whose whole answer is late as soon as its first token is."""
    return gateway.chat(stream=stream, **{"budget": LATE, "max_tokens": 2, **body})


class Sent(threading.Thread):
    """`send` in a thread of its own."""

    def __init__(self, gateway: Started, **body: Any) -> None:
        super().__init__(daemon=True)
        self._gateway, self._body = gateway, body
        self.start()

    def run(self) -> None:
        self._response = send(self._gateway, **self._body)

    def answer(self) -> httpx.Response:
        self.join(30)
        return self._response


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def hedges(gateway: Started) -> tuple[float, float]:
    """Hedges that won and that lost."""
    won, lost = (gateway.sample("gearbox_hedges_total", outcome=outcome) for outcome in ("won", "lost"))
    return won, lost


def attempts(gateway: Started) -> dict[str, float]:
    outcomes = ("ok", "cancelled", "engine_error", "client_error")
    counts = {outcome: gateway.sample("gearbox_attempts_total", outcome=outcome) for outcome in outcomes}
    return {outcome: count for outcome, count in counts.items() if count}


def nothing_in_flight(gateway: Started) -> None:
    """Neither at the variants, nor at their replicas, nor at the engines."""
    gateway.settle()
    for variant in gateway.variants.values():
        assert variant.live.pending_prefill_tokens == 0
        for state in variant.live.by_replica.values():
            assert (state.in_flight, state.pending_prefill_tokens) == (0, 0)
    until(lambda: not any(engine.running for engine in gateway.engines.values()))


class TestOutcome:
    @streamed_or_not
    @pytest.mark.parametrize("n", [1, 2])
    @pytest.mark.parametrize("model", [MODEL, PINNED])
    def test_the_hedge_answers_where_the_first_replica_does_not(self, hedged: Started, model, n, stream, caplog):
        caplog.set_level(logging.INFO, "gearbox.gateway")
        full = hedged.engines["full"]
        full.behaviour = "hang"
        response = send(hedged, stream, model=model, n=n)
        assert len(text_of(response, stream)) == len(ANSWER) * (n if stream else 1)
        facts = gearbox_of(response, stream)
        assert (facts["variant"], facts["attempts"], facts["missed"]) == ("full", 2, None)
        until(lambda: full.cancelled == 1)
        assert hedged.engine_calls() == {"full": 1, "int8": 1}
        assert hedges(hedged) == (1, 0)
        assert "is hedged: no answer of variant full" in caplog.text
        nothing_in_flight(hedged)

    def test_what_was_cancelled_is_no_failure_is_not_paid_for_and_teaches_nothing(self, hedged: Started):
        hedged.engines["full"].behaviour = "hang"
        response = send(hedged, stream_options={"include_usage": True})
        assert attempts(hedged) == {"ok": 1, "cancelled": 1}
        assert hedged.sample("gearbox_failovers_total") == hedged.sample("gearbox_replica_ejections_total") == 0
        assert all(state.answers for state in hedged.variants["full"].live.by_replica.values())
        usage = chunks(response)[-1]["usage"]
        assert hedged.sample("gearbox_tokens_total", kind="input") == usage["prompt_tokens"]
        assert hedged.sample("gearbox_tokens_total", kind="output") == usage["completion_tokens"]
        assert hedged.variants["full"].latency.observed == 1
        assert hedged.sample("gearbox_ttft_seconds_count") == hedged.sample("gearbox_overhead_seconds_count") == 1
        assert hedged.sample("gearbox_requests_total", variant="full", outcome="answered") == 1

    @streamed_or_not
    def test_the_first_replica_is_used_if_it_answers_before_the_hedge(self, hedged: Started, stream):
        full, other = hedged.engines["full"], second(hedged)
        full.behaviour = other.behaviour = "hang"
        sent = Sent(hedged, stream=stream)
        until(lambda: full.running and other.running)
        full.let_go()
        response = sent.answer()
        assert text_of(response, stream) == ANSWER
        assert gearbox_of(response, stream)["attempts"] == 2
        until(lambda: other.cancelled == 1)
        assert hedges(hedged) == (0, 1)
        assert attempts(hedged) == {"ok": 1, "cancelled": 1}
        nothing_in_flight(hedged)

    @streamed_or_not
    def test_the_variant_of_the_answer_is_that_which_gave_it(self, single: Started, _server, stream):
        """Without another replica, another variant gets the hedge."""
        full, int8, _ = single.engines.values()
        full.behaviour = int8.behaviour = "hang"
        for answering, name, outcome in ((int8, "int8", (1, 0)), (full, "full", (1, 1))):
            tokens(single, 1)
            sent = Sent(single, stream=stream)
            until(lambda: full.running and int8.running)
            answering.let_go()
            response = sent.answer()
            facts = gearbox_of(response, stream)
            assert facts["variant"] == response.headers["x-gearbox-variant"] == name
            assert single.sample("gearbox_requests_total", variant=name, outcome="answered") == 1
            assert single.sample("gearbox_tokens_total", variant=name) > 0
            assert hedges(single) == outcome
            _server._loop.call_soon_threadsafe(answering.hold.clear)
            nothing_in_flight(single)
        assert single.sample("gearbox_hedges_total", variant="full") == 2, "by the variant that was late"

    def test_an_interrupted_stream_of_a_hedge_is_continued(self, single: Started):
        full, int8, _ = single.engines.values()
        full.behaviour, int8.behaviour = "hang", "die mid-stream"
        sent = Sent(single, max_tokens=50)
        until(lambda: full.cancelled)
        full.let_go()
        response = sent.answer()
        assert text_of(response, True) == ANSWER
        facts = gearbox_of(response, True)
        assert (facts["attempts"], [m["from"] for m in facts["migrations"]]) == (3, ["int8"])
        assert hedges(single) == (1, 0)
        nothing_in_flight(single)

    def test_an_interrupted_stream_of_the_first_replica_is_continued(self, single: Started):
        full, int8, _ = single.engines.values()
        full.behaviour = int8.behaviour = "hang"
        sent = Sent(single, max_tokens=50)
        until(lambda: full.running and int8.running)
        full.behaviour = "die mid-stream"
        full.let_go()
        until(lambda: attempts(single).get("cancelled"))  # the hedge, which must not begin to answer
        int8.behaviour = "answer"
        int8.let_go()
        response = sent.answer()
        assert text_of(response, True) == ANSWER
        facts = gearbox_of(response, True)
        assert (facts["attempts"], [m["to"] for m in facts["migrations"]]) == (3, ["int8"])
        assert single.sample("gearbox_requests_total", variant="int8", outcome="answered") == 1
        assert hedges(single) == (0, 1)
        nothing_in_flight(single)


class TestFailure:
    @streamed_or_not
    def test_the_hedge_goes_on_when_the_first_replica_fails(self, hedged: Started, stream):
        """It stands for the next try: nothing else is sent."""
        full, other = hedged.engines["full"], second(hedged)
        full.behaviour, other.behaviour = "die when let go", "hang"
        sent = Sent(hedged, stream=stream)
        until(lambda: other.running)
        full.let_go()
        until(lambda: attempts(hedged).get("engine_error"))
        other.let_go()
        response = sent.answer()
        assert text_of(response, stream) == ANSWER
        assert gearbox_of(response, stream)["attempts"] == 2
        assert hedged.engine_calls() == {"full": 1, "int8": 1}
        assert hedges(hedged) == (1, 0)
        assert [state.answers for state in hedged.variants["full"].live.by_replica.values()] == [False, True]
        nothing_in_flight(hedged)

    @streamed_or_not
    def test_the_first_replica_goes_on_when_the_hedge_fails(self, hedged: Started, stream):
        full, other = hedged.engines["full"], second(hedged)
        full.behaviour, other.behaviour = "hang", "die"
        tokens(hedged, MAX_TOKENS)
        sent = Sent(hedged, stream=stream)
        until(lambda: attempts(hedged).get("engine_error"))
        full.let_go()
        response = sent.answer()
        assert text_of(response, stream) == ANSWER
        assert gearbox_of(response, stream)["attempts"] == 2
        assert hedged.engine_calls() == {"full": 1, "int8": 1}, "a request is hedged once"
        assert hedges(hedged) == (0, 1)
        nothing_in_flight(hedged)

    def both_fail(self, gateway: Started, **body: Any) -> httpx.Response:
        full, other = gateway.engines["full"], second(gateway)
        full.behaviour = other.behaviour = "die when let go"
        sent = Sent(gateway, **body)
        until(lambda: full.running and other.running)
        full.let_go()
        other.let_go()
        return sent.answer()

    def test_both_count_as_tries_of_the_request_when_they_fail(self, hedged: Started):
        response = self.both_fail(hedged)
        assert text_of(response, True) == ANSWER
        assert response.headers["x-gearbox-variant"] == "distilled"
        assert hedged.engine_calls() == {"full": 1, "int8": 1, "distilled": 1}
        assert hedges(hedged) == (0, 1)
        nothing_in_flight(hedged)

    def test_a_third_failure_is_the_last(self, hedged: Started):
        url = hedged.engines["distilled"].url
        hedged.engines["distilled"].behaviour = "die"
        hedged.replicas.by_variant["distilled"] = [url, url.replace("127.0.0.1", "localhost")]
        assert error_of(self.both_fail(hedged), 503)["code"] == "engine_unavailable"
        assert hedged.engine_calls() == {"full": 1, "int8": 1, "distilled": 1}
        nothing_in_flight(hedged)

    def test_a_pinned_request_ends_when_both_fail(self, hedged: Started):
        assert error_of(self.both_fail(hedged, model=PINNED), 503)["code"] == "engine_unavailable"
        assert hedged.engine_calls() == {"full": 1, "int8": 1}
        nothing_in_flight(hedged)

    def test_a_refusal_of_the_first_engine_is_the_answer(self, hedged: Started):
        full, other = hedged.engines["full"], second(hedged)
        full.behaviour, other.behaviour = "context when let go", "hang"
        sent = Sent(hedged, model=PINNED)
        until(lambda: full.running and other.running)
        full.let_go()
        error = error_of(sent.answer(), 400)
        assert error["code"] == "context_length_exceeded"
        until(lambda: other.cancelled == 1)
        assert hedges(hedged) == (0, 1)
        nothing_in_flight(hedged)

    def test_the_variant_of_a_refusal_is_that_which_refused(self, single: Started):
        full, other = single.engines["full"], second(single)
        full.behaviour, other.behaviour = "400 when let go", "hang"
        sent = Sent(single)
        until(lambda: full.running and other.running)
        full.let_go()
        error_of(sent.answer(), 400)
        assert single.sample("gearbox_requests_total", variant="full", outcome="rejected") == 1
        nothing_in_flight(single)

    def test_a_refusal_of_the_hedge_is_not(self, hedged: Started, caplog):
        full, other = hedged.engines["full"], second(hedged)
        full.behaviour, other.behaviour = "hang", "400"
        sent = Sent(hedged)
        until(lambda: attempts(hedged).get("client_error"))
        full.let_go()
        assert text_of(sent.answer(), True) == ANSWER
        assert "the hedge of request" in caplog.text
        nothing_in_flight(hedged)

    @streamed_or_not
    def test_both_are_cancelled_when_the_client_disconnects(self, hedged: Started, _server, stream):
        full, other = hedged.engines["full"], second(hedged)
        full.behaviour = other.behaviour = "hang"
        body = {"model": MODEL, "messages": MESSAGES, "stream": stream, "budget": LATE, "max_tokens": 2}
        _server.run_and_cancel(hedged, body, lambda: full.running and other.running)
        until(lambda: (full.cancelled, other.cancelled) == (1, 1))
        assert hedges(hedged) == (0, 1)
        assert attempts(hedged) == {"cancelled": 2}
        assert hedged.sample("gearbox_requests_total", outcome="cancelled") == 1
        nothing_in_flight(hedged)

    def test_a_hedge_that_answers_is_cancelled_when_the_client_disconnects(self, hedged: Started, _server):
        full, other = hedged.engines["full"], second(hedged)
        full.behaviour, other.behaviour = "hang", "hold"
        body = {"model": MODEL, "messages": MESSAGES, "stream": True, "budget": LATE}
        _server.run_and_cancel(hedged, body, lambda: full.cancelled)
        until(lambda: other.cancelled == 1)
        assert hedges(hedged) == (1, 0)
        assert hedged.sample("gearbox_requests_total", outcome="cancelled") == 1
        nothing_in_flight(hedged)


class TestBound:
    def answered_by_first(self, gateway: Started, **body: Any) -> None:
        gateway.engines["full"].behaviour = "slow"
        assert gearbox_of(send(gateway, **body), True)["attempts"] == 1
        assert hedges(gateway) == (0, 0)

    def test_hedging_is_off_by_default(self, start_gateway: Start, monkeypatch):
        monkeypatch.setattr(hedging, "SPARE", 1e6)
        gateway = start_gateway(variants=catalog())
        tokens(gateway, 3)
        assert not make_config().server.hedging
        self.answered_by_first(gateway)

    def test_it_ends_when_the_hedges_are_used_up(self, hedged: Started):
        hedged.engines["full"].behaviour = "hang"
        tokens(hedged, MAX_TOKENS)
        for _ in range(3):
            assert gearbox_of(send(hedged, model=PINNED), True)["attempts"] == 2
        hedged.engines["full"].behaviour = "slow"
        assert hedged.sample("gearbox_hedges_total", variant="full", outcome="throttled") == 0
        assert gearbox_of(send(hedged, model=PINNED), True)["attempts"] == 1
        assert hedged.sample("gearbox_hedges_total", variant="full", outcome="throttled") == 1

    def test_each_request_earns_a_fiftieth_of_a_hedge_up_to_three(self, hedged: Started):
        tokens(hedged, 0)
        for budget in (LATE, {}):
            send(hedged, budget=budget)
        assert hedged.app._generation._hedging._tokens == pytest.approx(2 * TOKEN_RATIO)
        tokens(hedged, MAX_TOKENS - TOKEN_RATIO / 2)
        send(hedged, budget={})  # without a limit none is spent, however slow the machine
        assert hedged.app._generation._hedging._tokens == MAX_TOKENS

    def test_a_try_after_a_failure_earns_nothing(self, hedged: Started):
        hedged.engines["full"].behaviour = "die"
        tokens(hedged, 0)
        assert gearbox_of(send(hedged), True)["attempts"] == 2
        assert hedged.app._generation._hedging._tokens == pytest.approx(TOKEN_RATIO)

    def test_never_while_requests_wait_in_the_queue(self, hedged: Started, monkeypatch):
        monkeypatch.setattr(Admission, "__len__", lambda _: 1)
        self.answered_by_first(hedged)

    def test_not_without_a_ttft_limit(self, hedged: Started):
        self.answered_by_first(hedged, budget={"e2e_ms": 30_000})

    def test_not_when_the_bound_of_the_prediction_is_beyond_the_limit(self, hedged: Started):
        self.answered_by_first(hedged, budget={"ttft_ms": 3})

    def test_not_when_the_limit_has_passed(self, hedged: Started, monkeypatch):
        full, elapsed_ms = hedged.engines["full"], [LATE["ttft_ms"], 0.0]
        monkeypatch.setattr(hedging, "_elapsed_ms", lambda _: elapsed_ms.pop())
        full.behaviour = "hang"
        sent = Sent(hedged)
        until(lambda: not elapsed_ms)
        full.let_go()
        assert gearbox_of(sent.answer(), True)["attempts"] == 1

    def test_not_when_no_other_replica_is_predicted_to_meet_the_limit(self, start_gateway: Start, monkeypatch):
        self.answered_by_first(start_hedging(start_gateway, monkeypatch, catalog(others_ttft_ms=40_000)))

    def test_not_below_the_quality_floor(self, single: Started):
        self.answered_by_first(single, budget={**LATE, "min_quality": 0.95})

    def test_a_pinned_request_not_without_another_replica(self, single: Started):
        self.answered_by_first(single, model=PINNED)

    def test_not_at_an_ejected_replica(self, hedged: Started):
        hedged.replicas.health.eject(second(hedged).url, time.perf_counter())
        self.answered_by_first(hedged, model=PINNED)

    def test_not_for_a_replica_that_gets_few_requests_after_its_ejection(self, hedged: Started):
        """It would go to the one that is late."""
        health = hedged.replicas.health
        health.eject(second(hedged).url, time.perf_counter())
        health.on_probe(second(hedged).url, True, time.perf_counter())
        self.answered_by_first(hedged, model=PINNED)

    def test_not_at_the_replica_that_has_the_request_instead_of_a_suspect_one(self, hedged: Started):
        """Before the gateway can know that it has."""
        full, live = hedged.engines["full"], hedged.variants["full"].live
        live.on_dispatch(100, 1, 10, full.url)
        hedged.replicas.health.suspects.add(second(hedged).url)
        full.behaviour = "slow"
        assert gearbox_of(send(hedged, False, model=PINNED), False)["attempts"] == 1
        assert hedged.engine_calls() == {"full": 1}
        live.on_first_token(100, full.url)
        live.on_complete(1, full.url)

    def test_not_for_a_replica_that_is_suspect(self, hedged: Started):
        hedged.replicas.health.suspects.add(second(hedged).url)
        self.answered_by_first(hedged, model=PINNED)


def attempt(limit_ms: float | None, stream: bool, earlier: int = 0) -> Any:
    """An attempt whose predicted 95% bounds are 100 ms for the first token and 500 ms for the whole answer."""
    prediction = SimpleNamespace(tail=lambda level: Latency(100.0, 10.0, 500.0))
    request = SimpleNamespace(budget=Budget(ttft_ms=limit_ms), attempts=[None] * earlier)
    decision, variant = SimpleNamespace(chosen=SimpleNamespace(prediction=prediction)), SimpleNamespace(name="full")
    return SimpleNamespace(request=request, decision=decision, variant=variant, call=SimpleNamespace(stream=stream))


@pytest.mark.parametrize(
    ("limit_ms", "stream", "delay_s"),
    [
        (1000, True, 0.8),  # as late as another engine still has twice its bound
        (250, True, 0.1),  # not before this engine's bound
        (100, True, None),
        (None, True, None),
        (1000, False, 0.8),
        (600, False, 0.5),  # the first token of an answer that is not streamed is not seen
        (500, False, None),
    ],
)
def test_a_request_is_hedged_as_late_as_another_engine_can_keep_its_limit(monkeypatch, limit_ms, stream, delay_s):
    monkeypatch.setattr(hedging, "_elapsed_ms", lambda _: 0.0)
    hedged = Hedging(True, None, None, None)  # type: ignore[arg-type]
    assert hedged._delay_s(attempt(limit_ms, stream)) == delay_s
    assert hedged._delay_s(attempt(limit_ms, stream, earlier=1)) is None


async def test_a_first_token_in_time_is_not_hedged_however_long_the_answer_takes(monkeypatch):
    hedged: list[object] = []
    monkeypatch.setattr(Hedging, "_delay_s", lambda *_: 0.002)
    monkeypatch.setattr(Hedging, "_hedge", lambda _, first: hedged.append(first))

    async def answer(_: object, first_token: Callable[[], None]) -> None:
        first_token()
        await asyncio.sleep(0.01)

    await Hedging(True, None, None, None).run(attempt(1000, True), answer)  # type: ignore[arg-type]
    assert not hedged


async def test_a_hedge_that_lost_is_cancelled_while_the_answer_goes_on(monkeypatch):
    first, hedge, cancelled = attempt(1000, True), attempt(1000, True), asyncio.Event()
    monkeypatch.setattr(Hedging, "_delay_s", lambda *_: 0.0)
    monkeypatch.setattr(Hedging, "_hedge", lambda *_: hedge)
    sent = asyncio.Event()

    async def answer(one: object, first_token: Callable[[], None]) -> None:
        if one is first:
            await sent.wait()
            first_token()
            async with asyncio.timeout(10):
                await cancelled.wait()
            return
        sent.set()
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    await Hedging(True, None, None, Metrics()).run(first, answer)  # type: ignore[arg-type]


async def test_a_client_that_disconnects_as_the_hedge_wins_ends_both(monkeypatch):
    first, hedge = attempt(1000, True), attempt(1000, True)
    monkeypatch.setattr(Hedging, "_delay_s", lambda *_: 0.0)
    monkeypatch.setattr(Hedging, "_hedge", lambda *_: hedge)
    cancelled = []

    async def answer(one: object, first_token: Callable[[], None]) -> None:
        try:
            if one is hedge:
                first_token()
                request.cancel()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(one)
            raise

    request = asyncio.create_task(Hedging(True, None, None, Metrics()).run(first, answer))  # type: ignore[arg-type]
    with pytest.raises(asyncio.CancelledError):
        await request
    assert cancelled == [first, hedge]
