"""A real Prometheus on the platform under load: every query of every dashboard and rule returns data, joins match, exemplars lead to traces."""

import itertools
import json
import math
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from helm.dashboards.queries import all_queries
from tests.integration.test_grounding import put
from tests.support.platform import KEYS, ROOT, Platform, gateway_processes
from tests.support.trace_collector import Collector
from tests.support.waiting import eventually

pytestmark = pytest.mark.platform
COLLECTION = "monitoring"
LOAD_S = 20  # at least; every client sends every kind of request twice
RULES = sorted((ROOT / "helm/gearbox/rules").glob("*.yaml"))


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **params: Any) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=params, timeout=30).json()
        assert answer["status"] == "success", f"{params}: {answer}"
        return answer["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        return self.get("query", query=expr)["result"]

    def evaluated_all_after(self, moment: datetime) -> bool:
        """Whether every group of rules was evaluated since."""
        return all(datetime.fromisoformat(group["lastEvaluation"]) > moment for group in self.get("rules")["groups"])


@pytest.fixture(scope="module")
def prometheus(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory, system_command: Callable[[str], str]
) -> Iterator[Prometheus]:
    """As docs/operations/monitoring.md says to configure it, but looking every second, at rules too."""
    folder = tmp_path_factory.mktemp("prometheus")
    (block,) = re.findall(
        r"```yaml\n(scrape_configs:.*?)```", (ROOT / "docs/operations/monitoring.md").read_text(), re.DOTALL
    )
    config = yaml.safe_load(block.replace("127.0.0.1:9464", platform.metrics_url.removeprefix("http://")))
    for job in config["scrape_configs"]:
        for discovery in job.get("http_sd_configs", ()):
            discovery["refresh_interval"] = "1s"
    config |= {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(folder / "rules-*.yaml")],
    }
    for file in RULES:
        rules = yaml.safe_load(file.read_text())
        for group in rules["groups"]:
            group.pop("interval", None)
        (folder / f"rules-{file.name}").write_text(yaml.safe_dump(rules))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        system_command("prometheus"), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:19490", "--enable-feature=exemplar-storage",
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield Prometheus("http://127.0.0.1:19490")
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def loaded(platform: Platform, prometheus: Prometheus) -> Prometheus:
    """After a while of everything that clients do, several at once."""
    index_crank(platform)
    deadline = time.monotonic() + LOAD_S
    clients = [threading.Thread(target=_use, args=(platform, deadline, i)) for i in range(4)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    ended = datetime.now(UTC)
    eventually(
        lambda: prometheus.evaluated_all_after(ended + timedelta(seconds=3)), 60, "rules have seen the last requests"
    )
    return prometheus


def index_crank(platform: Platform) -> None:
    """Give both tenants something to ask about."""
    for tenant in ("alice", "bob"):
        with platform.http(tenant) as http:
            put(
                http,
                COLLECTION,
                "crank.md",
                "# Crank\n\nThe crank of the Norfell mill was forged by Ada Quist in 1931.",
            )


def _use(platform: Platform, deadline: float, first: int) -> None:
    """Ask in all ways, over and over: at least twice, however slow the machine is."""
    grounded = {"retrieval": {"collection": COLLECTION}}
    ways: list[dict[str, Any]] = [
        {"model": "smollm2-135m@best"},
        {"model": "smollm2-135m@balanced", "stream": True},
        {"model": "smollm2-135m@fast", "stream": True},
        {"model": "smollm2-135m@cheap"},
        {"model": "smollm2-135m:int8"},
        {"budget": {"e2e_ms": 4000, "min_quality": 0.9}},
        {"budget": {"ttft_ms": 1}},
        {"budget": {"ttft_ms": 0.01, "on_no_candidate": "reject"}},
        {**grounded, "ask": "Who forged the crank of the Norfell mill?"},
        {**grounded, "ask": "What is a Martian Dunetree?"},
        {**grounded, "ask": "What is 40366 / 439?"},
        {"model": "nobody"},
        {"tenant": "limited", "model": "smollm2-135m@cheap"},
        {"tenant": "thrifty", "model": "smollm2-135m@cheap"},
    ]
    for number, way in enumerate(itertools.islice(itertools.cycle(ways), first * 4, None)):
        if time.monotonic() > deadline and number >= 2 * len(ways):
            return
        prompt = way.get("ask", "Tell me about gears.")
        body = {"model": "smollm2-135m", "messages": [{"role": "user", "content": prompt}], "max_tokens": 16}
        body |= {name: value for name, value in way.items() if name not in ("ask", "tenant")}
        with platform.http(way.get("tenant", "alice" if first % 2 else "bob")) as http:
            http.post("/v1/chat/completions", json=body)


def test_every_query_of_every_dashboard_has_an_answer(loaded: Prometheus) -> None:
    empty, unknown = [], []
    for query in all_queries(rate_interval="5m", shown="5m"):
        values = [float(row["value"][1]) for row in loaded.query(query.expr)]
        where = f"{query.dashboard} / {query.panel}: {query.expr}"
        if not values:
            empty.append(where)
        elif all(map(math.isnan, values)) and not any(rare in query.expr for rare in ("cold_start", "admission_wait")):
            unknown.append(where)
    assert not empty, "\n".join(empty)
    assert not unknown, "\n".join(unknown)


def test_every_rule_is_evaluated(loaded: Prometheus) -> None:
    groups = loaded.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(groups) == sum(len(yaml.safe_load(file.read_text())["groups"]) for file in RULES)
    assert {rule["health"] for rule in rules} == {"ok"}, [rule for rule in rules if rule["health"] != "ok"]
    recorded = [rule["name"] for rule in rules if rule["type"] == "recording"]
    assert recorded
    assert not [name for name in recorded if not loaded.query(name)]


def test_all_parts_are_found_and_join_on_the_variant(loaded: Prometheus) -> None:
    variants = {"full", "int8", "distilled"}
    assert {target["health"] for target in loaded.get("targets")["activeTargets"]} == {"up"}
    for part in ("vllm:num_requests_running", "ray_serve_deployment_replica_healthy"):
        joined = f"sum by (model, variant) (gearbox_requests_total) + on (model, variant) sum by (model, variant) ({{__name__='{part}'}})"
        assert {row["metric"]["variant"] for row in loaded.query(joined)} == variants, part


def test_times_lead_to_traces(loaded: Prometheus, collector: Collector) -> None:
    now = time.time()
    found = loaded.get("query_exemplars", query="gearbox_ttft_seconds_bucket", start=now - 300, end=now)
    ids = {exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]}
    assert len(ids) > 3
    known = {span.trace_id.hex() for span in collector.spans}
    assert len(ids & known) >= len(ids) - 3, "the latest may not have been sent yet"
    spans = collector.of(next(iter(ids & known)))
    assert spans.keys() >= {"authenticate", "route", "engine", "queue", "prefill", "decode"}


