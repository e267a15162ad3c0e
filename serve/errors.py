"""Errors returned to clients, in OpenAI's format."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

import orjson

_LOG = logging.getLogger("gearbox.gateway")

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

#: Every `code` of an error; docs/operations/failures.md says what to do about each.
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
    "too_many_bodies", "too_many_chunks", "too_many_sequences", "too_many_uploads", "unknown_type", "unreadable_document",
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


def internal_error(request_id: str) -> RequestError:
    """500 for an unexpected exception, whose details only the log has."""
    _LOG.exception("request %s failed inside the gateway", request_id)
    return RequestError(500, f"internal error; request id {request_id}", code="internal_error")


def retrieval_misconfigured(message: str) -> RequestError:
    """500 for a configuration that only the operator can fix. The header stops OpenAI's clients from retrying."""
    return RequestError(500, message, code="retrieval_misconfigured", headers={"x-should-retry": "false"})


def overloaded(message: str | Callable[[], str], retry_after_s: float, code: ErrorCode) -> RequestError:
    """429 with `Retry-After` in whole seconds, at least one."""
    return RequestError(429, message, code=code, headers={"retry-after": str(max(1, round(retry_after_s)))})
