"""Request telemetry: budgets met and missed, one log line per request, traces, and tenant attribution."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.lib.sample_catalog import MODEL
from benchmarks.lib.scripted_retrieval import FakeRetrieval
from serve.gateway.auth import hash_key
from serve.telemetry import tracing
from tests.support.answers import error_of
from tests.support.gateway_server import Start, Started, bearer
from tests.support.trace_collector import Collector

SECRET = "a private question about zebras"


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The log's lines about requests."""
    return [record.request for record in caplog.records if record.name == "gearbox.requests"]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "gearbox.requests"):
        yield caplog


class TestBudgets:
    @pytest.mark.parametrize("stream", [False, True])
    def test_a_met_budget_counts_for_its_profile(self, gateway: Started, stream):
        gateway.chat(model=f"{MODEL}@cheap", stream=stream)
        assert gateway.sample("gearbox_budget_requests_total", profile="cheap", met="yes") == 1
        assert gateway.sample("gearbox_budget_requests_total", met="no") == 0
        assert gateway.sample("gearbox_answer_quality_ratio_sum", profile="cheap") == pytest.approx(0.8)
        spent = gateway.sample("gearbox_profile_cost_usd_total", profile="cheap")
        assert spent == gateway.sample("gearbox_cost_usd_total", variant="distilled") > 0

    @pytest.mark.parametrize(
        ("limit", "kind"),
        [
            ({"ttft_ms": 0.01}, "ttft"),
            ({"e2e_ms": 0.01}, "e2e"),
            ({"tpot_ms": 0.00001}, "tpot"),
            ({"max_cost": 1e-15}, "cost"),
        ],
    )
    def test_a_missed_limit_is_a_violation_of_its_kind(self, gateway: Started, limit, kind):
        gateway.chat(budget=limit, max_tokens=8, stream=True)
        assert gateway.sample("gearbox_budget_requests_total", profile="custom", met="no") == 1
        assert gateway.sample("gearbox_budget_violations_total", profile="custom", kind=kind) == 1
        assert gateway.sample("gearbox_budget_violations_total") == 1

    def test_quality_below_the_floor_is_one_too(self, gateway: Started):
        gateway.chat(model=f"{MODEL}:distilled", budget={"min_quality": 0.9})
        assert gateway.sample("gearbox_budget_violations_total", profile="custom", kind="quality") == 1

    def test_refused_for_the_budget_counts_as_missed(self, gateway: Started):
        error_of(gateway.chat(budget={"ttft_ms": 0.01, "on_no_candidate": "reject"}), 422)
        assert gateway.sample("gearbox_budget_violations_total", profile="custom", kind="rejected") == 1
        assert gateway.sample("gearbox_requests_rejected_total", status="422", code="impossible_budget") == 1

    def test_a_failure_of_ours_counts_as_missed(self, gateway: Started):
        for engine in gateway.engines.values():
            engine.behaviour = "die"
        error_of(gateway.chat(), 503)
        assert gateway.sample("gearbox_budget_violations_total", profile="best", kind="failed") == 1

    def test_an_answer_that_broke_off_counts_as_missed(self, gateway: Started):
        gateway.engines["full"].behaviour = "die mid-stream"
        gateway.chat(stream=True, n=2)
        assert gateway.sample("gearbox_budget_violations_total", profile="best", kind="failed") == 1
        assert gateway.sample("gearbox_tenant_requests_total", outcome="failed") == 1

    def test_a_clients_own_fault_counts_as_neither(self, gateway: Started):
        gateway.engines["full"].behaviour = "400"
        error_of(gateway.chat(), 400)
        error_of(gateway.chat(budget={"ttft_ms": "soon"}), 400)
        assert gateway.sample("gearbox_budget_requests_total") == 0
        assert gateway.sample("gearbox_tenant_requests_total", outcome="rejected") == 1

    def test_what_a_request_changes_of_a_profile_is_custom(self, gateway: Started):
        gateway.chat(model=f"{MODEL}@fast", headers={"x-gearbox-slo-e2e-ms": "60000"})
        assert gateway.sample("gearbox_budget_requests_total", profile="custom", met="yes") == 1
        assert gateway.sample("gearbox_budget_requests_total", profile="fast") == 0


