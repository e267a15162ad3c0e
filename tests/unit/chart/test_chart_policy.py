"""Security of the rendered chart: minimal pod privileges, network policies, and secrets only in Secret objects."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from helm.chart_render import EXAMPLES, OPEN, Pod, example, groups, merged, one, pods, render

STORES = {
    "platform": {"retrieval": {}},
    "postgresql": {"enabled": True, "auth": {"password": "databaseSecret1"}},
    "redis": {"enabled": True, "auth": {"password": "limitsSecret1"}},
    "secrets": {"keys": {"entries": [{"sha256": "ab" * 32, "tenant": "alice"}]}},
}
BUCKET = {
    "platform": {"variants": [{"name": "full", "weights": "s3://models/full", "digest": "sha256:" + "1" * 64}]},
    "weights": {"mode": "pod", "credentials": {"existingSecret": "bucket"}},
}
CASES: dict[str, dict[str, Any]] = {
    **{file.stem.removesuffix("-values"): example(file.stem.removesuffix("-values")) for file in EXAMPLES},
    "stores": STORES,
    "bucket": merged(OPEN, BUCKET),
}
cases = pytest.mark.parametrize("values", CASES.values(), ids=CASES)


def containers(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every container by owner and name, the autoscaler's too, which KubeRay makes of its options."""
    for pod in pods(documents):
        yield from ((f"{pod.owner}/{container['name']}", container) for container in pod.containers)
    yield "autoscaler", one(documents, "RayService")["spec"]["rayClusterConfig"]["autoscalerOptions"]


def selects(selector: dict[str, Any], labels: Any) -> bool:
    """Whether a label selector fits labels."""
    operators = {"In": lambda value, values: value in values, "Exists": lambda value, _: value is not None}
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        operators[part["operator"]](labels.get(part["key"]), part.get("values"))
        for part in selector.get("matchExpressions", [])
    )


def reachable(documents: list[dict[str, Any]], pod: Pod, port: int, labels: dict[str, str]) -> bool:
    """Whether a pod with `labels` in the same namespace gets to a port of `pod`, by the NetworkPolicies."""
    for policy in documents:
        if policy["kind"] != "NetworkPolicy" or not selects(policy["spec"]["podSelector"], pod.labels):
            continue
        for rule in policy["spec"].get("ingress", []):
            ports = rule.get("ports")
            right = ports is None or any(p["port"] <= port <= p.get("endPort", p["port"]) for p in ports)
            peers = rule.get("from")
            here = [peer["podSelector"] for peer in peers or [] if peer.keys() == {"podSelector"}]
            if right and (peers is None or any(selects(selector, labels) for selector in here)):
                return True
    return False


@cases
def test_a_container_may_do_nothing_that_it_need_not(values: dict[str, Any]) -> None:
    for name, container in containers(render(values)):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["readOnlyRootFilesystem"] is True, name
        assert context["runAsNonRoot"] is True and context.get("runAsUser", 1) != 0, name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert not any("hostPort" in port for port in container.get("ports", [])), name


@cases
def test_a_container_says_what_it_needs_and_may_use(values: dict[str, Any]) -> None:
    documents = render(values)
    unlimited = [
        container
        for pod in pods(documents)
        if pod.labels.get("gearbox.io/pool") == "gateway"
        for container in pod.spec["containers"]
    ]
    for name, container in containers(documents):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert {"cpu", "memory", "ephemeral-storage"} <= requests.keys(), name
        assert {"memory", "ephemeral-storage"} <= limits.keys(), name
        assert ("cpu" in limits) != (container in unlimited), name


def test_gateways_have_cpu_of_their_own_and_are_not_throttled() -> None:
    """Kubernetes gives CPU by requests; a limit would stop a gateway for up to 100 ms while its node has idle cores."""
    (gateway,) = (pod for pod in pods(render(OPEN)) if pod.labels.get("gearbox.io/pool") == "gateway")
    (resources,) = (container["resources"] for container in gateway.spec["containers"])
    assert resources["requests"]["cpu"] == "1500m", "half a core each for gateway, retrieval and embedder"
    assert "cpu" not in resources["limits"]


@cases
def test_an_image_is_named_by_version_or_digest(values: dict[str, Any]) -> None:
    for name, container in containers(render(values)):
        if "image" in container:
            repository, _, tag = container["image"].rpartition(":")
            assert repository and tag not in ("", "latest"), name
            assert container["imagePullPolicy"] == "IfNotPresent"


