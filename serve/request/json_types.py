"""JSON's numbers, where pydantic is laxer or stricter than JSON Schema."""

from pydantic import BeforeValidator


def _integral(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


#: After a strict `int` and its bounds: what JSON Schema calls an integer. 8.0 is the same number as 8; "8" and true are none.
INTEGRAL = BeforeValidator(_integral)
