"""The numbers on documentation pages are those of the committed results."""

import re

import pytest

from benchmarks.reporting import fault_tables, tables
from benchmarks.reporting.results import load


@pytest.mark.parametrize("path", tables.PAGES, ids=lambda path: path.name)
def test_the_tables_are_those_of_the_results(path) -> None:
    page = path.read_text()
    assert tables.filled(page) == page, "run 'python -m benchmarks.reporting.tables'"


@pytest.mark.parametrize("name", sorted(tables.TABLES))
def test_every_table_has_its_results_and_its_place(name: str) -> None:
    _, results = tables.TABLES[name]
    measured = all(load(result) for result in results)
    assert measured or name in fault_tables.TABLES or name.endswith("-untouched"), "measured each for itself"
    table = r".*\| --- .*" if measured else ""
    places = [
        path
        for path in tables.PAGES
        if re.search(rf"<!-- table:{name} -->\n{table}<!-- /table:{name} -->", path.read_text(), re.DOTALL)
    ]
    assert len(places) == 1


def test_a_table_that_was_never_measured_keeps_its_place_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    page = "<!-- table:faults -->\n<!-- /table:faults -->"
    monkeypatch.setattr(tables, "load", lambda _: None)
    assert tables.filled(page) == page
    monkeypatch.setattr(tables, "load", lambda _: {})
    monkeypatch.setitem(tables.TABLES, "faults", (lambda result: "| a |\n| --- |", ("faults",)))
    assert "| --- |\n<!-- /table:faults -->" in tables.filled(page)


def test_a_changed_result_changes_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    result = load("variants")
    name, row = next(iter(result["variants"].items()))
    changed = {**result, "variants": {**result["variants"], name: {**row, "perplexity": 12345.67}}}
    monkeypatch.setattr(tables, "load", lambda _: changed)
    assert "12345.67" in tables.filled("<!-- table:variants -->\nold\n<!-- /table:variants -->")
