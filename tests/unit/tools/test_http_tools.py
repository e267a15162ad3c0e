"""Operators' HTTP tools: requests, responses, and protection against misuse."""

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from serve.config.http_tools import HttpToolConfig
from serve.tools.http_tools import MAX_RESPONSE_BYTES, HttpToolError, check_url, http_tools
from tests.support.http_server import serving

SECRET = "s3cr3t-t0ken"


async def call(tool: Any, **given: Any) -> str:
    return await tool.invoke_async(**given)


class Service(ThreadingHTTPServer):
    """A service that behaves as its path says; `seen` holds the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.host = f"127.0.0.1:{self.server_port}"
        self.stopping = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves early is expected here."""


class Handler(BaseHTTPRequestHandler):
    server: Service
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None: ...

    def reply(self, body: bytes, kind: str | None = "application/json", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        if kind:
            self.send_header("content-type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.seen.append((self.command, self.path, dict(self.headers), body))
        where = self.path.partition("?")[0].removeprefix("/v1")
        match where:
            case "/slow":
                self.server.stopping.wait(5)
                self.reply(b"{}")
            case "/drip":
                self.send_response(200)
                self.send_header("content-type", "text/plain")
                self.end_headers()
                for _ in range(50):
                    self.wfile.write(b"x")
                    if self.server.stopping.wait(0.1):
                        break
            case "/huge":
                self.reply(b"x" * (MAX_RESPONSE_BYTES * 4), "text/plain; charset=utf-8")
            case "/broken":
                self.reply(f"it broke; you sent {self.headers.get('Authorization')}".encode(), "text/plain", 500)
            case "/wrong":
                self.reply(b"{not json")
            case "/image":
                self.reply(b"\x89PNG", "image/png")
            case "/untyped":
                self.reply(b"hello", None)
            case "/zipped":
                self.reply(b"\x1f\x8b", "text/plain", content_encoding="gzip")
            case "/empty":
                self.reply(b"", None, 204)
            case "/echo":
                self.reply(json.dumps(dict(self.headers)).encode())
            case "/here":
                self.reply(b"", None, 302, location="/v1/items/1")
            case "/loop":
                self.reply(b"", None, 302, location="/v1/loop")
            case "/elsewhere":
                self.reply(b"", None, 302, location=f"http://localhost:{self.server.server_port}/v1/items/1")
            case "/user":
                self.reply(b"", None, 302, location=f"http://a@{self.server.host}/v1/items/1")
            case _:
                self.reply(json.dumps({"path": self.path, "body": body.decode()}).encode())

    do_POST = do_PUT = do_GET


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    server = Service()
    with serving(server):
        yield server
        server.stopping.set()


def description(host: str, **more: Any) -> dict[str, Any]:
    item = {
        "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"$ref": "#/components/schemas/Id"}}],
        "get": {
            "operationId": "getItem",
            "summary": "One item.",
            "parameters": [
                {"name": "q", "in": "query", "schema": {"type": "array", "items": {"type": "string"}}},
                {"name": "X-Kind", "in": "header", "schema": {"type": "string"}},
                {"name": "Authorization", "in": "header", "schema": {"type": "string"}},
            ],
        },
        "put": {
            "operationId": "putItem",
            "requestBody": {"required": True, "content": {"application/json": {"schema": {
                "type": "object", "required": ["name"],
                "properties": {"name": {"type": "string"}, "count": {"type": "integer"}}}}}},
        },
        "post": {
            "operationId": "addTags",
            "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "array"}}}},
        },
    }  # fmt: skip
    names = ["slow", "drip", "huge", "broken", "wrong", "image", "untyped", "zipped", "empty", "echo"]
    names += ["here", "loop", "elsewhere", "user"]
    others = {f"/{name}": {"get": {"operationId": name, "summary": f"{name}."}} for name in names}
    return {
        "openapi": "3.0.3",
        "info": {"title": "Items", "version": "1"},
        "servers": [{"url": f"http://{host}/v1/"}],
        "paths": {"/items/{id}": item, **others},
        "components": {"schemas": {"Id": {"type": "string"}}},
    } | more


def config(host: str, spec: Any = None, **more: Any) -> HttpToolConfig:
    given = {
        "name": "items",
        "openapi_spec": json.dumps(spec or description(host)),
        "hosts": [host],
        "timeout_s": 2,
        "headers_env": {"Authorization": "ITEMS_TOKEN"},
    }
    return HttpToolConfig(**(given | more))


ENVIRONMENT = {"ITEMS_TOKEN": f"Bearer {SECRET}\n"}


@pytest.fixture
def tool(service: Service) -> Callable[..., Any]:
    """The service's tool of an operation."""

    def find(operation: str, **more: Any) -> Any:
        (found,) = http_tools(config(service.host, operations=[operation], **more), ENVIRONMENT)
        return found

    return find


def test_only_what_reads_becomes_a_tool_unless_it_is_named(service):
    names = [tool.name for tool in http_tools(config(service.host), ENVIRONMENT)]
    assert "items_getItem" in names
    assert not {"items_putItem", "items_addTags"} & {*names}
    named = http_tools(config(service.host, operations=["putItem", "addTags"]), ENVIRONMENT)
    assert [tool.name for tool in named] == ["items_putItem", "items_addTags"]


def test_the_schema_is_the_descriptions_without_what_we_send_ourselves(tool):
    made = tool("getItem")
    assert made.description == "One item."
    assert made.parameters == {
        "type": "object",
        "properties": {
            "q": {"type": "array", "items": {"type": "string"}},
            "X-Kind": {"type": "string"},
            "id": {"type": "string"},
        },
        "required": ["id"],
        "additionalProperties": False,
    }
    assert tool("putItem").parameters["required"] == ["id", "name"]
    assert tool("putItem").description == "PUT /items/{id}"


async def test_arguments_go_where_the_description_says(service, tool):
    result = await call(tool("getItem"), **{"id": "a b/c?d#e", "q": ["x&y", "z"], "X-Kind": "k"})
    assert json.loads(result)["path"] == "/v1/items/a%20b%2Fc%3Fd%23e?q=x%26y&q=z"
    headers = service.seen[-1][2]
    assert (headers["Authorization"], headers["X-Kind"]) == (f"Bearer {SECRET}", "k")
    await call(tool("putItem"), id="1", name="n", count=0)
    assert service.seen[-1][:2] == ("PUT", "/v1/items/1")
    assert json.loads(service.seen[-1][3]) == {"name": "n", "count": 0}
    await call(tool("addTags"), id="1", body=["t"])
    assert json.loads(service.seen[-1][3]) == ["t"]


@pytest.mark.parametrize(
    "value", ["..", ".", "", "../admin", "a/../../b", "..\\b", "%2e%2e", "%252e%252e/x", "a//b", "a\nb", "x/%2e%2e/y"]
)
async def test_a_path_cannot_be_left(service, tool, value):
    before = len(service.seen)
    assert await call(tool("getItem"), id=value) == "error: 'id' cannot be part of a path"
    assert len(service.seen) == before


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("slow", "error: no answer within 0.3 s"),
        ("drip", "error: no answer within 0.3 s"),
        ("wrong", "error: the answer says that it is JSON and is not"),
        ("image", "error: the answer is image/png; only JSON and text can be read"),
        ("untyped", "error: the answer is of no stated type; only JSON and text can be read"),
        ("zipped", "error: the answer is compressed, which was not requested"),
        ("empty", "(the answer is empty)"),
        ("elsewhere", "error: HTTP 302: a redirect to another server is not followed"),
        ("user", "error: HTTP 302: a redirect to another server is not followed"),
        ("loop", "error: more than 3 redirects"),
        ("broken", "error: HTTP 500: it broke; you sent [secret]"),
    ],
)
async def test_what_a_service_may_not_do_is_an_error_for_the_model(tool, operation, expected):
    start = time.monotonic()
    assert await call(tool(operation, timeout_s=0.3 if operation in ("slow", "drip") else 5)) == expected
    assert time.monotonic() - start < 4.5


