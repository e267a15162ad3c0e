"""The web page of the gateway, `/ui`: static files, read once, served by exact path and under a strict policy."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from serve.http import Headers, Receive, Scope, Send, reply, start

Handler = Callable[[Headers, Receive, Send, Scope], Awaitable[None]]

_FOLDER = Path(__file__).with_name("ui")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: Nothing from elsewhere, nothing inline, and no text that becomes markup.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = (
    ("cache-control", "no-cache"),  # kept, but asked about each time: an upgrade is seen at once
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
)


@dataclass(slots=True, frozen=True)
class Page:
    """One file: its bytes and what the head says of them."""

    body: bytes
    content_type: str
    etag: str

    @classmethod
    def of(cls, file: Path) -> "Page":
        """Read `file`. Its name's ending says what it is."""
        body = file.read_bytes()
        return cls(body, _TYPES[file.suffix], f'"{hashlib.sha256(body).hexdigest()[:32]}"')

    async def answer(self, headers: Headers, receive: Receive, send: Send, scope: Scope) -> None:
        """Send it; only the head where the client has it already."""
        told = [("etag", self.etag), *_HEADERS]
        if _has(headers.get("if-none-match", ""), self.etag):
            await start(send, 304, self.content_type, told)
            return await send({"type": "http.response.body", "body": b""})
        await reply(send, 200, self.body, told, self.content_type)


def page_routes() -> dict[str, dict[str, Handler]]:
    """Every path of the page with its methods. No path is ever made from a request's, so none leads out of the folder."""
    handlers: dict[str, Handler] = {"/ui/": _to_the_page}
    for file in _FOLDER.iterdir():
        if file.suffix in _TYPES:
            path = "/ui" if file.name == "index.html" else f"/ui/{file.name}"
            handlers[path] = Page.of(file).answer
    return {path: {"GET": handler} for path, handler in handlers.items()}


async def _to_the_page(headers: Headers, receive: Receive, send: Send, scope: Scope) -> None:
    """The page's links are relative to `/ui`, so that they hold behind any prefix."""
    await reply(send, 308, b"", [("location", "../ui")])


def _has(if_none_match: str, etag: str) -> bool:
    known = {one.strip().removeprefix("W/") for one in if_none_match.split(",")}
    return etag in known or "*" in known
