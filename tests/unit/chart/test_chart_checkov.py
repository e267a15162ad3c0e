"""Checkov's security findings in the rendered chart: none except those listed here with a reason."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from helm.chart_render import Document, merged, pods, render
from tests.unit.chart.test_chart_policy import CASES

pytestmark = pytest.mark.slow
CHECKOV = Path(__file__).resolve().parents[3] / ".venv-checkov/bin/checkov"  # made by scripts/test
EVERY = ("ray", "smoke", "weights", "postgresql", "redis")
STORES = EVERY[3:]
DIGESTS, PRIVILEGED = "digests", "privileged"  # releases beside CASES
# Check, which pods, why it stays.
ACCEPTED: Mapping[str, tuple[tuple[str, ...], str]] = {
    "CKV_K8S_8": (("smoke",), "it runs to its end: nothing could be restarted"),
    "CKV_K8S_9": (("smoke",), "it runs to its end: nothing is sent there"),
    "CKV_K8S_11": (("ray",), "gateways: a throttled one would delay every answer and refusal"),
    "CKV_K8S_15": (EVERY, "tags do not move here (`latest` is refused), and a registry that is down stops no pod"),
    "CKV_K8S_35": (EVERY, "read by Ray, object stores' clients and the stores' images; API keys are a file"),
    "CKV_K8S_40": (STORES, "the users of those images, who own their files"),
    "CKV_K8S_43": (EVERY, "`image.digest` is the user's to give: no image is published"),
}


@dataclass(frozen=True, order=True)
class Found:
    """One check of one resource."""

    check: str
    kind: str
    part: str
    case: str
    failed: bool

    @property
    def accepted(self) -> bool:
        return self.part in ACCEPTED.get(self.check, ((),))[0]


def manifests(case: str, values: dict[str, Any]) -> list[Document]:
    """A release called like its case; Ray's pods, which Checkov does not look for in a RayService, as Pods beside it.

    ConfigMaps are empty: Checkov checks none of their data, and parsing the dashboards takes it longer than all checks.
    """
    documents = render(values, name=case, namespace=case)
    ray = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"{case}-gearbox-ray-{number}", "labels": dict(pod.labels)},
            "spec": pod.spec,
        }
        for number, pod in enumerate(pods(documents))
        if pod.owner.startswith("RayService/")
    ]
    every: list[Document] = [*documents, *ray]
    for document in every:
        document["metadata"]["namespace"] = case
        if document["kind"] == "ConfigMap":
            document["data"] = {}
    return every


def with_digests_and_pulls() -> list[Document]:
    """The case "stores", each image with a digest and always pulled."""
    image = {"digest": "sha256:" + "1" * 64, "pullPolicy": "Always"}
    images = {part: {"image": image} for part in ("postgresql", "redis")}
    return manifests(DIGESTS, merged(CASES["stores"], {"image": image, "weights": {"job": {"image": image}}, **images}))


def with_a_privileged_pod() -> list[Document]:
    """The case "cpu-trial", where a pod of Ray's may do everything."""
    documents = manifests(PRIVILEGED, CASES["cpu-trial"])
    ray = next(d for d in documents if d["metadata"]["name"].startswith(f"{PRIVILEGED}-gearbox-ray-"))
    ray["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    ray["metadata"]["labels"] = {}
    return documents


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What Checkov says of all releases. One run: most of its time is its start."""
    if not CHECKOV.exists():
        pytest.skip("checkov is not installed: scripts/install .venv-checkov checkov")
    rendered = {case: manifests(case, values) for case, values in CASES.items()}
    rendered |= {DIGESTS: with_digests_and_pulls(), PRIVILEGED: with_a_privileged_pod()}
    folder = tmp_path_factory.mktemp("rendered")
    for case, documents in rendered.items():
        (folder / f"{case}.yaml").write_text(yaml.dump_all(documents, Dumper=yaml.CSafeDumper))
    command = [CHECKOV, "-d", folder, "--framework", "kubernetes", "--skip-download", "--compact", "--output", "json"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.stdout.startswith("{"), said.stderr[-2000:]
    found = []
    for outcome in ("passed", "failed"):
        for row in json.loads(said.stdout)["results"][f"{outcome}_checks"]:
            kind, case, name = row["resource"].split(".")[:3]
            part = name.removeprefix(f"{case}-gearbox").removeprefix("-").split("-")[0]
            found.append(Found(row["check_id"], kind, part, case, outcome == "failed"))
    return found


def failed(everything: list[Found], case: str) -> list[Found]:
    return [found for found in everything if found.case == case and found.failed]


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_found_but_what_is_accepted(everything: list[Found], case: str):
    own = [found for found in everything if found.case == case]
    assert [found for found in own if found.failed and not found.accepted] == []
    assert {found.kind for found in own} >= {"Pod", "ServiceAccount", "Service"}
    assert {found.part for found in own if found.kind == "Pod"} >= {"ray", "smoke"}


def test_every_exception_is_needed(everything: list[Found]):
    needed = {(found.check, found.part) for case in CASES for found in failed(everything, case)}
    assert needed == {(check, part) for check, (parts, _) in ACCEPTED.items() for part in parts}


def test_digests_and_pulls_are_a_matter_of_values(everything: list[Found]):
    assert {found.check for found in failed(everything, DIGESTS)} == {
        check for check in ACCEPTED if check not in ("CKV_K8S_15", "CKV_K8S_43")
    }


def test_a_pod_of_ray_that_may_do_everything_is_found(everything: list[Found]):
    found = {found.check for found in failed(everything, PRIVILEGED) if not found.accepted}
    assert found >= {"CKV_K8S_16", "CKV_K8S_20", "CKV_K8S_22", "CKV2_K8S_6"}