async def test_a_large_answer_is_cut_and_says_so(tool):
    result = await call(tool("huge", timeout_s=10))
    assert result == "x" * MAX_RESPONSE_BYTES + "\n[cut after 64 KiB]"


async def test_a_redirect_within_the_service_is_followed(tool):
    assert json.loads(await call(tool("here")))["path"] == "/v1/items/1"


async def test_a_service_that_is_not_there_is_an_error(service):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
        (made,) = http_tools(config(host, operations=["echo"]), ENVIRONMENT)
        assert await call(made) == "error: the call failed (ConnectError)"


async def test_secrets_are_in_no_answer_log_or_text(tool, caplog):
    caplog.set_level(logging.DEBUG)
    made = tool("echo")
    result = await call(made)
    assert "[secret]" in result
    await call(tool("broken"))
    assert SECRET not in result + caplog.text + repr(made) + json.dumps(made.tool_spec)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com/x",
        "ftp://api.example.com/x",
        "https://evil.com/x",
        "https://api.example.com.evil.com/x",
        "https://api.example.com:8443/x",
        "https://api.example.com@evil.com/x",
        "https://user:pass@api.example.com/x",
        "https://sub.api.example.com/x",
        "https://127.0.0.1/x",
        "https://[::1]/x",
        "http://127.0.0.1.evil.com/x",
        "http://0.0.0.0/x",
    ],
)
def test_only_allowed_hosts_are_called(url):
    with pytest.raises(HttpToolError):
        check_url(httpx.URL(url), ("api.example.com",))


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://api.example.com/x", "api.example.com"),
        ("https://API.example.com:443/x", "api.example.com"),
        ("https://api.example.com:8443/x", "api.example.com:8443"),
        ("http://127.0.0.1:8080/x", "127.0.0.1:8080"),
        ("http://[::1]:8080/x", "[::1]:8080"),
        ("http://localhost/x", "localhost"),
    ],
)
def test_an_allowed_host_is_called(url, host):
    check_url(httpx.URL(url), (host,))


