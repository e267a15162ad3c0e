"""The gateway when an engine is unreachable, fails, rejects a request, or has too short a context."""

import json
import logging

import openai
import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_openai import ChatOpenAI

from benchmarks.lib.sample_catalog import MODEL, make_live_variant, three_gears
from serve.gateway.sse_relay import StreamRelay
from serve.routing.catalog import Variant
from serve.routing.policy import WithinBudget
from tests.support.answers import MESSAGES, error_of, event_error_of, gearbox_of, streamed_or_not, text_of
from tests.support.engine_stub import FAILURES, STREAM_FAILURES, EngineStub
from tests.support.gateway_server import Start, Started


def growing_contexts() -> list[Variant]:
    return [
        make_live_variant("full", quality=1.0, max_model_len=1024),
        make_live_variant("int8", quality=0.9, max_model_len=2048),
        make_live_variant("distilled", quality=0.8, max_model_len=4096),
    ]


class TestFailover:
    @pytest.mark.parametrize(
        ("behaviour", "stream"), [*((b, False) for b in FAILURES), *((b, True) for b in STREAM_FAILURES)]
    )
    def test_a_failure_before_the_first_token_moves_on_to_the_next_best(self, gateway: Started, behaviour, stream):
        gateway.engines["full"].behaviour = behaviour
        response = gateway.chat(stream=stream)
        assert text_of(response, stream) == "You said: hello there"
        assert response.headers["x-gearbox-variant"] == "int8"
        assert gearbox_of(response, stream)["attempts"] == 2
        assert gateway.engine_calls() == {"full": 1, "int8": 1}
        assert gateway.sample("gearbox_failovers_total", variant="full") == 1
        assert gateway.sample("gearbox_attempts_total", variant="full", reason="quality", outcome="engine_error") == 1
        assert gateway.sample("gearbox_attempts_total", variant="int8", reason="quality", outcome="ok") == 1

    @streamed_or_not
    def test_a_variant_without_replicas_is_replaced_by_another(self, start_gateway: Start, stream):
        gateway = start_gateway(without_replica=("full",))
        assert gearbox_of(gateway.chat(stream=stream), stream)["variant"] == "int8"

    @streamed_or_not
    def test_an_address_on_which_nobody_listens_is_left(self, gateway: Started, stream):
        gateway.replicas.by_variant["full"] = ["http://127.0.0.1:9"]
        assert gearbox_of(gateway.chat(stream=stream), stream)["variant"] == "int8"

    @pytest.mark.parametrize("behaviour", STREAM_FAILURES)
    def test_a_pinned_request_is_never_moved(self, gateway: Started, behaviour):
        gateway.engines["full"].behaviour = behaviour
        response = gateway.chat(model=f"{MODEL}:full", stream=True)
        error = error_of(response, 503)
        assert error["code"] == "engine_unavailable"
        assert "'full'" in error["message"]
        assert int(response.headers["retry-after"]) >= 1
        assert gateway.engine_calls() == {"full": 1}
        assert gateway.sample("gearbox_failovers_total", variant="full") == 0

    @streamed_or_not
    def test_after_three_failures_the_answer_is_503(self, start_gateway: Start, stream):
        """A fourth replica would answer; but if it is the request that breaks them, it must not break all there are."""
        gateway = start_gateway(variants=[*three_gears()[:2]])
        gateway.engines["full"].behaviour = gateway.engines["int8"].behaviour = "die"
        stubs = [engine.url for engine in gateway.engines.values()]
        gateway.replicas.by_variant["full"] = [stubs[0], stubs[0].replace("127.0.0.1", "localhost")]
        gateway.replicas.by_variant["int8"] = [stubs[1], stubs[1].replace("127.0.0.1", "localhost")]
        error = error_of(gateway.chat(stream=stream), 503)
        assert "'full'" in error["message"]
        assert "'int8'" in error["message"]
        assert gateway.engine_calls() == {"full": 2, "int8": 1}

    @pytest.mark.parametrize("model", [MODEL, f"{MODEL}:full"])
    @pytest.mark.parametrize(
        ("behaviour", "stream"), [*((b, False) for b in FAILURES), *((b, True) for b in STREAM_FAILURES)]
    )
    def test_another_replica_of_the_variant_is_tried_first(self, gateway: Started, model, behaviour, stream):
        gateway.engines["full"].behaviour = behaviour
        other = gateway.engines["distilled"]  # stands for the second replica
        gateway.replicas.by_variant["full"] = [gateway.engines["full"].url, other.url]
        response = gateway.chat(model=model, stream=stream)
        assert text_of(response, stream) == "You said: hello there"
        assert response.headers["x-gearbox-variant"] == "full"
        assert gearbox_of(response, stream)["attempts"] == 2
        assert len(other.requests) == 1
        assert gateway.sample("gearbox_failovers_total", variant="full", cause="replica") == 1
        assert gateway.sample("gearbox_failovers_total", variant="full", cause="engine") == 0

    @pytest.mark.parametrize("model", [MODEL, f"{MODEL}:full"])
    def test_replicas_that_nobody_listens_at_are_all_left(self, gateway: Started, model):
        """What never got the request cannot have broken over it."""
        unreachable = [f"http://127.0.0.1:{port}" for port in range(1, 6)]
        gateway.replicas.by_variant["full"] = [*unreachable, gateway.engines["full"].url]
        response = gateway.chat(model=model)
        assert response.headers["x-gearbox-variant"] == "full"
        assert gearbox_of(response, False)["attempts"] == 6

    def test_a_pinned_request_gives_up_when_every_replica_is_broken(self, gateway: Started):
        gateway.replicas.by_variant["full"] = [f"http://127.0.0.1:{port}" for port in range(1, 6)]
        assert error_of(gateway.chat(model=f"{MODEL}:full"), 503)["code"] == "engine_unavailable"
        assert gateway.engine_calls() == {}

    @streamed_or_not
    def test_a_failure_of_the_only_variant_is_503_and_no_failover(self, start_gateway: Start, stream):
        gateway = start_gateway(variants=[make_live_variant("full")])
        gateway.engines["full"].behaviour = "die"
        error_of(gateway.chat(stream=stream), 503)
        assert gateway.sample("gearbox_failovers_total", variant="full") == 0, "it went nowhere"

    def test_what_is_left_of_the_budget_decides_where_to(self, start_gateway: Start):
        """The best takes 0.5 s to fail, after which the second's 1.7 s do not fit into 2 s any more."""
        variants = [
            make_live_variant("full", quality=1.0, ttft_ms=1500),
            make_live_variant("int8", quality=0.9, ttft_ms=1700),
            make_live_variant("distilled", quality=0.8, ttft_ms=100),
        ]
        gateway = start_gateway(variants=variants)
        gateway.engines["full"].behaviour, gateway.engines["full"].pause_s = "die slowly", 0.5
        response = gateway.chat(budget={"ttft_ms": 2000})
        assert response.headers["x-gearbox-variant"] == "distilled"
        gateway.engines["full"].behaviour = "die"
        assert gateway.chat(budget={"ttft_ms": 100_000}).headers["x-gearbox-variant"] == "int8"

    @streamed_or_not
    def test_the_clients_own_mistake_is_not_tried_elsewhere(self, gateway: Started, stream):
        gateway.engines["full"].behaviour = "400"
        error = error_of(gateway.chat(stream=stream), 400)
        assert error["message"] == "something in the engine broke"
        assert gateway.engine_calls() == {"full": 1}
        assert gateway.sample("gearbox_attempts_total", variant="full", reason="quality", outcome="client_error") == 1

    def test_an_engines_refusal_without_a_shape_is_put_in_ours(self, gateway: Started):
        gateway.engines["full"].behaviour = "400 without shape"
        assert error_of(gateway.chat(), 400)["message"] == "the engine refused the request"

    @streamed_or_not
    def test_an_engines_rejection_is_reported_without_pydantics_paths(self, gateway: Started, stream):
        gateway.engines["full"].behaviour = "400 of pydantic"
        error = error_of(gateway.chat(stream=stream, logit_bias={"5": "y"}, stop=5), 400)
        assert error["param"] == "stop", "the first field that is wrong, as answers without a variant tell it"
        error = error_of(gateway.post("/v1/completions", {"model": MODEL, "prompt": "a", "stream": stream}), 400)
        assert (error["param"], error["message"]) == ("logit_bias.x", "'logit_bias.x': Input should be a number")

    def test_a_schema_that_cannot_be_enforced_says_how_to_go_without(self, gateway: Started):
        gateway.engines["full"].behaviour = "400 of a grammar"
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "objekt"}}}
        error = error_of(gateway.chat(tools=[tool]), 400)
        assert error["param"] == "tools" and "'strict': false" in error["message"]

    @pytest.mark.parametrize(
        ("message", "fields", "param"),
        [
            ("presence_penalty must be in [-2, 2], got 3.0.", {"presence_penalty": 3}, "presence_penalty"),
            ("stop cannot contain an empty string.", {"stop": ""}, "stop"),
            ("n must be 1 when using greedy sampling, got 2.", {"n": 2, "temperature": 0}, "n"),
            ("`vendor_field` is unknown", {"vendor_field": 1}, "vendor_field"),
            ("min_tokens must be less than or equal to max_tokens=4, got 10.", {"min_tokens": 10, "max_tokens": 4}, "min_tokens"),
            ("The decoder prompt cannot be empty", {}, "prompt"),
            ("Grammar error: invalid regex", {"structured_outputs": {"regex": "("}}, "structured_outputs"),
            ("Invalid grammar specification", {"response_format": {"type": "json_object"}}, "response_format"),
            ("Grammar error", {}, None),
            ("something else", {}, None),
        ],
    )  # fmt: skip
    def test_the_field_that_an_engine_names_in_its_message_is_the_param(self, gateway: Started, message, fields, param):
        gateway.engines["full"].behaviour, gateway.engines["full"].error = "400", message
        error = error_of(gateway.post("/v1/completions", {"model": MODEL, "prompt": [""], **fields}), 400)
        assert (error["message"], error["param"], error["code"]) == (message, param, "invalid_request")

    def test_an_engines_dumps_are_put_in_words(self, gateway: Started):
        gateway.engines["full"].behaviour = "400"
        gateway.engines["full"].error = (
            "7 validation errors for ValidatorIterator\n0.ChatCompletionContentPartTextParam.text\n"
            "  Field required [type=missing, input_value={'type': 'text'}, input_type=dict]\n"
            "    For further information visit https://errors.pydantic.dev/2.14/v/missing"
        )
        messages = [{"role": "user", "content": [{"type": "text"}]}]
        error = error_of(gateway.post("/v1/chat/completions", {"model": MODEL, "messages": messages}), 400)
        assert error["param"] == "messages[0].content[0].text"
        assert error["message"] == "invalid 'messages[0].content[0].text': a part of type 'text' must have a text"
        error = error_of(gateway.chat(), 400)
        assert (error["param"], error["message"]) == (None, "'0.text': Field required")
        gateway.engines["full"].error = (
            "You must use one kind of structured outputs constraint but none are specified: "
            "{'json': None, 'grammar': None, '_backend': None}"
        )
        response_format = {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}
        tool = {"type": "function", "function": {"name": "f"}}
        assert (
            error_of(gateway.chat(tools=[tool], **response_format), 400)["param"]
            == "response_format.json_schema.schema"
        )
        error = error_of(gateway.post("/v1/completions", {"model": MODEL, "prompt": "a", **response_format}), 400)
        assert error["message"] == "You must use one kind of structured outputs constraint but none are specified"

    def test_after_a_failure_the_next_request_is_answered(self, gateway: Started, full: EngineStub):
        full.behaviour = "die"
        gateway.chat()
        full.behaviour = "answer"
        assert gateway.chat().headers["x-gearbox-variant"] == "full"


