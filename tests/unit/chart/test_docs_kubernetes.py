"""The commands of docs/how-to/kubernetes.md, as far as they can be checked against the chart without a cluster.

`bash` blocks are run by tests/e2e/test_docs.py; `sh` blocks need a cluster.
"""

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from helm import chart_render

ROOT = Path(__file__).resolve().parents[3]
PAGES = [
    ROOT / "docs/how-to/kubernetes.md",
    ROOT / "docs/operations/running-changes.md",
    ROOT / "helm/gearbox/README.md",
]
BLOCKS = [block for page in PAGES for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)]
COMMANDS = [
    line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line and not line.startswith("#")
]
TRIAL = chart_render.merged(chart_render.example("cpu-trial"))


def of(program: str) -> list[list[str]]:
    return [shlex.split(command) for command in COMMANDS if command.startswith(f"{program} ")]


def values_of(words: list[str]) -> dict[str, Any]:
    """The values that a helm command ends up with; `--reuse-values` builds on the trial."""
    found: dict[str, Any] = TRIAL if "--reuse-values" in words else {}
    for word, following in pairwise(words):
        if word in ("-f", "--values") and (ROOT / following).exists():
            found = chart_render.merged(found, yaml.safe_load((ROOT / following).read_text()))
        elif word == "--set":
            path, _, value = following.partition("=")
            nested: Any = yaml.safe_load(value)
            for key in reversed(path.split(".")):
                nested = {key: nested}
            found = chart_render.merged(found, nested)
    return found


def test_there_is_something_to_hold():
    assert len(of("helm")) >= 5
    assert len(of("kubectl")) >= 4


@pytest.mark.parametrize(
    "words", [w for w in of("helm") if w[1] in ("install", "upgrade") and "helm/gearbox" in w], ids=" ".join
)
def test_a_release_as_documented_renders(words: list[str]):
    documents = chart_render.render(values_of(words), name=words[2], namespace="default")
    names = {(document["kind"], document["metadata"]["name"]) for document in documents}
    assert {("RayService", "gearbox"), ("Service", "gearbox")} <= names
    if "monitoring.dashboards.enabled=true" in words:
        assert {"PodMonitor", "ScrapeConfig", "PrometheusRule"} <= {kind for kind, _ in names}


def test_helm_test_has_a_test():
    (words,) = [w for w in of("helm") if w[1] == "test"]
    hooks = [
        d for d in chart_render.render(TRIAL, name=words[2]) if "helm.sh/hook" in d["metadata"].get("annotations", {})
    ]
    assert [hook["metadata"]["annotations"]["helm.sh/hook"] for hook in hooks] == ["test"]


def test_what_kubectl_commands_name_exists():
    documents = chart_render.render(TRIAL, name="gearbox")
    names = {f"{document['kind'].lower()}/{document['metadata']['name']}" for document in documents}
    kinds = {document["kind"].lower() for document in documents} | {"pod"}
    for words in of("kubectl"):
        for word in words[2:]:
            if re.fullmatch(r"[a-z]+/[a-z-]+", word):
                assert word in names, words
        if words[1] == "get":
            assert {kind.removesuffix("s") for kind in words[2].split(",")} <= kinds, words
        if "--selector" in words:
            wanted = dict(pair.split("=") for pair in words[words.index("--selector") + 1].split(","))
            assert any(wanted.items() <= pod.labels.items() for pod in chart_render.pods(documents)), words


def test_the_images_that_are_built_are_those_that_the_trial_pulls():
    built = {words[2] for words in of("scripts/image")}
    (trial,) = [values_of(w) for w in of("helm") if w[1] == "install" and "helm/gearbox" in w]
    wanted = {
        container["image"]
        for pod in chart_render.pods(chart_render.render(trial, name="gearbox"))
        for container in pod.containers
        if "gearbox" in container["image"]
    }
    assert wanted == built


def test_every_example_is_documented():
    page = PAGES[0].read_text()
    assert {f"`{file.name.removesuffix('-values.yaml')}`" for file in chart_render.EXAMPLES} <= set(
        re.findall(r"`[a-z-]+`", page)
    )
