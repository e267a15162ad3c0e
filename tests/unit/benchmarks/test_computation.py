"""The computation benchmark: what is right, and its rows and table."""

import pytest

pytest.importorskip("text_to_num")

from benchmarks.reporting import claim_rows_grounding, grounding_tables
from benchmarks.retrieval.computation import summary
from benchmarks.retrieval.computation_sources import Item
from serve.tools.intent import ToolResult

MACHINE = {"measured": "2026-01-01T00:00", "cpu": "a processor", "cores": 2, "memory_gb": 24.0}


def test_computations_that_are_left_to_the_model_are_not_right_and_word_problems_are_counted_apart() -> None:
    seven, eight = (ToolResult("calculator", {"expression": "3 + 4"}, str(n), str(n)) for n in (7, 8))
    total = Item("3 plus 4?", "7", "four operations", "en", "clinc")
    problem = Item("Ann has 3 pens ...", "7", "word problem", "en", "word problems")
    other = Item("Is 9/11 a date?", None, "none", "en", "clinc")
    asked = [(total, seven), (total, eight), (total, None), (problem, None), (other, None), (other, seven)]
    result = {**summary(asked), "part": "development", "cpu_ms": {"p50": 1.0, "p95": 2.0}, "machine": MACHINE}
    figures = {one.id: one for one in claim_rows_grounding.computation(result)}
    assert [figures[key].measured for key in ("right", "wrong", "falsely_computed")] == [0.3333, 0.25, 0.5]
    assert {key: one.aim for key, one in figures.items() if one.aim} == {
        "right": ">= 0.85",
        "falsely_computed": "<= 0.01",
    }
    shown = grounding_tables.computation(result)
    assert "| **all** | 1 of 3, 33% [" in shown and "| word problem | 0 of 1, 0% [" in shown
    assert "| source: clinc | 1 of 3, 33% [6%, 79%] | 1 of 2, 50.0% [" in shown
