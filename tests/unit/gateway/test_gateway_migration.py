"""The gateway when an engine breaks off a stream: it goes on elsewhere, and the client sees one answer."""

from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from benchmarks.lib.sample_catalog import MODEL, make_card, make_live_variant, make_profile
from serve.card import Step
from serve.gateway.migration import tokenizer
from serve.request.lifecycle import Attempt
from serve.routing.catalog import Variant
from tests.support.answers import MESSAGES, chunks, event_error_of, text_of
from tests.support.gateway_server import Start, Started

BREAKS = [
    "die mid-stream",
    "token and error at once",
    "error event mid-stream",
    "malformed error mid-stream",
    "end early",
    "aborted by error",
]


def second_replica(gateway: Started, name: str = "distilled") -> Any:
    """The engine stub of `name` as another replica of `full`."""
    gateway.replicas.by_variant["full"] = [gateway.engines["full"].url, gateway.engines[name].url]
    return gateway.engines[name]


def error_code(response: httpx.Response) -> tuple[str, str | None]:
    """Code and field of the error event that ends a stream."""
    error = event_error_of(response)
    return error["code"], error["param"]


def test_the_quality_of_an_answer_is_the_lowest_of_all_that_wrote_it():
    request = SimpleNamespace(attempts=[])

    def attempt(quality: float, first_token_at: float, continues: Any = None) -> Any:
        variant = SimpleNamespace(quality=SimpleNamespace(quality=quality))
        made = SimpleNamespace(request=request, variant=variant, first_token_at=first_token_at, continues=continues)
        request.attempts.append(made)
        return made

    failed, first = attempt(0.5, 0.0), attempt(1.0, 1.0)
    attempt(0.95, 2.0, first)
    last = attempt(1.0, 3.0, first)
    assert [Attempt.quality.fget(one) for one in (failed, first, last)] == [0.5, 1.0, 0.95]


