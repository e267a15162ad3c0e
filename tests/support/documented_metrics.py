"""Check the metric and label names in queries against docs/reference/metrics.md."""

import re
from functools import cache
from pathlib import Path

import yaml

from docs.generate import metric_labels

ROOT = Path(__file__).parents[2]
EVERYWHERE = {"namespace", "model", "job", "instance", "le"}
FOREIGN = {  # metrics of vLLM and Ray Serve; the labels are those added by targets and relabelling
    r"vllm:\w+": {"variant", "component", "model_name", "engine"},
    r"ray_serve_\w+": {"variant", "component", "application", "deployment", "replica"},
    r"up": set(),
}
_WORDS = {"by", "on", "and", "or", "unless", "offset", "ignoring", "group_left", "group_right", "without", "bool"}


@cache
def documented_labels() -> dict[str, set[str]]:
    """Labels by metric, as docs/reference/metrics.md lists them."""
    return {name: set(labels) for name, labels in metric_labels().items()}


@cache
def recorded() -> dict[str, set[str]]:
    """Labels of each recording rule, from the first part of its name."""
    groups = yaml.safe_load((ROOT / "helm/gearbox/rules/recording.yaml").read_text())["groups"]
    names = [rule["record"] for group in groups for rule in group["rules"]]
    return {name: set(name.split(":")[0].split("_")) for name in names}


def metrics_of(expr: str) -> list[str]:
    """The metrics that a query reads."""
    bare = re.sub(r'"[^"]*"|\[\w+\]', "", expr)
    bare = re.sub(r"\{[^}]*\}", " ", bare)
    bare = re.sub(r"\b(by|on|ignoring|without|group_left|group_right) *\([^)]*\)", " ", bare)
    words = re.findall(r"(?<![\w.])[a-zA-Z_][\w:]*(?![\w:]*\s*\()", bare)
    return [word for word in words if word not in _WORDS | {"sum", "max", "min", "count", "d"}]


def unknown_names(expr: str) -> list[str]:
    """Undocumented metrics, and labels that none of the query's metrics has."""
    unknown, labels = [], set(EVERYWHERE)
    for metric in metrics_of(expr):
        known = _labels(metric)
        if known is None:
            unknown.append(metric)
        labels |= known or set()
    used = set(re.findall(r"(\w+) *(?:=~|!~|!=|=)\"", re.sub(r'="[^"]*"', '="', expr)))
    used |= {
        label.strip()
        for group in re.findall(r"\b(?:by|on|ignoring|without|group_left) *\(([^)]*)\)", expr)
        for label in group.split(",")
    }
    return unknown + sorted(used - labels - {""})


def _labels(metric: str) -> set[str] | None:
    known = documented_labels() | recorded()
    for name in (metric, re.sub(r"_(bucket|sum|count)$", "", metric)):
        if name in known:
            return known[name]
    return next((labels for pattern, labels in FOREIGN.items() if re.fullmatch(pattern, metric)), None)
