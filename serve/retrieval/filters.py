"""Haystack's metadata filters as conditions on a `jsonb` column, with every value a parameter."""

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

_DEPTH = 10
_COMPARED = {"==": "=", "!=": "IS DISTINCT FROM", ">": ">", ">=": ">=", "<": "<", "<=": "<="}
_SOURCE = {"source": "s.name", "title": "s.title"}  # that are not in the metadata


class FilterError(ValueError):
    """A filter that can't be used; the message says where and why."""


def where(filters: Mapping[str, Any]) -> tuple[sql.Composable, dict[str, Any]]:
    """A condition on `s.meta` and its parameters. Raises `FilterError`.

    `{"field": "meta.year", "operator": ">=", "value": 2020}`, joined by
    `{"operator": "AND" | "OR" | "NOT", "conditions": [...]}`.
    """
    params: dict[str, Any] = {}
    return _condition(filters, params, (f"f{i}" for i in count()), 0), params


def _condition(one: object, params: dict[str, Any], names: Iterator[str], depth: int) -> sql.Composable:
    if depth > _DEPTH:
        raise FilterError("filters are nested too deeply")
    if not isinstance(one, Mapping) or not isinstance(operator := one.get("operator"), str):
        raise FilterError("a filter is an object with 'operator', and 'field' and 'value' or 'conditions'")
    if "conditions" in one:
        if operator not in ("AND", "OR", "NOT") or not isinstance(one["conditions"], list) or not one["conditions"]:
            raise FilterError("'conditions' is a list joined by 'AND', 'OR' or 'NOT'")
        parts = [_condition(part, params, names, depth + 1) for part in one["conditions"]]
        joined = sql.SQL(" OR " if operator == "OR" else " AND ").join(parts)
        return sql.SQL("NOT ({})" if operator == "NOT" else "({})").format(joined)
    field, value = one.get("field"), one.get("value")
    if not isinstance(field, str) or not field:
        raise FilterError("'field' must be the name of a metadata field")
    field = field.removeprefix("meta.")
    if operator in ("in", "not in"):
        if not isinstance(value, list) or len(value) > 1000:
            raise FilterError(f"'{operator}' needs a list of at most 1000 values")
        equal = [_condition({"field": field, "operator": "==", "value": item}, params, names, depth + 1) for item in value]
        any_of = sql.SQL(" OR ").join(equal) if equal else sql.SQL("FALSE")
        return sql.SQL("NOT ({})" if operator == "not in" else "({})").format(any_of)
    if operator not in _COMPARED:
        raise FilterError(f"unknown operator {operator!r}; there are {', '.join(_COMPARED)}, in, not in, AND, OR, NOT")
    if isinstance(value, Mapping | list) or (operator not in ("==", "!=") and not isinstance(value, int | float | str)):
        raise FilterError(f"'{field}' cannot be compared by '{operator}' with a {type(value).__name__}")
    params[name := next(names)] = value if field in _SOURCE else Jsonb(value)
    if field in _SOURCE:
        if not isinstance(value, str):
            raise FilterError(f"'{field}' is text")
        left: sql.Composable = sql.SQL(_SOURCE[field])
    else:
        left = sql.SQL("s.meta -> {}").format(sql.Literal(field))
        if value is None:
            left = sql.SQL("coalesce(s.meta -> {}, 'null')").format(sql.Literal(field))
    compared = sql.SQL("{} {} {}").format(left, sql.SQL(_COMPARED[operator]), sql.Placeholder(name))
    if operator in ("==", "!=") or field in _SOURCE:
        return compared
    kind = "string" if isinstance(value, str) else "number"  # jsonb orders kinds: a number is never less than a text
    same = sql.SQL("jsonb_typeof(s.meta -> {}) = {}").format(sql.Literal(field), sql.Literal(kind))
    return sql.SQL("({} AND {})").format(same, compared)
