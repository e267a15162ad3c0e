"""Plain ASGI helpers for the gateway's hot path: read bounded request bodies, send responses."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import orjson

from serve.errors import ErrorCode, RequestError, overloaded

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Mapping[str, str]

JSON = "application/json"
_BODY_WAIT_S = 60.0  # wait for the next part of a body, so that a stalled client does not hold memory for ever
EVENT_STREAM = "text/event-stream; charset=utf-8"


_SINGLE = {  # headers that affect handling: of two values, parts of the platform might use different ones
    "authorization", "content-encoding", "content-length", "content-type", "host", "idempotency-key", "origin",
    "transfer-encoding", "traceparent", "x-request-id",
}  # fmt: skip
_SINGLE_PREFIXES = ("x-gearbox-", "x-llm-d-", "sec-fetch-")


def headers_of(scope: Scope) -> dict[str, str]:
    """Request headers by lower-case name; the last value of repeated headers. Raises `RequestError` 400 for conflicts."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    if len(headers) != len(scope["headers"]):
        for raw_name, value in scope["headers"]:
            name = raw_name.decode("latin-1")
            if value.decode("latin-1") != headers[name] and (name in _SINGLE or name.startswith(_SINGLE_PREFIXES)):
                message = f"the header '{name}' is given more than once, with different values"
                raise RequestError(400, message, param=name, code="conflicting_headers")
    return headers


class BodyMemory:
    """Memory limit for request bodies: the number of bodies held at once and their total bytes.

    Args:
        max_bytes: limit of bytes held at once; at least one body of the maximum size.
        max_bodies: limit of bodies held at once; None: no limit.
        code: error code of requests that exceed a limit.
    """

    def __init__(self, max_bytes: int, max_bodies: int | None = None, code: ErrorCode = "too_many_bodies") -> None:
        self._max_bytes, self._max_bodies, self._code = max_bytes, max_bodies, code
        self.bytes = self.bodies = 0

    @contextmanager
    def body(self) -> Iterator["HeldBody"]:
        """Reserve a body, released at the end. Raises `RequestError` 429."""
        if self.bodies == self._max_bodies:
            raise self.full()
        held = HeldBody(self)
        self.bodies += 1
        try:
            yield held
        finally:
            self.bodies -= 1
            self.bytes -= held.bytes

    def fits(self, size: int) -> bool:
        """Whether `size` more bytes fit into the memory."""
        return self.bytes + size <= self._max_bytes

    def full(self) -> RequestError:
        """The 429 for a body that does not fit into the memory."""
        return overloaded("too many request bodies are held at once; retry later", 2, self._code)


class HeldBody:
    """Memory of one body. Only received bytes count, not the declared length."""

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self.bytes = 0

    def expect(self, size: int) -> None:
        """Reject a body by its declared length, before reading it. Raises `RequestError` 429."""
        if not self._memory.fits(size):
            raise self._memory.full()

    def take(self, size: int) -> None:
        """Count the next part of the body. Raises `RequestError` 429."""
        self.expect(size)
        self._memory.bytes += size
        self.bytes += size


async def read_body(receive: Receive, headers: Headers, limit: int, held: HeldBody | None = None) -> bytes:
    """Read a request's whole body, counted against `held`.

    Raises:
        RequestError: 413 as soon as the body is known to exceed `limit` bytes, 415 for a compressed body, 429 when the
            memory is full, 408 when the client stops sending.
    """
    if (coding := headers.get("content-encoding", "identity").lower()) != "identity":
        raise RequestError(
            415,
            f"send the body without 'Content-Encoding: {coding[:100]}'",
            param="content-encoding",
            code="unsupported_content_encoding",
        )
    declared = headers.get("content-length", "")
    if declared.isdecimal():
        if len(declared) > 15 or int(declared) > limit:
            raise body_too_large(limit)
        if held is not None:
            held.expect(int(declared))
    parts, size = [], 0
    while True:
        try:
            async with asyncio.timeout(_BODY_WAIT_S):
                message = await receive()
        except TimeoutError as error:
            raise RequestError(
                408, f"no part of the body arrived for {_BODY_WAIT_S:g} s", code="body_timeout"
            ) from error
        if message["type"] == "http.disconnect":
            raise RequestError(499, "the client went away", code="client_closed_request")
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise body_too_large(limit)
        if held is not None:
            held.take(len(part))
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def body_too_large(limit: int) -> RequestError:
    """413 for a body over the limit."""
    return RequestError(413, f"the body is larger than {limit} bytes", code="body_too_large")


async def start(send: Send, status: int, content_type: str, headers: Iterable[tuple[str, str]] = ()) -> None:
    """Send the status and headers of a response."""
    raw = [(b"content-type", content_type.encode())]
    raw += [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": raw})


async def reply(
    send: Send, status: int, body: bytes, headers: Iterable[tuple[str, str]] = (), content_type: str = JSON
) -> None:
    """Send a complete response."""
    await start(send, status, content_type, [("content-length", str(len(body))), *headers])
    await send({"type": "http.response.body", "body": body})


async def reply_json(send: Send, document: object, headers: Iterable[tuple[str, str]] = ()) -> None:
    """Send a document as JSON with status 200."""
    await reply(send, 200, orjson.dumps(document), headers)
