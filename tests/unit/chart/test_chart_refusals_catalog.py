"""Worker pools that cannot hold the catalog are rejected with a message that names what is too small or missing."""

from typing import Any

import pytest

from helm.chart_render import OPEN, merged, refusal

GPU = {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": "2"}
CPU = {"cpu": "4", "memory": "8Gi"}
URI = {"name": "full", "weights": "s3://models/full", "digest": "sha256:" + "1" * 64}


def variant(**fields: Any) -> dict[str, Any]:
    """Values with one variant that has these fields."""
    return {"platform": {"variants": [{"name": "full", "recipe": "full", **fields}]}}


def needs(**resources: Any) -> dict[str, Any]:
    """Values with one variant that needs these resources."""
    return variant(resources=resources)


def sized(size: dict[str, Any]) -> dict[str, Any]:
    """Resources whose limits equal their requests."""
    return {"requests": size, "limits": size}


def pools(*given: dict[str, Any]) -> dict[str, Any]:
    """Values with these pools; what is not said is that of one with two GPUs."""
    some = {"name": "engine", "pods": {"min": 1, "max": 2}, "resources": sized(GPU)}
    return {"pools": [some | one for one in given]}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a pool that is not there": (
        needs(pool="h100"),
        "variant 'full' runs in the pool 'h100', which does not exist; pools: engine",
    ),
    "no pool at all": ({"pools": []}, "variant 'full' runs in the pool 'engine', which does not exist; pools: none"),
    "a pool with a taken name": (pools({}, {"name": "gateway"}), "'gateway' is the name of a pool of the chart's own"),
    "two pools with one name": (pools({}, {}), "pools: two are called 'engine'; names must differ"),
    "two variants with one name": (
        {"platform": {"variants": [URI, URI]}},
        "two variants are called 'full'; names must differ",
    ),
    "replica bounds the wrong way": (
        variant(replicas={"min": 3, "max": 2}),
        "variant 'full': replicas.min (3) is larger than replicas.max (2)",
    ),
    "pod bounds the wrong way": (
        pools({"pods": {"min": 3, "max": 2}}),
        "pool 'engine': pods.min (3) is larger than pods.max (2)",
    ),
    "gateway bounds the wrong way": (
        {"gateway": {"pods": {"min": 4}}},
        "pool 'gateway': pods.min (4) is larger than pods.max (3)",
    ),
    "a pool without memory": (
        pools({"resources": {"requests": CPU, "limits": {"cpu": "1"}}}),
        "pool 'engine': resources.limits.memory is not set",
    ),
    "a pool without cores": (
        pools({"resources": {"requests": {}, "limits": {"memory": "8Gi"}}}),
        "pool 'engine': resources say no cpu",
    ),
    "an accelerator without GPUs": (
        pools({"accelerator": "L4", "resources": sized(CPU)}),
        "it has the accelerator L4, but resources.limits names no GPU",
    ),
    "too many cores": (needs(cpus=5), "variant 'full': a replica needs 5 cpus, but a pod of pool 'engine' has 4"),
    "a GPU where there is none": (needs(gpus=0.5), "variant 'full': a replica needs a GPU, but pool 'engine' has none"),
    "too many GPUs": (
        merged(pools({}), needs(gpus=4)),
        "variant 'full': a replica needs 4 GPUs, but a pod of pool 'engine' has 2",
    ),
    "another accelerator": (
        merged(pools({"accelerator": "L4"}), needs(gpus=1, accelerator="H100")),
        "it needs the accelerator H100, but pool 'engine' has L4",
    ),
    "an accelerator that nobody has": (
        merged(pools({}), needs(gpus=1, accelerator="H100")),
        "it needs the accelerator H100, but pool 'engine' has none named",
    ),
    "an accelerator without a need": (
        needs(accelerator="H100"),
        "it names the accelerator H100 but needs no GPU; set resources.gpus",
    ),
    "too much memory": (
        needs(memory_gb=9),
        "variant 'full': a replica needs 9 GiB of memory, but a pod of pool 'engine' has 8",
    ),
    "more replicas than cores": (
        variant(replicas={"min": 5, "max": 5}, resources={"cpus": 2}),
        "pool 'engine': the smallest numbers of replicas need 10 cpus, but pods.max of 2 gives 8",
    ),
    "more replicas than GPUs": (
        merged(pools({}), variant(replicas={"min": 5, "max": 5}, resources={"cpus": 0.1, "gpus": 1})),
        "pool 'engine': the smallest numbers of replicas need 5 GPUs, but pods.max of 2 gives 4",
    ),
    "more gateways than cores": (
        {"platform": {"server": {"gateway_replicas": 13}}},
        "gateway: 13 replicas of half a core each, but pods.max of 3 gives 6 cores",
    ),
    "a drain that never ends": (
        {"gateway": {"pods": {"min": 2}, "minAvailable": 2}},
        "gateway.minAvailable (2) must be below gateway.pods.min (2), else no node with a gateway can be drained",
    ),
}


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_with_a_reason(values: dict[str, Any], message: str) -> None:
    assert message in refusal(merged(OPEN, values))


def test_nothing_is_refused_for_being_at_its_limit() -> None:
    most = {"cpus": 4, "gpus": 2, "accelerator": "H100", "memory_gb": 8}
    full = variant(replicas={"min": 2, "max": 4}, resources=most)
    assert refusal(merged(OPEN, pools({"accelerator": "H100"}), full)) == ""


def test_variants_may_share_a_gpu_to_the_last_tenth() -> None:
    shares = [
        {"name": f"v{index}", "weights": "s3://models", "resources": {"cpus": 0.1, "gpus": share}}
        for index, share in enumerate((0.7, 0.2, 0.1))
    ]
    room = pools({"pods": {"min": 1, "max": 1}, "resources": sized(CPU | {"nvidia.com/gpu": 1})})
    assert refusal(merged(OPEN, {"platform": {"variants": shares}}, room)) == ""


@pytest.mark.parametrize(("cores", "count"), [("3500m", 4), ("4", 4), (4, 4), (3.5, 4)])
def test_cores_are_counted_as_kuberay_counts_them(cores: Any, count: int) -> None:
    room = pools({"resources": sized({"cpu": cores, "memory": "8Gi"})})
    assert refusal(merged(OPEN, room, needs(cpus=count))) == ""
    assert f"has {count};" in refusal(merged(OPEN, room, needs(cpus=count + 1)))
