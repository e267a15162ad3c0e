"""Answers without a variant, and grounded ones, honour the request's fields: n, stop, max_tokens, response_format."""

from typing import Any

import openai
import pytest
from pydantic import BaseModel

from benchmarks.lib.sample_catalog import MODEL
from benchmarks.lib.scripted_retrieval import QUESTION, FakeRetrieval
from serve.request.chat_fields import read_fields
from serve.request.synthetic_completion import SyntheticCompletion, most_tokens
from tests.support.answers import ask, chunks, error_of, gearbox_of, streamed_or_not, text_of
from tests.support.chat_bodies import IMAGE, NAMED, REFUSED, SCHEMA, TOOL
from tests.support.gateway_server import Started

SUM = "What is 2 + 2?"
ABSTENTION = "I don't know: the documents I have do not say."
FORMS: list[dict[str, Any]] = [
    {"response_format": {"type": "json_object"}}, {"response_format": SCHEMA}, {"structured_outputs": {"choice": ["4", "5"]}},
    {"guided_choice": ["4", "5"]}, {"guided_json": {"type": "object"}}, {"modalities": ["text", "audio"], "audio": {"voice": "x"}},
]  # fmt: skip
FUNCTIONS: list[dict[str, Any]] = [
    {"tools": [TOOL], "tool_choice": "required"}, {"tools": [TOOL], "tool_choice": NAMED},
    {"functions": [TOOL["function"]], "function_call": {"name": "look_up"}},
]  # fmt: skip
OF_TOKENS: list[dict[str, Any]] = [
    {"logprobs": True}, {"logprobs": True, "top_logprobs": 2}, {"min_tokens": 5}, {"ignore_eos": True}, {"return_token_ids": True},
    {"logit_bias": {"50": -100}}, {"bad_words": ["4"]}, {"allowed_token_ids": [1]}, {"stop_token_ids": [4]},
]  # fmt: skip
PLAIN: list[dict[str, Any]] = [
    {"response_format": {"type": "text"}}, {"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": "auto"},
    {"tools": [TOOL], "tool_choice": "none"}, {"modalities": ["text"]}, {"logprobs": False}, {"echo": True}, {"seed": 1, "user": "u"},
]  # fmt: skip


@pytest.fixture
def nothing_found(retrieval: FakeRetrieval) -> None:
    retrieval.passages = []


@pytest.fixture
def gateway(grounded: Started) -> Started:
    return grounded


def choices_of(response: Any, stream: bool) -> list[dict[str, Any]]:
    """Content, refusal, finish_reason and stop_reason of every choice, in the order of their indices."""
    assert response.status_code == 200, response.text
    if not stream:
        choices = response.json()["choices"]
        assert [one["index"] for one in choices] == list(range(len(choices)))
        return [
            {name: {**one, **one["message"]}[name] for name in ("content", "refusal", "finish_reason", "stop_reason")}
            for one in choices
        ]
    found: dict[int, dict[str, Any]] = {}
    for chunk in chunks(response):
        for part in chunk["choices"]:
            empty = {"content": None, "refusal": None, "finish_reason": None, "stop_reason": None}
            one = found.setdefault(part["index"], empty)
            assert one["finish_reason"] is None, "nothing comes after a choice's end"
            for name in ("content", "refusal"):
                if part["delta"].get(name) is not None:
                    one[name] = (one[name] or "") + part["delta"][name]
            one["finish_reason"], one["stop_reason"] = part["finish_reason"], part.get("stop_reason")
    assert sorted(found) == list(range(len(found)))
    return [found[index] for index in sorted(found)]


def choice(content: str | None, finish: str = "stop", stop: str | None = None, refusal: str | None = None):
    return {"content": content, "refusal": refusal, "finish_reason": finish, "stop_reason": stop}


