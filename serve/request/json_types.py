"""Pydantic types for JSON numbers, where pydantic differs from JSON Schema."""

from pydantic import BeforeValidator


def _integral(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


#: Validates JSON Schema's integer; put after a strict `int` and its bounds. 8.0 is accepted as 8; "8" and true are not.
INTEGRAL = BeforeValidator(_integral)
