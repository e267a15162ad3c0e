"""The chart's RayService: the Serve configuration, the worker pools, and the effect of changed values on them."""

import json
import re
from typing import Any

import pytest
import yaml

from helm.chart_render import (
    CHART,
    EXAMPLES,
    OPEN,
    applications,
    example,
    groups,
    merged,
    one,
    pods,
    render,
    serve_config,
)
from serve.config.platform import PlatformConfig
from serve.errors import RequestError
from serve.gateway.cross_origin import CrossOriginProtection

NAMES = [file.stem.removesuffix("-values") for file in EXAMPLES]
TWO = merged(OPEN, {"platform": {"variants": [{"name": "full", "recipe": "full"}, {"name": "int8", "recipe": "int8"}]}})
BUCKET = merged(
    OPEN,
    {
        "weights": {"mode": "pod"},
        "platform": {
            "variants": [
                {"name": "full", "weights": "s3://m/full", "digest": "sha256:" + "1" * 64},
                {
                    "name": "int8",
                    "weights": "s3://m/int8",
                    "digest": "sha256:" + "2" * 64,
                    "resources": {"pool": "big"},
                },
            ],
            "retrieval": {},
        },
        "secrets": {"database": {"existingSecret": "database"}},
    },
)


def pool(name: str, **more: Any) -> dict[str, Any]:
    size = {"cpu": "4", "memory": "8Gi"}
    return {"name": name, "pods": {"min": 1, "max": 2}, "resources": {"requests": size, "limits": size}, **more}


BUCKET["pools"] = [pool("engine"), pool("big")]


def cluster(values: dict[str, Any]) -> dict[str, Any]:
    """What KubeRay compares to see whether a new cluster is needed."""
    spec: dict[str, Any] = one(render(values), "RayService")["spec"]["rayClusterConfig"]
    return spec


def arguments(values: dict[str, Any]) -> dict[str, Any]:
    """What Serve compares to see which applications' replicas are replaced."""
    return {name: application["args"] for name, application in applications(render(values)).items()}


def job(values: dict[str, Any]) -> str:
    """The name of the weights step's Job: another name is another run."""
    return str(one(render(values), "Job")["metadata"]["name"])


