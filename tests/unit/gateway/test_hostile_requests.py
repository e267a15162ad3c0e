"""Unusual, contradictory and malicious requests: the right status in the documented format, and never a 500."""

import http.client
import json
import re
import socket
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.lib.sample_catalog import MODEL
from benchmarks.lib.scripted_retrieval import FakeRetrieval
from serve.request.json_body import MAX_DEPTH
from tests.support.answers import EVERY_PATH, MESSAGES, error_of
from tests.support.gateway_server import Start, Started

JSON = {"content-type": "application/json"}
POSTS = [*(path for path, method in EVERY_PATH.items() if method == "POST"), "/v1/documents"]
GETS = [
    *(path for path, method in EVERY_PATH.items() if method == "GET"),
    "/v1/models/smollm2-135m",
    "/v1/documents",
    "/openapi.json",
    "/docs",
    "/ui",
]
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": MODEL, "messages": MESSAGES},
    "/v1/completions": {"model": MODEL, "prompt": "hello"},
    "/v1/route": {"model": MODEL, "messages": MESSAGES},
    "/v1/search": {"query": "hello", "collection": "docs"},
    "/v1/embeddings": {"input": "hello"},
    "/v1/documents": {"source": "a", "content": "hello", "collection": "docs"},
}
NOT_JSON = [
    b"", b" ", b"{", b"}", b"hello", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b"{'a': 1}",
    b'{"a": 1,}', b'{"a": [1,]}', b'{"a": NaN}', b'{"a": Infinity}', b'{"a": -Infinity}', b'{"a": 1e999}', b'{"a": 01}',
    b'{"a": "\\ud800"}', b'{"a": "\\udc00\\ud800"}', b'{"\\ud800": 1}', b'{"a": "\xff"}', b'{"a": "\xed\xa0\x80"}',
    b'{"a": "\n"}', b'{"a": 1} {"a": 1}', b'{"a" 1}', b"{} // comment", b'{"a": "\\x41"}', b"\x1f\x8b\x08\x00",
]  # fmt: skip


def not_json(path: str) -> tuple[str, ...]:
    """Codes of what is no JSON; a document's body is read field by field, and its shape is seen first."""
    return ("invalid_json", "invalid_body", "invalid_field") if path == "/v1/documents" else ("invalid_json",)


every_post = pytest.mark.parametrize("path", POSTS)


@pytest.fixture
def whole(start_gateway: Start) -> Started:
    """A gateway with everything, documents too."""
    return start_gateway(searches=FakeRetrieval(), retrieval={"collection": "docs"})


def post(gateway: Started, path: str, raw: bytes, **headers: str) -> httpx.Response:
    response = gateway.http.post(path, content=raw, headers={**JSON, **headers})
    gateway.finish()
    return response


