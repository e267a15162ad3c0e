"""The web pages of the gateway, `/ui` and `/docs`: static files, read once, served by exact path and under a strict policy."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from serve.gateway.http import Headers, Receive, Scope, Send, reply, start

Handler = Callable[[Headers, Receive, Send, Scope], Awaitable[None]]

_FOLDER = Path(__file__).with_name("ui")
_DOCS = Path(__file__).with_name("docs")
_SWAGGER_UI = ("swagger-ui-bundle.js", "swagger-ui.css")
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
#: Swagger UI turns the description's Markdown into markup and draws with images in its style sheet.
DOCS_POLICY = POLICY.split("; require-trusted-types-for")[0].replace("img-src 'self'", "img-src 'self' data:")
_HEADERS = (
    ("cache-control", "no-cache"),  # kept, but asked about each time: an upgrade is seen at once
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
    policy: str

    @classmethod
    def of(cls, file: Path, policy: str = POLICY) -> "Page":
        """Read `file`. Its name's ending says what it is."""
        return cls.made(file.read_bytes(), _TYPES[file.suffix], policy)

    @classmethod
    def made(cls, body: bytes, content_type: str, policy: str = POLICY) -> "Page":
        """A page that is no file."""
        return cls(body, content_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"', policy)

    async def answer(self, headers: Headers, receive: Receive, send: Send, scope: Scope) -> None:
        """Send it; only the head where the client has it already."""
        told = [("etag", self.etag), ("content-security-policy", self.policy), *_HEADERS]
        if _has(headers.get("if-none-match", ""), self.etag):
            await start(send, 304, self.content_type, told)
            return await send({"type": "http.response.body", "body": b""})
        await reply(send, 200, self.body, told, self.content_type)


def page_routes() -> dict[str, dict[str, Handler]]:
    """Every path of the pages with its methods. No path is ever made from a request's, so none leads out of the folders."""
    handlers: dict[str, Handler] = {"/ui/": _to("../ui"), "/docs/": _to("../docs")}
    for file in _FOLDER.iterdir():
        if file.suffix in _TYPES:
            path = "/ui" if file.name == "index.html" else f"/ui/{file.name}"
            handlers[path] = Page.of(file).answer
    for file in (*_DOCS.iterdir(), *(_swagger_ui() / name for name in _SWAGGER_UI)):
        path = "/docs" if file.name == "index.html" else f"/docs/{file.name}"
        handlers[path] = Page.of(file, DOCS_POLICY).answer
    return {path: {"GET": handler} for path, handler in handlers.items()}


def _to(location: str) -> Handler:
    """A page's links are relative to its path without a slash at the end, so that they hold behind any prefix."""

    async def answer(headers: Headers, receive: Receive, send: Send, scope: Scope) -> None:
        await reply(send, 308, b"", [("location", location)])

    return answer


def _swagger_ui() -> Path:
    """Where fastapi-offline keeps its copy of Swagger UI. The package itself is not imported."""
    found = find_spec("fastapi_offline")
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("fastapi-offline, one of the platform's requirements, is not installed")
    return Path(found.submodule_search_locations[0]) / "static"


def _has(if_none_match: str, etag: str) -> bool:
    known = {one.strip().removeprefix("W/") for one in if_none_match.split(",")}
    return etag in known or "*" in known
