"""The chart's Prometheus and Grafana objects: every target is scraped once, rules and dashboards equal their files."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from helm.chart_render import CHART, OPEN, merged, one, pods, render

ALL = merged(
    OPEN, {"monitoring": {part: {"enabled": True} for part in ("podMonitor", "scrapeConfig", "rules", "dashboards")}}
)


def rules(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The rules as the chart gives them."""
    spec = one(render(values), "PrometheusRule")["spec"]
    return [rule for group in spec["groups"] for rule in group["rules"]]


def test_nothing_is_rendered_unless_it_is_enabled() -> None:
    kinds = {document["kind"] for document in render(OPEN)}
    assert not kinds & {"PodMonitor", "ScrapeConfig", "PrometheusRule", "HTTPRoute", "Ingress"}
    assert not [d for d in render(OPEN) if d["kind"] == "ConfigMap" and "dashboard" in d["metadata"]["name"]]


def test_promtool_takes_the_rendered_rules(tmp_path: Path, system_command: Callable[[str], str]) -> None:
    values = merged(
        ALL, {"monitoring": {"rules": {"alertLabels": {"team": "ml"}, "runbookUrl": "https://git.example.com/g"}}}
    )
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(one(render(values), "PrometheusRule")["spec"]))
    checked = subprocess.run([system_command("promtool"), "check", "rules", file], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_rules_are_those_of_the_files() -> None:
    written = [
        rule
        for file in sorted((CHART / "rules").glob("*.yaml"))
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]
    assert rules(ALL) == written


def test_alerts_get_labels_and_the_place_of_their_runbooks() -> None:
    own = {"alertLabels": {"team": "ml", "severity": "mine"}, "runbookUrl": "https://git.example.com/gearbox/"}
    given = rules(merged(ALL, {"monitoring": {"rules": {**own, "labels": {"release": "prometheus"}}}}))
    alerts = [rule for rule in given if "alert" in rule]
    assert len(alerts) > 10
    for alert in alerts:
        assert alert["labels"]["team"] == "ml"
        assert alert["labels"]["severity"] in ("critical", "warning")  # the rule's own win
        assert alert["annotations"]["runbook_url"].startswith("https://git.example.com/gearbox/docs/runbooks/gearbox-")
    assert all("team" not in rule.get("labels", {}) for rule in given if "record" in rule)


def test_dashboards_are_the_files_with_the_label_that_the_sidecar_looks_for() -> None:
    values = merged(
        ALL, {"monitoring": {"dashboards": {"label": "look", "labelValue": "here", "annotations": {"folder": "A"}}}}
    )
    found = [d for d in render(values) if d["metadata"]["labels"].get("look") == "here"]
    files = {file.name: json.loads(file.read_text()) for file in (CHART / "dashboards").glob("*.json")}
    assert {name: json.loads(text) for d in found for name, text in d["data"].items()} == files
    assert all(document["metadata"]["annotations"]["folder"] == "A" for document in found)


def test_every_pod_of_ray_is_scraped_once_for_ray_and_gateways_for_their_own() -> None:
    documents = render(ALL)
    gateway, ray = (one(documents, "PodMonitor", f"demo-gearbox-{name}")["spec"] for name in ("gateway", "ray"))
    components = {pod.labels["gearbox.io/component"]: pod for pod in pods(documents)}
    (expression,) = ray["selector"]["matchExpressions"]
    assert set(expression["values"]) == {"head", "gateway", "engine"}
    for name in expression["values"]:
        names = [port["name"] for port in components[name].spec["containers"][0]["ports"]]
        assert names.count(ray["podMetricsEndpoints"][0]["port"]) == 1
        assert ("gearbox-metrics" in names) is (name == "gateway")
    assert gateway["selector"]["matchLabels"].items() <= components["gateway"].labels.items()
    assert [endpoint["port"] for endpoint in gateway["podMetricsEndpoints"]] == ["gearbox-metrics"]


def test_rays_metrics_get_the_labels_that_they_have_outside_a_cluster() -> None:
    (endpoint,) = one(render(ALL), "PodMonitor", "demo-gearbox-ray")["spec"]["podMetricsEndpoints"]
    assert {(part["targetLabel"], part["replacement"]) for part in endpoint["relabelings"]} == {
        ("component", "ray"), ("model", "smollm2-135m"),
    }  # fmt: skip
    written = yaml.safe_load(
        (CHART.parents[1] / "docs/operations/monitoring.md").read_text().split("```yaml\n")[1].split("```")[0]
    )["scrape_configs"][1]["metric_relabel_configs"]  # fmt: skip
    camel = {"source_labels": "sourceLabels", "target_label": "targetLabel", "regex": "regex"}
    assert endpoint["metricRelabelings"] == [{camel[key]: value for key, value in part.items()} for part in written]


def test_engines_are_discovered_through_the_gateways_and_other_targets_are_dropped() -> None:
    documents = render(ALL)
    spec = one(documents, "ScrapeConfig")["spec"]
    (found,) = spec["httpSDConfigs"]
    service = one(documents, "Service", "demo-gearbox-metrics")["spec"]
    assert found["url"] == f"http://demo-gearbox-metrics.models.svc:{service['ports'][0]['port']}/targets"
    assert service["clusterIP"] == "None"  # each gateway is a target of its own
    assert {"sourceLabels": ["component"], "regex": "engine", "action": "keep"} in spec["relabelings"]
    opened = one(documents, "NetworkPolicy", "demo-gearbox-metrics")["spec"]["ingress"][0]["ports"]
    assert [port["port"] for port in opened] == [9464, 8080, 30000]
