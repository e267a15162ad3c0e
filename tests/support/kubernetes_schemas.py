"""Documents held against the schemas of Kubernetes and of the custom resources; nothing unknown passes."""

import functools
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonschema_rs import Draft7Validator, Draft202012Validator, Registry

VERSIONS = ("1.29", "1.30", "1.31", "1.32", "1.33", "1.34", "1.35")
_ROOT = Path(__file__).resolve().parents[2]
CRDS = _ROOT.parent / "shared/crds"  # of KubeRay and of the Prometheus operator, where they are at hand
_OWN = {"HTTPRoute": "httproute.json", "ScrapeConfig": "scrapeconfig.json"}
_CUSTOM = {
    "RayService": "rayservices.yaml",
    "PodMonitor": "podmonitors.yaml",
    "ServiceMonitor": "servicemonitors.yaml",
    "PrometheusRule": "prometheusrules.yaml",
}
_seen: set[tuple[str, str]] = set()  # what was found right once, by version and text


def problem(document: dict[str, Any], version: str) -> str | None:
    """What is wrong with a document for a version of Kubernetes. Raises `LookupError` where no schema has its kind."""
    text = json.dumps(document, sort_keys=True)
    core = document["kind"] not in _OWN and document["kind"] not in _CUSTOM
    key = (version if core else "", text)
    if key in _seen:
        return None
    validator = _core(document["kind"], document["apiVersion"], version) if core else _custom(document["kind"])
    error = next(validator.iter_errors(document), None)
    if error is None:
        _seen.add(key)
        return None
    place = "/".join(map(str, error.instance_path))
    return f"{document['kind']}/{document['metadata']['name']} at /{place}: {error.message[:300]}"


def known(kind: str) -> bool:
    """Whether there is a schema here: those of some custom resources are not part of the repository."""
    return kind not in _CUSTOM or (CRDS / _CUSTOM[kind]).exists()


@functools.cache
def _definitions(version: str) -> tuple[Any, Registry]:
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    definitions = json.loads((folder / "_definitions.json").read_text())
    return folder, Registry([(definitions["$id"], definitions)])


@functools.cache
def _core(kind: str, api_version: str, version: str) -> Draft202012Validator:
    folder, registry = _definitions(version)
    group, _, of_group = api_version.rpartition("/")
    name = "-".join(part for part in (kind.lower(), group.split(".")[0], of_group) if part)
    file = folder / f"{name}.json"
    if not file.is_file():
        raise LookupError(f"Kubernetes {version} has no {kind} of {api_version}")
    return Draft202012Validator(json.loads(file.read_text()), registry=registry)


@functools.cache
def _custom(kind: str) -> Draft7Validator:
    if kind in _OWN:
        return Draft7Validator(json.loads((_ROOT / "tests/schemas" / _OWN[kind]).read_text()))
    definition = yaml.load((CRDS / _CUSTOM[kind]).read_text(), yaml.CSafeLoader)
    (version,) = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
    schema = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    schema["properties"]["apiVersion"] = {"const": f"{definition['spec']['group']}/v1"}
    return Draft7Validator(schema)


def _strict(schema: Any) -> Any:
    """A custom resource's schema as one for JSON: `x-kubernetes-int-or-string` becomes a type, unknown fields are refused."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    converted = {
        key: value if key in ("enum", "required", "default") else _strict(value) for key, value in schema.items()
    }
    if isinstance(pattern := converted.get("pattern"), str) and "(?i)" in pattern:
        del converted["pattern"]  # flags in the middle of an expression are Go's
    if converted.pop("x-kubernetes-int-or-string", None) is True:
        converted.pop("type", None)
        converted["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    open_ended = converted.get("x-kubernetes-preserve-unknown-fields") is True
    if isinstance(converted.get("properties"), dict) and converted.get("type") == "object" and not open_ended:
        converted.setdefault("additionalProperties", False)
    return converted
