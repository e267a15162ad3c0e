"""The telemetry overhead benchmark: behaviour of its gateways, its calculations, and that replaced classes keep their interface."""

import inspect
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

import serve.gateway.app
from benchmarks.lib import otlp_sink
from benchmarks.lib.load_generator import LoadError
from benchmarks.lib.metrics_scraper import scraped
from benchmarks.lib.processes import free_ports
from benchmarks.reporting import tables
from benchmarks.systems import paired_gateways
from benchmarks.systems.handle_transport import HandleEngines
from benchmarks.systems.uninstrumented_gateway import NoTelemetry, Nothing
from benchmarks.telemetry import overhead, overhead_engine
from serve.config.sections import ObservabilityConfig
from serve.gateway.auth import hash_key
from serve.gateway.engine_client import Engines
from serve.telemetry.tracing import Tracer
from tests.support.answers import streamed_or_not
from tests.support.gateway_server import Start, bearer
from tests.support.http_server import serving

REAL = {
    "machine": {"cores": 2},
    "shape": [{"streams": 1, "output_tokens": 11}, {"streams": 8, "output_tokens": 11}],
    "systems": {
        "gearbox": {
            "1": {key: {"median": at} for key, at in (("ttft_p50_ms", 100), ("tpot_p50_ms", 10), ("tokens_per_s", 55))},
            "8": {
                key: {"median": at} for key, at in (("ttft_p50_ms", 300), ("tpot_p50_ms", 20), ("tokens_per_s", 110))
            },
        }
    },
}


@pytest.mark.parametrize("name", ["__init__", "post", "close"])
def test_the_way_over_a_handle_takes_what_the_engines_take(name):
    parameters = inspect.signature(getattr(Engines, name)).parameters
    inspect.signature(getattr(HandleEngines, name)).bind(*parameters)


@streamed_or_not
def test_a_silent_gateway_answers_and_charges_as_ever_and_tells_nothing(
    start_gateway: Start, monkeypatch, caplog, stream
):
    monkeypatch.setattr(serve.gateway.app, "RequestTelemetry", NoTelemetry)
    keys = [{"sha256": hash_key("key"), "tenant": "acme", "tokens_per_minute": 8}]
    gateway = start_gateway(access={"keys": keys})
    with caplog.at_level("INFO", "gearbox.requests"):
        assert gateway.chat(stream=stream, headers=bearer("key")).status_code == 200
        assert gateway.chat(stream=stream, headers=bearer("key")).status_code == 429, "its tokens were not charged"
    assert not [record for record in caplog.records if record.name.startswith("gearbox")]
    assert gateway.sample("gearbox_tenant_requests_total", tenant="acme", outcome="answered") == 0


def test_nothing_can_be_asked_for_anything():
    metrics = Nothing()
    metrics.initialize_series(["full"], ["balanced"])
    metrics.in_flight.labels("full").inc()
    metrics.decision.observe(0.1)


def test_each_gateway_tells_one_thing_more():
    settings = [paired_gateways.observability_settings(name, "http://c") for name in paired_gateways.NAMES]
    assert [one.log_requests for one in settings] == [False, False, True, True]
    assert [one.otlp_endpoint for one in settings] == [None, None, None, "http://c"]
    assert settings[2] == ObservabilityConfig(), "the default"


def test_the_sink_counts_traces_once():
    [port] = free_ports(1)
    with serving(otlp_sink.Sink(port)) as url:
        tracer = Tracer(url, 1.0, "test")
        for _ in range(3):
            trace = tracer.start_trace("chat", {}, 1.0)
            trace.span("route", 1.0, 2.0, {})
            trace.close(None, 3.0, {})
        tracer.close()
        found = httpx.get(url).json()
        assert (found["traces"], found["spans"]) == (3, 6)
        assert httpx.get(url).json()["traces"] == 0


@pytest.fixture
def page() -> Iterator[str]:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with serving(HTTPServer(("127.0.0.1", 0), Page)) as url:
        yield url


def test_scrapes_happen_meanwhile_and_one_that_fails_is_an_error(page: str):
    with scraped([f"{page}/metrics"]) as seen:
        pass
    assert len(seen) <= 1
    with pytest.raises(OSError), scraped([f"{page}/broken"]):
        threading.Event().wait(0.2)