class TestContinuation:
    @pytest.mark.parametrize("behaviour", BREAKS)
    @pytest.mark.parametrize("model", [MODEL, f"{MODEL}:full"])
    def test_a_stream_goes_on_at_another_replica_of_the_variant(self, gateway: Started, model, behaviour):
        whole = gateway.chat(model=model, stream=True, stream_options={"include_usage": True})
        gateway.engines["full"].behaviour = behaviour
        other = second_replica(gateway)
        response = gateway.chat(model=model, stream=True, stream_options={"include_usage": True})
        assert text_of(response, True) == "You said: hello there"
        heads = [{name: c[name] for name in ("id", "object", "created", "model")} for c in chunks(response)]
        assert heads == [heads[0]] * len(heads)
        assert [c["choices"] for c in chunks(response)] == [c["choices"] for c in chunks(whole)]
        assert chunks(response)[-1]["usage"] == chunks(whole)[-1]["usage"]
        assert b'token_ids":[' not in response.content
        gearbox = chunks(response)[-1]["gearbox"]
        assert (gearbox["variant"], gearbox["attempts"]) == ("full", 2)
        (migration,) = gearbox["migrations"]
        assert (migration["from"], migration["to"], migration["at_token"]) == ("full", "full", 2)
        assert migration["from_replica"] != migration["to_replica"]
        (continued,) = other.requests
        assert len(continued["prompt"]) == 4
        cause = "engine_error" if "error" in behaviour else "connection"
        assert gateway.sample("gearbox_migrations_total", variant="full", cause=cause) == 1
        assert gateway.sample("gearbox_requests_total", variant="full", outcome="answered") == 2

    def test_without_another_replica_a_variant_with_the_same_tokens_continues(self, gateway: Started):
        gateway.engines["full"].behaviour = "die mid-stream"
        response = gateway.chat(stream=True)
        assert text_of(response, True) == "You said: hello there"
        gearbox = chunks(response)[-1]["gearbox"]
        assert (gearbox["variant"], gearbox["quality"]) == ("int8", 0.95)
        assert [m["to"] for m in gearbox["migrations"]] == ["int8"]
        assert response.headers["x-gearbox-variant"] == "full", "it started there"

    def test_completions_go_on_too(self, gateway: Started):
        gateway.engines["full"].behaviour = "die mid-stream"
        body = {"model": MODEL, "prompt": "hello there", "stream": True, "max_tokens": 50}
        response = gateway.post("/v1/completions", body)
        assert "".join(c["choices"][0]["text"] for c in chunks(response)) == "You said: hello there"
        assert gateway.engines["int8"].requests[0]["max_tokens"] == 48

    def test_the_times_are_those_of_the_whole_answer(self, gateway: Started):
        gateway.engines["full"].behaviour = "die mid-stream"
        gearbox = chunks(gateway.chat(stream=True))[-1]["gearbox"]
        assert 0 < gearbox["ttft_ms"] < gearbox["e2e_ms"]
        assert gateway.sample("gearbox_ttft_seconds_count") == 1, "of the first token alone"
        assert gateway.variants["int8"].latency.observed == 0, "a part of an answer teaches nothing about whole ones"

    def test_an_error_after_the_last_token_starts_no_other_engine(self, gateway: Started):
        full, int8, distilled = gateway.engines.values()
        full.behaviour, full.at = "die mid-stream", "there"  # all but the end was written
        int8.behaviour, int8.at = "token and error at once", '"finish_reason": "stop"'
        response = gateway.chat(stream=True, stream_options={"include_usage": True})
        assert text_of(response, True) == "You said: hello there"
        ends = [c["choices"][0]["finish_reason"] for c in chunks(response) if c["choices"]]
        assert [end for end in ends if end] == ["stop"] and chunks(response)[-1]["usage"]["completion_tokens"] > 4
        assert (len(int8.requests), len(distilled.requests)) == (1, 0)

    def test_a_request_is_continued_twice_and_no_more(self, gateway: Started, caplog: pytest.LogCaptureFixture):
        full, int8, distilled = gateway.engines.values()
        for engine, at in ((full, "said"), (int8, '":"'), (distilled, "hello")):
            engine.behaviour, engine.at = "die mid-stream", at
        distilled.behaviour = "answer"
        response = gateway.chat(stream=True)
        assert text_of(response, True) == "You said: hello there"
        assert [m["at_token"] for m in chunks(response)[-1]["gearbox"]["migrations"]] == [2, 3]
        int8.at = '"token_ids"'  # after each token
        gateway.replicas.by_variant["int8"] = [int8.url, int8.url.replace("127.0.0.1", "localhost")]
        assert error_code(gateway.chat(stream=True))[0] == "stream_interrupted"
        assert len(distilled.requests) == 1, "it would have completed the answer"
        assert "is not continued: it has been 2 times" in caplog.text

    def test_one_that_fails_before_its_first_token_is_replaced(self, gateway: Started):
        gateway.engines["full"].behaviour = "die mid-stream"
        gateway.engines["int8"].behaviour = "500"
        response = gateway.chat(stream=True)
        assert text_of(response, True) == "You said: hello there"
        assert chunks(response)[-1]["gearbox"]["attempts"] == 3

    def test_a_failure_before_the_first_token_shows_no_ids_either(self, gateway: Started):
        gateway.engines["full"].behaviour = "die before the first token"
        response = gateway.chat(stream=True)
        assert b'"token_ids":[' not in response.content
        assert gateway.engines["int8"].requests[0]["return_token_ids"]

    def test_an_engine_that_is_being_stopped_has_answered_nothing(self, gateway: Started):
        """It aborts what it runs and what it gets, with status 200."""
        gateway.engines["full"].ending = {"finish_reason": "abort"}
        answer = gateway.chat().json()
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert (answer["gearbox"]["variant"], answer["gearbox"]["attempts"]) == ("int8", 2)
        gateway.engines["full"].behaviour = "aborted first"
        response = gateway.chat(stream=True)
        assert text_of(response, True) == "You said: hello there"
        assert chunks(response)[-1]["gearbox"]["attempts"] == 2
        assert gateway.sample("gearbox_tokens_total", variant="full") == 0

    def test_nothing_is_sent_on_that_does_not_continue_what_was_sent(self, gateway: Started):
        """The tokens that the client has are looked at while they are read again."""
        gateway.engines["full"].behaviour = "die mid-stream"
        gateway.engines["int8"].detokenizes = "wrong"
        response = gateway.chat(stream=True)
        assert error_code(response) == ("stream_interrupted", None)
        assert "hello" not in response.text and gateway.engine_calls() == {"full": 1, "int8": 1}

    def test_one_whose_tokens_cannot_be_looked_at_goes_on_elsewhere(self, gateway: Started):
        gateway.engines["full"].behaviour = "die mid-stream"
        gateway.engines["int8"].detokenizes = "500"
        gateway.replicas.by_variant["int8"].append(gateway.engines["distilled"].url)
        response = gateway.chat(stream=True)
        assert text_of(response, True) == "You said: hello there"
        assert gateway.engine_calls() == {"full": 1, "int8": 1, "distilled": 1}

    def test_the_quality_floor_holds(self, gateway: Started):
        gateway.engines["full"].behaviour = "die mid-stream"
        response = gateway.chat(stream=True, budget={"min_quality": 0.97})
        assert error_code(response) == ("stream_interrupted", "budget")
        assert text_of(gateway.chat(stream=True, budget={"min_quality": 0.9}), True) == "You said: hello there"
        assert gateway.engine_calls() == {"full": 2, "int8": 1}

    def test_a_time_limit_that_has_passed_does_not_end_a_stream(self, start_gateway: Start):
        slower = make_live_variant("int8", quality=0.9, ttft_ms=2000)
        gateway = start_gateway(variants=[make_live_variant("full"), slower])
        gateway.engines["full"].behaviour = "die mid-stream"
        budget = {"ttft_ms": 1000, "e2e_ms": 6000, "on_no_candidate": "reject"}
        assert text_of(gateway.chat(stream=True, budget=budget), True) == "You said: hello there"

    def test_what_is_not_exact_ends_in_an_error_that_names_the_field(self, gateway: Started):
        gateway.engines["full"].behaviour = "die mid-stream"
        response = gateway.chat(stream=True, presence_penalty=0.5)
        assert error_code(response) == ("stream_interrupted", "presence_penalty")
        assert "return_token_ids" not in gateway.engines["full"].requests[0]
        assert gateway.engine_calls() == {"full": 1}
        assert gateway.sample("gearbox_requests_total", variant="full", outcome="failed") == 1

    def test_what_another_engine_cannot_continue_names_no_field(self, gateway: Started):
        for engine in gateway.engines.values():
            engine.behaviour, engine.at = "die mid-stream", '"token_ids"'
        assert error_code(gateway.chat(stream=True)) == ("stream_interrupted", None)

    @pytest.mark.parametrize(("fields", "param"), [({"prompt": ["a", "b"]}, "prompt"), ({"prompt": "a", "n": 2}, "n")])
    def test_several_answers_name_what_asks_for_them(self, gateway: Started, fields, param):
        gateway.engines["full"].behaviour = "die mid-stream"
        response = gateway.post("/v1/completions", {"model": MODEL, "stream": True, **fields})
        assert error_code(response) == ("stream_interrupted", param)

    def test_an_event_that_cannot_be_read_makes_an_answer_inexact(self, gateway: Started):
        gateway.engines["full"].behaviour = "garbage mid-stream"
        assert error_code(gateway.chat(stream=True))[0] == "stream_interrupted"

    def test_the_official_client_sees_one_stream(self, gateway: Started):
        gateway.engines["full"].behaviour = "die mid-stream"
        stream = gateway.sdk().chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "You said: hello there"

    def test_an_answer_of_which_only_the_end_is_missing_is_completed(self, gateway: Started):
        full = gateway.engines["full"]
        full.behaviour, full.at = "end early", '"stop_reason"'
        response = gateway.chat(stream=True, stream_options={"include_usage": True})
        assert text_of(response, True) == "You said: hello there"
        usage = {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8}
        assert chunks(response)[-1]["usage"] == usage, "by the ids"
        assert gateway.engine_calls() == {"full": 1}

    @pytest.mark.parametrize("behaviour", ["end early", "die mid-stream"])
    def test_one_whose_next_engine_only_writes_the_last_chunk_ends_there(self, gateway: Started, behaviour):
        """A third engine would write on after the end."""
        full, int8, _ = gateway.engines.values()
        full.behaviour, full.at = "die mid-stream", "there"
        int8.behaviour, int8.at = behaviour, '"stop_reason"'
        response = gateway.chat(stream=True, stream_options={"include_usage": True})
        assert text_of(response, True) == "You said: hello there"
        assert [c["choices"][0]["finish_reason"] for c in chunks(response) if c["choices"]][-2:] == [None, "stop"]
        assert chunks(response)[-1]["usage"]["completion_tokens"] == 6
        assert gateway.engine_calls() == {"full": 1, "int8": 1}

    def test_a_stop_sequence_that_the_next_engine_completes_ends_the_answer(self, gateway: Started):
        """It does not know what was sent, and writes on."""
        full, int8, _ = gateway.engines.values()
        full.behaviour, (int8.behaviour, int8.at) = "die mid-stream", ("hold", '":"')
        try:
            response = gateway.chat(stream=True, stop=["said:"], include_stop_str_in_output=True)
        finally:
            int8.let_go()
        assert text_of(response, True) == "You said:"
        assert [c["choices"][0]["finish_reason"] for c in chunks(response) if c["choices"]][-1] == "stop"
        assert chunks(response)[-1]["gearbox"]["variant"] == "int8"

    def test_replicas_that_died_with_the_first_are_passed_over(self, gateway: Started):
        """As those of one node: the bound on continuations counts those that may have begun."""
        full, other = gateway.engines["full"], gateway.engines["distilled"]
        full.behaviour = "die mid-stream"
        dead = [f"http://127.0.0.1:{port}" for port in (1, 7, 9)]
        gateway.replicas.by_variant["full"] = [full.url, *dead, other.url]
        response = gateway.chat(stream=True)
        assert text_of(response, True) == "You said: hello there"
        assert gateway.engine_calls() == {"full": 1, "distilled": 1}

    def test_a_grounded_answer_is_verified_as_a_whole(self, grounded: Started):
        grounded.engines["full"].behaviour = "die mid-stream"
        response = grounded.chat(stream=True, retrieval=True)
        assert text_of(response, True).startswith("You said: ")
        assert chunks(response)[-1]["gearbox"]["migrations"]


class TestTokenizers:
    def test_a_pruned_vocabulary_is_another_tokenizer(self, start_gateway: Start):
        def variant(name: str, parent: str | None, *steps: Step) -> Variant:
            live = make_live_variant(name, quality=1.0 if name == "full" else 0.9)
            card = make_card(name, parent=parent, profile=make_profile(), **({"steps": steps} if steps else {}))
            object.__setattr__(live, "card", card)
            return live

        trimmed = Step(technique="prune", parameters={"vocabulary": 16384}, tool="t")
        quantized = Step(technique="quantize", tool="t")
        variants = [
            variant("full", None),
            variant("int8", "full", quantized),
            variant("small", "full", trimmed),
            variant("small-int8", "small", quantized),
            variant("lost", "absent", quantized),
        ]
        named = {v.name: v for v in variants}
        assert [tokenizer(v, named) for v in variants] == ["full", "full", "small", "small", "absent"]
        gateway = start_gateway(variants=[variants[0], variants[2]])
        gateway.engines["full"].behaviour = "die mid-stream"
        assert error_code(gateway.chat(stream=True))[0] == "stream_interrupted"
        assert gateway.engine_calls() == {"full": 1}