def nested(levels: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * levels + closing * levels


def with_member(path: str, name: str, value: bytes) -> bytes:
    """A body that is otherwise valid; `name` comes last."""
    body = {key: given for key, given in VALID[path].items() if key != name}
    return json.dumps(body).encode()[:-1] + b', "' + name.encode() + b'": ' + value + b"}"


class TestBodies:
    @every_post
    def test_the_valid_bodies_of_these_tests_are_valid(self, whole: Started, path):
        assert whole.post(path, VALID[path]).status_code == 200

    @every_post
    def test_deep_nesting_is_400(self, whole: Started, path, subtests: pytest.Subtests):
        """255 levels are read by orjson but not written, 1000 break Python's own JSON, pydantic and templates."""
        for levels in (MAX_DEPTH + 1, 128, 255, 600, 1023, 1025, 100_000):
            mixed = nested(levels // 2, b'{"a":[', b"]}") + b"\n" if levels % 2 == 0 else nested(levels)
            for raw in (nested(levels), mixed):
                with subtests.test(f"{levels} levels of {raw[:6]!r}"):
                    assert error_of(post(whole, path, raw), 400)["code"] in not_json(path)
        assert whole.engine_calls() == {}

    @pytest.mark.parametrize(
        ("path", "name"),
        [
            ("/v1/chat/completions", name)
            for name in ("tools", "messages", "metadata", "response_format", "budget", "retrieval", "logit_bias", "stop",
                         "stream_options", "chat_template_kwargs", "anything")
        ]
        + [("/v1/completions", "prompt"), ("/v1/completions", "guided_json"), ("/v1/route", "tools"),
           ("/v1/documents", "meta"), ("/v1/search", "filters"), ("/v1/embeddings", "input")],
    )  # fmt: skip
    def test_deep_nesting_in_any_member_is_400(self, whole: Started, path, name):
        for opening, closing in ((b"[", b"]"), (b'{"a": ', b"}"), (b'{"type": "object", "properties": {"a": ', b"}}")):
            inner = opening * 300 + b"1" + closing * 300
            error_of(post(whole, path, with_member(path, name, inner)), 400)
        assert whole.engine_calls() == {}

    def test_nesting_up_to_the_limit_reaches_the_engine_as_it_is(self, gateway: Started):
        path, inner = "/v1/chat/completions", nested(MAX_DEPTH - 1)
        assert post(gateway, path, with_member(path, "metadata", inner)).status_code == 200
        assert gateway.engines["full"].requests[0]["metadata"] == json.loads(inner)

    def test_many_brackets_are_no_nesting(self, gateway: Started):
        messages = [{"role": "user", "content": "[[[{{{" * 200}] * 300
        assert gateway.post("/v1/chat/completions", {"model": MODEL, "messages": messages}).status_code in (200, 413)
        wide = json.dumps([[]] * 500).encode()
        assert post(gateway, "/v1/completions", with_member("/v1/completions", "x", wide)).status_code == 200

    @every_post
    def test_what_is_not_json_is_400(self, whole: Started, path, subtests: pytest.Subtests):
        for raw in NOT_JSON:
            with subtests.test(repr(raw)):
                assert error_of(post(whole, path, raw), 400)["code"] in not_json(path)

    def test_lone_surrogates_in_a_valid_body_are_400(self, gateway: Started):
        raw = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "\ud83d"}]}).encode()
        assert b"\\ud83d" in raw
        assert error_of(post(gateway, "/v1/chat/completions", raw), 400)["code"] == "invalid_json"

    @every_post
    def test_json_of_another_shape_is_400(self, whole: Started, path, subtests: pytest.Subtests):
        for raw in (b"[]", b"null", b"1", b'"x"', b"true", b"1e3", b"{}"):
            with subtests.test(repr(raw)):
                error_of(post(whole, path, raw), 400)

    def test_of_a_member_given_twice_the_last_counts_for_gateway_and_engine(self, gateway: Started):
        raw = b'{"model": "nothing", "model": "' + MODEL.encode() + b'", "messages": [], "messages": '
        raw += json.dumps(MESSAGES).encode() + b', "max_tokens": 1, "max_tokens": 7}'
        assert post(gateway, "/v1/chat/completions", raw).status_code == 200
        (received,) = gateway.engines["full"].requests
        assert (received["messages"], received["max_tokens"]) == (MESSAGES, 7)

    @pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
    @pytest.mark.parametrize("value", [b"1" * 40, b"1" * 400, b"1e300", b"-1", b"0", b"1.5", b'"7"', b"true", b"[]"])
    def test_a_number_that_is_none_is_400(self, gateway: Started, name, value):
        raw = with_member("/v1/chat/completions", name, value)
        error_of(post(gateway, "/v1/chat/completions", raw), 400)

    @pytest.mark.parametrize("value", [2**31, 2**53, 2**63 - 1, 2**64 - 1])
    def test_a_huge_number_is_no_500(self, gateway: Started, value):
        response = gateway.chat(max_tokens=value, seed=value)
        assert response.status_code in (200, 400, 413)

    @pytest.mark.parametrize("coding", ["gzip", "br", "deflate, gzip", "GZIP"])
    def test_a_compressed_body_is_415(self, gateway: Started, coding):
        error = error_of(post(gateway, "/v1/chat/completions", b"\x1f\x8b", **{"content-encoding": coding}), 415)
        assert (error["code"], error["param"]) == ("unsupported_content_encoding", "content-encoding")

    @settings(
        max_examples=100, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(data=st.data())
    def test_any_json_in_any_member_is_answered_without_a_500(self, whole: Started, data):
        value = st.recursive(
            st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=6,
        )
        path = data.draw(st.sampled_from(POSTS))
        names = sorted({*VALID[path], "stream", "stream_options", "tools", "max_tokens", "budget", "retrieval", "stop", "n",
                        "cache_salt", "meta", "filters", "top_k", "min_score", "dimensions", "data", "type", "mode", "title"})  # fmt: skip
        body = VALID[path] | data.draw(st.dictionaries(st.sampled_from(names), value, max_size=3))
        raw = json.dumps(body).encode()
        response = post(whole, path, raw)
        assert response.status_code != 500, raw
        if response.status_code >= 400:
            error_of(response, response.status_code)


class TestMethods:
    @pytest.mark.parametrize("path", GETS)
    def test_head_is_get_without_the_body(self, whole: Started, path):
        get, head = whole.http.get(path), whole.http.head(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        same = {"content-type", "content-length", "etag", "cache-control"}
        assert {n: v for n, v in head.headers.items() if n in same} == {
            n: v for n, v in get.headers.items() if n in same
        }

    def test_head_of_what_is_not_there_has_no_body_either(self, gateway: Started):
        for path, status in (("/v1/nothing", 404), ("/v1/models/none", 404), ("/v1/chat/completions", 405)):
            response = gateway.http.head(path)
            assert (response.status_code, response.content) == (status, b"")

    def test_after_head_the_connection_goes_on(self, gateway: Started):
        host, port = gateway.url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=5)
        for method in ("HEAD", "GET", "HEAD", "GET"):
            connection.request(method, "/v1/models")
            response = connection.getresponse()
            assert response.status == 200
            assert bool(response.read()) == (method == "GET")
        connection.close()

    @pytest.mark.parametrize(
        ("path", "methods"),
        [*((path, "GET, HEAD, OPTIONS") for path in GETS if path != "/v1/documents"),
         *((path, "POST, OPTIONS") for path in POSTS if path != "/v1/documents"),
         ("/v1/documents", "POST, GET, DELETE, HEAD, OPTIONS")],
    )  # fmt: skip
    def test_options_tells_the_methods(self, whole: Started, path, methods):
        response = whole.http.options(path)
        assert (response.status_code, response.content, response.headers["allow"]) == (204, b"", methods)

    def test_options_of_an_unknown_path_is_404(self, gateway: Started):
        error_of(gateway.http.options("/v1/nothing"), 404)


class TestHeaders:
    @pytest.mark.parametrize(
        ("name", "first", "second"),
        [("content-type", "text/plain", "application/json"), ("authorization", "Bearer a", "Bearer b"),
         ("origin", "https://a.example", "http://localhost"),
         ("x-gearbox-max-cost", "0.01", "100"), ("X-Gearbox-Min-Quality", "1", "0"), ("x-llm-d-slo-ttft-ms", "1", "2"),
         ("x-request-id", "a", "b"), ("content-encoding", "gzip", "identity"), ("sec-fetch-site", "cross-site", "none")],
    )  # fmt: skip
    def test_headers_that_contradict_each_other_are_400(self, gateway: Started, name, first, second):
        headers = [(name, first), (name, second)]
        headers += [] if name == "content-type" else [("content-type", "application/json")]
        response = gateway.http.post("/v1/chat/completions", content=b"{}", headers=headers)
        error = error_of(response, 400)
        assert (error["code"], error["param"]) == ("conflicting_headers", name.lower())
        assert name.lower() in error["message"]

    def test_headers_that_say_the_same_twice_or_are_lists_pass(self, gateway: Started):
        headers = [("x-request-id", "a"), ("x-request-id", "a"), ("accept", "a/b"), ("accept", "c/d"), ("cookie", "a=1"),
                   ("cookie", "b=2"), ("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2")]  # fmt: skip
        assert gateway.http.get("/v1/models", headers=headers).status_code == 200

    @pytest.mark.parametrize(
        "id_", [b"", b"a" * 129, b"\xff\xfe", "größe".encode(), b"a\tb", b"{}" * 64, b"'; drop --"]
    )
    def test_a_request_id_reaches_the_engine_only_where_it_is_harmless(self, gateway: Started, id_):
        headers = {b"x-request-id": id_, b"content-type": b"application/json"}
        raw = json.dumps(VALID["/v1/chat/completions"]).encode()
        response = gateway.http.post("/v1/chat/completions", content=raw, headers=headers)
        assert response.status_code == 200
        (received,) = (
            {name.lower(): value for name, value in each.items()} for each in gateway.engines["full"].headers
        )
        assert re.fullmatch(r"[ -~]{1,140}", received["x-request-id"])


class TestPaths:
    @pytest.mark.parametrize(
        "path",
        ["//v1/models", "/v1//models", "/v1/models/../models", "/V1/models", "/v1%2Fmodels/x", "/v1/models%00", "/v1/./models",
         "/v1/models;a=b", "/v1/models/", "/v1/models/a%2Fb", "/v1/models/%ff", "/v1/models/" + "a" * 5000, "/%", "/%zz",
         "/healthz/", "/v1/models/%0d%0aset-cookie:%20a=b"],
    )  # fmt: skip
    def test_a_path_that_is_not_exactly_one_is_404(self, gateway: Started, path):
        host, port = gateway.url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=5)
        connection.putrequest("GET", path)
        connection.endheaders()
        response = connection.getresponse()
        body = json.loads(response.read())
        connection.close()
        assert response.status == 404
        assert response.getheader("set-cookie") is None
        assert len(body["error"]["message"]) < 1000


class TestProtocol:
    def raw(self, gateway: Started, request: bytes) -> bytes:
        host, port = gateway.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(request)
            answer = b""
            while part := connection.recv(65536):
                answer += part
        return answer

    def test_http_1_0_without_a_host_is_answered(self, gateway: Started):
        assert self.raw(gateway, b"GET /v1/models HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")

    def test_a_client_that_asks_first_may_send_its_body(self, gateway: Started):
        body = json.dumps(VALID["/v1/chat/completions"]).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\nconnection: close\r\n"
        head += b"content-type: application/json\r\ncontent-length: " + str(len(body)).encode() + b"\r\n\r\n"
        answer = self.raw(gateway, head + body)
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")

    def test_a_client_that_asks_first_is_refused_before_it_sends(self, gateway: Started):
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: evil.example\r\nexpect: 100-continue\r\nconnection: close\r\n"
        )
        answer = self.raw(gateway, head + b"content-type: application/json\r\ncontent-length: 9\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 403 ")
