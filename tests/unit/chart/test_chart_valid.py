"""For all values, the rendered objects are valid for Kubernetes and the operators' schemas."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest

from helm.chart_render import CHART, EXAMPLES, OPEN, example, merged, one, pods, render, texts
from tests.support.kubernetes_schemas import VERSIONS, known, problem

DIGEST = "sha256:" + "2" * 64
S3 = {"name": "full", "weights": "s3://models/full", "digest": "sha256:" + "1" * 64}
MONITORING = {"monitoring": {part: {"enabled": True} for part in ("podMonitor", "scrapeConfig", "rules", "dashboards")}}
KEYS = {"secrets": {"keys": {"entries": [{"sha256": "0" * 64, "tenant": "alice"}]}}}
# What can be had in more than one way, and the ways.
CHOICES: dict[str, list[dict[str, Any]]] = {
    "access": [OPEN, KEYS, {"secrets": {"keys": {"existingSecret": "keys"}}}],
    "weights": [
        {"weights": {"volume": {"storageClassName": "files", "accessModes": ["ReadWriteOnce"], "keep": False}}},
        {"weights": {"volume": {"existingClaim": "a"}, "credentials": {"existingSecret": "b"}, "offline": True}},
        {"platform": {"variants": [S3]}, "weights": {"mode": "pod"}},
        {"platform": {"variants": [S3]}, "weights": {"mode": "pod", "pod": {"storageClassName": "local"}}},
        {"platform": {"variants": [{"name": "full", "weights": "/models/full"}]}},
    ],
    "documents": [
        {},
        {"platform": {"retrieval": {}}, "postgresql": {"enabled": True, "auth": {"password": "trialtrial"}}},
        {"platform": {"retrieval": {"top_k": 2}}, "secrets": {"database": {"existingSecret": "database"}}},
    ],
    "limits": [
        {},
        {"redis": {"enabled": True, "auth": {"existingSecret": "redis"}}},
        {"secrets": {"rateLimitStore": {"existingSecret": "limits"}}},
    ],
    "outside": [
        {},
        {"ingress": {"enabled": True, "hosts": ["llm.example.com"], "tls": [{"secretName": "tls"}]}},
        {"httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]}},
        {"service": {"type": "LoadBalancer", "annotations": {"cloud": "internal"}}},
    ],
    "network": [{}, {"networkPolicy": {"enabled": False}}, {"networkPolicy": {"egress": {"enabled": True}}}],
    "ray": [
        {},
        {"ray": {"autoscaler": {"enabled": False}, "auth": {"enabled": False}}},
        {"ray": {"gcsFaultTolerance": {"enabled": True, "redisAddress": "redis:6379", "existingSecret": "gcs"}}},
        {"ray": {"auth": {"existingSecret": "token"}, "annotations": {"ray.io/initializing-timeout": "2h"}}},
    ],
    "monitoring": [{}, MONITORING],
    "pods": [
        {"gateway": {"pods": {"min": 3, "max": 3}, "labels": {"team": "ml"}, "annotations": {"a": "b"}}},
        {"head": {"priorityClassName": "high", "env": [{"name": "A", "value": "b"}], "image": {"tag": "2"}}},
        {"image": {"digest": DIGEST}, "weights": {"job": {"image": {"digest": DIGEST}}}},
        {"imagePullSecrets": [{"name": "registry"}], "labels": {"team": "ml"}},
    ],
}  # fmt: skip
ALWAYS = {"allowPublicAnonymousAccess": True}


def pairwise(sizes: Mapping[str, int]) -> list[dict[str, int]]:
    """Rows with one way of each choice, so that any two ways of different choices meet in one. Greedy: few, not the fewest."""
    left = {
        frozenset({(first, one), (second, other)})
        for first, second in combinations(sizes, 2)
        for one in range(sizes[first])
        for other in range(sizes[second])
    }
    rows = []
    while left:
        row = dict(sorted(min(left, key=sorted)))
        for choice in sizes:
            if choice not in row:
                new = [left & {frozenset({(choice, way), met}) for met in row.items()} for way in range(sizes[choice])]
                row[choice] = max(range(sizes[choice]), key=lambda way: len(new[way]))
        left -= {frozenset(pair) for pair in combinations(row.items(), 2)}
        rows.append({choice: row[choice] for choice in sizes})
    return rows


MATRIX = pairwise({choice: len(ways) for choice, ways in CHOICES.items()})


def wrong(documents: list[dict[str, Any]], versions: tuple[str, ...] = VERSIONS) -> list[str]:
    checked = [document for document in documents if known(document["kind"])]
    # What is in a RayService is a pod of Kubernetes in the end, whatever KubeRay's schema says.
    made = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod.owner}, "spec": pod.spec}
        for pod in pods(documents)
        if pod.owner.startswith("RayService")
    ]
    return [found for version in versions for document in [*checked, *made] if (found := problem(document, version))]


@pytest.mark.parametrize("values", [OPEN, *map(example, (file.stem.removesuffix("-values") for file in EXAMPLES))])
def test_the_chart_is_lint_clean(values: dict[str, Any]) -> None:
    report = helm.lint(str(CHART), values, strict=True, kube_version="v1.29.0")
    assert report["errors"] == []
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_taken_by_every_version_of_kubernetes(file: Any) -> None:
    assert wrong(render(example(file.stem.removesuffix("-values")))) == []


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: "-".join(map(str, row.values())))
def test_any_two_choices_together_are_taken_by_the_oldest_and_the_newest_kubernetes(row: dict[str, int]) -> None:
    values = merged(ALWAYS, *(CHOICES[choice][way] for choice, way in row.items()))
    assert wrong(render(values), (VERSIONS[0], VERSIONS[-1])) == []


def test_every_kind_has_a_schema_and_the_schemas_refuse_what_is_unknown() -> None:
    documents = render(merged(example("high-availability"), {"ingress": {"enabled": True, "hosts": ["a.example"]}}))
    documents += render(example("cpu-trial"))
    assert {d["kind"] for d in documents} == {
        "ConfigMap", "HTTPRoute", "Ingress", "Job", "NetworkPolicy", "PersistentVolumeClaim", "Pod",
        "PodDisruptionBudget", "PodMonitor", "PrometheusRule", "RayService", "ScrapeConfig", "Secret", "Service",
        "ServiceAccount", "StatefulSet",
    }  # fmt: skip
    for document in documents:
        if known(document["kind"]) and "spec" in document:
            document["spec"]["tpyo"] = 1
            assert "tpyo" in str(problem(document, "1.35"))
    with pytest.raises(LookupError, match="no Gadget"):
        problem({"kind": "Gadget", "apiVersion": "example.com/v1", "metadata": {"name": "a"}}, "1.35")


@pytest.mark.parametrize("values", [OPEN, example("high-availability"), example("cpu-trial")])
def test_the_same_values_are_the_same_text(values: dict[str, Any]) -> None:
    assert texts(values) == texts(values)
    assert all(document["metadata"]["namespace"] == "models" for document in render(values))


def test_the_packaged_chart_is_the_same(tmp_path: Path) -> None:
    with helm.Chart.load(str(CHART)) as chart, helm.Chart.load(chart.save(str(tmp_path))) as packaged:
        values = example("high-availability")
        assert packaged.render(values, name="demo", namespace="models") == texts(values)
        assert not [file["name"] for file in packaged.files if file["name"].startswith("ci/")]


def test_only_the_test_is_a_hook() -> None:
    hooks = {
        (document["kind"], document["metadata"]["annotations"]["helm.sh/hook"])
        for document in render(example("high-availability"))
        if "helm.sh/hook" in document["metadata"].get("annotations", {})
    }
    assert hooks == {("Pod", "test")}


@pytest.mark.parametrize("release", ["g", "gearbox", "a" * 53, "llm-of-the-team-that-writes-the-longest-names"])
def test_names_fit_however_long_the_release_is_called(release: str) -> None:
    values = merged(example("cpu-trial"), {"redis": {"enabled": True, "auth": {"password": "trialtrial"}}}, MONITORING)
    documents = render(values, name=release)
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(set(names)) == len(names)
    assert all(len(name) <= 63 for _, name in names)
    service = one(documents, "RayService")["metadata"]["name"]
    assert len(service) <= 47 and len(f"{service}-abcde-head-svc") <= 63 and len(f"{service}-serve-svc") <= 63
    assert wrong(documents, (VERSIONS[0], VERSIONS[-1])) == []


def test_two_releases_in_one_namespace_share_nothing() -> None:
    first, second = render(example("cpu-trial"), name="one"), render(example("cpu-trial"), name="two")
    names = [{(d["kind"], d["metadata"]["name"]) for d in documents} for documents in (first, second)]
    assert not names[0] & names[1]
    labels = [{pod.labels["gearbox.io/release"] for pod in pods(documents)} for documents in (first, second)]
    assert not labels[0] & labels[1]


def test_labels_and_annotations_are_on_every_object() -> None:
    values = merged(example("cpu-trial"), {"labels": {"team": "ml"}, "annotations": {"owner": "me"}}, MONITORING)
    for document in render(values):
        assert document["metadata"]["labels"]["team"] == "ml", document["kind"]
        assert document["metadata"]["labels"]["app.kubernetes.io/name"] == "gearbox"
        assert document["metadata"]["annotations"]["owner"] == "me"