def with_paths(paths: Any) -> dict[str, Any]:
    return {"openapi": "3.0.0", "servers": [{"url": "https://api.example.com"}], "paths": paths}


RECURSIVE = with_paths({"/a": {"post": {"operationId": "a", "requestBody": {"content": {"application/json": {"schema": {
    "$ref": "#/components/schemas/Node"}}}}}}}) | {"components": {"schemas": {"Node": {
        "type": "object", "properties": {"next": {"$ref": "#/components/schemas/Node"}}}}}}  # fmt: skip
FORM = with_paths({"/a": {"post": {"operationId": "a", "requestBody": {"content": {"multipart/form-data": {}}}}}})


@pytest.mark.parametrize(
    ("spec", "more", "why"),
    [
        ("no such file.yaml", {}, "cannot be read"),
        ("{broken", {}, "cannot be read"),
        ("swagger: '2.0'\npaths: {}\n", {}, "not OpenAPI 3"),
        ("openapi: 3.0.0\ninfo: 1\n", {}, "not OpenAPI 3"),
        ("openapi: 3.0.0\npaths: []\n", {}, "not OpenAPI 3"),
        (with_paths({"/a": {"$ref": "file:///etc/passwd"}}), {}, "only references within it"),
        (with_paths({"/a": {"$ref": "http://169.254.169.254/x"}}), {}, "only references within it"),
        (with_paths({"/a": {"$ref": "#/nowhere"}}), {}, "cannot be read"),
        (with_paths({"/a": {"post": {"operationId": "a"}}}), {}, "has no GET"),
        (with_paths({"/a": {"get": {"operationId": "a"}}}), {"operations": ["b"]}, "no operation 'b'; there are a"),
        (with_paths({"/a": {"get": {"operationId": "a"}}}), {"hosts": ["other.com"]}, "'api.example.com' is not allowed"),
        (with_paths({"/a": {"get": {"operationId": "a", "servers": [{"url": "https://evil.com"}]}}}), {}, "is not allowed"),
        (with_paths({"/a": {"get": {"operationId": "a", "servers": [{"url": "http://api.example.com"}]}}}), {}, "by https"),
        (RECURSIVE, {"operations": ["a"]}, "contains itself"),
        (FORM, {"operations": ["a"]}, "only JSON is sent"),
        (with_paths({"/a": {"get": {}}}), {"headers_env": {"Authorization": "NOT_SET"}}, "NOT_SET is not set"),
    ],
)  # fmt: skip
def test_a_description_that_cannot_be_used_says_why(spec, more, why):
    text = spec if isinstance(spec, str) else json.dumps(spec)
    given = {"name": "api", "openapi_spec": text, "hosts": ["api.example.com"]} | more
    with pytest.raises(HttpToolError, match=why) as caught:
        http_tools(HttpToolConfig(**given), {})
    assert str(caught.value).startswith("HTTP tool 'api': ")


def test_a_description_can_be_a_file_and_a_server_relative(tmp_path):
    file = tmp_path / "api.yaml"
    file.write_text("openapi: 3.1.0\nservers: [{url: /v2}]\npaths:\n  /a:\n    get: {}\n")
    (made,) = http_tools(HttpToolConfig(name="api", openapi_spec=str(file), hosts=["api.example.com"]), {})
    assert made.name == "api_a_get"
    assert made.description == "GET /a"


@pytest.mark.parametrize(
    "wrong",
    [
        {"hosts": []},
        {"hosts": ["https://api.example.com"]},
        {"hosts": ["*.example.com"]},
        {"hosts": ["a@b.com"]},
        {"hosts": ["a.com/path"]},
        {"timeout_s": 0},
        {"timeout_s": 1000},
        {"headers_env": {"Host": "X"}},
        {"headers_env": {"A b": "X"}},
        {"headers_env": {"Authorization": "Bearer abc"}},
        {"name": "Has Spaces"},
        {"unknown": 1},
    ],
)
def test_a_wrong_configuration_is_refused(wrong):
    with pytest.raises(ValidationError):
        HttpToolConfig(**({"name": "api", "openapi_spec": "x.yaml", "hosts": ["a.com"]} | wrong))