class TestBrokenStreams:
    @pytest.mark.parametrize(
        "behaviour", ["die mid-stream", "error event mid-stream", "end early", "malformed error mid-stream"]
    )
    def test_a_stream_that_breaks_and_goes_on_nowhere_ends_in_an_error_event(self, gateway: Started, behaviour):
        gateway.engines["full"].behaviour = behaviour
        response = gateway.chat(model=f"{MODEL}:full", stream=True)
        error = event_error_of(response)
        assert (error["code"], error["type"], error["param"]) == ("stream_interrupted", "server_error", "model")
        before = response.text.split("\n\n")[:-2]
        assert "".join(json.loads(e[6:])["choices"][0]["delta"]["content"] for e in before) == "You said"
        assert gateway.engine_calls() == {"full": 1}, "an answer that has begun is not started anew"
        assert gateway.sample("gearbox_attempts_total", variant="full", reason="pinned", outcome="interrupted") == 1
        assert gateway.sample("gearbox_requests_total", variant="full", outcome="failed") == 1
        assert gateway.sample("gearbox_requests_rejected_total", code="stream_interrupted") == 1

    @pytest.mark.parametrize("behaviour", ["die mid-stream", "error event mid-stream"])
    def test_the_official_client_raises(self, gateway: Started, behaviour):
        gateway.engines["full"].behaviour = behaviour
        stream = gateway.sdk().chat.completions.create(model=f"{MODEL}:full", messages=MESSAGES, stream=True)
        seen = ""
        with pytest.raises(openai.APIError, match="stream from variant 'full' was interrupted"):
            for chunk in stream:
                seen += chunk.choices[0].delta.content
        assert seen == "You said"


