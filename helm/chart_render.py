"""Render the chart with the real Helm engine, for tests and tools."""

import functools
import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python as helm
import yaml

CHART = Path(__file__).with_name("gearbox")
EXAMPLES = sorted((CHART / "ci").glob("*-values.yaml"))
Document = dict[str, Any]
OPEN: Document = {"platform": {"access": {"allow_anonymous": True}}}  # the smallest set of values that can be installed


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that results from the chart: its controller, labels and spec."""

    owner: str
    labels: Mapping[str, str]
    spec: Document

    @property
    def containers(self) -> list[Document]:
        """All containers, including init containers."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


@functools.cache
def _chart() -> helm.Chart:
    return helm.Chart.load(str(CHART))


def example(name: str) -> Document:
    """The values of ci/NAME-values.yaml."""
    values: Document = yaml.load((CHART / "ci" / f"{name}-values.yaml").read_text(), yaml.CSafeLoader)
    return values


def merged(*values: Document) -> Document:
    """Merge values into values, as Helm merges values files."""
    result: Document = {}
    for part in values:
        for key, value in part.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else deepcopy(value)
    return result


def render(values: Document | None = None, name: str = "demo", namespace: str = "models") -> list[Document]:
    """The rendered documents of the chart, without notes. Raises `helm.HelmError` where the values are rejected."""
    return deepcopy(_parsed(json.dumps(values or {}), name, namespace))


def texts(values: Document | None = None, name: str = "demo", namespace: str = "models") -> dict[str, str]:
    """Rendered text of each template."""
    return _chart().render(values or {}, name=name, namespace=namespace)


@functools.lru_cache(maxsize=256)
def _parsed(values: str, name: str, namespace: str) -> list[Document]:
    files = {path: text for path, text in texts(json.loads(values), name, namespace).items() if path.endswith(".yaml")}
    return [
        document for _, text in sorted(files.items()) for document in yaml.load_all(text, yaml.CSafeLoader) if document
    ]


def notes(values: Document) -> str:
    """Rendered NOTES.txt, which `helm install` prints at the end."""
    return texts(values)["gearbox/templates/NOTES.txt"]


def refusal(values: Document) -> str:
    """Error for rejected values; empty if they are valid."""
    try:
        texts(values)
    except helm.HelmError as error:
        return str(error)
    return ""


def one(documents: list[Document], kind: str, name: str | None = None) -> Document:
    """The single document of a kind, or of a kind and name."""
    (found,) = [d for d in documents if d["kind"] == kind and name in (None, d["metadata"]["name"])]
    return found


def serve_config(documents: list[Document]) -> Document:
    """The Serve configuration in the RayService."""
    config: Document = yaml.load(one(documents, "RayService")["spec"]["serveConfigV2"], yaml.CSafeLoader)
    return config


def applications(documents: list[Document]) -> dict[str, Document]:
    """The applications of the Serve configuration by name."""
    return {application["name"]: application for application in serve_config(documents)["applications"]}


def groups(documents: list[Document]) -> dict[str, Document]:
    """The worker groups of the RayService by name, in their order."""
    return {g["groupName"]: g for g in one(documents, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]}


def pods(documents: list[Document]) -> Iterator[Pod]:
    """Every pod that results from the documents, Ray's by worker group."""
    for document in documents:
        spec, owner = document.get("spec", {}), f"{document['kind']}/{document['metadata']['name']}"
        if document["kind"] == "Pod":
            yield Pod(owner, document["metadata"]["labels"], spec)
        elif document["kind"] in ("Job", "StatefulSet"):
            yield Pod(owner, spec["template"]["metadata"]["labels"], spec["template"]["spec"])
        elif document["kind"] == "RayService":
            cluster = spec["rayClusterConfig"]
            named = [("head", cluster["headGroupSpec"]), *((g["groupName"], g) for g in cluster["workerGroupSpecs"])]
            for group, part in named:
                template = part["template"]
                yield Pod(f"{owner}/{group}", {**template["metadata"]["labels"], **part["labels"]}, template["spec"])
