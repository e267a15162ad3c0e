"""Write the chart's values.schema.json and renamed.yaml: `python -m helm.values_schema`.

The platform's part is that of `serve.config.platform`, so that Helm rejects what `gearbox up` would. The rest follows
values.yaml: types come from the defaults, exceptions are listed here. Renamed and removed values pass the schema, so that
templates/_check.tpl can name what replaces them.
"""

import json
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from helm.chart_values import CHART, Place, defaults, documented
from serve.config.platform import PlatformConfig
from serve.config.renamed import REMOVED, RENAMED

SCHEMA = CHART / "values.schema.json"
RENAMES = CHART / "renamed.yaml"
Schema = dict[str, Any]

_QUANTITY: Schema = {"type": ["string", "number"], "pattern": r"^[0-9.]+(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}
_DURATION: Schema = {"type": "string", "pattern": r"^([0-9]+(ms|s|m|h))+$"}
_STRINGS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_OBJECT: Schema = {"type": "object"}
_PASSWORD: Schema = {"type": "string", "pattern": r"^([A-Za-z0-9]{8,})?$"}

#: The chart's values that were renamed; `[]` is each entry of a list.
RENAMED_VALUES = {
    "secrets.limitsStore": "secrets.rateLimitStore",
    "allowOpenAccessFromOutside": "allowPublicAnonymousAccess",
    **{f"platform.{old}": f"platform.{new}" for old, new in RENAMED.items()},
}
#: What became of each value that does not exist any more, to be put after "was".
CHANGED_VALUES = {
    **{old: f"renamed to {new}" for old, new in RENAMED_VALUES.items()},
    **{f"platform.{old}": f"removed: {instead}" for old, instead in REMOVED.items()},
    "httpRoute.timeouts.backendRequest": "removed: an attempt has no limit of its own, set httpRoute.timeouts.request",
    "monitoring.scrapeConfig.refreshInterval": "removed: engines are discovered as often as they are scraped, set interval",
}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _object(properties: Schema, required: tuple[str, ...] = ()) -> Schema:
    schema = {"type": "object", "additionalProperties": False, "properties": properties}
    return {**schema, "required": list(required)} if required else schema


def _one_of(*values: str) -> Schema:
    return {"enum": list(values)}


_STRING: Schema = {"type": "string"}
_DIGEST: Schema = {"type": "string", "pattern": r"^(sha256:[0-9a-f]{64})?$"}
_TAG: Schema = {"type": "string", "pattern": r"^([A-Za-z0-9_][A-Za-z0-9._-]{0,127})?$"}
_PULL = _one_of("Always", "IfNotPresent", "Never")
_IMAGE = _object({"repository": _STRING, "tag": _TAG, "digest": _DIGEST, "pullPolicy": _PULL})
_QUANTITIES: Schema = {"type": "object", "additionalProperties": _QUANTITY}
_PEERS = _list(_object({"podSelector": _OBJECT, "namespaceSelector": _OBJECT, "ipBlock": _OBJECT}))
_EGRESS = _list(_object({"to": _PEERS, "ports": _list(_OBJECT)}))
_ENV = _list(_object({"name": _STRING, "value": _STRING, "valueFrom": _OBJECT}, ("name",)))
_ACCESS_MODE = _one_of("ReadWriteMany", "ReadWriteOnce", "ReadOnlyMany")
_POOL_NAME: Schema = {"type": "string", "pattern": r"^[a-z]([a-z0-9-]{0,22}[a-z0-9])?$"}

# Schema that the defaults do not express, by path; the first match counts.
_SAID: dict[str, Schema | Callable[[], Schema]] = {
    "platform": lambda: _platform(),
    "pools": lambda: _list(_pool()),
    "labels": _STRINGS,
    "annotations": _STRINGS,
    "*.labels": _STRINGS,
    "*.annotations": _STRINGS,
    "*.alertLabels": _STRINGS,
    "imagePullSecrets": _list(_object({"name": _STRING}, ("name",))),
    "*.image": _IMAGE,
    "image": _IMAGE,
    "*.resources": _object({"requests": _QUANTITIES, "limits": _QUANTITIES}, ("requests", "limits")),
    "*.nodeSelector": _STRINGS,
    "*.tolerations": _list(_OBJECT),
    "*.affinity": _OBJECT,
    "*.env": _ENV,
    "*.topologySpread": _list({**_OBJECT, "required": ["topologyKey", "maxSkew", "whenUnsatisfiable"]}),
    "podSecurityContext": _OBJECT,
    "securityContext": _OBJECT,
    "networkPolicy.*From": _PEERS,
    "networkPolicy.from": _PEERS,
    "networkPolicy.egress.enabled": {"type": "boolean"},
    "networkPolicy.egress.*": _EGRESS,
    "weights.mode": _one_of("shared", "pod"),
    "weights.volume.accessModes": {**_list(_ACCESS_MODE), "minItems": 1},
    "*.size": _QUANTITY,
    "secrets.keys.entries": lambda: _list({"$ref": "#/definitions/KeyConfig"}),
    "ray.version": {"type": "string", "pattern": r"^[0-9]+\.[0-9]+\.[0-9]+"},
    "ray.upgradeStrategy": _one_of("NewCluster", "None"),
    "ray.autoscaler.upscalingMode": _one_of("Default", "Conservative", "Aggressive"),
    "service.type": _one_of("ClusterIP", "NodePort", "LoadBalancer"),
    "gateway.minAvailable": {"type": ["integer", "null"], "minimum": 0},
    "gateway.pods.min": {"type": "integer", "minimum": 1},
    "*.pods.max": {"type": "integer", "minimum": 1},
    "*.path": {"type": "string", "pattern": "^/"},
    "*.hosts": _list(_STRING),
    "*.hostnames": _list(_STRING),
    "*.tls": _list(_object({"secretName": _STRING, "hosts": _list(_STRING)})),
    "*.parentRefs": _list({**_OBJECT, "required": ["name"]}),
    "*.timeouts.*": _DURATION,
    "*.interval": _DURATION,
    "*.auth.password": _PASSWORD,
}  # fmt: skip


def schema() -> Schema:
    """The whole schema."""
    values = defaults()
    platform = PlatformConfig.model_json_schema()
    definitions = {name: _plain(part) for name, part in platform["$defs"].items()}
    del definitions["ServerConfig"]["properties"]["drain_timeout_s"][
        "exclusiveMinimum"
    ]  # templates/_check.tpl has a clearer message
    whole = _object({**{key: _of((key,), value) for key, value in values.items()}, "global": _OBJECT})
    whole["definitions"] = definitions
    for old, change in CHANGED_VALUES.items():
        *sections, key = old.split(".")
        part = whole
        for name in sections:
            part = _resolved(whole, part["properties"][name.removesuffix("[]")])
            part = _resolved(whole, part["items"]) if name.endswith("[]") else part
        part["properties"][key] = {"description": f"{change[0].upper()}{change[1:]}."}
    return {"$schema": "http://json-schema.org/draft-07/schema#", **whole}


def _resolved(whole: Schema, part: Schema) -> Schema:
    """The definition that `part` refers to, also as one of several alternatives; else `part` itself."""
    for each in (part, *part.get("allOf", ()), *part.get("anyOf", ())):
        if "$ref" in each:
            found: Schema = whole["definitions"][each["$ref"].removeprefix("#/definitions/")]
            return found
    return part


def rendered() -> str:
    """The text of the file."""
    return json.dumps(schema(), indent=1) + "\n"


def _of(place: Place, default: object) -> Schema:
    name = ".".join(place)
    said = next((said for pattern, said in _SAID.items() if fnmatchcase(name, pattern)), None)
    kind: Schema
    if said is not None:
        kind = said() if callable(said) else said
    elif isinstance(default, bool):
        kind = {"type": "boolean"}
    elif isinstance(default, int):
        kind = {"type": "integer", "minimum": 0}
    elif isinstance(default, str):
        kind = _STRING
    elif isinstance(default, dict) and default:
        kind = _object({key: _of((*place, key), value) for key, value in default.items()})
    else:
        raise ValueError(
            f"values.yaml: {name} has the default {default!r}; say in helm/values_schema.py what it may be"
        )
    text = _texts().get(place)
    return {"description": text, **kind} if text else kind


@cache
def _texts() -> dict[Place, str]:
    return {value.place: value.text for value in documented()}


def _pool() -> Schema:
    """Schema of an engine pool: that of a gateway pool without the gateway's own keys."""
    gateway = _of(("gateway",), defaults()["gateway"])["properties"]
    own = {key: part for key, part in gateway.items() if key not in ("minAvailable", "pods")}
    pods = _object({"min": {"type": "integer", "minimum": 0}, "max": {"type": "integer", "minimum": 1}}, ("min", "max"))
    accelerator = {"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]*$"}
    disruption = {"type": "integer", "minimum": 0}
    return _object(
        {"name": _POOL_NAME, "pods": pods, "accelerator": accelerator, "minAvailable": disruption, **own},
        ("name", "pods", "resources"),
    )


def _platform() -> Schema:
    """The platform's own schema; its definitions are at the top."""
    part: Schema = _plain({key: value for key, value in PlatformConfig.model_json_schema().items() if key != "$defs"})
    part["properties"]["variants"]["minItems"] = 1
    return part


def _plain(part: Any) -> Any:
    """Reduce pydantic's schema for Helm: no titles, formats and defaults; definitions in draft 7's place."""
    if isinstance(part, list):
        return [_plain(item) for item in part]
    if isinstance(part, str):
        return part.replace("#/$defs/", "#/definitions/")
    if not isinstance(part, dict):
        return part
    result = {key: value for key, value in part.items() if key not in ("title", "format", "default")}
    if "properties" in result:  # keys are property names, of which one may be "title"
        result["properties"] = {name: _plain(value) for name, value in part["properties"].items()}
    return {key: value if key == "properties" else _plain(value) for key, value in result.items()}


def renames() -> str:
    """The text of renamed.yaml."""
    head = "# Values that were renamed or removed, for templates/_check.tpl. Made by `python -m helm.values_schema`.\n"
    return head + "".join(f"{json.dumps(old)}: {json.dumps(change)}\n" for old, change in CHANGED_VALUES.items())


if __name__ == "__main__":
    SCHEMA.write_text(rendered())
    RENAMES.write_text(renames())
