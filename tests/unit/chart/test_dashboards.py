"""The dashboards: the chart's JSON is that of the code, and queries use only documented metrics and labels."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from helm.dashboards.__main__ import rendered
from helm.dashboards.queries import EVERYTHING, FOLDER, UnknownVariable, all_queries, filled, panels, queries
from tests.support.documented_metrics import documented_labels, metrics_of, unknown_names

FILES = sorted(FOLDER.glob("*.json"))
QUERIES = list(all_queries())


def document(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


each = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def test_the_chart_holds_what_the_code_makes() -> None:
    made = rendered()
    assert {file.name for file in FILES} == set(made), "python -m helm.dashboards"
    for file in FILES:
        assert file.read_text() == made[file.name], f"{file.name} is not what the code makes: python -m helm.dashboards"
    assert made == rendered()


@each
def test_the_models_of_grafana_take_it_without_loss(file: Path) -> None:
    register_default_plugins()
    read = Dashboard.from_json(document(file))
    assert json.loads(JSONEncoder().encode(read)) == document(file)


@each
def test_every_panel_says_what_it_shows_in_which_unit(file: Path) -> None:
    dashboard = document(file)
    assert dashboard["uid"] == file.stem and dashboard["title"].startswith("Gearbox: ") and dashboard["description"]
    titles = [panel["title"] for panel in panels(dashboard)]
    assert len(titles) == len(set(titles))
    for panel in panels(dashboard):
        assert len(panel["description"].split(". ")) > 1 or ":" in panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        for place in (panel, *panel["targets"]):
            assert place["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        if panel["type"] == "timeseries":
            assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]


@each
def test_panels_lie_beside_each_other(file: Path) -> None:
    taken: dict[tuple[int, int], str] = {}
    dashboard = document(file)
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


@each
def test_its_variables_are_all_used_and_all_there(file: Path) -> None:
    dashboard = document(file)
    names = [variable["name"] for variable in dashboard["templating"]["list"]]
    assert names[:2] == ["datasource", "model"]
    queries = " ".join(target["expr"] for panel in panels(dashboard) for target in panel["targets"])
    used = set(re.findall(r"\$\{?(\w+)", queries)) - {"__rate_interval", "__range"}
    assert used == set(names) - {"datasource"}
    for variable in dashboard["templating"]["list"][1:]:
        assert variable["multi"] and variable["includeAll"] and variable["allValue"] == ".+"
        assert unknown_names(variable["query"]["query"].removeprefix("label_values(").rsplit(",", 1)[0]) == []


def test_a_query_asks_for_what_is_there(subtests: pytest.Subtests) -> None:
    for query in QUERIES:
        with subtests.test(f"{query.dashboard}: {query.panel}"):
            assert unknown_names(query.expr) == []
            assert re.search(r"model=~", query.expr) and "$" not in query.expr


def test_a_query_is_no_average_of_averages(subtests: pytest.Subtests) -> None:
    """Quantiles are of summed buckets; counters are used through rates that are summed afterwards, or their series counted."""
    rates = (
        r"sum (by \([\w, ]+\) )?\((rate|increase)\($|sum\((rate|increase)\($|count by \([\w, ]+\) \(count_over_time\($"
    )
    for query in QUERIES:
        with subtests.test(f"{query.dashboard}: {query.panel}"):
            assert not re.search(r"\bavg(_over_time)?\b", query.expr)
            quantiles = re.findall(r"histogram_quantile\([\d.]+, (.{0,14})", query.expr)
            assert all(inner.startswith("sum by (le") for inner in quantiles)
            for found in re.finditer(r"\b(\w+:)?\w+_(total|bucket|sum|count)\{", query.expr):
                assert re.search(rates, query.expr[: found.start()])


def test_the_gateways_metrics_are_all_shown_somewhere() -> None:
    shown = {name for query in QUERIES for name in metrics_of(query.expr)}
    base = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    missing = set(documented_labels()) - base - shown - {"gearbox_build_info"}
    assert missing == set()


def test_it_fills_in_variables() -> None:
    values = {"model": ["a", "b"], "variant": "full"}
    assert filled('x{m=~"$model", v=~"${variant:regex}"}', values) == 'x{m=~"(a|b)", v=~"full"}'
    with pytest.raises(UnknownVariable, match="tenant"):
        filled('x{t=~"$tenant"}', values)
    first = next(queries(FILES[0], EVERYTHING, shown="2h"))
    assert "[2h]" in first.expr and first.dashboard.startswith("Gearbox")
