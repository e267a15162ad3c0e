"""Properties of the images that the chart relies on, read from the Dockerfile."""

import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.lib.sample_catalog import make_config
from deployments.ray_internals import ray_environment
from helm import chart_render

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()


def stages() -> dict[str, str]:
    """The text of each stage by name."""
    parts = re.split(r"^FROM \S+ AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_there_is_an_image_for_what_the_chart_and_the_script_name():
    assert {"cpu", "gpu", "cpu-build", "gpu-build"} <= stages().keys()


def test_an_image_runs_as_the_account_of_the_chart_and_says_how_it_is():
    runtime = stages()["runtime"]
    user = chart_render.one(chart_render.render(chart_render.OPEN), "Job")["spec"]["template"]["spec"][
        "securityContext"
    ]
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}" in runtime
    assert "HEALTHCHECK" in runtime
    assert not any("USER" in text for name, text in stages().items() if name != "runtime"), "nobody becomes root again"


def test_nothing_is_taken_as_the_newest_there_is():
    assert ":latest" not in DOCKERFILE
    for requirement in re.findall(r"\./install (?:uv|tool \S+) \"(\S+)\"", DOCKERFILE):
        assert "==" in requirement
    uv = re.search(r"uv==([\d.]+)", (ROOT / "scripts/install").read_text())
    assert uv is not None and f"uv=={uv[1]}" in DOCKERFILE, "the same uv as on a machine"


def test_image_and_chart_together_set_what_the_platform_sets_itself():
    of_image = set(re.findall(r"^(?:ENV)?\s+([A-Z][A-Za-z_]+)=", stages()["runtime"], re.MULTILINE))
    (container,) = [
        c
        for pod in chart_render.pods(chart_render.render(chart_render.OPEN))
        if pod.owner.endswith("/head")
        for c in pod.containers
    ]
    of_chart = {entry["name"] for entry in container["env"]}
    paths = {
        name
        for name in ray_environment(make_config(), Path("/h"))
        if re.search(r"HAPROXY_.*(LOC|PATH|BASE|FILE|PORT)$", name)
    }
    own = set(ray_environment(make_config(), Path("/h"))) - paths - {"RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"}
    assert own | {"RAY_SERVE_HAPROXY_BINARY_PATH"} <= of_image | of_chart


@pytest.mark.parametrize(
    "arguments", [(), ("cpu",), ("cpu", "gearbox"), ("cpu", "gearbox:latest"), ("arm", "gearbox:1")]
)
def test_the_script_says_what_it_wants(arguments: tuple[str, ...]):
    done = subprocess.run([ROOT / "scripts/image", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_secrets_of_the_build_are_in_no_layer():
    assert not re.search(r"^(ARG|ENV).*(TOKEN|PASSWORD|INDEX_URL)", DOCKERFILE, re.MULTILINE)
    assert re.findall(r"https?://(?!127\.0\.0\.1)\S+", DOCKERFILE) == []
