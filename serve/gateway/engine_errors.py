"""Translate engine errors for clients: OpenAI's format, the request's field in `param`, context overflow as a type of its own."""

import ast
import re
from collections.abc import Sequence

import orjson

from serve.errors import RequestError
from serve.gateway.engine_client import EngineUnreachable
from serve.request.call import Call
from serve.request.chat_fields import read_fields
from serve.routing.catalog import Variant

_OF_THE_REQUEST = (400, 413, 422)  # statuses
_CONTEXT_PHRASES = ("maximum context length", "maximum model length", "max_model_len")  # in vLLM's error messages
_FIELD_WORD = re.compile(r"(?:^|[`'])(\w+)(?=$|[`'\s])")  # a message's first word and its quoted words
_FEWER_THAN_MIN = re.compile(r"min_tokens must be less than or equal to max_tokens=(\d+)")


class ContextTooLong(Exception):
    """The prompt exceeds the variant's context, by the engine's count; `param` is the field that the engine names."""

    def __init__(self, message: str, param: object) -> None:
        super().__init__(message)
        self.param = param


def translate_engine_error(status: int, body: bytes, call: Call) -> Exception:
    """The exception for an engine's error response, or for an error event before a stream's first token.

    Args:
        status: HTTP status, or that of the error event.
        body: error body in OpenAI's or vLLM's shape, or any other text.
        call: the request, whose fields `param` refers to.

    Returns:
        `EngineUnreachable` for an error that is not of the request, so that it fails over; `ContextTooLong` when the prompt exceeds the
        variant's context, so that a variant with a longer context is tried; otherwise the `RequestError` for the client.
    """
    if (
        status not in _OF_THE_REQUEST
    ):  # for example 401 and 404: another server has the port of a replica that has ended
        return EngineUnreachable(f"the engine reported an error ({status})")
    try:
        error = orjson.loads(body)
    except orjson.JSONDecodeError:
        error = None
    if isinstance(error, dict):
        error = error.get("error", error)
    if not isinstance(error, dict):
        error = {"message": error}
    message, param = error.get("message"), error.get("param")
    message = message if isinstance(message, str) and message else "the engine refused the request"
    message, param = _message_and_field(message, param, call)
    if status == 400 and (overflow := _context_filled(message, call)) is not None:
        return overflow
    if status == 400 and any(phrase in message for phrase in _CONTEXT_PHRASES):
        return ContextTooLong(message, param)
    return RequestError(status, message, param=param if isinstance(param, str) else None, code="invalid_request")


def _message_and_field(message: str, param: object, call: Call) -> tuple[str, object]:
    """Message and field of an engine's error, without pydantic's paths and Python objects."""
    summary, separator, details = message.partition("\n")
    invalid = bool(separator) and "validation error" in summary
    if call.endpoint == "chat" and (invalid or _without_object_repr(message) != message):
        try:
            read_fields(call.body)
        except RequestError as error:
            return error.message, error.param
    if invalid:
        return _first_validation_error(details.strip().splitlines(), call) or (message, param)
    message = _without_object_repr(message)
    if "grammar" in message.lower():
        if call.body.get("tools"):
            return (
                f"the schema of a function can't be enforced ({message}); 'strict': false leaves its calls free",
                "tools",
            )
        return message, next((name for name in ("structured_outputs", "response_format") if call.body.get(name)), param)
    return message, param if isinstance(param, str) else _field_named_in(message, call)


def _without_object_repr(message: str) -> str:
    """`message` without the `repr` of an engine object."""
    start, end = message.find(" {'"), message.rfind("}")
    return message[:start].removesuffix(":") + message[end + 1 :] if 0 <= start < end else message


def _first_validation_error(lines: Sequence[str], call: Call) -> tuple[str, str | None] | None:
    """Message and field of the first pydantic error, as printed by vLLM's API (one dict per line) or by pydantic."""
    try:
        detail = ast.literal_eval(lines[0])
        loc, problem = str(detail["loc"]), str(detail["msg"])
    except (ValueError, SyntaxError, LookupError, TypeError, RecursionError, MemoryError):
        problem, separator, _ = lines[1].strip().partition(" [type=") if len(lines) > 1 else ("", "", "")
        if not separator:
            return None
        loc = lines[0]
    in_body = loc.startswith("body.")
    steps = [
        step for step in loc.removeprefix("body.").split(".") if not step[:1].isupper()
    ]  # omit class names of unions
    field = ".".join(steps)
    return f"'{field}': {problem}", field if in_body or (steps and steps[0] in call.body) else None


def _field_named_in(message: str, call: Call) -> str | None:
    """The field that an engine's message is about: the message begins with its name or has it in quotes."""
    words = [match[1] for match in _FIELD_WORD.finditer(message)]
    if (field := next((word for word in words if word in call.body), None)) is not None:
        return field
    prompt = "messages" if call.endpoint == "chat" else "prompt"
    return prompt if "prompt cannot be empty" in message else None


def _context_filled(message: str, call: Call) -> ContextTooLong | None:
    """The error of a prompt that leaves too few tokens of the context, which vLLM reports as an invalid token limit.

    A request's own limit is never the cause: it is at least 1, and an echo's 0 is set to 1 by vLLM.
    """
    if message.startswith("max_tokens must be at least 1, got 0"):
        return ContextTooLong("The input takes all of them, and none is left for an answer.", None)
    match = _FEWER_THAN_MIN.match(message)
    if match is not None and not (call.limits_output and call.max_output_tokens <= int(match[1])):
        return ContextTooLong(f"The input leaves {match[1]} of them, fewer than 'min_tokens'.", "min_tokens")
    return None


def context_length_error(error: ContextTooLong, variant: Variant, call: Call) -> RequestError:
    """400 `context_length_exceeded` for a prompt that exceeds the context of `variant`, when no longer context is left.

    In the wording of OpenAI and vLLM, because some clients recognize this error by its message alone.
    """
    message = str(error)
    if "maximum context length" not in message:
        message = f"This model's maximum context length is {variant.max_model_len} tokens. {message}"
    message += " (context_length_exceeded)"
    prompt = "messages" if call.endpoint == "chat" else "prompt"
    param = error.param if isinstance(error.param, str) and error.param in call.body else prompt
    return RequestError(400, message, param=param, code="context_length_exceeded")