@streamed_or_not
class TestComputed:
    @pytest.mark.parametrize("n", [1, 3, 8])
    def test_it_has_as_many_choices_as_requested(self, gateway: Started, stream, n):
        response = ask(gateway, SUM, stream, n=n)
        assert choices_of(response, stream) == [choice("2 + 2 = 4")] * n
        assert gearbox_of(response, stream)["reason"] == "computed"

    @pytest.mark.parametrize(
        ("body", "content", "stop"),
        [
            ({"stop": "="}, "2 + 2 ", "="), ({"stop": ["4", "+"]}, "2 ", "+"), ({"stop": "2"}, "", "2"),
            ({"stop": ["2 + 2", "+"]}, "2 ", "+"), ({"stop": "="  , "include_stop_str_in_output": True}, "2 + 2 =", "="),
            ({"stop": ["five", "six"]}, "2 + 2 = 4", None), ({"stop": []}, "2 + 2 = 4", None),
        ],
    )  # fmt: skip
    def test_it_ends_before_a_stop(self, gateway: Started, stream, body, content, stop):
        assert choices_of(ask(gateway, SUM, stream, **body), stream) == [choice(content, stop=stop)]

    @pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
    def test_what_may_be_longer_than_the_limit_is_written_by_the_model(self, gateway: Started, stream, limit):
        assert text_of(ask(gateway, SUM, stream, **{limit: 9}), stream) == "2 + 2 = 4"
        facts = gearbox_of(ask(gateway, SUM, stream, **{limit: 3}), stream)
        assert facts["variant"] and "fewer tokens" in facts["retrieval"]["why"]
        engine = gateway.engines[facts["variant"]].requests[-1]
        assert engine["messages"][-1]["content"] == f"{SUM}\n\nComputed exactly: 2 + 2 = 4"
        assert (engine[limit], engine["temperature"]) == (3, 0)

    @pytest.mark.parametrize("body", [*FORMS, *FUNCTIONS, *OF_TOKENS], ids=str)
    def test_requests_that_only_a_model_can_answer_go_to_it_with_the_result(self, gateway: Started, stream, body):
        facts = gearbox_of(ask(gateway, SUM, stream, **body), stream)
        assert facts["variant"] and facts["tools"][0]["output"] == "4"
        assert facts["retrieval"]["why"].startswith("computed, and passed to the model: ")
        engine = gateway.engines[facts["variant"]].requests[-1]
        assert engine["messages"][-1]["content"] == f"{SUM}\n\nComputed exactly: 2 + 2 = 4"
        assert without_tools(body).items() <= engine.items(), "everything is passed on"

    @pytest.mark.parametrize("body", PLAIN, ids=str)
    def test_other_fields_are_no_reason_to_ask_a_model(self, gateway: Started, stream, body):
        assert choices_of(ask(gateway, SUM, stream, **body), stream) == [choice("2 + 2 = 4")]
        assert gateway.engine_calls() == {}

    def test_what_an_engine_refuses_is_refused(self, gateway: Started, stream, subtests: pytest.Subtests):
        for body, param in REFUSED:
            if param != "stream_options" and "messages" not in body:
                with subtests.test(str(body)):
                    assert error_of(ask(gateway, SUM, **{"stream": stream, **body}), 400)["param"] == param
        assert gateway.engine_calls() == {}


@streamed_or_not
@pytest.mark.parametrize("question", [SUM, QUESTION])
def test_what_no_variant_could_answer_is_refused_without_one_too(
    gateway: Started, retrieval: FakeRetrieval, stream, question
):
    retrieval.passages = []
    error = error_of(ask(gateway, question, stream, n=100), 400)
    assert (error["code"], error["param"]) == ("too_many_sequences", "n")
    for limit in ("max_tokens", "max_completion_tokens"):
        error = error_of(ask(gateway, question, stream, **{limit: 100_000}), 400)
        assert (error["code"], error["param"]) == ("context_length_exceeded", limit)


