"""Write the reference pages that come from the code: `python -m docs.generate`.

The configuration is that of `serve.config.platform`, metrics are those that the gateway exposes, commands those of `gearbox`.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import typer
from prometheus_client.metrics import MetricWrapperBase

from deployments.cli import app
from serve.config.platform import PlatformConfig
from serve.request import grounding, lifecycle
from serve.routing.router import REASONS
from serve.telemetry.metrics import (
    EJECTIONS,
    ENDPOINTS,
    EXCLUSIONS,
    HEDGES,
    MIGRATIONS,
    TIMES,
    VIOLATIONS,
    Metrics,
    RequestOutcome,
)
from serve.telemetry.metrics_server import Exposition

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).with_name("reference")
Schema = Mapping[str, Any]

# What a label may be, by label, or by metric and label where metrics differ.
LABEL_VALUES: Mapping[str, str | Sequence[str]] = {
    "model": "the model's name; on every series",
    "variant": "from the configuration; `none`: rejected, or answered without a variant",
    "profile": "from the configuration; `custom`: the request set limits of its own",
    "tenant": "from the keys, the first `observability.tenant_cardinality_limit` of them; `other`: the rest",
    "gearbox_requests_total outcome": get_args(RequestOutcome),
    "gearbox_tenant_requests_total outcome": get_args(RequestOutcome),
    "gearbox_idempotent_requests_total outcome": ("stored", "replayed", "too_large"),
    "gearbox_attempts_total outcome": get_args(lifecycle.AttemptOutcome),
    "gearbox_grounded_requests_total outcome": (*get_args(grounding.GroundingOutcome), "rejected"),
    "reason": REASONS,
    "status": "the HTTP status",
    "code": "the error's `code`",
    "endpoint": ENDPOINTS,
    "kind": ("input", "output"),
    "gearbox_budget_violations_total kind": VIOLATIONS,
    "operation": ("admit", "charge", "read", "idempotency"),
    "limit": ("requests", "tokens"),
    "met": ("yes", "no"),
    "covered": ("yes", "no"),
    "supported": ("yes", "no"),
    "metric": TIMES,
    "rule": EXCLUSIONS,
    "cause": "`replica`: another replica of the variant was tried; `engine`: another variant; `context`: one with a longer context",
    "gearbox_migrations_total cause": MIGRATIONS,
    "gearbox_hedges_total outcome": HEDGES,
    "gearbox_replica_ejections_total cause": EJECTIONS,
    "stage": "a component of the retrieval pipeline",
    "technique": "from the card",
    "parent": "from the card",
    "weights": "the beginning of the weights' digest",
    "version": "of Gearbox",
}


def configuration() -> str:
    """Every key of the configuration, a section for each mapping."""
    schema = PlatformConfig.model_json_schema()
    parts = [
        "# Configuration reference\n\nLook up a key of the platform's YAML: type, default, bounds and meaning. "
        "[Configure the platform](../how-to/configure.md) says how\nto write the file and override it from the "
        "environment. `python -m docs.generate` writes this page from `PlatformConfig`."
    ]
    for path, definition in _sections(schema):
        heading = f"`{path}`" if path else "Top level"
        intro = "" if path == "" else f"{_sentence(definition.get('description', ''))}\n\n"
        parts.append(f"## {heading}\n\n{intro}" + _table(_HEAD, _keys(schema, path, definition)))
    return "\n\n".join(parts) + "\n"


_HEAD = ("key", "type", "default", "bounds", "meaning")


def _sections(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Each mapping with keys of its own, by its path, where it occurs first; in the order of the keys."""
    seen: set[str] = set()
    waiting: list[tuple[str, Schema]] = [("", schema)]
    while waiting:
        path, definition = waiting.pop(0)
        yield path, definition
        inner = []
        for key, field in definition["properties"].items():
            name, suffix = _reference(field)
            if name and name not in seen:
                seen.add(name)
                inner.append((f"{path}.{key}{suffix}".lstrip("."), schema["$defs"][name]))
        waiting = inner + waiting


def _keys(schema: Schema, path: str, definition: Schema) -> Iterator[Sequence[str]]:
    """A row for each key of a section."""
    places = {definition["title"]: place for place, definition in _sections(schema) if place}
    for key, field in definition["properties"].items():
        name, _ = _reference(field)
        meaning = field.get("description") or schema["$defs"][name]["description"]
        kind, bounds = _kind(schema, field, places)
        yield f"`{key}`", kind, _default(key, field, definition, name), bounds, _sentence(meaning)


def _reference(field: Schema) -> tuple[str, str]:
    """The definition that a key's value refers to, if any, and what a path to it has after the key."""
    for part in (field, *field.get("anyOf", ())):
        for suffix, inner in (("", part), ("[]", part.get("items")), (".NAME", part.get("additionalProperties"))):
            if isinstance(inner, Mapping) and "$ref" in inner:
                return inner["$ref"].rpartition("/")[2], suffix
    return "", ""


