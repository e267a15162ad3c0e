"""Collections named in requests: missing ones, empty default ones, and invalid names."""

import pytest

from benchmarks.lib.sample_catalog import MODEL
from benchmarks.lib.scripted_retrieval import QUESTION, FakeRetrieval
from tests.support.answers import ask, error_of, gearbox_of, streamed_or_not, text_of
from tests.support.gateway_server import Start, Started


class TestCollections:
    @pytest.mark.parametrize(
        ("body", "headers", "model", "param"),
        [
            ({}, {}, f"{MODEL}+gone", "model"), ({}, {}, f"{MODEL}@fast+gone", "model"), ({}, {}, f"{MODEL}:int8+gone", "model"),
            ({"retrieval": True}, {}, f"{MODEL}+gone", "model"),
            ({"retrieval": {"collection": "gone"}}, {}, MODEL, "retrieval.collection"),
            ({"retrieval": {"collection": "gone"}}, {}, f"{MODEL}+docs", "retrieval.collection"),
            ({"retrieval": {"collection": "gone", "on_unsupported": "answer"}}, {}, MODEL, "retrieval.collection"),
            ({"retrieval": {"collection": "gone", "agent": True}}, {}, MODEL, "retrieval.collection"),
            ({"retrieval": {"agent": True}}, {}, f"{MODEL}+gone", "model"),
        ],
    )  # fmt: skip
    @streamed_or_not
    def test_one_that_does_not_exist_is_404_and_nothing_is_generated(
        self, grounded: Started, retrieval: FakeRetrieval, body, headers, model, param, stream
    ):
        retrieval.missing = {"gone"}
        error = error_of(grounded.chat(QUESTION, model=model, headers=headers, stream=stream, **body), 404)
        assert (error["code"], error["param"]) == ("collection_not_found", param)
        assert "gone" in error["message"]
        assert grounded.engine_calls() == {} and retrieval.calls_of("agent") == []
        request = {"model": model, "messages": [{"role": "user", "content": QUESTION}], **body}
        assert error_of(grounded.post("/v1/route", request), 404) == error

    @pytest.mark.parametrize(
        ("body", "headers", "param"),
        [
            ({"retrieval": True}, {}, "retrieval"), ({"retrieval": {"top_k": 2}}, {}, "retrieval"),
            ({}, {"x-gearbox-retrieval": "on"}, "x-gearbox-retrieval"),
        ],
    )  # fmt: skip
    def test_the_default_one_that_nobody_filled_is_404_for_who_asks(
        self, grounded: Started, retrieval: FakeRetrieval, body, headers, param
    ):
        retrieval.missing = {"docs"}
        error = error_of(grounded.chat(QUESTION, headers=headers, **body), 404)
        assert (error["code"], error["param"]) == ("collection_not_found", param)

    def test_the_default_one_that_nobody_filled_leaves_other_requests_alone(
        self, start_gateway: Start, retrieval: FakeRetrieval
    ):
        gateway = start_gateway(searches=retrieval, retrieval={"ground_by_default": True})
        retrieval.missing = {"default"}
        answer = gateway.chat(QUESTION)
        facts = gearbox_of(answer, False)
        assert text_of(answer, False) == f"You said: {QUESTION}"
        assert (facts["retrieval"]["outcome"], facts["grounded"]) == ("skipped", False)
        assert "'default' has no documents" in facts["retrieval"]["why"]
        planned = gateway.post(
            "/v1/route", {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]}
        ).json()
        assert planned["retrieval"] == {"top_k": 0, "more_chars": 0}
        error = error_of(gateway.chat(QUESTION, model=f"{MODEL}+default"), 404)
        assert (error["code"], error["param"]) == ("collection_not_found", "model")

    def test_tools_need_no_documents(self, grounded: Started, retrieval: FakeRetrieval):
        retrieval.missing = {"docs"}
        assert text_of(ask(grounded, "What is 2 + 2?"), False) == "2 + 2 = 4"
        assert text_of(ask(grounded, retrieval={"agent": True}), False) == "It is 4."

    @pytest.mark.parametrize("name", ["", "+", " ", "Handbook", "a/b", "a+b", "-a", "x" * 64])
    def test_what_is_no_name_is_400_by_name(self, grounded: Started, retrieval: FakeRetrieval, name):
        for body, headers in (({}, {}), ({"retrieval": True}, {}), ({}, {"x-gearbox-retrieval": "on"})):
            error = error_of(grounded.chat(QUESTION, model=f"{MODEL}+{name}", headers=headers, **body), 400)
            assert error["param"] == "model"
        assert retrieval.calls == []

    @pytest.mark.parametrize("retrieval_section", [{}, None])
    def test_an_empty_name_is_400_everywhere(self, start_gateway: Start, retrieval_section):
        gateway = start_gateway(retrieval=retrieval_section)
        for body in ({}, {"retrieval": False}):
            assert error_of(gateway.chat(QUESTION, model=f"{MODEL}+", **body), 400)["param"] == "model"
        assert error_of(gateway.post("/v1/completions", {"model": f"{MODEL}+", "prompt": "x"}), 400)["param"] == "model"

    def test_one_that_does_not_exist_is_404_for_searches_and_documents(
        self, grounded: Started, retrieval: FakeRetrieval
    ):
        retrieval.missing = {"gone"}
        for response in (
            grounded.post("/v1/search", {"query": QUESTION, "collection": "gone"}),
            grounded.http.get("/v1/documents?collection=gone"),
            grounded.http.delete("/v1/documents?collection=gone&source=a.md"),
        ):
            error = error_of(response, 404)
            assert (error["code"], error["param"]) == ("collection_not_found", "collection")

    def test_looking_for_one_ends_with_the_time_of_a_search(self, grounded: Started, retrieval: FakeRetrieval):
        retrieval.search_s = 5
        request = {"model": f"{MODEL}+docs", "messages": [{"role": "user", "content": QUESTION}]}
        assert error_of(grounded.post("/v1/route", request), 504)["code"] == "retrieval_timeout"