class TestRouter:
    def test_exclusions_and_switches_are_counted(self, gateway: Started):
        for model in ("best", "best", "cheap"):
            gateway.chat(model=f"{MODEL}@{model}")
        assert gateway.sample("gearbox_route_switches_total") == 0
        gateway.chat(budget={"min_quality": 0.9, "objective": "cost"})
        assert gateway.sample("gearbox_candidates_excluded_total", variant="distilled", rule="min_quality") == 1
        gateway.engines["full"].behaviour = "die"
        gateway.chat(model=f"{MODEL}@best")
        assert gateway.sample("gearbox_failovers_total", variant="full", cause="engine") == 1
        assert gateway.sample("gearbox_candidates_excluded_total", variant="full", rule="failed") == 1
        assert gateway.sample("gearbox_route_switches_total", profile="best") == 1

    def test_what_was_expected_is_shown_beside_what_was(self, gateway: Started):
        gateway.chat(max_tokens=8)
        for what in ("ttft", "tpot", "e2e"):
            assert gateway.sample(f"gearbox_predicted_{what}_seconds_count", variant="full") == 1
        assert 0.1 < gateway.sample("gearbox_predicted_ttft_seconds_sum") < 1


KEYS = [{"sha256": hash_key(f"gbx-{i}"), "tenant": f"tenant{i}", "tokens_per_minute": 100} for i in range(12)]


class TestTenants:
    def test_the_first_have_their_own_labels_and_the_rest_share_one(self, start_gateway: Start):
        gateway = start_gateway(access={"keys": KEYS}, observability={"tenant_cardinality_limit": 3})
        for i in range(12):
            assert gateway.chat(headers=bearer(f"gbx-{i}")).status_code == 200
        tenants = {dict(labels)["tenant"] for _, labels in gateway.series() if "tenant" in dict(labels)}
        assert tenants == {"tenant0", "tenant1", "tenant2", "other"}
        assert gateway.sample("gearbox_tenant_requests_total", tenant="other", outcome="answered") == 9

    def test_the_share_of_the_engines_that_each_has_is_shown(self, start_gateway: Start):
        gateway = start_gateway(access={"keys": KEYS}, observability={"tenant_cardinality_limit": 2})
        gateway.app.telemetry.export_shares({"tenant0": 0.5, "tenant5": 0.25, "tenant7": 0.125})
        shown = [
            gateway.sample("gearbox_admission_tenant_share_ratio", tenant=tenant)
            for tenant in ("tenant0", "tenant1", "other")
        ]
        assert shown == [0.5, 0, 0.375]

    async def test_the_used_share_of_limits_is_shown(self, start_gateway: Start):
        gateway = start_gateway(access={"keys": KEYS[:2]})
        used = gateway.chat(headers=bearer("gbx-0")).json()["usage"]["total_tokens"]
        await gateway.app.export_quotas()
        assert gateway.sample(
            "gearbox_rate_limit_utilization_ratio", tenant="tenant0", limit="tokens"
        ) == pytest.approx(used / 100)
        assert gateway.sample("gearbox_rate_limit_utilization_ratio", tenant="tenant1", limit="tokens") == 0

    def test_a_withdrawn_key_uses_nothing_of_its_limit(self, gateway: Started):
        for used in ([("tenant0", "tokens", 0.95)], []):
            gateway.app.telemetry.export_quotas(used)
        assert gateway.sample("gearbox_rate_limit_utilization_ratio", tenant="tenant0", limit="tokens") == 0


