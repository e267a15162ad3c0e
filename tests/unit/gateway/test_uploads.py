"""Document uploads: limits on concurrent bodies and their memory, and the gateway's responsiveness meanwhile."""

import asyncio
import base64
import binascii
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from benchmarks.lib.scripted_retrieval import FakeRetrieval
from serve.config.retrieval import RetrievalConfig
from serve.errors import RequestError
from serve.gateway.documents_api import _SLICE, Documents
from serve.gateway.http import BodyMemory, read_body
from tests.support.answers import error_of
from tests.support.gateway_server import GatewayServer, Start, Started

LARGE = 4 << 20  # bytes of a document
JSON_BODY = {"content-type": "application/json"}


class Slow(FakeRetrieval):
    """Retrieval whose indexing waits for `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.indexing = 0

    async def _index(self, **arguments: Any) -> dict[str, Any]:
        self.indexing += 1
        while not self.go.is_set():
            await asyncio.sleep(0.005)
        return await super()._index(**arguments)


class Upload(threading.Thread):
    """A document that is sent in the background."""

    def __init__(self, gateway: Started, size: int) -> None:
        super().__init__(daemon=True)
        self.gateway, self.size, self.status = gateway, size, 0
        self.start()

    def run(self) -> None:
        body = {"source": f"{self.ident}.txt", "content": "x" * self.size}
        self.status = self.gateway.http.post("/v1/documents", json=body).status_code


def bounded(start_gateway: Start, searches: FakeRetrieval, uploads: int = 3) -> Started:
    """A gateway that holds 3 MiB of documents."""
    gateway = start_gateway(searches=searches, retrieval={"max_document_bytes": 1 << 20})
    gateway.app._uploads = BodyMemory(3 << 20, uploads, "too_many_uploads")
    return gateway


def until(happened: Any) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def slow() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.go.set()


class TestMemory:
    @pytest.mark.parametrize(("size", "fit"), [(10, 3), (1_000_000, 3), (1_040_000, 3), (1 << 20, 2)])
    def test_uploads_over_the_concurrent_limits_are_rejected_with_retry_after(
        self, start_gateway: Start, slow: Slow, size, fit
    ):
        gateway = bounded(start_gateway, slow)
        uploads = []
        for i in range(fit):
            uploads.append(Upload(gateway, size))
            until(lambda i=i: slow.indexing == i + 1)
        refused = gateway.http.post("/v1/documents", json={"source": "a", "content": "x" * size})
        assert error_of(refused, 429)["code"] == "too_many_uploads"
        assert int(refused.headers["retry-after"]) >= 1
        assert gateway.http.get("/v1/models").status_code == 200, "others are answered"
        assert gateway.http.post("/v1/search", json={"query": "x"}).status_code == 200
        slow.go.set()
        for upload in uploads:
            upload.join()
        assert [upload.status for upload in uploads] == [200] * fit
        assert gateway.http.post("/v1/documents", json={"source": "a", "content": "x" * size}).status_code == 200

    def test_refused_and_broken_ones_give_their_room_back(self, start_gateway: Start, retrieval: FakeRetrieval):
        gateway = bounded(start_gateway, retrieval)
        for content in (b"{", b"[]", b"x" * (2 << 20), b"x" * (3 << 20), b'{"source": "a", "content": 5}'):
            for _ in range(4):
                assert gateway.http.post("/v1/documents", content=content, headers=JSON_BODY).status_code in (400, 413)
        retrieval.error = RequestError(503, "down", code="store_unavailable")
        for _ in range(4):
            assert gateway.http.post("/v1/documents", content=iter([b"{", b"}"]), headers=JSON_BODY).status_code == 400
        memory = gateway.app._uploads
        for _ in range(4):
            host, port = gateway.url.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(
                    b"POST /v1/documents HTTP/1.1\r\ncontent-type: application/json\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n"
                    + b"x" * 900_000
                )
                until(lambda: memory.bytes == 900_000)
            until(lambda: memory.bodies == 0)
        largest = {"source": "a", "content": "x" * (1 << 20)}
        assert gateway.post("/v1/documents", largest).status_code == 200  # and until its room is given back
        assert (memory.bytes, memory.bodies) == (0, 0)

    def test_a_body_of_unknown_length_counts_as_it_arrives(self, start_gateway: Start, slow: Slow):
        gateway = bounded(start_gateway, slow)
        uploads = [Upload(gateway, 1 << 20), Upload(gateway, 1 << 20)]
        until(lambda: slow.indexing == 2)
        parts = (b" " * (1 << 17) for _ in range(12))
        assert (
            error_of(gateway.http.post("/v1/documents", content=parts, headers=JSON_BODY), 429)["code"]
            == "too_many_uploads"
        )
        slow.go.set()
        for upload in uploads:
            upload.join()

    def test_who_declares_much_and_sends_little_holds_little(self, start_gateway: Start, retrieval: FakeRetrieval):
        gateway = bounded(start_gateway, retrieval, 50)
        host, port = gateway.url.removeprefix("http://").split(":")
        idle = []
        for _ in range(20):
            one = socket.create_connection((host, int(port)))
            one.sendall(
                b"POST /v1/documents HTTP/1.1\r\ncontent-type: application/json\r\nhost: localhost\r\ncontent-length: 2000000\r\n\r\n{"
            )
            idle.append(one)
        until(lambda: gateway.app._uploads.bodies == 20)
        largest = {"source": "a", "content": "x" * (1 << 20)}
        assert gateway.http.post("/v1/documents", json=largest).status_code == 200
        for one in idle:
            one.close()
        gateway.finish()

    def test_bodies_of_other_paths_are_bounded_too(self, gateway: Started):
        gateway.app._bodies = BodyMemory(10_000)
        assert gateway.chat("x" * 100).status_code == 200
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/route", "/v1/search", "/v1/embeddings"):
            refused = gateway.post(path, {"model": "x", "prompt": "x" * 20_000})
            assert error_of(refused, 429)["code"] == "too_many_bodies"
        assert gateway.chat("x" * 100).status_code == 200
        assert gateway.app._bodies.bytes == 0

    async def test_a_client_that_stops_sending_is_let_go(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("serve.gateway.http._BODY_WAIT_S", 0.02)
        memory = BodyMemory(100)
        messages = iter([{"type": "http.request", "body": b"x" * 60, "more_body": True}])

        async def receive() -> dict[str, Any]:
            try:
                return next(messages)
            except StopIteration:
                await asyncio.Event().wait()
                raise AssertionError from None

        with pytest.raises(RequestError) as caught, memory.body() as held:
            await read_body(receive, {}, 100, held)
        assert (caught.value.status, caught.value.code) == (408, "body_timeout")
        assert memory.bytes == memory.bodies == 0

    def test_four_of_the_largest_documents_are_held(self):
        config = RetrievalConfig(max_document_bytes=1 << 20, max_concurrent_uploads=3)
        memory = Documents(config, FakeRetrieval()).uploads()
        assert memory.fits(4 * config.max_upload_bytes) and not memory.fits(4 * config.max_upload_bytes + 1)
        with memory.body(), memory.body(), memory.body(), pytest.raises(RequestError), memory.body():
            pass


def large(kind: str) -> bytes:
    """A document's body of about `LARGE` bytes."""
    if kind == "data":
        return orjson.dumps({"source": "a.pdf", "data": base64.b64encode(os.urandom(LARGE)).decode()})
    word = {"ascii": "lorem ipsum, ", "cjk": "漢字かな"}[kind]
    return orjson.dumps({"source": "a.txt", "content": word * (LARGE // len(word.encode()))})


class TestEventLoop:
    @pytest.mark.parametrize("kind", ["data", "ascii", "cjk"])
    def test_it_runs_while_a_large_document_is_parsed(
        self,
        start_gateway: Start,
        _server: GatewayServer,
        retrieval: FakeRetrieval,
        monkeypatch: pytest.MonkeyPatch,
        kind,
    ):
        gateway = start_gateway(searches=retrieval, retrieval={})
        turns = 0
        at_slices: list[int] = []

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        def noted(decode: Any) -> Any:
            def decode_slice(*given: Any, **options: Any) -> Any:
                at_slices.append(turns)
                time.sleep(0.001)  # the loop has a turn now, unless this is its own thread
                return decode(*given, **options)

            return decode_slice

        for module, name in ((orjson, "loads"), (binascii, "a2b_base64")):
            monkeypatch.setattr(module, name, noted(getattr(module, name)))
        counting = asyncio.run_coroutine_threadsafe(count(), _server._loop)
        try:
            response = gateway.http.post("/v1/documents", content=large(kind), headers=JSON_BODY)
        finally:
            counting.cancel()
        assert response.status_code == 200
        assert len(set(at_slices)) > 4, "the loop had turns between the slices"


async def decoded(body: bytes, **settings: Any) -> dict[str, Any]:
    retrieval = FakeRetrieval()
    await Documents(RetrievalConfig(**settings), retrieval).add("acme", body)
    (arguments,) = retrieval.calls_of("index")
    return arguments


async def refused(body: bytes, **settings: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await decoded(body, **settings)
    return caught.value


def peak_kib() -> int:
    """Peak of this process' resident memory."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1])


class TestDecoding:
    @pytest.mark.parametrize("size", [0, 1, 2, 3, 196_607, 196_608, 196_609, 1_000_000])
    async def test_base64_of_any_length(self, size):
        data = os.urandom(size)
        for encode in (orjson.dumps, lambda document: orjson.dumps(document).replace(b"/", b"\\/")):
            arguments = await decoded(encode({"data": base64.b64encode(data).decode(), "source": "a.pdf"}))
            assert arguments["data"] == data

    @pytest.mark.parametrize(
        "data",
        ["no base64!", "a", "YQ", "YQ=", "YQ===", "YQ==YQ==", "=", "YWI=\n", "ä", "A" * 262_140 + "YQ==" + "AAAA" * 9, "AAAA" * 65_536 + "A"],
    )  # fmt: skip
    async def test_what_is_no_base64(self, data):
        error = await refused(orjson.dumps({"source": "a.pdf", "data": data}))
        assert (error.status, error.code, error.param) == (400, "invalid_base64", "data")

    @pytest.mark.parametrize(
        "content",
        ["", "grüß\n\t\"x\" \\ /", "漢字 😀", "\u0000", "x", "\\", "\n", "漢", "é", "\\\\ ", " \\", "a b", "😀", "\t😀\"", "'"],
    )  # fmt: skip
    async def test_text_arrives_as_it_is(self, content):
        for repeated in (1, 2 * _SLICE // len(content or "x") + 7):
            document = {"content": content * repeated, "source": "a"}
            for body in (orjson.dumps(document), json.dumps(document, indent=4).encode()):
                assert (await decoded(body))["data"] == document["content"].encode()

    @pytest.mark.parametrize("bad", [b"\\", b"\\x", b"\\u12", b"\\ud800", b"\xc3", b"\xff", b"\n"])
    @pytest.mark.parametrize("after", [b" ", "é".encode()])
    async def test_text_that_is_broken_where_it_would_be_cut_is_refused(self, bad, after):
        for shift in range(-2, 3):
            text = b"x" * (_SLICE - len(bad) + shift) + bad + after + b"x" * _SLICE
            error = await refused(b'{"source":"a","content":"%b"}' % text)
            assert (error.status, error.code) == (400, "invalid_json")

    async def test_null_is_left_out(self):
        arguments = await decoded(
            b'{"source":"a","content":"x","data":null,"title":null,"meta":null,"collection":null,"type":null}'
        )
        assert (arguments["collection"], arguments["meta"], arguments["title"], arguments["kind"]) == (
            "default",
            {},
            None,
            "text; charset=utf-8",
        )

    @pytest.mark.parametrize(
        ("body", "code", "param"),
        [
            (b"", "invalid_json", None), (b"{", "invalid_json", None), (b"null", "invalid_body", None), (b"[]", "invalid_body", None),
            (b'"x"', "invalid_body", None), (b"{}", "invalid_field", "source"), (b'{"source":"a"}', "invalid_document", "content"),
            (b'{"source":"a","content":"x"} x', "invalid_json", None), (b'{"source":"a","content":"\xff"}', "invalid_json", None),
            (b'{"source":"\xff","content":"x"}', "invalid_json", None), (b'{"source":"a","content":"\\ud800"}', "invalid_json", None),
            (b'{"source":"a","data":"\\ud800"}', "invalid_json", None), (b'{"source":"a","content":["x"]}', "invalid_field", "content"),
            (b'{"source":"a","content":{}}', "invalid_field", "content"), (b'{"source":"a","data":5}', "invalid_field", "data"),
            (b'{"source":"a","content":"x","a`b":1}', "invalid_field", "a`b"), (b'{"source":"a","meta":' + b"[" * 100_000, "invalid_json", None),
            (b'{"source":"a","content":"x","meta":NaN}', "invalid_json", None), (b'{"source":"a","content":nul}', "invalid_json", None),
            (b'{"source":"' + b"x" * 200_000 + b'","content":"x"}', "invalid_field", "source"),
        ],
    )  # fmt: skip
    async def test_what_is_no_document(self, body, code, param):
        error = await refused(body)
        assert (error.status, error.code, error.param) == (400, code, param)
        assert len(error.message) < 300

    async def test_the_limit_is_of_the_document_and_not_of_its_encoding(self):
        for size, accepted in ((1024, True), (1025, False)):
            for body in (
                {"content": "ü" * (size // 2) + "x" * (size % 2)},
                {"data": base64.b64encode(b"x" * size).decode()},
            ):
                raw = orjson.dumps({"source": "a", **body})
                if accepted:
                    assert len((await decoded(raw, max_document_bytes=1024))["data"]) == size
                else:
                    assert (await refused(raw, max_document_bytes=1024)).status == 413

    async def test_a_body_of_many_small_values_does_not_become_many_objects(self):
        body = b'{"source":"a","content":"x","meta":{"a":[' + b",".join([b"{}"] * 10_000_000) + b"]}}"
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of earlier tests
        before = peak_kib()
        error = await refused(body)
        assert (error.status, error.param) == (400, "meta")
        assert peak_kib() - before < 200_000
