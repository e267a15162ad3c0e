"""The chart's external access: service ports, Ingress and HTTPRoute, and notes."""

from typing import Any

import pytest

from helm.chart_render import OPEN, applications, example, groups, merged, notes, one, render, serve_config
from serve.config.platform import PlatformConfig


def test_ports_and_drain_follow_the_platform() -> None:
    values = merged(
        example("high-availability"),
        {"platform": {"server": {"port": 9000, "metrics_port": 9001, "drain_timeout_s": 30.5}}},
    )
    documents = render(values)
    assert serve_config(documents)["http_options"] == {"host": "0.0.0.0", "port": 9000}
    assert one(documents, "Service", "demo-gearbox")["spec"]["ports"][0]["port"] == 9000
    assert one(documents, "Service", "demo-gearbox-metrics")["spec"]["ports"][0]["port"] == 9001
    assert one(documents, "HTTPRoute")["spec"]["rules"][0]["backendRefs"] == [{"name": "demo-gearbox", "port": 9000}]
    assert one(documents, "ScrapeConfig")["spec"]["httpSDConfigs"][0]["url"].endswith(".models.svc:9001/targets")
    gateway = groups(documents)["gateway"]["template"]["spec"]
    assert gateway["terminationGracePeriodSeconds"] == 31 + 960
    assert one(documents, "NetworkPolicy", "demo-gearbox-api")["spec"]["ingress"][0]["ports"][0]["port"] == 9000


def test_streams_pass_the_ingress_and_large_documents_too() -> None:
    values = merged(
        example("high-availability"),
        {
            "ingress": {"enabled": True, "hosts": ["llm.example.com"]},
            "platform": {"server": {"stream_idle_timeout_s": 90}},
        },
    )
    annotations = one(render(values), "Ingress")["metadata"]["annotations"]
    assert {key.removeprefix("nginx.ingress.kubernetes.io/"): value for key, value in annotations.items()} == {
        "proxy-buffering": "off", "proxy-request-buffering": "off", "proxy-read-timeout": "90",
        "proxy-send-timeout": "90", "proxy-body-size": str((64 << 20) + (64 << 10)),
    }  # fmt: skip
    small = merged(values, {"platform": {"retrieval": {"max_document_bytes": 1 << 20}}})
    served = PlatformConfig(**applications(render(small))["gateway"]["args"]["config"])
    assert served.retrieval is not None
    size = one(render(small), "Ingress")["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"]
    assert int(size) == max(served.server.max_body_bytes, served.retrieval.max_upload_bytes)
    own = merged(values, {"ingress": {"nginx": False, "annotations": {"a": "b"}}})
    assert one(render(own), "Ingress")["metadata"]["annotations"] == {"a": "b"}
    timeouts = one(render(values), "HTTPRoute")["spec"]["rules"][0]["timeouts"]
    assert timeouts == {"request": "0s", "backendRequest": "0s"}


TWO_GATEWAYS = {"platform": {"server": {"gateway_replicas": 2}}}
KEYS = {"platform": {"access": {"allow_anonymous": False}}, "secrets": {"keys": {"existingSecret": "keys"}}}


def bounds(**replicas: Any) -> dict[str, Any]:
    """Values with one variant with such bounds, and a pool with four cores."""
    size = {"cpu": "4", "memory": "8Gi"}
    one_pod = {"name": "engine", "pods": {"min": 1, "max": 1}, "resources": {"requests": size, "limits": size}}
    variant = {"name": "full", "recipe": "full", "replicas": replicas, "resources": {"cpus": 1}}
    return {"platform": {"variants": [variant]}, "pools": [one_pod]}


WARNED: list[tuple[dict[str, Any], str]] = [
    (merged(TWO_GATEWAYS, KEYS), "2 gateways count rate limits each for itself"),
    ({"weights": {"volume": {"accessModes": ["ReadWriteOnce"]}}}, "all pods must run on one node"),
    ({}, "allow_anonymous: whoever"),
    (TWO_GATEWAYS, "2 gateways share 1 pods"),
    (bounds(min=1, max=99), "cannot all run at once"),
    (bounds(min=3, max=3), "no room for replacements of variant full"),
    (
        merged(TWO_GATEWAYS, {"gateway": {"pods": {"max": 1}, "resources": {"limits": {"cpu": "1"}}}}),
        "as many new gateways",
    ),
    ({"monitoring": {"rules": {"enabled": True}}}, "GearboxAbsent"),
    ({"redis": {"enabled": True, "auth": {"password": "trialtrial"}}}, "Redis of the chart is for trials"),
]


@pytest.mark.parametrize(("change", "warning"), WARNED, ids=lambda part: part if isinstance(part, str) else "")
def test_notes_warn_of_what_works_but_may_not_be_meant(change: dict[str, Any], warning: str) -> None:
    assert warning in notes(merged(OPEN, change))


def test_replicas_that_are_replaced_one_after_the_other_need_no_room() -> None:
    for replicas in ({"min": 2, "max": 2}, {"min": 3, "max": 3, "surge": False}):
        assert "no room for" not in notes(merged(OPEN, bounds(**replicas)))


@pytest.mark.parametrize("name", ["air-gapped", "gpu-kinds", "high-availability", "one-gpu"])
def test_notes_have_no_warnings_where_nothing_is_to_be_said(name: str) -> None:
    text = notes(example(name))
    assert "Warnings:" not in text
    assert "kubectl -n models port-forward service/demo-gearbox 8000" in text
