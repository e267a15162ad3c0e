"""HTTP tools from an operator's OpenAPI description, with limits on hosts, time, size and redirects.

`openapi-llm` turns operations into JSON schemas. Its HTTP client is not used: it follows redirects to any host, does not escape
path parameters, also sends every argument in the body, and has no limits on size or total time. References to other files are
rejected: resolving one could read any file or address.
"""

import asyncio
import json
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import httpx
import jsonref  # type: ignore[import-untyped]
from haystack.tools.tool import Tool
from openapi_llm.core.schema_conversion import openai_converter
from openapi_llm.core.spec import VALID_HTTP_METHODS, OpenAPISpecification, create_operation_id
from openapi_llm.utils import normalize_function_name

from serve.config.http_tools import HttpToolConfig
from serve.config.yaml_file import parse_yaml
from serve.tools.haystack_tools import ToolError, make_tool

MAX_RESPONSE_BYTES = 64 << 10
MAX_DESCRIPTION_BYTES = 4 << 20
MAX_REDIRECTS = 3
_ERROR_CHARS = 300  # characters of an error's body


class HttpToolError(ValueError):
    """An HTTP tool that can't be built as configured; the message says which and why."""


@dataclass(slots=True, frozen=True)
class Operation:
    """An operation of the service: mapping of arguments to a request."""

    method: str
    base: str  # without a trailing slash
    path: str  # with {parameters}
    parameters: tuple[tuple[str, str], ...]  # (where, name): path, query or header
    body: frozenset[str] | None  # names of the arguments that are the body's properties; None without body
    is_whole_body: bool = False  # the argument `body` is the whole body


def http_tools(config: HttpToolConfig, environment: Mapping[str, str]) -> list[Tool]:
    """Build the tools of one service. Secrets are read from `environment` once and never appear in messages.

    Raises:
        HttpToolError: the description can't be read, names a host that is not allowed or lacks an operation, or a
            secret is not set.
    """
    try:
        headers = {name: _secret(environment, variable) for name, variable in config.headers_env.items()}
        spec = _description(config)
        caller = _Caller(config.hosts, config.timeout_s, headers, ssl.create_default_context())
        return [_tool(config, spec, path, method, caller) for path, method in _selected_operations(config, spec)]
    except HttpToolError as error:
        raise HttpToolError(f"HTTP tool '{config.name}': {error}") from error
    except RecursionError as error:
        raise HttpToolError(f"HTTP tool '{config.name}': a schema of the description contains itself") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        problem = f"the description is not OpenAPI 3 ({type(error).__name__}: {str(error)[:200]})"
        raise HttpToolError(f"HTTP tool '{config.name}': {problem}") from error


def check_url(url: httpx.URL, hosts: tuple[str, ...]) -> None:
    """Check that `url` has an allowed host, and https unless it is this machine. Raises `HttpToolError`."""
    loopback = url.host == "localhost" or (_is_address(url.host) and ip_address(url.host).is_loopback)
    if url.scheme != "https" and not (url.scheme == "http" and loopback):
        raise HttpToolError(f"'{url.host}' must be called by https")
    if url.userinfo:
        raise HttpToolError("an address must not contain a user name")
    host = f"[{url.host}]" if ":" in url.host else url.host
    if (f"{host}:{url.port}" if url.port else host) not in hosts:
        raise HttpToolError(f"the host '{host}{f':{url.port}' if url.port else ''}' is not allowed")


