"""Refuse values that OpenAI's API refuses and the engine accepts, or changes without an error."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from serve.errors import RequestError

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
MAX_LOGIT_BIAS = 100
TOKEN_ID = "^[0-9]+$"
_TOKEN_ID = re.compile(TOKEN_ID)
_ROLES = get_args(Role)


def check_openai_limits(body: Mapping[str, Any]) -> None:
    """Check roles, names of functions and `logit_bias`. Other values of the wrong type are left for the engine to refuse.

    Raises:
        RequestError: 400 with the field in `param`.
    """
    for param, problem in _problems(body):
        raise RequestError(400, f"invalid '{param}': {problem}", param=param, code="invalid_value")


def _problems(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for position, message in enumerate(_list(body.get("messages"))):
        if isinstance(message, dict) and message.get("role") not in _ROLES:
            yield f"messages[{position}].role", f"must be one of {', '.join(_ROLES)}"
    for position, tool in enumerate(_list(body.get("tools"))):
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict) and function.get("name") == "":
            yield f"tools[{position}].function.name", "must not be empty"
    bias = body.get("logit_bias")
    for token, value in bias.items() if isinstance(bias, dict) else ():
        if not _TOKEN_ID.fullmatch(token):
            yield f"logit_bias.{token[:80]}", "must be a token id"
        if isinstance(value, int | float) and not -MAX_LOGIT_BIAS <= value <= MAX_LOGIT_BIAS:
            yield f"logit_bias.{token[:80]}", f"must be from -{MAX_LOGIT_BIAS} to {MAX_LOGIT_BIAS}"


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
