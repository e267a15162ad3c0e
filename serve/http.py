"""ASGI in its plainest form: reading a bounded body, sending a reply. The gateway has few routes and a hot path."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

import orjson

from serve.errors import RequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Mapping[str, str]

JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"


def headers_of(scope: Scope) -> dict[str, str]:
    """Request headers by lower-case name; of repeated ones the last."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


async def read_body(receive: Receive, headers: Headers, limit: int) -> bytes:
    """The whole body. Raises `RequestError` 413 as soon as it is known to exceed `limit` bytes."""
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise body_too_large(limit)
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError(499, "the client went away", code="client_closed_request")
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise body_too_large(limit)
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def read_json(raw: bytes) -> object:
    """The JSON in a body. Raises `RequestError` 400."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RequestError(400, f"the body is not valid JSON: {error}", code="invalid_json") from error


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
