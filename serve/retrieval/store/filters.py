"""Translate Haystack's metadata filters to SQL conditions on a `jsonb` column; names and values are parameters."""

import math
from collections.abc import Mapping
from typing import Any, LiteralString

from psycopg import sql
from psycopg.types.json import Jsonb

_MAX_DEPTH = 10
_MAX_VALUES = 1000  # total number of values in one filter
_COMPARISONS: Mapping[str, LiteralString] = {">": ">", ">=": ">=", "<": "<", "<=": "<="}
_OPERATORS = ("==", "!=", *_COMPARISONS, "in", "not in")
_COLUMNS: Mapping[str, LiteralString] = {"source": "s.name", "title": "s.title"}  # fields outside the metadata


class FilterError(ValueError):
    """An invalid filter; the message says where and why."""


def where_clause(filters: Mapping[str, Any]) -> tuple[sql.Composable, dict[str, Any]]:
    """A condition on `s.meta` and its parameters. Raises `FilterError`.

    `{"field": "meta.year", "operator": ">=", "value": 2020}`, joined by
    `{"operator": "AND" | "OR" | "NOT", "conditions": [...]}`. A missing field equals `null` and matches no order comparison.
    A list equals each of its values.
    """
    params: dict[str, Any] = {}
    return _condition(filters, params, 0), params


def _condition(node: object, params: dict[str, Any], depth: int) -> sql.Composable:
    if depth > _MAX_DEPTH:
        raise FilterError("filters are nested too deeply")
    if not isinstance(node, Mapping) or not isinstance(operator := node.get("operator"), str):
        raise FilterError("a filter is an object with 'operator', and 'field' and 'value' or 'conditions'")
    if "conditions" in node:
        conditions = node["conditions"]
        if operator not in ("AND", "OR", "NOT") or not isinstance(conditions, list) or not conditions:
            raise FilterError("'conditions' is a list joined by 'AND', 'OR' or 'NOT'")
        joined = sql.SQL(" OR " if operator == "OR" else " AND ").join(
            _condition(part, params, depth + 1) for part in conditions
        )
        return sql.SQL("(NOT ({}))" if operator == "NOT" else "({})").format(joined)
    if operator not in _OPERATORS:
        raise FilterError(f"unknown operator {operator[:20]!r}; use one of {', '.join(_OPERATORS)}, AND, OR, NOT")
    if "value" not in node:
        raise FilterError(f"'value' is missing: what '{operator}' compares the field with")
    field, value = node.get("field"), node["value"]
    if not isinstance(field, str) or not field:
        raise FilterError("'field' must be the name of a metadata field")
    _check_value(field, field)
    left, right = _operands(field, params)
    if operator in ("in", "not in") and not isinstance(value, list):
        raise FilterError(f"'{operator}' needs a list of values")
    values = value if isinstance(value, list) else [value]
    if len(params) > _MAX_VALUES or len(values) > _MAX_VALUES:
        raise FilterError(f"a filter has at most {_MAX_VALUES} values")
    for item in values:
        _check_value(item, field)
    if operator in _COMPARISONS:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise FilterError(f"'{field[:80]}' can't be compared by '{operator}' with {_json_type(value)}")
        return _ordered(field, operator, value, left, right, params)
    if operator in ("==", "!=") and isinstance(value, list):
        raise FilterError(f"'{field[:80]}' can't be compared by '{operator}' with a list")
    if field in _COLUMNS:
        params[right] = [item for item in values if isinstance(item, str)]  # text columns equal strings only
        kind = "text[]"
    else:
        params[right] = [Jsonb(item) for item in values]
        kind = "jsonb[]"
    # `@>`: a list contains each of its values, a scalar contains itself
    compared: LiteralString = "=" if field in _COLUMNS else "@>"
    equal = sql.SQL("{} " + compared + " ANY(CAST({} AS " + kind + "))").format(left, sql.Placeholder(right))
    return sql.SQL("(NOT ({}))" if operator in ("!=", "not in") else "({})").format(equal)


def _operands(field: str, params: dict[str, Any]) -> tuple[sql.Composable, str]:
    """The field as SQL, and the name of the parameter that it is compared with."""
    number = len(params)
    if field in _COLUMNS:
        return sql.SQL(_COLUMNS[field]), f"f{number}"
    params[f"f{number}"] = field.removeprefix("meta.")
    named = sql.SQL("coalesce(s.meta -> CAST({} AS text), 'null'::jsonb)").format(sql.Placeholder(f"f{number}"))
    return named, f"f{number + 1}"


def _ordered(
    field: str, operator: str, value: str | float, left: sql.Composable, right: str, params: dict[str, Any]
) -> sql.Composable:
    comparison = sql.SQL(_COMPARISONS[operator])
    if field in _COLUMNS:
        if not isinstance(value, str):
            raise FilterError(f"'{field}' is text")
        params[right] = value
        return sql.SQL("({} {} {})").format(left, comparison, sql.Placeholder(right))
    params[right] = Jsonb(value)
    kind = sql.SQL(
        "'string'" if isinstance(value, str) else "'number'"
    )  # compare within one type: jsonb orders all strings below numbers
    return sql.SQL("(jsonb_typeof({0}) = {1} AND {0} {2} {3})").format(left, kind, comparison, sql.Placeholder(right))


def _check_value(value: object, field: str) -> None:
    """Validate a comparison value for PostgreSQL. Raises `FilterError`."""
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        if "\0" in value or (not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value)):
            raise FilterError(f"a text compared with {field[:80]!r} contains a NUL character or half a surrogate pair")
    elif not isinstance(value, int | float):
        raise FilterError(f"{field[:80]!r} can't be compared with {_json_type(value)}")
    elif abs(value) > 1e300 or math.isnan(value):
        raise FilterError(f"a number compared with {field[:80]!r} is out of range")


def _json_type(value: object) -> str:
    return {"NoneType": "null", "bool": "true or false", "dict": "an object", "list": "a list"}.get(
        type(value).__name__, type(value).__name__
    )