class TestContext:
    @streamed_or_not
    @pytest.mark.parametrize("text", ["=" * 9000, "word " * 4000])
    def test_what_only_seems_too_long_is_answered(self, gateway: Started, text, stream):
        """How many tokens a text has, only the engine's tokenizer knows."""
        assert text_of(gateway.chat(text, stream=stream), stream) == f"You said: {text}"
        assert gateway.engine_calls() == {"full": 1}
        assert gateway.post("/v1/route", {"model": MODEL, "messages": [{"role": "user", "content": text}]}).is_success

    @pytest.mark.parametrize(
        ("behaviour", "stream"), [("context", False), ("context", True), ("context error event first", True)]
    )
    def test_what_the_engine_finds_too_long_is_400_as_openai_says_it(self, gateway, behaviour, stream):
        gateway.engines["full"].behaviour = behaviour
        response = gateway.chat(stream=stream)
        error = error_of(response, 400)
        assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
        assert "maximum context length is 2048 tokens" in error["message"]
        assert "3000 input tokens" in error["message"]
        assert gateway.engine_calls() == {"full": 1}, "no other variant has a longer context"
        prompt = gateway.post("/v1/completions", {"model": MODEL, "prompt": "hello", "stream": stream})
        assert error_of(prompt, 400)["param"] == "prompt"

    def test_a_limit_beyond_the_context_is_answered_like_a_prompt_beyond_it(self, gateway: Started):
        gateway.engines["full"].behaviour = "max_tokens"
        error = error_of(gateway.chat(max_tokens=5000), 400)
        assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")
        assert "maximum context length is 2048 tokens" in error["message"]

    @streamed_or_not
    def test_a_prompt_of_exactly_the_context_is_too_long(self, start_gateway: Start, stream):
        gateway = start_gateway(variants=growing_contexts())
        for engine in gateway.engines.values():
            engine.behaviour, engine.error = (
                "400",
                "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)",
            )
        request = {"model": f"{MODEL}:full", "prompt": [500] * 2048, "max_tokens": 1, "stream": stream}
        error = error_of(gateway.post("/v1/completions", request), 400)
        assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
        assert "maximum context length is" in error["message"] and "got 0" not in error["message"]
        gateway.engines["distilled"].behaviour = "answer"
        assert gateway.post("/v1/completions", {**request, "model": MODEL, "stream": False}).is_success, (
            "another is longer"
        )

    def test_less_of_the_context_than_min_tokens_is_too_little(self, gateway: Started):
        engine = gateway.engines["full"]
        engine.behaviour, engine.error = "400", "min_tokens must be less than or equal to max_tokens=27, got 100."
        for fields in ({"max_tokens": 200}, {}):
            error = error_of(gateway.chat(min_tokens=100, **fields), 400)
            assert (error["code"], error["param"]) == ("context_length_exceeded", "min_tokens")
        assert error_of(gateway.chat(min_tokens=100, max_tokens=27), 400)["code"] == "invalid_request"

    def test_a_limit_beyond_the_context_moves_to_a_longer_variant(self, start_gateway: Start):
        gateway = start_gateway(variants=growing_contexts())
        gateway.engines["full"].behaviour = gateway.engines["int8"].behaviour = "max_tokens"
        assert gearbox_of(gateway.chat(max_tokens=4000), False)["variant"] == "distilled"
        assert gateway.engine_calls() == {"distilled": 1}, "the limit is known exactly: the short ones are not tried"

    def test_langchain_recognises_it(self, gateway: Started):
        gateway.engines["full"].behaviour = "context"
        model = ChatOpenAI(base_url=f"{gateway.url}/v1", api_key="any", model=MODEL, max_retries=0)
        with pytest.raises(ContextOverflowError):
            model.invoke("too long")

    @pytest.mark.parametrize(
        ("behaviour", "stream"), [("context", False), ("context", True), ("context error event first", True)]
    )
    def test_it_moves_to_a_variant_with_a_longer_context(self, start_gateway: Start, behaviour, stream):
        variants = [
            make_live_variant("full", quality=1.0, max_model_len=2048),
            make_live_variant("int8", quality=0.9, max_model_len=2048),
            make_live_variant("distilled", quality=0.8, max_model_len=4096),
        ]
        gateway = start_gateway(variants=variants)
        gateway.engines["full"].behaviour = gateway.engines["int8"].behaviour = behaviour
        assert gearbox_of(gateway.chat(stream=stream), stream)["variant"] == "distilled"
        assert gateway.engine_calls() == {"full": 1, "distilled": 1}

    def test_a_pinned_variant_that_is_too_short_is_400(self, start_gateway: Start):
        variants = [make_live_variant("full", max_model_len=2048), make_live_variant("int8", max_model_len=4096)]
        gateway = start_gateway(variants=variants)
        gateway.engines["full"].behaviour = "context"
        error_of(gateway.chat(model=f"{MODEL}:full"), 400)
        assert gateway.engine_calls() == {"full": 1}

    @streamed_or_not
    def test_the_variant_with_a_long_enough_context_answers(self, start_gateway: Start, stream):
        gateway = start_gateway(variants=growing_contexts())
        gateway.engines["full"].behaviour = gateway.engines["int8"].behaviour = "context"
        assert gearbox_of(gateway.chat(stream=stream), stream)["variant"] == "distilled"

    @streamed_or_not
    def test_after_a_failure_and_a_context_too_short_a_longer_variant_answers(self, start_gateway: Start, stream):
        gateway = start_gateway(variants=growing_contexts())
        gateway.engines["full"].behaviour = "die"
        gateway.engines["int8"].behaviour = "context"
        facts = gearbox_of(gateway.chat(stream=stream), stream)
        assert (facts["variant"], facts["attempts"]) == ("distilled", 3)


