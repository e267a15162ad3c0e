"""Grounded chat through the real gateway: the retrieval call, the engine's prompt, and the answer's grounding metadata."""

import pytest

from benchmarks.lib.sample_catalog import MODEL, make_live_variant
from benchmarks.lib.scripted_retrieval import PASSAGE, QUESTION, FakeRetrieval
from serve.errors import RequestError
from serve.gateway.auth import hash_key
from tests.support.answers import ask, chunks, error_of, gearbox_of, streamed_or_not, text_of
from tests.support.gateway_server import Start, Started, bearer


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
        (call,) = retrieval.calls_of("ground")
        assert call["collection"] == collection
        assert call["tenant"] == "anonymous"
        assert call["question"] == QUESTION

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
        ("options", "param"),
        [
            ("yes", "retrieval"), (3, "retrieval"), ({"top_k": 0}, "retrieval.top_k"), ({"top_k": 21}, "retrieval.top_k"),
            ({"top_k": "4"}, "retrieval.top_k"), ({"min_score": 2}, "retrieval.min_score"), ({"speed": 1}, "retrieval.speed"),
            ({"collection": "Ä/.."}, "retrieval.collection"), ({"filters": []}, "retrieval.filters"),
            ({"on_budget": "panic"}, "retrieval.on_budget"), ({"tools": ["rm"]}, "retrieval.tools"),
        ],
    )  # fmt: skip
    def test_a_wrong_field_is_400_by_name(self, grounded: Started, options, param):
        assert error_of(grounded.chat(QUESTION, retrieval=options), 400)["param"] == param
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
        for body, sent in (({}, 0), ({"temperature": None}, 0), ({"temperature": 0.7}, 0.7)):
            ask(grounded, **body)
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

    @pytest.mark.parametrize(
        "question",
        [
            "Jason had 20 lollipops and gave Denny some. Now he has 12. How many did he give?",
            "Can you subract 36 from 5?",
            "Kuinka paljon on 4 kertaa neljä plus x?",
            "1 + 2 - x + " + "3 + " * 200 + "4",
        ],
    )
    def test_the_model_answers_what_may_be_a_computation_and_is_not_detected(
        self, grounded: Started, retrieval: FakeRetrieval, question
    ):
        retrieval.passages = []
        facts = gearbox_of(grounded.chat(question, retrieval=True), False)
        assert (facts["variant"], facts["retrieval"]["outcome"]) == ("full", "unsupported")
        assert "may ask for a computation" in facts["retrieval"]["why"]
        without = gearbox_of(grounded.chat(question, retrieval={"tools": []}), False)
        assert without["retrieval"]["outcome"] == "abstained"

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
        retrieval.check_error = RequestError(503, "gone", code="retrieval_unavailable") if fault == "error" else None
        retrieval.verification_s = 5 if fault == "slow" else 0
        facts = gearbox_of(ask(grounded, stream=stream), stream)
        assert (facts["grounded"], facts["sentences"]) == (None, None)
        assert "could not be checked" in facts["retrieval"]["why"]

    def test_one_that_nobody_has_is_charged_to_nobody(self, start_gateway: Start, retrieval: FakeRetrieval, _server):
        settings = {"collection": "docs", "verification_timeout_s": 30}
        grounded, retrieval.verification_s = start_gateway(searches=retrieval, retrieval=settings), 20
        body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "retrieval": True}
        _server.run_and_cancel(grounded, body, lambda: retrieval.calls_of("check"))
        assert retrieval.cancelled == 1
        assert grounded.sample("gearbox_tokens_total", variant="full") == 0

    def test_clients_of_the_sdk_see_an_ordinary_completion(self, grounded: Started, retrieval: FakeRetrieval):
        retrieval.passages = []
        request = {
            "model": MODEL,
            "messages": [{"role": "user", "content": QUESTION}],
            "extra_body": {"retrieval": True},
        }
        whole = grounded.sdk().chat.completions.create(**request)
        assert whole.choices[0].finish_reason == "stop"
        stream = [*grounded.sdk().chat.completions.create(**request, stream=True)]
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
        assert len(retrieval.calls_of("ground")) == 1
        facts = ask(grounded, "What is 2 + 2?", retrieval={"collection": None}).json()
        assert facts["choices"][0]["message"]["content"] == "2 + 2 = 4"
        facts = ask(grounded, QUESTION, retrieval={"collection": None}).json()
        assert facts["gearbox"]["retrieval"]["outcome"] == "off"
        assert len(retrieval.calls_of("ground")) == 1

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
        (call,) = retrieval.calls_of("agent")
        assert (call["tenant"], call["key"], call["collection"]) == ("acme", "k-acme", "docs")
        assert call["model"] == f"{MODEL}@cheap"
        assert call["more"]["temperature"] == 0
        assert call["more"]["budget"]["e2e_ms"] == 9_000
        assert call["timeout_s"] < 9
        assert call["url"].endswith("/v1")
        if not stream:
            assert response.json()["usage"]["total_tokens"] == 12

    def test_an_agent_is_refused_where_nothing_keeps_its_budget(self, grounded: Started, retrieval: FakeRetrieval):
        budget = {"e2e_ms": 1, "on_no_candidate": "reject"}
        error = error_of(ask(grounded, retrieval={"collection": None, "agent": True}, budget=budget), 422)
        assert (error["code"], error["param"]) == ("impossible_budget", "budget")
        assert retrieval.calls_of("agent") == []

    def test_an_agent_that_fails_says_why(self, grounded: Started, retrieval: FakeRetrieval):
        retrieval.error = RequestError(504, "no answer within 60 s", code="agent_failed")
        assert error_of(ask(grounded, retrieval={"agent": True}), 504)["code"] == "agent_failed"