@pytest.mark.usefixtures("nothing_found")
@streamed_or_not
class TestAbstention:
    def test_it_has_as_many_choices_as_requested(self, gateway: Started, stream):
        assert choices_of(ask(gateway, QUESTION, stream, n=2), stream) == [choice(ABSTENTION)] * 2

    @pytest.mark.parametrize(
        ("body", "content", "finish", "stop"),
        [
            ({"stop": ":"}, "I don't know", "stop", ":"), ({"max_tokens": 100}, ABSTENTION, "stop", None),
            ({"max_tokens": 24}, ABSTENTION, "stop", None), ({"max_tokens": 23}, ABSTENTION[:-1], "length", None),
            ({"max_completion_tokens": 1, "max_tokens": 100}, "I", "length", None),
            ({"max_tokens": 12, "stop": " know"}, "I don't", "stop", " know"), ({"max_tokens": 3, "stop": ":"}, "I don", "length", None),
        ],
    )  # fmt: skip
    def test_it_keeps_the_stops_and_the_token_limit(self, gateway: Started, stream, body, content, finish, stop):
        assert choices_of(ask(gateway, QUESTION, stream, **body), stream) == [choice(content, finish, stop)]

    @pytest.mark.parametrize("body", FORMS, ids=str)
    def test_where_no_free_text_was_requested_it_is_a_refusal(self, gateway: Started, stream, body):
        response = ask(gateway, QUESTION, stream, n=2, **body)
        assert choices_of(response, stream) == [choice(None, refusal=ABSTENTION)] * 2
        assert gearbox_of(response, stream)["reason"] == "abstained"
        assert gateway.engine_calls() == {}

    @pytest.mark.parametrize("body", FUNCTIONS, ids=str)
    def test_a_required_function_call_is_generated_by_the_model(self, gateway: Started, stream, body):
        facts = gearbox_of(ask(gateway, QUESTION, stream, **body), stream)
        assert (facts["retrieval"]["outcome"], facts["grounded"]) == ("unsupported", False)
        assert without_tools(body).items() <= gateway.engines[facts["variant"]].requests[-1].items()

    @pytest.mark.parametrize("body", [*PLAIN, {"logprobs": True}, {"ignore_eos": True}], ids=str)
    def test_other_fields_change_nothing(self, gateway: Started, stream, body):
        assert choices_of(ask(gateway, QUESTION, stream, **body), stream) == [choice(ABSTENTION)]

    def test_what_an_engine_refuses_is_refused(self, gateway: Started, stream):
        assert error_of(ask(gateway, QUESTION, stream, temperature="hot"), 400)["param"] == "temperature"

    @pytest.mark.parametrize("continuous", [False, True])
    @pytest.mark.parametrize("usage", [False, True])
    def test_no_tokens_were_used(self, gateway: Started, stream, usage, continuous):
        options = {"include_usage": usage, "continuous_usage_stats": continuous}
        response = ask(gateway, QUESTION, stream, n=2, **({"stream_options": options} if stream else {}))
        none = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        if not stream:
            assert response.json()["usage"] == none
            return
        told_of = [chunk.get("usage") for chunk in chunks(response)]
        assert told_of == [none if usage and continuous else None] * 4 + ([none] if usage else [])


def without_tools(body: dict[str, Any]) -> dict[str, Any]:
    """What arrives as it was sent: functions are made strict."""
    return {name: value for name, value in body.items() if name not in ("tools", "functions")}


class Answer(BaseModel):
    name: str


@pytest.mark.usefixtures("nothing_found")
def test_the_sdk_reads_a_refusal(gateway: Started):
    request = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "extra_body": {"retrieval": True}}
    message = gateway.sdk().chat.completions.parse(**request, response_format=Answer).choices[0].message
    assert (message.content, message.parsed, message.refusal) == (None, None, ABSTENTION)
    with gateway.sdk().chat.completions.stream(**request, response_format=Answer) as stream:
        assert stream.get_final_completion().choices[0].message.refusal == ABSTENTION
    with pytest.raises(openai.LengthFinishReasonError):
        gateway.sdk().chat.completions.parse(**request, response_format=Answer, max_tokens=2)


