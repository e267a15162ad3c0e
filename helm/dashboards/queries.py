"""Extract the dashboards' PromQL queries from their JSON, with the variables filled in."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "gearbox" / "dashboards"
Variables = Mapping[str, str | Sequence[str]]
EVERYTHING = {"model": ".+", "variant": ".+", "profile": ".+", "tenant": ".+"}  # Grafana's "All"
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")


class UnknownVariable(ValueError):
    """A query names a variable that has no value."""


@dataclass(frozen=True, slots=True)
class Query:
    """One query of one panel.

    Args:
        kind: panel type, such as timeseries or table.
        column: the value's column name in a table; empty elsewhere.
        legend: Grafana's legend format, such as `{{model}}:{{variant}}`.
        instant: evaluated only at the end of the time range.
    """

    dashboard: str
    panel: str
    kind: str
    unit: str
    column: str
    legend: str
    expr: str
    instant: bool


def queries(
    dashboard: Path, variables: Variables = EVERYTHING, *, rate_interval: str = "1m", shown: str = "15m"
) -> Iterator[Query]:
    """Every query of the dashboard's JSON file, in the panels' order.

    Args:
        variables: values by variable name; a list matches any of its values.
        rate_interval: for `$__rate_interval`; at least four scrape intervals.
        shown: for `$__range`, the dashboard's time range.

    Raises:
        UnknownVariable: a query uses a variable that is not in `variables`.
    """
    values = {**variables, "__rate_interval": rate_interval, "__range": shown}
    document = json.loads(dashboard.read_text())
    for panel in panels(document):
        names = columns(panel)
        for target in panel["targets"]:
            yield Query(
                dashboard=document["title"],
                panel=panel["title"],
                kind=panel["type"],
                unit=unit(panel, column := names.get(f"Value #{target['refId']}", "")),
                column=column,
                legend=target.get("legendFormat", ""),
                expr=filled(target["expr"], values),
                instant=target.get("instant", False),
            )


def all_queries(variables: Variables = EVERYTHING, **times: str) -> Iterator[Query]:
    """Every query of every dashboard in the chart."""
    for file in sorted(FOLDER.glob("*.json")):
        yield from queries(file, variables, **times)


def panels(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The panels with queries, without row panels."""
    return [panel for panel in document["panels"] if panel["type"] != "row"]


def columns(panel: Mapping[str, Any]) -> dict[str, str]:
    """Column names by a table's field names."""
    steps = panel.get("transformations", [])
    return next((step["options"]["renameByName"] for step in steps if step["id"] == "organize"), {})


def unit(panel: Mapping[str, Any], column: str) -> str:
    """Grafana's name of the unit of a panel, or of one of its columns."""
    config = panel["fieldConfig"]
    for override in config["overrides"]:
        if override["matcher"] == {"id": "byName", "options": column}:
            for one in override["properties"]:
                if one["id"] == "unit":
                    return str(one["value"])
    return str(config["defaults"]["unit"])


def filled(expr: str, values: Variables) -> str:
    """`expr` with the values of its variables."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in values:
            raise UnknownVariable(f"no value for ${name} in {expr}")
        of = values[name]
        return of if isinstance(of, str) else f"({'|'.join(of)})"

    return _VARIABLE.sub(value, expr)
