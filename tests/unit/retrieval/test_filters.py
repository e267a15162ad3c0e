"""Metadata filters: what is rejected, and no SQL injection by names or values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.retrieval.store.filters import FilterError, where_clause


def leaf(field: object = "meta.year", operator: object = "==", value: object = 1) -> dict:
    return {"field": field, "operator": operator, "value": value}


@pytest.mark.parametrize(
    ("filters", "why"),
    [
        ({}, "an object with 'operator'"),
        ({"field": "meta.x", "value": 1}, "an object with 'operator'"),
        ({"operator": 5}, "an object with 'operator'"),
        ({"operator": "AND"}, "unknown operator 'AND'"),
        ({"operator": "AND", "conditions": []}, "a list joined by"),
        ({"operator": "AND", "conditions": {"a": 1}}, "a list joined by"),
        ({"operator": "XOR", "conditions": [leaf()]}, "a list joined by"),
        ({"operator": "AND", "conditions": ["x"]}, "an object with 'operator'"),
        (leaf(operator="~"), "unknown operator '~'"),
        ({"field": "meta.x", "operator": "=="}, "'value' is missing"),
        (leaf(operator="= 1 OR 1"), "unknown operator"),
        (leaf(field=""), "name of a metadata field"),
        (leaf(field=None), "name of a metadata field"),
        (leaf(field="a\0b"), "a NUL character or half a surrogate pair"),
        (leaf(value="a\0b"), "a NUL character or half a surrogate pair"),
        (leaf(value="\ud800"), "a NUL character or half a surrogate pair"),
        (leaf(value=float("nan")), "out of range"),
        (leaf(value=float("inf")), "out of range"),
        (leaf(value=10**400), "out of range"),
        (leaf(value={"a": 1}), "an object"),
        (leaf(value=[1]), "a list"),
        (leaf(operator=">", value=None), "null"),
        (leaf(operator=">", value=True), "true or false"),
        (leaf(operator=">", value=[1]), "a list"),
        (leaf(operator="in", value=1), "a list of values"),
        (leaf(operator="in", value=[[1]]), "a list"),
        (leaf(operator="in", value=[0] * 1001), "at most 1000"),
        (leaf(field="source", operator=">", value=1), "is text"),
        ({"operator": "OR", "conditions": [leaf()] * 2000}, "at most 1000"),
    ],
)
def test_a_filter_that_can_not_be_used_is_refused_with_the_reason(filters, why):
    with pytest.raises(FilterError, match=why):
        where_clause(filters)


def test_nesting_has_a_limit():
    filters = leaf()
    for _ in range(10):
        filters = {"operator": "NOT", "conditions": [filters]}
    where_clause(filters)
    with pytest.raises(FilterError, match="too deeply"):
        where_clause({"operator": "NOT", "conditions": [filters]})


@given(st.text(min_size=1).filter(lambda text: not text.isalnum()), st.text())
def test_names_and_values_are_parameters_and_never_part_of_the_statement(field, value):
    try:
        condition, params = where_clause(leaf(f"meta.{field}'", "==", value))
    except FilterError:
        return
    assert condition.as_string() == where_clause(leaf("meta.x", "==", "y"))[0].as_string()
    assert f"{field}'" in params.values()


def test_a_metadata_field_may_be_called_like_a_column():
    assert "s.name" in where_clause(leaf("source", "==", "x"))[0].as_string()
    assert "s.name" not in where_clause(leaf("meta.source", "==", "x"))[0].as_string()
