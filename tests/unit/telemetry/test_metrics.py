"""Metrics as Prometheus sees them: summed over processes, served on a shared port, with bounded labels."""

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from benchmarks.lib.processes import free_ports
from benchmarks.lib.sample_catalog import MODEL, three_gears
from serve.request.lifecycle import AttemptOutcome
from serve.telemetry.metrics import Metrics
from serve.telemetry.metrics_server import Exposition, expose, serve_metrics
from tests.support.gateway_server import Started

ROOT = Path(__file__).parents[3]
REPLICA = """
import sys
from serve.telemetry.metrics import Metrics
metrics = Metrics()
metrics.attempts.labels("full", "best", "quality", "ok").inc(int(sys.argv[1]))
metrics.ttft.labels("full", "best").observe(0.3)
metrics.in_flight.labels("full").set(int(sys.argv[1]))
print("ready", flush=True)
sys.stdin.read()
"""


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    """Value by name and label values, in the order of the labels' names."""
    return {
        (sample.name, *(value for name, value in sorted(sample.labels.items()) if name != "model")): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def page_of(metrics: Metrics, folder: str | None = None, accept: str = "") -> bytes:
    return expose(Exposition(metrics, MODEL, three_gears, folder), accept)[0]


@pytest.mark.parametrize("killed", [False, True])
def test_processes_of_a_node_are_summed_and_the_dead_ones_gauges_go(tmp_path, monkeypatch, killed: bool):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    command = [sys.executable, "-c", REPLICA]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": ROOT}
    with subprocess.Popen([*command, "2"], **pipes) as one, subprocess.Popen([*command, "5"], **pipes) as other:
        for process in (one, other):
            assert process.stdout.readline() == b"ready\n"
        both = samples(page_of(Metrics(), str(tmp_path)))
        other.kill() if killed else other.stdin.close()
        other.wait()
        left = samples(page_of(Metrics(), str(tmp_path)))
        one.stdin.close()
    assert both["gearbox_attempts_total", "ok", "best", "quality", "full"] == 7
    assert both["gearbox_ttft_seconds_count", "best", "full"] == 2
    assert both["gearbox_requests_in_flight", "full"] == 7, "each gateway counts its own requests"
    assert left["gearbox_attempts_total", "ok", "best", "quality", "full"] == 7, "counters never fall"
    assert left["gearbox_ttft_seconds_count", "best", "full"] == 2
    assert left["gearbox_requests_in_flight", "full"] == 2


def test_a_replica_that_takes_anothers_place_counts_on_from_what_it_left(tmp_path, monkeypatch):
    """A rolling restart: one after the other, each scrape at least what the one before was."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    seen = [0.0]
    for count in ("3", "1", "4"):
        done = subprocess.run([sys.executable, "-c", REPLICA, count], cwd=ROOT, input=b"", capture_output=True)
        assert done.returncode == 0, done.stderr
        seen.append(
            samples(page_of(Metrics(), str(tmp_path)))["gearbox_attempts_total", "ok", "best", "quality", "full"]
        )
    assert seen == [0, 3, 4, 8]


def test_every_series_names_the_model_and_variants_show_what_they_are():
    metrics = Metrics()
    metrics.initialize_series(["full"], ["best"])
    families = list(text_string_to_metric_families(page_of(metrics).decode()))
    assert {sample.labels["model"] for family in families for sample in family.samples} == {MODEL}
    found = samples(page_of(metrics))
    assert found["gearbox_variant_quality_ratio", "full"] == 1
    assert found["gearbox_variant_up", "int8"] == 1
    (info,) = (sample.labels for family in families for sample in family.samples
               if family.name == "gearbox_variant_info" and sample.labels["variant"] == "int8")  # fmt: skip
    assert info["technique"] and len(info["weights"]) == 12
    assert found["gearbox_budget_requests_total", "no", "best"] == 0, "what may come is there from the start"


def test_ejected_replicas_are_counted_apart():
    gears = three_gears()
    gears[0].live.replicas, gears[0].live.ejected = 2, 1
    found = samples(expose(Exposition(Metrics(), MODEL, lambda: gears, None))[0])
    assert found["gearbox_variant_replicas", gears[0].name] == 2
    assert found["gearbox_variant_replicas_ejected", gears[0].name] == 1


def test_times_carry_their_trace_as_an_exemplar_where_the_format_has_them():
    metrics = Metrics()
    metrics.observe("ttft", ("full", "best"), 0.3, "ab" * 16)
    metrics.observe("e2e", ("full", "best"), 500.0, "cd" * 16)
    metrics.observe("e2e", ("full", "best"), 0.2, None)
    page = page_of(metrics, accept="application/openmetrics-text; version=1.0.0").decode()
    lines = [line for line in page.splitlines() if "trace_id" in line]
    assert len(lines) == 2
    assert 'gearbox_ttft_seconds_bucket{le="0.35"' in lines[0] and f'# {{trace_id="{"ab" * 16}"}} 0.3' in lines[0]
    assert 'le="+Inf"' in lines[1] and "cd" * 16 in lines[1]
    assert "trace_id" not in page_of(metrics).decode()


@pytest.fixture(scope="module")
def two_servers() -> Iterator[str]:
    """Two gateway replicas of one node on one metrics port; the kernel hands each scrape to either."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    servers = []
    for replica in ("a", "b"):
        metrics = Metrics()
        metrics.rejected.labels("404", "not_found", "other").inc()
        targets = [{"targets": [f"10.0.0.1:{i}"], "labels": {"variant": "full"}} for i in (1, 2)]
        servers.append(
            serve_metrics(
                "127.0.0.1",
                port,
                Exposition(metrics, MODEL, three_gears, None),
                lambda targets=targets, _=replica: targets,
            )
        )
    yield f"http://127.0.0.1:{port}"
    for server in servers:
        server.shutdown()
        server.server_close()


def fetch(url: str) -> tuple[str, bytes]:
    with urllib.request.urlopen(url, timeout=5) as response:
        return response.headers["content-type"], response.read()


def test_replicas_share_the_metrics_port(two_servers):
    for _ in range(10):
        kind, text = fetch(f"{two_servers}/metrics")
        assert kind.startswith("text/plain; version=")
        assert samples(text)["gearbox_requests_rejected_total", "not_found", "other", "404"] == 1


class Counting(Collector):
    """Counts how many scrapes are under way, and the threads that render them."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.threads: set[int] = set()

    def collect(self) -> Iterator[Metric]:
        self.threads.add(threading.get_ident())
        self.now += 1
        self.most = max(self.most, self.now)
        time.sleep(0.01)
        self.now -= 1
        yield Metric("found", "", "gauge")


def test_one_thread_renders_the_pages_one_at_a_time():
    """Of a process that runs for months, each thread's memory is what a scrape ever took there."""
    counting = Counting()
    server = serve_metrics("127.0.0.1", port := free_ports(1)[0], counting, list)
    try:
        with ThreadPoolExecutor(8) as pool:
            pages = list(pool.map(fetch, [f"http://127.0.0.1:{port}/metrics"] * 8))
    finally:
        server.shutdown()
        server.server_close()
    assert len(pages) == 8
    assert (counting.most, len(counting.threads)) == (1, 1)


def test_a_page_whose_name_was_rebound_to_loopback_reads_no_metrics(two_servers):
    for path in ("/metrics", "/targets"):
        request = urllib.request.Request(two_servers + path, headers={"host": "evil.example:9464"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request, timeout=5)
        request.add_header("host", "localhost:9464")
        with urllib.request.urlopen(request, timeout=5) as response:
            assert response.status == 200


def test_the_engines_own_metrics_are_listed_for_service_discovery(two_servers):
    kind, text = fetch(f"{two_servers}/targets")
    assert kind == "application/json"
    assert json.loads(text) == [{"targets": [f"10.0.0.1:{i}"], "labels": {"variant": "full"}} for i in (1, 2)]


def test_the_metrics_port_serves_nothing_else(two_servers):
    with pytest.raises(urllib.error.HTTPError) as caught:
        fetch(f"{two_servers}/v1/models")
    assert caught.value.code == 404


def test_whatever_clients_send_the_series_stay_the_same(gateway: Started):
    """A label made from client text would let anyone fill the monitoring."""

    def round_of_requests(odd: str) -> None:
        headers = {"x-request-id": f"id-{odd}", "authorization": f"Bearer {odd}", "x-tenant": odd}
        gateway.chat(f"prompt {odd}", headers=headers, user=odd)
        gateway.chat(f"prompt {odd}", headers=headers, stream=True)
        for model in (odd, f"smollm2-135m@{odd}", f"smollm2-135m:{odd}"):
            assert gateway.chat(model=model).status_code == 404
        gateway.http.get(f"/v1/{odd}")
        gateway.http.get(f"/v1/models/{odd}")
        gateway.chat(headers={"x-gearbox-objective": odd})
        gateway.http.request("PROPFIND", f"/v1/models?{odd}")

    round_of_requests("first")
    before = gateway.series()
    for i in range(4):
        round_of_requests(f"hostile{i}")
    assert gateway.series() == before
    label_values = {value for _, labels in before for _, value in labels}
    assert not any("hostile" in value or "first" in value for value in label_values)


def test_outcomes_are_a_bounded_set(gateway: Started):
    for behaviour in ("answer", "die", "400", "context", "error event first"):
        gateway.engines["full"].behaviour = behaviour
        gateway.chat()
        gateway.chat(stream=True)
    gateway.engines["full"].behaviour = "die mid-stream"
    gateway.chat(stream=True)
    outcomes = {dict(labels)["outcome"] for name, labels in gateway.series() if name == "gearbox_attempts_total"}
    assert outcomes <= set(get_args(AttemptOutcome))
    assert {"ok", "engine_error", "client_error", "interrupted"} <= outcomes


def test_promtool_finds_nothing_to_say(gateway: Started, system_command: Callable[[str], str]):
    gateway.chat()
    gateway.chat(stream=True)
    gateway.chat(model="other")
    gateway.metrics.initialize_series(["full"], ["best"])
    text = page_of(gateway.metrics)
    done = subprocess.run(
        [system_command("promtool"), "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
