"""ASGI in its plainest form: reading a bounded body, sending a reply. The gateway has few routes and a hot path."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import orjson

from serve.errors import RequestError, overloaded

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Mapping[str, str]

JSON = "application/json"
_BODY_WAIT_S = 60.0  # for the next part of a body: a client that stops sending must not hold what it has sent for ever
EVENT_STREAM = "text/event-stream; charset=utf-8"


_SINGLE = {  # headers that decide something: given twice, the parts of the platform might each follow another one
    "authorization", "content-encoding", "content-length", "content-type", "host", "idempotency-key", "origin",
    "transfer-encoding", "traceparent", "x-request-id",
}  # fmt: skip
_SINGLE_PREFIXES = ("x-gearbox-", "x-llm-d-", "sec-fetch-")


def headers_of(scope: Scope) -> dict[str, str]:
    """Request headers by lower-case name; of repeated ones the last. Raises `RequestError` 400 where they contradict."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    if len(headers) != len(scope["headers"]):
        for raw_name, value in scope["headers"]:
            name = raw_name.decode("latin-1")
            if value.decode("latin-1") != headers[name] and (name in _SINGLE or name.startswith(_SINGLE_PREFIXES)):
                message = f"the header '{name}' is given more than once, with different values"
                raise RequestError(400, message, param=name, code="conflicting_headers")
    return headers


class BodyMemory:
    """The memory for request bodies: how many are held at once, and how many bytes of them, whatever clients send.

    Args:
        most_bytes: at once; at least one body of the largest size that is allowed.
        most_bodies: at once; None: any number.
        code: of the error that a request gets which finds no room.
    """

    def __init__(self, most_bytes: int, most_bodies: int | None = None, code: str = "too_many_bodies") -> None:
        self._most_bytes, self._most_bodies, self._code = most_bytes, most_bodies, code
        self.bytes = self.bodies = 0

    @contextmanager
    def body(self) -> Iterator["HeldBody"]:
        """Room for one body, given back at the end. Raises `RequestError` 429."""
        if self.bodies == self._most_bodies:
            raise self.full()
        held = HeldBody(self)
        self.bodies += 1
        try:
            yield held
        finally:
            self.bodies -= 1
            self.bytes -= held.bytes

    def fits(self, size: int) -> bool:
        """Whether so many bytes more can be held."""
        return self.bytes + size <= self._most_bytes

    def full(self) -> RequestError:
        """429: there is no room."""
        return overloaded("too many request bodies are held at once; retry later", 2, self._code)


class HeldBody:
    """One body's part of the memory. Only what has arrived counts: who declares much and sends little holds little."""

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self.bytes = 0

    def expect(self, size: int) -> None:
        """Refuse a body before it is sent, where there is no room for what it declares. Raises `RequestError` 429."""
        if not self._memory.fits(size):
            raise self._memory.full()

    def take(self, size: int) -> None:
        """Room for the next part. Raises `RequestError` 429."""
        self.expect(size)
        self._memory.bytes += size
        self.bytes += size


async def read_body(receive: Receive, headers: Headers, limit: int, held: HeldBody | None = None) -> bytes:
    """The whole body, with room for it from `held`.

    Raises:
        RequestError: 413 as soon as it is known to exceed `limit` bytes, 415 if it is compressed, 429 where there is no
            room, 408 where the client stops sending.
    """
    if (coding := headers.get("content-encoding", "identity").lower()) != "identity":
        raise RequestError(
            415, f"send the body without 'Content-Encoding: {coding[:100]}'", code="unsupported_content_encoding"
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
            raise RequestError(408, f"the body stopped for {_BODY_WAIT_S:g} s", code="body_timeout") from error
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
    """Send the head of a reply."""
    raw = [(b"content-type", content_type.encode())]
    raw += [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": raw})


async def reply(
    send: Send, status: int, body: bytes, headers: Iterable[tuple[str, str]] = (), content_type: str = JSON
) -> None:
    """Send a whole reply."""
    await start(send, status, content_type, [("content-length", str(len(body))), *headers])
    await send({"type": "http.response.body", "body": body})


async def reply_json(send: Send, document: object, headers: Iterable[tuple[str, str]] = ()) -> None:
    """Send a document as JSON with status 200."""
    await reply(send, 200, orjson.dumps(document), headers)


async def lifespan(receive: Receive, send: Send, on_shutdown: Callable[[], Awaitable[None]]) -> None:
    """Answer the ASGI lifespan protocol; `on_shutdown` runs before the end is confirmed."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.shutdown":
            await on_shutdown()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send({"type": "lifespan.startup.complete"})