def changed_variant(values: dict[str, Any], index: int, **change: Any) -> dict[str, Any]:
    variants = [dict(variant) for variant in values["platform"]["variants"]]
    variants[index] |= change
    return merged(values, {"platform": {"variants": variants}})


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments")  # in Ray
@pytest.mark.parametrize("name", NAMES)
def test_ray_serve_takes_the_configuration(name: str) -> None:
    from ray.serve.schema import ServeDeploySchema  # slow to import

    config = serve_config(render(example(name)))
    taken = ServeDeploySchema.model_validate(config)
    assert [application.name for application in taken.applications] == [a["name"] for a in config["applications"]]
    assert [a.route_prefix for a in taken.applications if a.name != "gateway"] == [None] * (len(taken.applications) - 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_platform_takes_what_each_application_is_given(name: str) -> None:
    values = example(name)
    given = applications(render(values))
    gateway = given.pop("gateway")
    catalog = gateway["deployments"][0]["user_config"]["catalog"]
    served = PlatformConfig(**gateway["deployments"][0]["user_config"]["config"])
    assert PlatformConfig(**gateway["args"]["config"]).model == served.model
    assert list(catalog) == sorted(variant.name for variant in served.variants)
    assert gateway["deployments"][0]["num_replicas"] == served.server.gateway_replicas
    if "retrieval" in given:
        retrieval = given.pop("retrieval")
        assert PlatformConfig(**retrieval["args"]["config"]).retrieval == served.retrieval
        assert retrieval["args"]["folder"].startswith(("/models/catalog/embedder-", "/models/embedder"))
    assert list(given) == [f"variant-{variant.name}" for variant in served.variants]
    for variant in served.variants:
        application = given[f"variant-{variant.name}"]
        (alone,) = PlatformConfig(**application["args"]["config"]).variants
        assert application["args"]["folder"] == catalog[variant.name]
        assert served.engine_args(variant) == PlatformConfig(**application["args"]["config"]).engine_args(alone)
        assert (alone.resources, alone.env, alone.replicas.surge) == (
            variant.resources,
            variant.env,
            variant.replicas.surge,
        )
        (deployment,) = application["deployments"]
        assert deployment["name"] == f"engine:{variant.name}"
        assert deployment["autoscaling_config"] == {
            "min_replicas": variant.replicas.min,
            "max_replicas": variant.replicas.max,
            "target_ongoing_requests": variant.replicas.target_in_flight,
        }


def test_where_the_database_is_comes_by_the_environment_alone() -> None:
    values = merged(BUCKET, {"platform": {"retrieval": {"database": "embedded"}}})
    assert "embedded" not in one(render(values), "RayService")["spec"]["serveConfigV2"]


def test_numbers_arrive_as_they_were_given() -> None:
    values = merged(
        TWO,
        {
            "platform": {
                "server": {"max_body_bytes": 33554432, "drain_timeout_s": 90},
                "engine": {"seed": 123456789012, "x": 0.45},
            }
        },
    )
    args = arguments(values)
    assert args["gateway"]["config"]["server"]["max_body_bytes"] == 33554432
    assert args["variant-full"]["config"]["engine"] == {"seed": 123456789012, "x": 0.45}


OWN_PROFILE = {"profiles": {"strict": {"min_quality": 0.9}}}
STRICT_KEY = {"sha256": "0" * 64, "tenant": "a", "budget": "strict"}


@pytest.mark.parametrize(
    "access",
    [{"allow_anonymous": True, "anonymous_profile": "strict"}, {"allow_anonymous": False, "keys": [STRICT_KEY]}],
)
def test_access_may_name_a_profile_of_the_operators_own(access: dict[str, Any]) -> None:
    values = merged(TWO, {"platform": {**OWN_PROFILE, "access": access}})
    gateway = applications(render(values))["gateway"]
    started = PlatformConfig(**gateway["args"]["config"]).access
    served = PlatformConfig(**gateway["deployments"][0]["user_config"]["config"]).access
    assert "strict" in (served.anonymous_profile, *(key.budget for key in served.keys))
    assert (started.allow_anonymous, [key.tenant for key in started.keys]) == (
        served.allow_anonymous,
        [key.tenant for key in served.keys],
    )


IN_PLACE = {
    "replica bounds": changed_variant(TWO, 1, replicas={"min": 0, "max": 3, "target_in_flight": 4}),
    "prices": changed_variant(TWO, 1, price_usd_per_hour=7.5),
    "profiles": merged(TWO, {"platform": OWN_PROFILE}),
    "a profile that is used": merged(TWO, {"platform": {**OWN_PROFILE, "access": {"anonymous_profile": "strict"}}}),
    "gateways": merged(TWO, {"platform": {"server": {"gateway_replicas": 2}}}),
}


@pytest.mark.parametrize("values", IN_PLACE.values(), ids=IN_PLACE)
def test_a_change_in_place_restarts_nothing(values: dict[str, Any]) -> None:
    assert serve_config(render(values)) != serve_config(render(TWO))
    assert arguments(values) == arguments(TWO)
    assert cluster(values) == cluster(TWO)
    assert job(values) == job(TWO)


@pytest.mark.parametrize(
    "change",
    [{"engine": {"max_num_seqs": 8}}, {"env": {"A": "b"}}, {"recipe": "int8-rtn"}],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_variant_replaces_its_engines_alone_and_is_made_first(change: dict[str, Any]) -> None:
    values = changed_variant(TWO, 1, **change)
    before, after = arguments(TWO), arguments(values)
    assert {name for name in after if after[name] != before[name]} == {"variant-int8"}
    assert before["variant-int8"]["folder"] != after["variant-int8"]["folder"]
    assert job(values) != job(TWO)
    assert cluster(values) == cluster(TWO)


def test_a_new_variant_is_an_application_beside_the_others() -> None:
    variants = [*TWO["platform"]["variants"], {"name": "tiny", "recipe": "distilled"}]
    values = merged(TWO, {"platform": {"variants": variants}})
    before, after = arguments(TWO), arguments(values)
    assert after.keys() - before.keys() == {"variant-tiny"}
    assert all(after[name] == before[name] for name in before)
    assert cluster(values) == cluster(TWO)


@pytest.mark.parametrize("section", ["access", "observability"])
def test_the_gateways_own_sections_replace_gateways_alone(section: str) -> None:
    change = {"access": {"rate_limit_store_timeout_s": 0.5}, "observability": {"trace_sample_ratio": 0.5}}[section]
    values = merged(TWO, {"platform": {section: change}})
    before, after = arguments(TWO), arguments(values)
    assert {name for name in after if after[name] != before[name]} == {"gateway"}
    assert cluster(values) == cluster(TWO)


def test_a_new_pool_leaves_the_others_as_they_are() -> None:
    before, after = (
        cluster(merged(TWO, {"pools": [pool("engine")]})),
        cluster(merged(TWO, {"pools": [pool("engine"), pool("a-first")]})),
    )
    assert after["workerGroupSpecs"][:-1] == before["workerGroupSpecs"]
    assert [group["groupName"] for group in after["workerGroupSpecs"]] == ["gateway", "engine", "a-first"]
    assert {**after, "workerGroupSpecs": 0} == {**before, "workerGroupSpecs": 0}


def test_another_version_of_the_chart_is_not_another_cluster() -> None:
    text = json.dumps(cluster(merged(TWO, {"image": {"tag": "mine"}})))
    version = re.search(r"^version: (.+)$", (CHART / "Chart.yaml").read_text(), re.MULTILINE)
    assert version is not None and version[1] not in text and "helm.sh/chart" not in text


def test_the_weights_step_makes_what_the_engines_wait_for() -> None:
    values = merged(TWO, {"platform": {"retrieval": {}}, "secrets": {"database": {"existingSecret": "database"}}})
    documents = render(values)
    (container,) = one(documents, "Job")["spec"]["template"]["spec"]["containers"]
    assert container["command"] == [
        "gearbox",
        "weights",
        "--config=/etc/gearbox/platform.yaml",
        "--into=/models/catalog",
    ]
    only, *named = container["args"]
    assert only == "--only=embedder,full,int8"
    made = dict(argument.removeprefix("--as=").split("=") for argument in named)
    given = applications(documents)
    assert given["retrieval"]["args"]["folder"] == f"/models/catalog/{made.pop('embedder')}"
    assert {name: given[f"variant-{name}"]["args"]["folder"] for name in made} == {
        name: f"/models/catalog/{folder}" for name, folder in made.items()
    }
    config = PlatformConfig(**yaml.safe_load(one(documents, "ConfigMap")["data"]["platform.yaml"]))
    assert config.access.allow_anonymous and {variant.name for variant in config.variants} == made.keys()


def test_recipes_are_made_by_the_image_that_builds() -> None:
    images = {
        "by default": (TWO, "gearbox:0.1.0-cpu-build"),
        "of a tag": (merged(TWO, {"image": {"tag": "7-gpu"}}), "gearbox:7-gpu-build"),
        "of its own": (merged(TWO, {"weights": {"job": {"image": {"tag": "mine"}}}}), "gearbox:mine"),
        "without recipes": (merged(BUCKET, {"weights": {"mode": "shared"}}), "gearbox:0.1.0-cpu"),
    }
    for values, image in images.values():
        (container,) = one(render(values), "Job")["spec"]["template"]["spec"]["containers"]
        assert container["image"] == image


def test_what_is_used_where_it_is_needs_no_weights_step() -> None:
    documents = render(example("air-gapped"))
    assert not [document for document in documents if document["kind"] in ("Job", "PersistentVolumeClaim")]
    given = applications(documents)
    assert given["variant-full"]["args"]["folder"] == "/models/llama-3.1-8b/full"
    assert given["retrieval"]["args"]["folder"] == "/models/embedder"
    claims = {
        v["persistentVolumeClaim"]["claimName"]
        for p in pods(documents)
        for v in p.spec.get("volumes", [])
        if "persistentVolumeClaim" in v
    }
    assert claims == {"models"}


def test_in_mode_pod_each_pool_copies_its_own_variants() -> None:
    documents = render(BUCKET)
    assert not [document for document in documents if document["kind"] in ("Job", "PersistentVolumeClaim")]
    steps = {name: group["template"]["spec"]["initContainers"][0] for name, group in groups(documents).items()}
    given = applications(documents)
    folders = {name: given[f"variant-{name}"]["args"]["folder"].rpartition("/")[2] for name in ("full", "int8")}
    embedder = given["retrieval"]["args"]["folder"].rpartition("/")[2]
    assert steps["engine"]["args"] == ["--only=full", f"--as=full={folders['full']}"]
    assert steps["big"]["args"] == ["--only=int8", f"--as=int8={folders['int8']}"]
    assert steps["gateway"]["args"] == [
        "--cards", "--only=embedder,full,int8", f"--as=embedder={embedder}",
        f"--as=full={folders['full']}", f"--as=int8={folders['int8']}",
    ]  # fmt: skip
    assert (
        "initContainers"
        not in one(documents, "RayService")["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    )
    assert cluster(changed_variant(BUCKET, 0, digest="sha256:" + "3" * 64)) != cluster(BUCKET)  # pods must copy anew
    assert cluster(changed_variant(BUCKET, 0, price_usd_per_hour=1)) == cluster(BUCKET)


def test_a_pool_is_a_worker_group_that_replicas_are_placed_by() -> None:
    documents = render(example("gpu-kinds"))
    assert list(groups(documents)) == ["gateway", "l4", "a100", "h100", "cpu"]
    for name, group in groups(documents).items():
        assert group["labels"] == {"gearbox.io/pool": name}
        assert group["rayStartParams"] == {} and "replicas" not in group
        kind = {"l4": "L4", "a100": "A100", "h100": "H100"}.get(name)
        assert group.get("resources") == ({f"accelerator_type:{kind}": "1"} if kind else None)
    head = cluster(example("gpu-kinds"))["headGroupSpec"]
    assert head["rayStartParams"] == {"dashboard-host": "0.0.0.0", "num-cpus": "0"}


@pytest.mark.parametrize("name", NAMES)
def test_ray_pods_are_what_kuberay_expects(name: str) -> None:
    drain = example(name)["platform"].get("server", {}).get("drain_timeout_s", 600)
    for pod in pods(render(example(name))):
        if not pod.owner.startswith("RayService"):
            continue
        assert "app.kubernetes.io/name" not in pod.labels  # KubeRay's Services select by its own
        assert "restartPolicy" not in pod.spec  # the autoscaler needs Never, which KubeRay sets
        assert pod.spec["terminationGracePeriodSeconds"] == drain + 960
        container = pod.spec["containers"][0]
        assert container["lifecycle"]["preStop"]["exec"]["command"] == [
            "python", "-m", "deployments.drain", f"--deadline-s={drain + 900}", "--metrics-port=9464",
        ]  # fmt: skip
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports["serve"] == 8000 and ports["metrics"] == 8080 and len(set(ports.values())) == len(ports)
        environment = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == environment["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
        assert environment["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"] == str(drain)
        probed = container["readinessProbe"]["httpGet"]["path"]
        assert probed == {"head": "/api/gcs_healthz", "gateway": "/readyz/all"}.get(
            pod.labels["gearbox.io/component"], "/api/local_raylet_healthz"
        )


def test_spread_is_over_the_pods_of_one_cluster_and_pool() -> None:
    for constraint in groups(render(example("high-availability")))["gateway"]["template"]["spec"][
        "topologySpreadConstraints"
    ]:
        assert constraint["labelSelector"]["matchLabels"] == {
            "gearbox.io/release": "demo-gearbox", "gearbox.io/pool": "gateway",
        }  # fmt: skip
        assert constraint["matchLabelKeys"] == ["ray.io/cluster"]


def test_an_open_platform_answers_to_the_names_that_the_chart_gives_it() -> None:
    values = {
        "platform": {"access": {"allow_anonymous": True}, "server": {"allowed_hosts": ["own.example"]}},
        "ingress": {"enabled": True, "hosts": ["ai.example"]},
        "httpRoute": {"enabled": True, "parentRefs": [{"name": "gate"}], "hostnames": ["*.route.example"]},
        "allowPublicAnonymousAccess": True,
    }
    args = arguments(merged(example("cpu-trial"), values))
    server = PlatformConfig(**args["gateway"]["config"]).server
    assert {"own.example", "ai.example", "*.route.example"} < set(server.allowed_hosts)
    service = server.allowed_hosts[0]
    assert [host.removeprefix(service).count(".") for host in server.allowed_hosts[:4]] == [0, 1, 2, 4]
    guard = CrossOriginProtection(server)
    for host in (*server.allowed_hosts[:4], "10.1.2.3:8000", "127.0.0.1:8000", "x.route.example"):
        guard.check({"host": host})
    with pytest.raises(RequestError):
        guard.check({"host": "evil.example"})