@streamed_or_not
class TestAgents:
    def test_its_answer_has_as_many_choices_as_requested_and_is_generated_once(
        self, gateway: Started, retrieval, stream
    ):
        options = {"stream_options": {"include_usage": True}} if stream else {}
        response = ask(gateway, SUM, stream, retrieval={"agent": True}, n=3, logprobs=True, stop="x", **options)
        assert choices_of(response, stream) == [choice("It is 4.")] * 3
        document = chunks(response)[-1] if stream else response.json()
        assert document["usage"] == {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
        (call,) = retrieval.calls_of("agent")
        assert call["more"]["stop"] == "x", "the model that writes the answer keeps to it"
        assert not {"n", "logprobs", "stream", "stream_options"} & call["more"].keys()

    def test_it_says_why_it_ended(self, gateway: Started, retrieval, stream, monkeypatch):
        async def cut(**_: Any) -> dict[str, Any]:
            return {"text": "It", "tools": [], "usage": {}, "finish_reason": "length"}

        monkeypatch.setattr(retrieval, "_agent", cut)
        assert choices_of(ask(gateway, SUM, stream, retrieval={"agent": True}), stream) == [choice("It", "length")]

    def test_a_tool_choice_without_tools_is_about_the_agents(self, gateway: Started, retrieval, stream):
        ask(gateway, SUM, stream, retrieval={"agent": True}, tool_choice="required")
        ask(gateway, SUM, stream, retrieval={"agent": True}, tool_choice="auto", tools=[TOOL])
        assert [one["more"].get("tool_choice") for one in retrieval.calls_of("agent")] == ["required", None]

    @pytest.mark.parametrize("body", FUNCTIONS, ids=str)
    def test_where_the_clients_function_must_be_called_there_is_none(self, gateway: Started, retrieval, stream, body):
        facts = gearbox_of(ask(gateway, QUESTION, stream, retrieval={"agent": True}, **body), stream)
        assert facts["retrieval"]["outcome"] == "used"
        assert retrieval.calls_of("agent") == []

    @pytest.mark.parametrize(("body", "param"), [({"n": 0}, "n"), ({"stop": 5}, "stop"), ({"n": 1000}, "n")])
    def test_what_an_engine_refuses_is_refused(self, gateway: Started, retrieval, stream, body, param):
        assert error_of(ask(gateway, SUM, stream, retrieval={"agent": True}, **body), 400)["param"] == param
        assert retrieval.calls_of("agent") == []


@streamed_or_not
class TestGrounded:
    @pytest.mark.parametrize(
        ("body", "temperature"),
        [
            ({}, 0), ({"n": 1}, 0), ({"n": 2}, None), ({"n": 2, "temperature": 0.5}, 0.5), ({"top_p": 0.5}, None),
            ({"top_k": 5}, None), ({"min_p": 0.1}, None), ({"seed": 1}, 0),
        ],
    )  # fmt: skip
    def test_chance_is_taken_away_only_where_the_client_says_nothing_of_it(
        self, gateway: Started, stream, body, temperature
    ):
        ask(gateway, QUESTION, stream, **body)
        assert gateway.engines["full"].requests[-1].get("temperature") == temperature

    def test_every_choice_is_checked(self, gateway: Started, retrieval: FakeRetrieval, stream):
        facts = gearbox_of(ask(gateway, QUESTION, stream, n=3), stream)
        assert len(retrieval.calls_of("check")) == 3
        assert (facts["grounded"], [one["choice"] for one in facts["sentences"]]) == (True, [0, 1, 2])

    def test_one_choice_without_support_is_enough(
        self, gateway: Started, retrieval: FakeRetrieval, stream, monkeypatch
    ):
        answers = iter([True, False, True])
        check = retrieval._check

        async def some(**arguments: Any) -> list[dict[str, Any]]:
            retrieval.supported = next(answers)
            return await check(**arguments)

        monkeypatch.setattr(retrieval, "_check", some)
        response = ask(gateway, QUESTION, stream, n=3)
        assert gearbox_of(response, stream)["grounded"] is False
        assert "Source 1 says" not in response.text

    def test_sources_are_checked_with_their_titles_and_headings(
        self, gateway: Started, retrieval: FakeRetrieval, stream
    ):
        ask(gateway, QUESTION, stream)
        (call,) = retrieval.calls_of("check")
        assert call["heads"] == ["News"] * len(call["passages"])

    def test_what_was_not_all_checked_is_not_said_to_be(self, gateway: Started, retrieval: FakeRetrieval, stream):
        retrieval.verification_s = 0.2  # of 0.3 s for all
        facts = gearbox_of(ask(gateway, QUESTION, stream, n=3), stream)
        assert (facts["grounded"], facts["sentences"]) == (None, None)

    @pytest.mark.parametrize(
        "body",
        [
            *FORMS, *OF_TOKENS, *FUNCTIONS, {"n": 2}, {"stop": "Source"}, {"stop": ["x", "\n"]}, {"stop": "Larkhaven?\n\nSource"},
            {"max_tokens": 30}, {"max_completion_tokens": 30, "max_tokens": 500},
        ],
        ids=str,
    )  # fmt: skip
    def test_nothing_is_added_against_the_request(self, gateway: Started, retrieval: FakeRetrieval, stream, body):
        retrieval.supported = False
        response = ask(gateway, QUESTION, stream, **body)
        assert "Source 1 says" not in "".join(one["content"] for one in _contents(response, stream))
        facts = gearbox_of(response, stream)
        assert (facts["grounded"], facts["quoted"]) == (False, None)

    @pytest.mark.parametrize(("room", "added"), [(0, True), (-1, False)])
    def test_what_is_added_counts_against_the_token_limit(self, gateway: Started, retrieval, stream, room, added):
        retrieval.supported = False
        written = 4 + f"Ada Quist leads Larkhaven. {QUESTION}".count(" ") + 1  # by the engine's own count
        limit = written + most_tokens("\n\nSource 1 says: “Ada Quist leads Larkhaven.”") + room
        text = text_of(ask(gateway, QUESTION, stream, max_tokens=limit), stream)
        assert ("Source 1 says" in text) == added

    @pytest.mark.parametrize(
        "ending", [{"finish_reason": "length"}, {"finish_reason": "stop", "stop_reason": "!"}, {"finish_reason": "content_filter"}]
    )  # fmt: skip
    def test_nothing_is_added_to_what_did_not_end_by_itself(self, gateway: Started, retrieval, stream, ending):
        retrieval.supported = False
        gateway.engines["full"].ending = ending
        assert "Source 1 says" not in text_of(ask(gateway, QUESTION, stream), stream)

    @pytest.mark.parametrize("finish", ["tool_calls", "stop"])
    def test_a_call_of_a_function_is_not_checked_and_nothing_is_added(
        self, gateway: Started, retrieval, stream, finish
    ):
        retrieval.supported = False
        engine = gateway.engines["full"]
        engine.ending, engine.calls = {"finish_reason": finish}, [{"id": "c", "index": 0, **TOOL}]
        response = ask(gateway, QUESTION, stream, tools=[TOOL])
        assert "Source 1 says" not in response.text.replace("”", "")
        facts = gearbox_of(response, stream)
        assert (facts["grounded"], facts["quoted"]) == (None, None)
        assert retrieval.calls_of("check") == []

    @pytest.mark.parametrize(
        "body", [{"max_tokens": 60}, {"stop": "never"}, {"response_format": {"type": "text"}}, {"tools": [TOOL]}, {"n": None}]
    )  # fmt: skip
    def test_what_the_request_has_room_for_is_added(self, gateway: Started, retrieval: FakeRetrieval, stream, body):
        retrieval.supported = False
        response = ask(gateway, QUESTION, stream, **body)
        assert text_of(response, stream).endswith("\n\nSource 1 says: “Ada Quist leads Larkhaven.”")
        assert gearbox_of(response, stream)["quoted"] == 1


def _contents(response: Any, stream: bool) -> list[dict[str, Any]]:
    if stream:
        return [{"content": part["delta"].get("content") or ""} for one in chunks(response) for part in one["choices"]]
    return [one["message"] for one in response.json()["choices"]]


def test_what_is_right_only_in_a_stream_is_refused_without_one(gateway: Started):
    assert error_of(ask(gateway, SUM, stream_options={"include_usage": True}), 400)["param"] == "stream_options"


def test_log_probabilities_of_the_prompt_are_the_models(gateway: Started):
    assert gearbox_of(ask(gateway, SUM, prompt_logprobs=1), False)["variant"]
    assert error_of(ask(gateway, SUM, True, prompt_logprobs=1), 400)["param"] == "prompt_logprobs"


class TestQuestions:
    """What the last message must be for it to be answered from sources, or at all without a model."""

    @pytest.mark.parametrize(
        ("last", "more"),
        [
            ({"role": "assistant", "content": SUM}, {}), ({"role": "tool", "tool_call_id": "c", "content": SUM}, {}),
            ({"role": "developer", "content": SUM}, {}), ({"role": "user", "content": ""}, {}),
            ({"role": "user", "content": " \n"}, {}), ({"role": "user", "content": []}, {}), ({"role": "user", "content": None}, {}),
            ({"role": "user", "content": [{"type": "text", "text": SUM}, IMAGE]}, {}), ({"role": "user", "content": [SUM]}, {}),
            ({"role": "user", "content": [{"type": "text", "text": 5}]}, {}), ({"role": "user", "content": [{"text": SUM}]}, {}),
            ({"role": "user", "content": SUM}, {"continue_final_message": True, "add_generation_prompt": False}),
            ({"role": "user", "content": SUM}, {"add_generation_prompt": False}), ({"role": "user", "content": SUM}, {"continue_final_message": True}),
        ],
    )  # fmt: skip
    def test_what_is_no_question_reaches_the_engine_as_it_is(self, gateway: Started, retrieval, last, more):
        messages = [{"role": "user", "content": "hi"}, last]
        answer = gateway.post("/v1/chat/completions", {"model": MODEL, "messages": messages, "retrieval": True, **more})
        facts = gearbox_of(answer, False)
        assert (facts["retrieval"]["outcome"], facts["grounded"]) == ("off", None)
        assert gateway.engines["full"].requests[-1]["messages"] == messages
        assert retrieval.calls == []

    @pytest.mark.parametrize(
        "content", [[{"type": "text", "text": "What is"}, {"type": "text", "text": "2 + 2?"}], f" {SUM}\n"]
    )  # fmt: skip
    def test_texts_in_parts_are_one_question(self, gateway: Started, content):
        messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": content}]
        answer = gateway.post("/v1/chat/completions", {"model": MODEL, "messages": messages, "retrieval": True})
        assert text_of(answer, False) == "2 + 2 = 4"

    def test_a_developers_message_stays_the_only_instruction(self, gateway: Started):
        messages = [{"role": "developer", "content": "Speak French."}, {"role": "user", "content": QUESTION}]
        gateway.post("/v1/chat/completions", {"model": MODEL, "messages": messages, "retrieval": True})
        assert [one["role"] for one in gateway.engines["full"].requests[-1]["messages"]] == ["developer", "user"]

    def test_malformed_messages_are_refused(self, gateway: Started):
        for earlier, param in (
            ({"role": "robot", "content": "x"}, "messages[0].role"),
            ({"role": "user", "content": 5}, "messages[0].content"),
        ):
            messages = [earlier, {"role": "user", "content": SUM}]
            answer = gateway.post("/v1/chat/completions", {"model": MODEL, "messages": messages, "retrieval": True})
            assert error_of(answer, 400)["param"] == param
        assert gateway.engine_calls() == {}


@pytest.mark.parametrize(
    ("text", "tokens"),
    [  # what the demo model's tokenizer makes of it
        (ABSTENTION, 13), ("2 + 2 = 4", 7), ("40366 / 439 ≈ 91.949886104784", 28), ("It is Sunday, 29 November 2026.", 14),
        ("Ich weiß es nicht: In den Dokumenten steht dazu nichts.", 24), ("我不知道：文件里没有说明。", 20),
        ("En tiedä: asiakirjoissani ei ole vastausta tähän kysymykseen.", 29), ("Не знаю: в документах этого нет.", 26),
        ("😀👩‍👩‍👧 ok", 17), ("JSON HTTP", 2), ("", 0), ("\r\n\t", 3),
    ],
)  # fmt: skip
def test_tokens_are_never_counted_too_few(text, tokens):
    assert tokens <= most_tokens(text) <= len(text.encode())


def test_a_cut_never_goes_through_a_character():
    for limit in range(1, 12):
        fields = read_fields({"messages": [{"role": "user", "content": "x"}], "max_tokens": limit})
        answer = SyntheticCompletion.within(fields, "né 我😀")
        assert "né 我😀".startswith(answer.text)
        assert len(answer.text.encode()) <= limit + 1
        assert answer.finish_reason == ("stop" if answer.text == "né 我😀" else "length")