def record(request_us: float, token_us: float, first_ms: float) -> dict:
    """One round of a gateway: what its process takes for a request, for a paced token, and to the first token."""
    common = {"per_s": 1000 / request_us, "p50_ms": first_ms, "whole_us": 2 * request_us, "client_share": 0.1}
    return {
        "unary": {**common, "gateway_us": request_us},
        "first": {**common, "gateway_us": request_us},
        "saturated": {**common, "gateway_us": token_us},
        "paced": {**common, "gateway_us": token_us},
    }


def test_differences_are_within_a_round_and_a_tokens_is_without_the_requests():
    points = overhead.points(overhead.FULL)
    tokens = points["paced"].tokens
    off = [record(500, 200, 1.0), record(700, 210, 2.0)]
    more = [record(600, 200 + 100 / tokens, 1.1), record(800, 213 + 100 / tokens, 2.1)]
    row = overhead.summary({"off": off, "log": more}, points)["log"]
    assert row["request_us"] == {"median": 100, "min": 100, "max": 100, "n": 2}
    assert (row["token_us"]["min"], row["token_us"]["max"]) == (0, 3)
    assert row["points"]["first"]["added_p50_ms"]["median"] == pytest.approx(0.1)
    assert row["points"]["unary"]["per_s_ratio"]["max"] == pytest.approx(700 / 800)


def test_shares_are_of_a_real_request_and_of_all_cores():
    added = {"request_us": {"median": 380.0}, "token_us": {"median": 2.0}}
    found = overhead.shares(added, 15.0, REAL)
    assert found["1"]["added_us"] == 380 + 11 * 2
    assert found["1"]["time"] == pytest.approx(402 / 200_000), "100 ms to the first of 11 tokens, 10 ms to each other"
    assert found["8"]["cpu"] == pytest.approx((402e-6 * 10 + 0.001) / 2), "10 requests/s; 15 ms each 15 s"
    assert overhead.worst(found) == found["8"]["cpu"]


def test_noise_below_zero_is_no_gain():
    found = overhead.shares({"request_us": {"median": -5.0}, "token_us": {"median": -1.0}}, -3.0, REAL)
    assert overhead.worst(found) == 0


@pytest.mark.parametrize(("share", "verdict"), [(0.001, "under 1%"), (0.02, "NOT under 1%")])
def test_the_verdict_is_the_worst_shares(share: float, verdict: str):
    systems = overhead.summary(
        {name: [record(500, 200, 1.0)] for name in ("off", "log")}, overhead.points(overhead.FULL)
    )
    systems["traces"] = {**systems["log"], "traces_arrived": {"median": 1.0, "min": 0.5}}
    rows = {"1": {"time": 0.0001, "cpu": share}}
    scrapes = {name: {"cpu_ms": {"median": 5.0}} for name in ("log", "traces")}
    result = {"systems": systems, "scrapes": scrapes, "aim": 0.01, "real": {"log": rows, "traces": rows}}
    *lines, arrived = overhead.summary_text(result).splitlines()
    assert all(line.endswith(verdict) and "computed" in line for line in lines)
    assert "worst round 50.0%" in arrived


def test_on_the_real_engine_rounds_are_paired_too():
    row = {"ttft_p50_ms": 100.0, "tpot_p50_ms": 40.0, "tokens_per_s": 20.0}
    slow = {"ttft_p50_ms": 150.0, "tpot_p50_ms": 50.0, "tokens_per_s": 15.0}
    found = {
        "off": {"1": [row, slow]},
        "traces": {"1": [{**row, "ttft_p50_ms": 101.0}, {**slow, "tokens_per_s": 14.7}]},
    }
    row = overhead_engine.summary(found)["traces"]["1"]
    assert (row["added_ttft_ms"]["min"], row["added_ttft_ms"]["max"]) == (0, 1)
    assert row["ratio"]["min"] == pytest.approx(0.98)


@pytest.mark.parametrize("error", [LoadError("status 500")])
def test_a_void_measurement_writes_no_result(monkeypatch, capsys, error):
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(overhead, "measure", fail)
    monkeypatch.setattr(overhead, "save", lambda *_: pytest.fail("written"))
    monkeypatch.setattr("sys.argv", ["observing"])
    with pytest.raises(SystemExit):
        overhead.main()
    assert capsys.readouterr().err == "error: status 500\n"


def test_the_tables_are_made_of_the_results(monkeypatch):
    shown = tables.filled("<!-- table:observing -->\n<!-- /table:observing -->")
    assert "computed, not measured" in shown
