"""Read and write JSON bodies: bounded depth, integers of any size."""

import json
import re

import orjson

from serve.errors import RequestError

#: Deeper nesting is rejected, because later code, here and in engines, recurses. Real bodies are far below the limit.
MAX_DEPTH = 64
_LONG_NUMBER = re.compile(rb"[0-9]{19}")


def read_json(raw: bytes) -> object:
    """Parse a JSON body. Raises `RequestError` 400. The last of duplicate keys counts."""
    if not raw:
        raise RequestError(400, "the body is empty; it must be JSON", code="invalid_json")
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RequestError(400, f"the body is not valid JSON: {error}", code="invalid_json") from error
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _deeper_than(document, MAX_DEPTH):
        raise RequestError(400, f"the body is nested deeper than {MAX_DEPTH} levels", code="invalid_json")
    if _LONG_NUMBER.search(raw):  # orjson parses integers of more than 64 bits as floats
        try:
            document = json.loads(raw)
        except ValueError as error:  # an integer of thousands of digits
            raise RequestError(400, f"the body is not valid JSON: {error}", code="invalid_json") from error
    return document


def dump_json(document: object) -> bytes:
    """Serialize `document` as JSON, with integers of any size."""
    try:
        return orjson.dumps(document)
    except TypeError:
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _deeper_than(document: object, limit: int) -> bool:
    level = [document]
    for _ in range(limit):
        level = [
            value
            for container in level
            if isinstance(container, dict | list)
            for value in (container.values() if isinstance(container, dict) else container)
            if isinstance(value, dict | list)
        ]
        if not level:
            return False
    return True