def _kind(schema: Schema, field: Schema, places: Mapping[str, str]) -> tuple[str, str]:
    """The type of a value, with a link to its section, and its bounds."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[mapping](#{_slug(places[name])})", ""
    if "anyOf" in field:
        (inner,) = [part for part in field["anyOf"] if part.get("type") != "null"]
        return _kind(schema, inner, places)
    if "enum" in field:
        return "one of " + ", ".join(f"`{value}`" for value in field["enum"]), ""
    if field["type"] == "array":
        kind, bounds = _kind(schema, field["items"], places)
        return f"list of {kind}", bounds
    if field["type"] == "object":
        inner = field.get("additionalProperties")
        kind = _kind(schema, inner, places)[0] if isinstance(inner, Mapping) else "any value"
        return f"mapping of names to {kind}", ""
    return field.get("format", field["type"]), _bounds(field)


def _bounds(field: Schema) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {_plain(field[key])}" for key, sign in signs.items() if key in field]
    if "pattern" in field:
        bounds.append(f"matches `{field['pattern']}`")
    if "minLength" in field:
        bounds.append("not empty" if field["minLength"] == 1 else f"at least {field['minLength']} characters")
    return ", ".join(bounds)


def _default(key: str, field: Schema, definition: Schema, reference: str) -> str:
    if key in definition.get("required", ()):
        return "required"
    if field.get("default") is None:
        return "none" if "default" in field else "`{}`"
    return "" if reference and field["default"] else f"`{_plain(field['default'])}`"


def _plain(value: object) -> str:
    """A value as YAML has it; whole numbers without a point."""
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value, ensure_ascii=False)


def metric_labels() -> dict[str, tuple[str, ...]]:
    """The labels of every metric of the gateway by the metric's name, but for `model`, which all have."""
    return {name: labels for name, labels, _, _ in _metrics()}


def _metrics() -> Iterator[tuple[str, tuple[str, ...], str, str]]:
    """Name, labels, type and meaning of each metric, in the order of the code."""
    metrics = Metrics()
    given = [*vars(metrics).values(), *metrics.predicted.values()]
    labels = {next(iter(one.describe())).name: one._labelnames for one in given if isinstance(one, MetricWrapperBase)}
    for family in Exposition(metrics, "", list, None).collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        own = labels.get(family.name) or getattr(family, "_labelnames", ())
        yield name, tuple(own), family.type, family.documentation


def metrics() -> str:
    """Every metric with its labels, then what each label may be."""
    rows = [
        (f"`{name}`", kind, ", ".join(f"`{label}`" for label in labels), _sentence(meaning))
        for name, labels, kind, meaning in _metrics()
    ]
    return (
        "\n\n".join(
            [
                "# Metrics reference\n\nLook up a metric of the gateway's `/metrics`, its labels and what they may be. "
                "[Monitoring](../operations/monitoring.md) says how to\nscrape it. `python -m docs.generate` writes this page "
                "from the code.",
                "## Metrics\n\nEvery series has the label `model`, too. The engines' own metrics "
                "(`vllm:num_requests_running`, `vllm:kv_cache_usage_perc`, …, and\n`gearbox_engine_cpu_seconds_total` of those "
                "without a GPU) and Ray Serve's (`ray_serve_…`) join with these on `variant`.",
                _table(("metric", "type", "labels", "meaning"), rows),
                "## How requests are counted\n\n`gearbox_requests_total` counts each request once, by the variant of its last attempt; "
                "`gearbox_attempts_total` counts every attempt.\nIn `gearbox_budget_requests_total` a request rejected for load or "
                "budget counts as not met; a client's own error or disconnect\ncounts as neither. Times start at the last byte of "
                "the request.",
                "## Labels\n\nValues come from bounded sets, never from what a client sent.",
                _table(("label", "of", "values"), _label_rows()),
            ]
        )
        + "\n"
    )


def _label_rows() -> Iterator[Sequence[str]]:
    of: dict[str, list[str]] = {"model": ["all"]}
    for name, labels in metric_labels().items():
        for label in labels:
            key = f"{name} {label}" if f"{name} {label}" in LABEL_VALUES else label
            of.setdefault(key, []).append(f"`{name}`")
    for key, names in of.items():
        values = LABEL_VALUES[key]
        said = values if isinstance(values, str) else ", ".join(f"`{value}`" for value in values)
        yield f"`{key.rpartition(' ')[2]}`", ", ".join(names) if len(names) <= 3 else f"{len(names)} metrics", said


def command_line() -> str:
    """Every command of `gearbox` with its arguments and options."""
    parts = [
        "# Command line reference\n\nLook up a command of `gearbox`, its arguments and options; `gearbox COMMAND --help` "
        "shows the same in the terminal.\n`python -m docs.generate` writes this page from the commands."
    ]
    for path, command in _commands(typer.main.get_command(app), "gearbox"):
        rows = [_parameter(one) for one in command.params]
        table = _table(("argument or option", "default", "environment", "meaning"), rows) if rows else ""
        parts.append(f"## {path}\n\n{command.help}" + (f"\n\n{table}" if table else ""))
    return "\n\n".join(parts) + "\n"


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The commands that do something, with their whole names, in alphabetical order; aliases are hidden."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
    else:
        for name in sorted(name for name in inner if not inner[name].hidden):
            yield from _commands(inner[name], f"{path} {name}")


def _parameter(one: Any) -> Sequence[str]:
    argument = one.param_type_name == "argument"
    name = one.name.upper() if argument else ", ".join((*one.opts, *one.secondary_opts))
    default = one.default
    if isinstance(default, Path) and default.is_relative_to(ROOT):
        default = default.relative_to(ROOT)
    shown = "required" if one.required else "on" if default is True else f"`{default}`" if default else ""
    return f"`{name}{' …' if one.nargs == -1 else ''}`", shown, f"`{one.envvar}`" if one.envvar else "", one.help or ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _sentence(text: str) -> str:
    """On one line."""
    return " ".join(text.split())


def _slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


PAGES = {"configuration": configuration, "metrics": metrics, "cli": command_line}


def main() -> None:
    """Write every page."""
    for name, page in PAGES.items():
        (FOLDER / f"{name}.md").write_text(page())


if __name__ == "__main__":
    main()
