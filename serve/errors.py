"""Errors returned to clients, in OpenAI's format, and what logs say of unexpected exceptions."""

import asyncio
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import orjson

_LOG = logging.getLogger("gearbox.gateway")
_ROOT = Path(__file__).parents[1]
_PACKAGES = ("serve", "deployments", "compression")
_MAX_CAUSES, _MAX_PLACES = 5, 12  # of one exception in a log

_TYPES = {  # by status; others are `invalid_request_error` below 500, `server_error` above
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    499: "client_closed_request",
    503: "service_unavailable_error",
    504: "timeout_error",
}

#: Every `code` of an error; docs/reference/errors.md says what to do about each.
ErrorCode = Literal[
    "agent_failed", "body_timeout", "body_too_large", "budget_under_load", "client_closed_request", "collection_not_found",
    "conflicting_headers", "context_length_exceeded", "document_not_found", "document_too_large", "engine_unavailable",
    "gateway_stopped", "host_not_allowed", "idempotency_key_in_use", "idempotency_key_reused", "idempotency_unavailable",
    "impossible_budget", "input_too_large", "internal_error", "invalid_api_key", "invalid_base64", "invalid_body", "invalid_budget",
    "invalid_dimensions", "invalid_document", "invalid_field", "invalid_filter", "invalid_idempotency_key", "invalid_input",
    "invalid_json", "invalid_limit", "invalid_meta", "invalid_mode", "invalid_query", "invalid_request", "invalid_retrieval",
    "invalid_source", "invalid_title", "invalid_type", "invalid_value", "limits_unavailable", "method_not_allowed",
    "missing_api_key", "missing_collection", "missing_messages", "missing_model", "missing_prompt", "model_not_found",
    "no_healthy_variant", "not_found", "not_ready", "origin_not_allowed", "overloaded", "profile_not_found",
    "requests_per_minute", "retrieval_failed", "retrieval_misconfigured", "retrieval_timeout", "retrieval_unavailable",
    "store_full", "store_read_only", "store_unavailable", "stream_interrupted", "token_ids_not_supported", "tokens_per_minute",
    "too_few_questions", "too_many_bodies", "too_many_chunks", "too_many_sequences", "too_many_uploads", "unknown_type", "unreadable_document",
    "unsupported_content_encoding", "unsupported_media_type", "unsupported_value", "variant_not_found",
]  # fmt: skip


class RequestError(Exception):
    """An error response: HTTP status, message, the parameter at fault, and the reason for programs.

    A message that is a function is composed when read.
    """

    def __init__(
        self,
        status: int,
        message: str | Callable[[], str],
        *,
        param: str | None = None,
        code: ErrorCode,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self._message = message
        self.param = param
        self.code = code
        self.kind = kind or _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.headers = dict(headers or {})

    @property
    def message(self) -> str:
        """What was wrong and what would be right, for the client."""
        return self._message if isinstance(self._message, str) else self._message()

    def __str__(self) -> str:
        return self.message

    def parts(self) -> dict[str, Any]:
        """Serialize the error for another process; see `of`."""
        return {name: getattr(self, name) for name in ("status", "message", "param", "code", "kind", "headers")}

    @classmethod
    def of(cls, parts: Mapping[str, Any]) -> "RequestError":
        """Restore an error from its `parts`."""
        return cls(**parts)

    def body(self) -> bytes:
        """`{"error": {"message", "type", "param", "code"}}` as JSON."""
        return orjson.dumps({"error": self.public()})

    def public(self) -> dict[str, str | None]:
        """The error as clients see it."""
        return {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}


def internal_error(request_id: str, error: Exception) -> RequestError:
    """500 for an unexpected exception, of which the log has the origin."""
    _LOG.error("request %s failed inside the gateway: %s", request_id, origin_of(error))
    return RequestError(500, f"internal error; request id {request_id}", code="internal_error")


def retrieval_misconfigured(message: str) -> RequestError:
    """500 for a configuration that only the operator can fix. The header stops OpenAI's clients from retrying."""
    return RequestError(500, message, code="retrieval_misconfigured", headers={"x-should-retry": "false"})


def overloaded(message: str | Callable[[], str], retry_after_s: float, code: ErrorCode) -> RequestError:
    """429 with `Retry-After` in whole seconds, at least one."""
    return RequestError(429, message, code=code, headers={"retry-after": str(max(1, round(retry_after_s)))})


def origin_of(error: BaseException) -> str:
    """Types and places in the code of an unexpected exception and of what it was raised from, on one line, for logs.

    Without messages, which may quote a prompt or a secret. A place is the innermost one and those in this distribution, the innermost
    first: `KeyError at serve/gateway/sse_relay.py:120, serve/gateway/generation.py:402; from ValueError at …`.
    """
    return "; from ".join(
        f"{_type_of(one)} at {', '.join(_places(one)) or 'an unknown place'}" for one in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    for _ in range(_MAX_CAUSES):
        yield error
        inner = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if inner is None:
            return
        error = inner


def _type_of(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _places(error: BaseException) -> list[str]:
    places = []
    frames = list(traceback.walk_tb(error.__traceback__))[::-1]
    for n, (frame, line) in enumerate(frames):
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_ROOT) and path.relative_to(_ROOT).parts[0] in _PACKAGES:
            places.append(f"{path.relative_to(_ROOT)}:{line}")
        elif n == 0:
            places.append(f"{'/'.join(path.parts[-2:])}:{line}")
    return places[:_MAX_PLACES]


def log_unhandled(_: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """Exception handler for an event loop: log an exception that nothing waits for. asyncio's own shows its message and arguments."""
    error = context.get("exception")
    _LOG.error("an exception was not handled: %s", origin_of(error) if error else context["message"])