class TestOurOwnFaults:
    """A mistake of ours costs one request: it is answered, logged with its origin and counted, and nothing leaks."""

    def test_it_is_500_with_the_requests_id_and_the_next_request_is_answered(
        self, gateway: Started, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ):
        def mistaken(*args: object) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as broken, caplog.at_level(logging.ERROR):
            broken.setattr(WithinBudget, "choose", mistaken)
            response = gateway.chat("a private question", headers={"x-request-id": "mine-7"})
        error = error_of(response, 500)
        assert error["code"] == "internal_error"
        assert "mine-7" in error["message"]
        assert "ZeroDivisionError" not in response.text
        assert "mine-7" in caplog.text
        assert "ZeroDivisionError" in caplog.text
        assert "private" not in caplog.text
        assert gateway.sample("gearbox_requests_rejected_total", status="500") == 1
        assert gateway.chat().status_code == 200

    def test_a_stream_it_breaks_ends_in_an_error_event(self, gateway: Started, monkeypatch: pytest.MonkeyPatch):
        with monkeypatch.context() as broken:
            broken.setattr(StreamRelay, "finish", lambda *args: 1 / 0)
            response = gateway.chat(stream=True)
        assert "[DONE]" not in response.text
        assert event_error_of(response)["code"] == "internal_error"
        assert gateway.sample("gearbox_requests_rejected_total", status="500") == 1
        gateway.settle()
        assert "[DONE]" in gateway.chat(stream=True).text


def test_nothing_is_given_up_for_a_limit_that_passed_before_another_variant_answers(gateway: Started):
    budget = {"ttft_ms": 1, "objective": "quality"}
    first = gearbox_of(gateway.chat(budget=budget), False)["variant"]
    assert first != "full", "the fastest is the nearest miss"
    gateway.engines[first].behaviour = "die slowly"
    facts = gearbox_of(gateway.chat(budget=budget), False)
    assert (facts["attempts"], facts["variant"]) == (2, "full")
    assert facts["missed"] == "the ttft limit of 1 ms had passed"
