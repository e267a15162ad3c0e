"""Request telemetry of the gateway: metrics and log lines, and no request left in flight, for every outcome."""

import logging
import time

import pytest

from benchmarks.lib.sample_catalog import MODEL
from serve.gateway.auth import hash_key
from tests.support.answers import MESSAGES, error_of, streamed_or_not
from tests.support.engine_stub import STREAM_FAILURES, EngineStub
from tests.support.gateway_server import Start, Started, bearer


@streamed_or_not
def test_an_answer_is_counted_once_in_every_metric(gateway: Started, stream):
    gateway.chat(stream=stream)
    gateway.settle()
    counted = {
        "gearbox_attempts_total": {"reason": "quality", "outcome": "ok"},
        "gearbox_ttft_seconds_count": {},
        "gearbox_tpot_seconds_count": {},
        "gearbox_e2e_seconds_count": {},
        "gearbox_queue_seconds_count": {},
    }
    for name, labels in counted.items():
        assert gateway.sample(name, variant="full", **labels) == 1, name
    assert gateway.sample("gearbox_queue_seconds_sum", variant="full") == pytest.approx(0.0015)
    assert gateway.sample("gearbox_tokens_total", variant="full", kind="input") == 2
    assert gateway.sample("gearbox_tokens_total", variant="full", kind="output") == 6
    assert gateway.sample("gearbox_decision_seconds_count") == 1
    assert gateway.sample("gearbox_overhead_seconds_count") == 1


def test_a_request_counts_once_however_many_attempts_it_took(gateway: Started, full: EngineStub):
    full.behaviour = "die"
    gateway.chat()
    full.behaviour = "answer"
    gateway.chat()
    gateway.chat(budget={"max_cost": 0, "on_no_candidate": "reject"})
    assert gateway.sample("gearbox_attempts_total") == 3
    assert gateway.sample("gearbox_requests_total") == 3
    for variant, profile, outcome in (
        ("int8", "best", "answered"),
        ("full", "best", "answered"),
        ("none", "custom", "rejected"),
    ):
        assert gateway.sample("gearbox_requests_total", variant=variant, profile=profile, outcome=outcome) == 1


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (400, {"budget": 5}),
        (404, {"model": "gpt-4"}),
        (413, {"text": "x" * (5 << 20)}),
        (422, {"budget": {"ttft_ms": 1, "on_no_candidate": "reject"}}),
    ],
)
def test_a_refusal_is_counted_by_its_status(gateway: Started, status, request_):
    assert gateway.chat(**request_).status_code == status
    assert gateway.sample("gearbox_requests_rejected_total", status=str(status), endpoint="generation") == 1
    assert gateway.post("/v1/search", {}).status_code >= 400
    assert gateway.sample("gearbox_requests_rejected_total", endpoint="other") == 1


@pytest.mark.parametrize("behaviour", ["answer", *STREAM_FAILURES, "die mid-stream", "400", "context", "end early"])
@streamed_or_not
def test_nothing_stays_in_flight_whatever_the_engine_does(gateway: Started, behaviour, stream):
    for engine in gateway.engines.values():
        engine.behaviour = behaviour
    gateway.chat(stream=stream)
    gateway.settle()
    assert all(engine.running == 0 for engine in gateway.engines.values())


def test_a_request_in_flight_is_seen_while_it_lasts(gateway: Started, full: EngineStub):
    full.behaviour = "hold"
    body = {"model": MODEL, "messages": MESSAGES, "stream": True}
    with gateway.http.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        live = gateway.variants["full"].live
        assert (live.in_flight, live.pending_prefill_tokens) == (1, 0), "with its first token, the prompt is read"
        assert gateway.sample("gearbox_requests_in_flight", variant="full") == 1
        full.let_go()
        assert "data: [DONE]" in list(lines)
    gateway.settle()


@streamed_or_not
def test_a_cancelled_request_is_cancelled_in_the_engine(gateway: Started, full: EngineStub, stream, _server):
    """Serve cancels the application's task when the client goes away."""
    full.behaviour = "hold"
    _server.run_and_cancel(gateway, {"model": MODEL, "messages": MESSAGES, "stream": stream}, lambda: full.running)
    deadline = time.monotonic() + 30
    while full.running and time.monotonic() < deadline:
        time.sleep(0.002)
    assert (full.running, full.cancelled) == (0, 1)
    gateway.settle()
    assert gateway.sample("gearbox_attempts_total", variant="full", reason="quality", outcome="cancelled") == 1


def test_neither_prompts_nor_keys_are_in_logs_or_metrics(start_gateway: Start, caplog):
    caplog.set_level(logging.DEBUG)
    secret, key = "my-medical-history", "gbx-very-secret"
    gateway = start_gateway(access={"keys": [{"sha256": hash_key(key), "tenant": "acme"}]})
    behaviours = ["answer", *STREAM_FAILURES, "die mid-stream", "error event mid-stream", "400", "context"]
    for behaviour in behaviours:
        for engine in gateway.engines.values():
            engine.behaviour = behaviour
            engine.error = f"cannot process '{secret}'"
        for stream in (False, True):
            gateway.chat(secret, headers=bearer(key), stream=stream, budget={"max_cost": 1})
    gateway.chat(secret, headers=bearer(f"{key}x"))
    gateway.http.post("/v1/chat/completions", content=f'{{"{secret}'.encode(), headers=bearer(key))
    gateway.settle()
    own = [record for record in caplog.records if record.name.startswith("gearbox")]
    assert own, "failures are logged"
    for record in own:
        line = record.getMessage() + str(record.exc_info)
        assert secret not in line
        assert key not in line
    series = str(gateway.series())
    assert secret not in series
    assert key not in series


def test_an_error_inside_the_gateway_is_500_with_the_request_id_only(gateway: Started, monkeypatch, caplog):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("internal detail")

    monkeypatch.setattr("serve.routing.router.Router.decide", broken)
    response = gateway.chat(headers={"x-request-id": "abc-123"})
    error = error_of(response, 500)
    assert "abc-123" in error["message"]
    assert "internal detail" not in response.text
    assert "internal detail" not in caplog.text, "a message may quote the request"
    assert "RuntimeError at gateway/test_gateway_telemetry.py" in caplog.text, "whoever operates it can find out"
    assert "serve/routing/admission.py:" in caplog.text
    assert gateway.sample("gearbox_requests_rejected_total", status="500") == 1


@pytest.mark.parametrize("given", ["", "x" * 129, "größe"])
def test_an_odd_request_id_is_replaced(gateway: Started, full: EngineStub, given):
    gateway.chat(headers={"x-request-id": given.encode()})
    sent = {name.lower(): value for name, value in full.headers[0].items()}["x-request-id"]
    assert len(sent) == 32 + 1 + 8
    assert sent.isascii()
