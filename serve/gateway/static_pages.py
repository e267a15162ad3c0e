"""Static web pages `/ui` and `/docs`: files read at start, served by exact path with a strict content security policy."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache
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
#: No resources of other origins, nothing inline, and no strings assigned as HTML.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
#: Swagger UI renders the description's Markdown as HTML and has images in its style sheet.
DOCS_POLICY = POLICY.split("; require-trusted-types-for")[0].replace("img-src 'self'", "img-src 'self' data:")
_HEADERS = (
    ("cache-control", "no-cache"),  # cached, but revalidated on each use, so that an upgrade shows at once
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
)


@dataclass(slots=True, frozen=True)
class Page:
    """A page: its bytes and the values of its response headers."""

    body: bytes
    content_type: str
    etag: str
    policy: str

    @classmethod
    def from_file(cls, file: Path, policy: str = POLICY) -> "Page":
        """Read `file`; the content type follows from its extension."""
        return cls.from_bytes(file.read_bytes(), _TYPES[file.suffix], policy)

    @classmethod
    def from_bytes(cls, body: bytes, content_type: str, policy: str = POLICY) -> "Page":
        """A page of content that is not in a file."""
        return cls(body, content_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"', policy)

    async def answer(self, headers: Headers, receive: Receive, send: Send, scope: Scope) -> None:
        """Send the page, or 304 when the client's cached copy is current."""
        response_headers = [("etag", self.etag), ("content-security-policy", self.policy), *_HEADERS]
        if _has(headers.get("if-none-match", ""), self.etag):
            await start(send, 304, self.content_type, response_headers)
            return await send({"type": "http.response.body", "body": b""})
        await reply(send, 200, self.body, response_headers, self.content_type)


@cache
def page_routes() -> Mapping[str, dict[str, Handler]]:
    """Handlers of all pages by path and method. File paths are never built from request paths, so none can be traversed."""
    handlers: dict[str, Handler] = {"/ui/": _to("../ui"), "/docs/": _to("../docs")}
    for file in _FOLDER.iterdir():
        if file.suffix in _TYPES:
            path = "/ui" if file.name == "index.html" else f"/ui/{file.name}"
            handlers[path] = Page.from_file(file).answer
    for file in (*_DOCS.iterdir(), *(_swagger_ui() / name for name in _SWAGGER_UI)):
        path = "/docs" if file.name == "index.html" else f"/docs/{file.name}"
        handlers[path] = Page.from_file(file, DOCS_POLICY).answer
    return {path: {"GET": handler} for path, handler in handlers.items()}


def _to(location: str) -> Handler:
    """Redirect to the path without a trailing slash: the pages' links are relative to it, to work behind any prefix."""

    async def answer(headers: Headers, receive: Receive, send: Send, scope: Scope) -> None:
        await reply(send, 308, b"", [("location", location)])

    return answer


def _swagger_ui() -> Path:
    """The folder of Swagger UI in the package fastapi-offline, which is not imported."""
    spec = find_spec("fastapi_offline")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("fastapi-offline, one of the platform's requirements, is not installed")
    return Path(spec.submodule_search_locations[0]) / "static"


def _has(if_none_match: str, etag: str) -> bool:
    etags = {value.strip().removeprefix("W/") for value in if_none_match.split(",")}
    return etag in etags or "*" in etags