@cases
def test_a_pod_is_apart_from_its_node_and_from_kubernetes(values: dict[str, Any]) -> None:
    for pod in pods(render(values)):
        context = pod.spec["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod.spec["automountServiceAccountToken"] is False
        assert pod.spec["enableServiceLinks"] is False  # they would be variables that begin like the platform's own
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys()
        assert not any("hostPath" in volume for volume in pod.spec.get("volumes", []))


@cases
def test_only_the_autoscaler_gets_a_token_of_kubernetes(values: dict[str, Any]) -> None:
    documents = render(values)
    assert all(d["automountServiceAccountToken"] is False for d in documents if d["kind"] == "ServiceAccount")
    for pod in pods(documents):
        tokens = {volume["name"] for volume in pod.spec.get("volumes", []) if "projected" in volume}
        assert tokens == ({"token"} if pod.owner.endswith("/head") else set())
        assert not any(mount["name"] == "token" for c in pod.containers for mount in c.get("volumeMounts", []))
        own = "demo-gearbox-head" if tokens else "demo-gearbox"
        assert pod.spec["serviceAccountName"] == own
    options = one(documents, "RayService")["spec"]["rayClusterConfig"]["autoscalerOptions"]
    assert "token" in {mount["name"] for mount in options["volumeMounts"]}
    assert not any(d["kind"] in ("Role", "ClusterRole", "RoleBinding") for d in documents)


def test_without_autoscaling_nobody_gets_a_token() -> None:
    for pod in pods(render(merged(OPEN, {"ray": {"autoscaler": {"enabled": False}}}))):
        assert not any("projected" in volume for volume in pod.spec.get("volumes", []))


@cases
def test_what_is_mounted_is_there_and_what_is_there_is_mounted(values: dict[str, Any]) -> None:
    documents = render(values)
    made = {(d["kind"], d["metadata"]["name"]) for d in documents}
    claims = {"data"}  # of StatefulSets
    for pod in pods(documents):
        volumes = {volume["name"] for volume in pod.spec.get("volumes", [])}
        mounted = {mount["name"] for c in pod.containers for mount in c.get("volumeMounts", [])}
        assert mounted - claims <= volumes and volumes - {"token"} <= mounted, pod.owner
        for volume in pod.spec.get("volumes", []):
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in made
        for container in pod.containers:
            paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
            assert len(set(paths)) == len(paths)
            if "ray" in container["name"] or container["name"] == "weights":
                assert {"/tmp", "/home/gearbox"} <= set(paths)  # all else is read-only


@cases
def test_engines_cannot_change_weights(values: dict[str, Any]) -> None:
    for pod in pods(render(values)):
        for container in pod.containers:
            for mount in container.get("volumeMounts", []):
                if mount["mountPath"] == "/models":
                    assert mount.get("readOnly", False) is (container["name"] != "weights")


@cases
def test_every_pod_is_shut_first(values: dict[str, Any]) -> None:
    documents = render(values)
    shut = one(documents, "NetworkPolicy", "demo-gearbox-deny")["spec"]
    assert "ingress" not in shut and "egress" not in shut
    for pod in pods(documents):
        assert selects(shut["podSelector"], pod.labels), pod.owner


def test_policies_open_only_what_is_needed() -> None:
    documents = render(
        merged(STORES, {"networkPolicy": {"from": [{"podSelector": {"matchLabels": {"app": "caller"}}}]}})
    )
    by_owner = {pod.owner.rsplit("/", 1)[-1]: pod for pod in pods(documents)}
    head, gateway, engine = by_owner["head"], by_owner["gateway"], by_owner["engine"]
    database, limits = by_owner["demo-gearbox-postgresql"], by_owner["demo-gearbox-redis"]
    caller, stranger = {"app": "caller"}, {"app": "stranger"}
    assert reachable(documents, gateway, 8000, caller) and not reachable(documents, gateway, 8000, stranger)
    assert not any(reachable(documents, gateway, port, caller) for port in (9464, 8080, 30001))
    assert not any(reachable(documents, engine, port, caller) for port in (8000, 8080, 30001))
    assert not any(reachable(documents, head, port, caller) for port in (6379, 8000, 8265, 10001))
    for other in (head, gateway, engine):
        assert reachable(documents, other, 12345, dict(engine.labels))
        assert not reachable(documents, other, 12345, dict(database.labels))
    for store, port in ((database, 5432), (limits, 6379)):
        assert reachable(documents, store, port, dict(gateway.labels))
        assert not reachable(documents, store, port, dict(engine.labels))
        assert not reachable(documents, store, port, caller)
    assert reachable(documents, gateway, 8000, dict(by_owner["demo-gearbox-smoke-test"].labels))
    assert one(documents, "NetworkPolicy", "demo-gearbox-operator")["spec"]["ingress"][0]["ports"][0]["port"] == 8265


def test_with_egress_restricted_pods_reach_the_release_dns_and_what_is_listed() -> None:
    documents = render(example("air-gapped"))
    policies = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "NetworkPolicy"}
    assert policies["demo-gearbox-deny"]["policyTypes"] == ["Ingress", "Egress"]
    release, dns = policies["demo-gearbox-egress"]["egress"]
    assert list(release["to"][0]) == ["podSelector"] and [port["port"] for port in dns["ports"]] == [53, 53]
    allowed = policies["demo-gearbox-egress-ray"]["egress"]
    assert allowed == [{"to": [{"ipBlock": {"cidr": "10.0.20.0/28"}}], "ports": [{"port": 5432}]}]
    only_head = policies["demo-gearbox-egress-head"]["podSelector"]["matchLabels"]
    assert only_head["gearbox.io/component"] == "head"


