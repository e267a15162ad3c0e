"""Errors returned to clients, in OpenAI's format."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import orjson

_LOG = logging.getLogger("gearbox.gateway")

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "budget_error",
    429: "rate_limit_error",
    499: "client_closed_request",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class RequestError(Exception):
    """An error response: HTTP status, message, and the invalid parameter. A message that is a function is composed when read."""

    def __init__(
        self,
        status: int,
        message: str | Callable[[], str],
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self._message = message
        self.param = param
        self.code = code
        self.kind = kind or _TYPES.get(status, "server_error")
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


def overloaded(message: str | Callable[[], str], retry_after_s: float, code: str) -> RequestError:
    """429 with `Retry-After` in whole seconds, at least one."""
    return RequestError(429, message, code=code, headers={"retry-after": str(max(1, round(retry_after_s)))})