async def test_ten_thousand_strangers_make_no_series(gateway: Started):
    async def strange(i: int) -> int:
        odd = b"stranger%d" % i
        body = b'{"model":"%s@%s","messages":[{"role":"user","content":"hi"}],"user":"%s"}' % (MODEL.encode(), odd, odd)
        headers = [
            (b"authorization", b"Bearer " + odd),
            (b"x-tenant", odd),
            (b"x-request-id", odd),
            (b"traceparent", odd),
        ]
        statuses = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            statuses.append(message.get("status"))

        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
        await gateway.app(scope, receive, send)
        return statuses[0]

    assert await strange(0) == 404
    before = gateway.series()
    for i in range(1, 10_001):
        await strange(i)
    assert gateway.series() == before
    assert "stranger" not in str(before)


class TestLog:
    @pytest.mark.parametrize("stream", [False, True])
    def test_a_line_for_each_request_with_its_decision(self, gateway: Started, log, stream):
        gateway.chat(SECRET, stream=stream, headers={"x-request-id": "mine-1"}, budget={"min_quality": 0.5})
        (line,) = lines(log)
        assert line["id"] == "mine-1"
        assert (line["tenant"], line["profile"], line["outcome"], line["status"]) == (
            "anonymous",
            "custom",
            "answered",
            200,
        )
        assert (line["variant"], line["reason"], line["attempts"], line["violations"]) == ("full", "quality", 1, [])
        assert line["budget"] == {"min_quality": 0.5}
        assert line["ttft_ms"] <= line["e2e_ms"] and line["prompt_tokens"] > 0 and line["cost_usd"] > 0
        assert line["predicted"]["ttft_ms"] > 0
        json.dumps(line)
        assert "zebras" not in log.text + str(line)

    def test_errors_have_one_line_too_whenever_they_come(self, gateway: Started, log):
        gateway.chat(model="other")
        gateway.chat(budget={"ttft_ms": 0.01, "on_no_candidate": "reject"})
        gateway.http.get("/v1/nothing")
        for engine in gateway.engines.values():
            engine.behaviour = "500"
        gateway.chat()
        logged = [(line["status"], line["code"]) for line in lines(log)]
        assert logged == [
            (404, "model_not_found"), (422, "impossible_budget"), (404, "not_found"), (503, "engine_unavailable"),
        ]  # fmt: skip

    @pytest.mark.parametrize("stream", [False, True])
    def test_prompt_and_answer_are_in_it_only_where_enabled(self, start_gateway: Start, log, stream):
        start_gateway(observability={"capture_content": True}).chat(SECRET, stream=stream)
        (line,) = lines(log)
        assert line["prompt"] == [{"role": "user", "content": SECRET}]
        assert "zebras" in line["completion"]

    def test_completions_too(self, start_gateway: Start, log):
        gateway = start_gateway(observability={"capture_content": True})
        for stream in (False, True):
            gateway.post("/v1/completions", {"model": MODEL, "prompt": SECRET, "stream": stream})
        assert [line["prompt"] for line in lines(log)] == [SECRET] * 2
        assert all("zebras" in line["completion"] for line in lines(log))

    def test_it_can_be_switched_off(self, start_gateway: Start, log):
        gateway = start_gateway(observability={"log_requests": False})
        gateway.chat()
        gateway.chat(model="other")
        assert lines(log) == []


def sent(collector: Collector, gateway: Started) -> dict[str, Any]:
    """The spans by name, once all are sent."""
    gateway.app.telemetry.close()
    return {span.name: span for span in collector.spans}


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.stop()


TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class TestTraces:
    @pytest.mark.parametrize("stream", [False, True])
    def test_a_request_is_one_trace_with_the_clients_context_in_and_ours_out(
        self, start_gateway: Start, collector: Collector, log, stream
    ):
        gateway = start_gateway(observability={"otlp_endpoint": collector.url})
        gateway.chat(SECRET, stream=stream, max_tokens=8, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
        spans = sent(collector, gateway)
        root = spans[f"chat {MODEL}"]
        assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
        assert root.parent_span_id.hex() == PARENT
        assert spans.keys() == {root.name, "authenticate", "route", "engine", "queue", "prefill", "decode"}
        for name in ("authenticate", "route", "engine"):
            assert spans[name].parent_span_id == root.span_id
        for name in ("queue", "prefill", "decode"):
            assert spans[name].parent_span_id == spans["engine"].span_id
        for span in collector.spans:
            assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
            assert span.end_time_unix_nano <= root.end_time_unix_nano
        (head,) = gateway.engines["full"].headers
        assert head["traceparent"] == f"00-{TRACE}-{spans['engine'].span_id.hex()}-01"
        assert lines(log)[0]["trace_id"] == TRACE
        assert "zebras" not in str(collector.spans)
        facts = {one.key: one.value for one in root.attributes}
        assert facts["gearbox.variant"].string_value == "full"
        assert facts["gen_ai.usage.output_tokens"].int_value > 0

    def test_a_search_shows_its_components(self, start_gateway: Start, collector: Collector):
        gateway = start_gateway(
            searches=FakeRetrieval(), retrieval={"collection": "docs"}, observability={"otlp_endpoint": collector.url}
        )
        gateway.chat("What is a gear?", retrieval=True)
        spans = sent(collector, gateway)
        assert spans["dense"].parent_span_id == spans["retrieve"].span_id
        assert spans["dense"].end_time_unix_nano - spans["dense"].start_time_unix_nano == pytest.approx(1.5e6, rel=0.01)
        assert gateway.sample("gearbox_retrieval_stage_seconds_count", stage="dense") == 1
        assert gateway.sample("gearbox_retrieval_passages_sum") == 1

    def test_a_failover_shows_both_attempts_and_an_error_is_one(self, start_gateway: Start, collector: Collector):
        gateway = start_gateway(observability={"otlp_endpoint": collector.url})
        gateway.engines["full"].behaviour = "die"
        gateway.chat()
        gateway.chat(model=f"{MODEL}:full")
        gateway.app.telemetry.close()
        assert [span.status.code for span in collector.spans if span.name == "engine"] == [2, 0, 2]
        assert [span.status.message for span in collector.spans if span.name == f"chat {MODEL}"] == [
            "",
            "engine_unavailable",
        ]

    def test_what_the_client_does_not_sample_is_not_sent(self, start_gateway: Start, collector: Collector):
        gateway = start_gateway(observability={"otlp_endpoint": collector.url})
        gateway.chat(headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
        assert sent(collector, gateway) == {}
        assert gateway.engines["full"].headers[0]["traceparent"].endswith("-00")

    def test_broken_context_starts_a_new_trace(self, start_gateway: Start, collector: Collector):
        gateway = start_gateway(observability={"otlp_endpoint": collector.url})
        assert gateway.chat(headers={"traceparent": "00-nonsense"}).status_code == 200
        assert sent(collector, gateway)[f"chat {MODEL}"].parent_span_id == b""

    def test_an_unreachable_collector_fails_no_request(self, start_gateway: Start, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(tracing, "_SEND_S", 0.1)
        gateway = start_gateway(observability={"otlp_endpoint": "http://127.0.0.1:9"})
        for stream in (False, True):
            assert gateway.chat(stream=stream).status_code == 200

    def test_off_by_default(self, gateway: Started):
        gateway.chat(headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
        assert "traceparent" not in gateway.engines["full"].headers[0]
        assert not gateway.metrics.exemplars

    def test_times_carry_their_trace(self, start_gateway: Start, collector: Collector):
        gateway = start_gateway(observability={"otlp_endpoint": collector.url})
        gateway.chat(headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
        assert {exemplar.labels["trace_id"] for exemplar in gateway.metrics.exemplars.values()} == {TRACE}
        sent(collector, gateway)