@pytest.mark.parametrize("secret", ["databaseSecret1", "limitsSecret1", "ab" * 32])
def test_a_secret_is_in_secrets_alone(secret: str) -> None:
    for document in render(STORES):
        assert (secret in json.dumps(document)) <= (document["kind"] == "Secret"), document["kind"]


def test_secrets_come_by_reference_to_those_who_need_them() -> None:
    documents = render(example("high-availability"))
    for pod in pods(documents):
        by_reference = {
            variable["name"]: variable["valueFrom"]["secretKeyRef"]["name"]
            for container in pod.containers
            for variable in container.get("env", [])
            if "valueFrom" in variable
        }
        expected = {
            "gateway": {
                "GEARBOX_RETRIEVAL__DATABASE": "gearbox-database",
                "GEARBOX_ACCESS__RATE_LIMIT_STORE": "gearbox-redis",
            },
            "demo-gearbox-smoke-test": {"SMOKE_TEST_KEY": "gearbox-test-key"},
        }
        assert by_reference == expected.get(pod.owner.rsplit("/", 1)[-1], {}), pod.owner
        keys = [volume for volume in pod.spec["volumes"] if "secret" in volume] if "volumes" in pod.spec else []
        assert bool(keys) is pod.owner.endswith("/gateway")


@pytest.mark.parametrize("values", [merged(OPEN, BUCKET), example("one-gpu")])
def test_credentials_are_in_the_weights_step_alone(values: dict[str, Any]) -> None:
    for name, container in containers(render(values)):
        assert ("envFrom" in container) is name.endswith("/weights"), name


def test_a_disruption_budget_never_blocks_the_drain_of_a_node() -> None:
    for values in CASES.values():
        documents = render(values)
        smallest = {name: group["minReplicas"] for name, group in groups(documents).items()}
        budgets = [document["spec"] for document in documents if document["kind"] == "PodDisruptionBudget"]
        for budget in budgets:
            # Kubernetes knows no scale of a RayCluster: it can only count what stays.
            assert budget.keys() == {"minAvailable", "unhealthyPodEvictionPolicy", "selector"}
            pool = budget["selector"]["matchLabels"]["gearbox.io/pool"]
            assert 0 < budget["minAvailable"] < smallest[pool]
            assert any(selects(budget["selector"], pod.labels) for pod in pods(documents))
        covered = {budget["selector"]["matchLabels"]["gearbox.io/pool"] for budget in budgets}
        assert covered == {pool for pool, count in smallest.items() if count > 1}


@cases
def test_a_service_selects_pods_that_listen(values: dict[str, Any]) -> None:
    documents = render(values)
    for service in documents:
        if service["kind"] != "Service":
            continue
        behind = [p for p in pods(documents) if service["spec"]["selector"].items() <= p.labels.items()]
        assert behind, service["metadata"]["name"]
        for port in service["spec"]["ports"]:
            for pod in behind:
                ports = {p["name"]: p["containerPort"] for c in pod.containers for p in c.get("ports", [])}
                assert ports[port["targetPort"]] == port["port"]


def test_the_stores_of_the_chart_and_the_gateways_have_the_same_password() -> None:
    documents = render(STORES)
    (gateway,) = groups(documents)["gateway"]["template"]["spec"]["containers"]
    given = {v["name"]: v["valueFrom"]["secretKeyRef"] for v in gateway["env"] if "valueFrom" in v}
    for name, variable, password, uri in (
        ("postgresql", "GEARBOX_RETRIEVAL__DATABASE", "databaseSecret1", "postgresql://gearbox:{}@{}:5432/gearbox"),
        ("redis", "GEARBOX_ACCESS__RATE_LIMIT_STORE", "limitsSecret1", "async+redis://:{}@{}:6379/0"),
    ):
        full = f"demo-gearbox-{name}"
        assert one(documents, "Secret", full)["stringData"] == {"password": password, "uri": uri.format(password, full)}
        assert given[variable] == {"name": full, "key": "uri"}
        (container,) = one(documents, "StatefulSet", full)["spec"]["template"]["spec"]["containers"]
        (own,) = [v["valueFrom"]["secretKeyRef"] for v in container["env"] if "valueFrom" in v]
        assert own == {"name": full, "key": "password"}
        assert one(documents, "Service", full)["spec"]["ports"][0]["port"] == container["ports"][0]["containerPort"]