@dataclass(slots=True, frozen=True)
class _Caller:
    """HTTP client with limits on hosts, time, response size and content type."""

    hosts: tuple[str, ...]
    timeout_s: float
    headers: Mapping[str, str] = field(repr=False)
    tls: ssl.SSLContext

    async def call(self, operation: Operation, arguments: Mapping[str, Any]) -> str:
        """Call an operation; returns the response's text. Raises `ToolError`."""
        try:
            async with asyncio.timeout(self.timeout_s):
                return self._without_secrets(await self._call(operation, arguments))
        except ToolError as fault:
            raise ToolError(self._without_secrets(str(fault))) from None
        except (TimeoutError, httpx.TimeoutException):
            raise ToolError(f"no answer within {self.timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, HttpToolError, UnicodeError) as error:
            # Omit the error's text, which could contain a header.
            message = str(error) if isinstance(error, HttpToolError) else f"the call failed ({type(error).__name__})"
            raise ToolError(message) from None

    async def _call(self, operation: Operation, arguments: Mapping[str, Any]) -> str:
        url, headers, body = _request(operation, arguments)
        check_url(url, self.hosts)
        headers = (
            {"accept": "application/json, text/*;q=0.9", "accept-encoding": "identity"} | headers | {**self.headers}
        )
        options: dict[str, Any] = {"verify": self.tls, "timeout": self.timeout_s, "follow_redirects": False}
        async with httpx.AsyncClient(trust_env=False, **options) as client:
            for _ in range(MAX_REDIRECTS + 1):
                async with client.stream(operation.method, url, headers=headers, json=body) as response:
                    if not response.is_redirect:
                        return await _answer(response)
                    url = self._redirected(operation, url, response)
        raise ToolError(f"more than {MAX_REDIRECTS} redirects")

    def _redirected(self, operation: Operation, url: httpx.URL, response: httpx.Response) -> httpx.URL:
        """The redirect's target: allowed only on the same server and for read-only methods."""
        target = url.join(response.headers["location"])
        if operation.method != "GET":
            raise ToolError(f"HTTP {response.status_code}: only a GET is redirected")
        if (target.scheme, target.host, target.port) != (url.scheme, url.host, url.port) or target.userinfo:
            raise ToolError(f"HTTP {response.status_code}: a redirect to another server is not followed")
        return target

    def _without_secrets(self, text: str) -> str:
        """`text` with secrets removed, in case the service echoes them."""
        for value in self.headers.values():
            for secret in (value, value.rpartition(" ")[2]):  # the header's value, and the token after "Bearer"
                if len(secret) >= 4:
                    text = text.replace(secret, "[secret]")
        return text


async def _answer(response: httpx.Response) -> str:
    """The text of a response, truncated at the limit. Raises `ToolError`."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind == "application/json" or kind.endswith("+json")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise ToolError("the answer is compressed, which was not requested")
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > MAX_RESPONSE_BYTES:
            break
    cut = len(data) > MAX_RESPONSE_BYTES
    text = (
        bytes(data[:MAX_RESPONSE_BYTES]).decode(response.charset_encoding or "utf-8", errors="replace") if data else ""
    )
    readable = is_json or kind.startswith("text/")
    if not response.is_success:
        detail = " ".join(text.split())[:_ERROR_CHARS] if readable else ""
        raise ToolError(f"HTTP {response.status_code}{f': {detail}' if detail else ''}")
    if not data:
        return "(the answer is empty)"
    if not readable:
        raise ToolError(f"the answer is {kind or 'of no stated type'}; only JSON and text can be read")
    if is_json and not cut:
        try:
            json.loads(text)
        except ValueError:
            raise ToolError("the answer says that it is JSON and is not") from None
    return f"{text}\n[cut after {MAX_RESPONSE_BYTES >> 10} KiB]" if cut else text


def _request(operation: Operation, arguments: Mapping[str, Any]) -> tuple[httpx.URL, dict[str, str], Any]:
    """URL, headers and body (or None) for the arguments. Raises `ToolError`."""
    path = operation.path
    query: list[tuple[str, str | int | float | bool | None]] = []
    headers: dict[str, str] = {}
    for where, name in operation.parameters:
        if name not in arguments:
            continue
        value = arguments[name]
        if where == "path":
            path = path.replace(f"{{{name}}}", _escaped(name, value))
        elif where == "header":
            headers[name] = _text(value)
        else:
            query += [(name, _text(item)) for item in (value if isinstance(value, list) else [value])]
    if "{" in path or any(unquote(part) in (".", "..") for part in path.split("/")):
        raise ToolError("the path's parameters are missing or not allowed")
    body: Any = None
    if operation.is_whole_body:
        body = arguments.get("body")
    elif operation.body is not None:
        body = {name: arguments[name] for name in operation.body if name in arguments}
    url = httpx.URL(operation.base + path)
    return (url.copy_merge_params(query) if query else url), headers, body


def _escaped(name: str, value: Any) -> str:
    """Escape `value` as one path segment, safe even if a server decodes it repeatedly."""
    text = decoded = _text(value)
    for _ in range(3):
        decoded = unquote(decoded)
    if not text or any(part in ("", ".", "..") for part in re.split(r"[/\\]", decoded)) or not decoded.isprintable():
        raise ToolError(f"'{name}' cannot be part of a path")
    return quote(text, safe="")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _secret(environment: Mapping[str, str], variable: str) -> str:
    value = environment.get(variable, "").strip()
    if not value:
        raise HttpToolError(f"the environment variable {variable} is not set")
    if not value.isascii() or not value.isprintable():
        raise HttpToolError(f"the value of the environment variable {variable} is not a valid header value")
    return value


def _description(config: HttpToolConfig) -> dict[str, Any]:
    """The OpenAPI description with its references resolved; external references are rejected."""
    text = config.openapi_spec
    if "\n" not in text and not text.lstrip().startswith("{"):
        try:
            with Path(text).open("rb") as file:
                text = file.read(MAX_DESCRIPTION_BYTES + 1).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise HttpToolError(f"the description '{text}' cannot be read ({type(error).__name__})") from error
    if len(text) > MAX_DESCRIPTION_BYTES:
        raise HttpToolError(f"the description is larger than {MAX_DESCRIPTION_BYTES >> 20} MiB")
    try:
        is_json = text.lstrip().startswith("{")
        spec = json.loads(text) if is_json else parse_yaml(text, "the description", lenient=True).data
        if not isinstance(spec, dict) or not str(spec.get("openapi", "")).startswith("3."):
            raise HttpToolError("the description is not OpenAPI 3")
        _reject_external_references(spec)
        resolved: dict[str, Any] = jsonref.replace_refs(spec, proxies=False, lazy_load=False)
    except (ValueError, jsonref.JsonRefError) as error:
        if isinstance(error, HttpToolError):
            raise
        raise HttpToolError(f"the description cannot be read: {' '.join(str(error).split())[:200]}") from error
    return resolved


def _reject_external_references(node: Any) -> None:
    if isinstance(node, dict):
        if isinstance(target := node.get("$ref"), str) and not target.startswith("#"):
            raise HttpToolError(
                f"the description refers to '{target[:100]}'; only references within it (#/…) are followed"
            )
        node = list(node.values())
    if isinstance(node, list):
        for inner in node:
            _reject_external_references(inner)


def _selected_operations(config: HttpToolConfig, spec: dict[str, Any]) -> list[tuple[str, str]]:
    """(path, method) of the operations that become tools."""
    operations = {
        operation.get("operationId") or create_operation_id(path, method): (path, method)
        for path, methods in spec["paths"].items()
        for method, operation in methods.items()
        if method.lower() in VALID_HTTP_METHODS
    }
    if config.operations is None:
        chosen = [place for place in operations.values() if place[1].lower() == "get"]
        if not chosen:
            raise HttpToolError("the description has no GET; name other operations in `operations`")
        return chosen
    for name in config.operations:
        if name not in operations:
            raise HttpToolError(f"there is no operation '{name}'; there are {', '.join(sorted(operations)[:20])}")
    return [operations[name] for name in config.operations]


def _tool(config: HttpToolConfig, spec: dict[str, Any], path: str, method: str, caller: _Caller) -> Tool:
    item = spec["paths"][path]
    raw = item[method]
    name = raw.get("operationId") or create_operation_id(path, method)
    own = {(parameter["in"], parameter["name"]) for parameter in raw.get("parameters", ())}
    inherited = [
        parameter for parameter in item.get("parameters", ()) if (parameter["in"], parameter["name"]) not in own
    ]
    # Only the platform sends secrets, and cookies are never sent.
    reserved = {header.lower() for header in config.headers_env} | {"authorization", "cookie", "host"}
    parameters = [
        parameter
        for parameter in [*raw.get("parameters", ()), *inherited]
        if parameter["in"] in ("path", "query")
        or (parameter["in"] == "header" and parameter["name"].lower() not in reserved)
    ]
    described = raw.get("description") or raw.get("summary") or f"{method.upper()} {path}"
    operation = {**raw, "operationId": name, "parameters": parameters, "description": described}
    one_operation = {"openapi": spec["openapi"], "paths": {path: {method: operation}}}
    function = openai_converter(OpenAPISpecification(one_operation))[0]["function"]
    schema: dict[str, Any] = function["parameters"]
    body = (raw.get("requestBody") or {}).get("content")
    if body is not None and "application/json" not in body:
        raise HttpToolError(f"'{name}' takes {', '.join(body) or 'no known body'}; only JSON is sent")
    shape = body["application/json"].get("schema", {}) if body else {}
    is_whole = body is not None and "properties" not in shape
    if is_whole:
        schema["properties"]["body"] = {key: shape[key] for key in ("type", "description") if key in shape}
        if raw["requestBody"].get("required"):
            schema.setdefault("required", []).append("body")
    for parameter in parameters:  # path parameters are always required, whatever the description says
        if parameter["in"] == "path" and parameter["name"] not in schema.setdefault("required", []):
            schema["required"].append(parameter["name"])
    schema["additionalProperties"] = False
    if "required" in schema:
        schema["required"] = sorted(set(schema["required"]))
    compiled = Operation(
        method.upper(),
        _base(config, [raw, item, spec]),
        path,
        tuple((parameter["in"], parameter["name"]) for parameter in parameters),
        None if body is None or is_whole else frozenset(shape["properties"]),
        is_whole,
    )
    return make_tool(
        normalize_function_name(f"{config.name}_{name}"),
        " ".join(str(described).split())[:1024],
        json.loads(json.dumps(schema)),
        lambda arguments: caller.call(compiled, arguments),
    )


def _base(config: HttpToolConfig, levels: list[dict[str, Any]]) -> str:
    """The base URL of an operation. Raises `HttpToolError` when it is not allowed."""
    server: dict[str, Any] = next((level["servers"][0] for level in levels if level.get("servers")), {"url": "/"})
    address = str(server["url"])
    for variable, about in (server.get("variables") or {}).items():
        address = address.replace(f"{{{variable}}}", str(about.get("default", "")))
    if address.startswith("/"):
        if len(config.hosts) > 1:
            raise HttpToolError(f"the server '{address}' names no host, and several are allowed")
        address = f"https://{config.hosts[0]}{address}"
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL as error:
        raise HttpToolError(f"the server '{address[:100]}' is not an address") from error
    check_url(url, config.hosts)
    if url.query or url.fragment:
        raise HttpToolError(f"the server '{address[:100]}' has a query")
    return address.rstrip("/")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