def test_a_search_is_traced_by_component(loaded: Prometheus, collector: Collector) -> None:
    searched = next(span for span in collector.spans if span.name == "retrieve")
    spans = collector.of(searched.trace_id.hex())
    assert spans.keys() >= {"embedder", "dense", "keyword", "guard"}
    assert all(spans[name].parent_span_id == searched.span_id for name in ("embedder", "dense", "keyword", "guard"))


def test_labels_hold_no_prompt_and_no_key(loaded: Prometheus, platform: Platform) -> None:
    page = httpx.get(f"{platform.metrics_url}/metrics").text
    assert "Norfell" not in page and "nobody" not in page
    assert not [entry for entry in KEYS.values() if entry["key"] in page]


def test_the_log_has_a_json_line_for_each_request_and_no_secret(loaded: Prometheus, platform: Platform) -> None:
    with platform.http() as http:
        body = {"model": platform.model, "messages": [{"role": "user", "content": "zebras?"}], "max_tokens": 2}
        answer = http.post("/v1/chat/completions", json=body, headers={"x-request-id": "monitored-1"}).json()
    (gateway,) = gateway_processes(platform)
    (file,) = (Path(file.path) for file in gateway.open_files() if "replica_gateway" in file.path)
    text = file.read_text()
    assert "zebras" not in text and "Norfell" not in text
    assert not [entry for entry in KEYS.values() if entry["key"] in text]
    logged = [entry["request"] for entry in map(json.loads, text.splitlines()) if entry["message"] == "request"]
    assert len(logged) > 50
    (line,) = (one for one in logged if one["id"] == "monitored-1")
    facts = answer["gearbox"]
    assert (line["variant"], line["reason"], line["tenant"]) == (facts["variant"], facts["reason"], "alice")
    assert line["predicted"] == facts["predicted"] and line["cost_usd"] == facts["cost_usd"]
