"""Metadata of documents: what is stored, and its JSON schema."""

from collections.abc import Mapping
from typing import Any

import orjson

from serve.errors import RequestError

_MAX_BYTES = 16 << 10  # as JSON
_MAX_NUMBER = 1e300
NO_NUL = r"^[^\u0000]*$"
_PLAIN = {
    "anyOf": [
        {"type": "string", "pattern": NO_NUL},
        {"type": "number", "minimum": -_MAX_NUMBER, "maximum": _MAX_NUMBER},
        {"type": ["boolean", "null"]},
    ]
}
#: JSON schema of what `check_meta` accepts, without the limit on its size.
META_SCHEMA: dict[str, Any] = {
    "propertyNames": {"minLength": 1, "pattern": NO_NUL},
    "additionalProperties": {"anyOf": [_PLAIN, {"type": "array", "items": _PLAIN}]},
}


def check_meta(meta: object) -> dict[str, Any]:
    """Validate metadata: names to strings, numbers, booleans, null, or lists of them. Raises `RequestError`."""

    def plain(value: object) -> bool:
        if isinstance(value, float):
            return abs(value) <= _MAX_NUMBER  # false for NaN
        if isinstance(value, str):
            return "\0" not in value
        return value is None or isinstance(value, int)

    try:
        if not isinstance(meta, Mapping) or len(orjson.dumps(meta)) > _MAX_BYTES:
            raise ValueError
        for key, value in meta.items():
            if not key or "\0" in key or not all(map(plain, value if isinstance(value, list) else [value])):
                raise ValueError
    except (ValueError, TypeError) as error:
        message = f"'meta' must be an object of texts, numbers, true, false, null and lists of them, at most {_MAX_BYTES} bytes"
        raise RequestError(400, message, param="meta", code="invalid_meta") from error
    return dict(meta)
