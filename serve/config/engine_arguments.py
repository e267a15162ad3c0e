"""Engine arguments that the configuration passes through, such as vLLM's: any JSON value."""

import math
from typing import Annotated

from pydantic import AfterValidator

from serve.config.yaml_file import Word, located_error


def _plain(value: object, *path: str | int) -> object:
    """Check that `value` has only JSON types. Errors name the `path` of the invalid value."""
    if isinstance(value, Word):
        raise located_error(
            f"'{value}' is true or false in YAML 1.1 and text in 1.2: write true or false, or '{value}'", *path
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise located_error("the number is not finite", *path)
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise located_error(f"the name {key} must be text: put it in quotes", *path)
        return {str(key): _plain(inner, *path, key) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, *path, index) for index, inner in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise located_error(f"a value of the type {type(value).__name__} can't be handed on", *path)


Arguments = Annotated[dict[str, object], AfterValidator(_plain)]
