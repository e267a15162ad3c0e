"""Continuation: an answer cut off at any token is the same as the undisturbed one, in every event that the client gets."""

import itertools
import json
from collections.abc import Coroutine, Sequence
from typing import Any

import orjson
import pytest

from serve.gateway.continuation import Continuation, NotContinuable, _ends_alike, inexact
from serve.gateway.response_stream import ResponseStream
from serve.gateway.sse_relay import EngineFault, StreamRelay
from serve.request.call import Call, parse_call
from tests.support.token_engine import TokenEngine, byte_tokenizer

ANSWERS = [
    "the gears of the box",
    "größe 漢字漢字 😀😀 the 👩‍👩‍👧 box",
    '"token_ids":[1]} \\ "finish_reason":"stop"\n\ndata: [DONE]\n\n of the',
    "é",
    "a",
]
STOPS: list[dict[str, Any]] = [
    {},
    {"stop": ["of the"]},
    {"stop": "漢字 "},
    {"stop": ["x", "box"]},
    {"stop": ["of the", "字漢"], "include_stop_str_in_output": True},
    {"stop": ["never there"]},
]


def call(chat: bool = True, **body: Any) -> Call:
    prompt = {"messages": [{"role": "user", "content": "the prompt"}]} if chat else {"prompt": "the prompt"}
    raw = orjson.dumps({"model": "smollm2-135m", "stream": True, **prompt, **body})
    return parse_call(raw, "chat" if chat else "completions", "tenant")


def payload(request: Call) -> dict[str, Any]:
    return json.loads(request.payload("smollm2-135m", token_ids=True))


def stream_of(request: Call) -> ResponseStream:
    return ResponseStream(StreamRelay(request.wants_usage, continuation=Continuation(request)))


def answer(request: Call, engine: TokenEngine, cuts: Sequence[int] = (), part_of_next: int = 0) -> bytes:
    """What the client gets where the engine breaks off after so many events of each part."""
    stream, body, out = stream_of(request), payload(request), b""
    for cut in [*cuts, None]:
        events = list(engine.events(body))
        for event in events[:cut]:
            out += stream.feed(event)
            if stream.relay.done:
                return out + stream.relay.finish({})
        out += stream.feed(events[cut][:part_of_next])
        out += stream.complete()
        if stream.relay.done:
            return out + stream.relay.finish({})

        cut_off(stream)
        body = json.loads(stream.continuation.payload("smollm2-135m", 2048, None))
    raise AssertionError("the stream has no end")


def cut_off(stream: ResponseStream) -> bool:
    """Prepare a stream for another engine, with the check. Returns whether an engine was asked before that."""
    asked = 0

    async def detokenize(tokens: Sequence[int]) -> str:
        nonlocal asked
        asked += 1
        return byte_tokenizer().decode(list(tokens))

    check = result_of(stream.cut(detokenize))
    before = asked > 0
    if check is not None:
        result_of(check)
    return before


def result_of(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine in which nothing waits, without an event loop."""
    with pytest.raises(StopIteration) as ended:
        work.send(None)
    return ended.value.value


def said(out: bytes) -> tuple[str, list[dict[str, Any]], dict[str, Any]]:
    """The text, the last choice without text, and the usage, of a complete stream; heads are all the same."""
    *events, done, end = out.split(b"\n\n")
    assert (done, end) == (b"data: [DONE]", b"")
    chunks = [json.loads(event[6:]) for event in events]
    for chunk in chunks:
        chunk.pop("gearbox", None)
        chunk.pop("prompt_token_ids", None)
    usage = [chunk.pop("usage") for chunk in chunks if chunk.get("usage")]
    heads = [{name: chunk[name] for name in ("id", "object", "created", "model")} for chunk in chunks]
    assert all(head == heads[0] for head in heads)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    roles = [c for c in choices if "role" in c.get("delta", {})]
    assert len(roles) == ("delta" in choices[0]), "the role comes once"
    text = "".join((c.pop("delta")["content"] if "delta" in c else c.pop("text")) or "" for c in choices)
    assert all(choice["finish_reason"] is None for choice in choices[:-1])
    return text, [choices[-1]], {"head": heads[0], "usage": usage}


@pytest.mark.parametrize("burst", [1, 3])
@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("more", STOPS)
@pytest.mark.parametrize("text", ANSWERS)
def test_an_answer_cut_at_any_token_is_the_undisturbed_one(text, more, chat, burst):
    options = {"stream_options": {"include_usage": True}, "max_tokens": 100, **more}
    whole = said(answer(call(chat, **options), TokenEngine(text, burst)))
    events = len(list(TokenEngine(text, burst).events(payload(call(chat, **options)))))
    assert whole[0], "there is something to compare"
    for cut in range(1, events):
        out = answer(call(chat, **options), TokenEngine(text, burst), [cut], part_of_next=cut % 2 * 40)
        assert_same(said(out), whole, cut)


def assert_same(cut: tuple, whole: tuple, where: object) -> None:
    """The same but for the usage: an engine goes on for some tokens until a stop sequence is found that it does not see whole."""
    assert cut[:2] == whole[:2], where
    extra = cut[2]["usage"][0]["completion_tokens"] - whole[2]["usage"][0]["completion_tokens"]
    spans = whole[1][0].get("stop_reason") is not None
    assert 0 <= extra <= (8 if spans else 0), where
    assert cut[2]["usage"][0]["prompt_tokens"] == whole[2]["usage"][0]["prompt_tokens"]
    assert cut[2]["head"] == whole[2]["head"]


@pytest.mark.parametrize("more", STOPS)
def test_an_answer_cut_twice_is_the_undisturbed_one(more):
    text, options = ANSWERS[1], {"stream_options": {"include_usage": True}, "max_tokens": 100, **more}
    whole = said(answer(call(**options), TokenEngine(text)))
    for first, second in itertools.product((1, 2, 7, 12, 13, 14, 19, 20), range(1, 22, 2)):
        assert_same(said(answer(call(**options), TokenEngine(text), [first, second])), whole, (first, second))


@pytest.mark.parametrize("chat", [True, False])
def test_limits_count_the_tokens_of_all_parts(chat):
    for limit in range(1, 12):
        whole = said(answer(call(chat, max_tokens=limit), TokenEngine(ANSWERS[1])))
        for cut in range(1, limit + 1):
            engine = TokenEngine(ANSWERS[1])
            request = call(chat, max_tokens=limit, min_tokens=min(limit, 5), seed=3, temperature=0.5)
            assert said(answer(request, engine, [cut])) == whole
            if len(engine.requests) > 1:
                last = engine.requests[1]
                written = len(last["prompt"]) - len(byte_tokenizer().encode("the prompt").ids)
                assert last["max_tokens"] == limit - written
                assert last.get("min_tokens", 0) == max(0, min(limit, 5) - written)
                assert last["temperature"] == 0.5
                assert (last["seed"] == 3) == (written == 0), "not the same random numbers again"
                assert last["cache_salt"] == "tenant"


def test_ids_are_removed_unless_the_client_requested_them():
    out = answer(call(), TokenEngine(ANSWERS[0]), [4])
    assert b'"token_ids":[' not in out and b'"prompt_token_ids":[' not in out
    plain = b"".join(TokenEngine(ANSWERS[0]).events({**payload(call()), "return_token_ids": False}))
    stream = stream_of(call())
    data = b"".join(TokenEngine(ANSWERS[0]).events(payload(call())))
    assert stream.continuation.strip(data) == plain, "byte for byte as without ids"


def test_a_client_that_requested_ids_gets_each_once():
    request = call(return_token_ids=True)
    ids = byte_tokenizer().encode(ANSWERS[0]).ids
    for cut in range(1, len(ids)):
        out = answer(call(return_token_ids=True), TokenEngine(ANSWERS[0]), [cut])
        chunks = [json.loads(event[6:]) for event in out.split(b"\n\n")[:-2]]
        assert [i for c in chunks for choice in c["choices"] for i in choice.get("token_ids") or ()] == ids
        assert [c["prompt_token_ids"] for c in chunks if c.get("prompt_token_ids")] == [
            byte_tokenizer().encode("the prompt").ids
        ]
    assert inexact(request) is None


def test_a_client_that_has_ids_of_half_a_character_gets_the_others():
    for text, cuts in itertools.product(("😊 x", "a 😊😊"), ([2], [3], [3, 1], [2, 2])):
        request = call(return_token_ids=True, stream_options={"include_usage": True})
        out = answer(request, TokenEngine(text), cuts)
        chunks = [json.loads(event[6:]) for event in out.split(b"\n\n")[:-2]]
        ids = [i for c in chunks for choice in c["choices"] for i in choice.get("token_ids") or ()]
        assert ids == byte_tokenizer().encode(text).ids, (text, cuts)
        assert said(out)[0] == text
        assert chunks[-1]["usage"]["completion_tokens"] == len(ids)


def test_a_client_that_has_the_id_of_another_half_a_character_gets_no_more():
    request = call(return_token_ids=True)
    stream, engine = stream_of(request), TokenEngine("😊 x")
    for event in list(engine.events(payload(request)))[:3]:
        stream.feed(event)

    cut_off(stream)
    other = list(TokenEngine("x").events({**json.loads(stream.continuation.payload("m", 2048, None)), "max_tokens": 1}))
    for _ in range(4):  # nor of an engine after it, of however many ids the client has
        with pytest.raises(EngineFault):
            stream.feed(other[0])
        cut_off(stream)


def test_an_engine_that_gives_no_ids_is_not_continued():
    request = call()
    engine = TokenEngine(ANSWERS[0])
    stream = stream_of(request)
    for event in list(engine.events({**payload(request), "return_token_ids": False}))[:3]:
        stream.feed(event)
    with pytest.raises(NotContinuable, match="no token ids"):
        _ = stream.continuation.prompt


def test_the_end_of_one_without_ids_is_not_written():
    request = call(stream_options={"include_usage": True})
    stream = stream_of(request)
    *events, _, _ = TokenEngine(ANSWERS[0]).events({**payload(request), "return_token_ids": False})
    stream.feed(b"".join(events))
    assert stream.relay.ended
    assert stream.complete() == b"", "its number of tokens is not known"


def test_an_event_without_ids_makes_the_rest_inexact():
    request = call()
    events = list(TokenEngine(ANSWERS[0]).events(payload(request)))
    stream = stream_of(request)
    stream.feed(events[0] + events[1] + events[2].replace(b'"token_ids":[', b'"ids":['))
    with pytest.raises(NotContinuable):
        _ = stream.continuation.prompt


@pytest.mark.parametrize(("text", "other", "alike"), [
    ("abc", "xabc", True), ("abc", "xabd", False), ("\ufffd\ufffd\ufffdabc", "😀abc", True), ("\ufffd\ufffdabc", "😀abd", False),
])  # fmt: skip
def test_texts_are_compared_without_what_is_left_of_a_character(text: str, other: str, alike: bool):
    """A window of the last tokens may begin inside of one."""
    assert _ends_alike(text, other) is alike


@pytest.mark.parametrize("later", [0, 1])
def test_an_engine_that_holds_text_back_is_not_continued(later):
    """As one does that searches the text for tool calls."""
    request = call()
    events = list(TokenEngine("vwxyz").events(payload(request)))
    stream = stream_of(request)
    held = [event.replace(b'"content":"', b'"content":"","held":"') for event in events]
    stream.feed(b"".join([*events[:3], held[3], *events[4 : 4 + later]]) + held[4 + later])
    with pytest.raises(NotContinuable, match="held text back"):
        cut_off(stream)


@pytest.mark.parametrize(
    ("text", "burst", "more", "events", "asked"),
    [
        ("vwxyz", 1, {}, 4, False), ("vwxyz", 2, {}, 2, True), ("vwxyz", 1, {"stop": "a"}, 4, True), ("é", 1, {}, 2, True),
        ("vwxyz", 1, {"ignore_eos": True}, 4, False),
    ],
)  # fmt: skip
def test_an_engine_is_asked_first_only_where_the_last_token_may_have_no_whole_text(text, burst, more, events, asked):
    stream, call_ = stream_of(call(**more)), call(**more)
    for event in list(TokenEngine(text, burst).events(payload(call_)))[:events]:
        stream.feed(event)
    assert cut_off(stream) == asked


@pytest.mark.parametrize(
    "body",
    [
        {"n": 2},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": "a"}},
        {"logprobs": True},
        {"presence_penalty": 0.5},
        {"frequency_penalty": -1},
        {"bad_words": ["x"]},
        {"echo": True},
        {"thinking_token_budget": 5},
        {"vllm_xargs": {"a": 1}},
        {"field_of_tomorrow": 1},
        {"stop": ["x"], "min_tokens": 5},
        {"stop": 5},
        {"tool_choice": None},
        {"min_tokens": "5"},
        {"stop": ["abcd"], "include_stop_str_in_output": "false"},
        {"ignore_eos": "false"},
        {"return_token_ids": 1},
    ],
)
def test_what_another_engine_would_not_continue_exactly_is_named(body):
    assert inexact(call(**body)) == next(reversed(body))


def test_the_log_does_not_quote_fields_that_clients_make_up():
    for field, shown in (("logprobs", "it has 'logprobs'"), ("my secret", "it has a field that the API does not have")):
        with pytest.raises(NotContinuable, match=f"^{shown}$") as caught:
            _ = ResponseStream(StreamRelay(False), field).continuation
        assert caught.value.param == field


@pytest.mark.parametrize("wants_usage", [True, False])
def test_a_stream_whose_usage_has_come_is_complete_though_it_could_not_go_on(wants_usage: bool):
    request = call()
    *events, done = TokenEngine(ANSWERS[0]).events(payload(request))
    stream = ResponseStream(StreamRelay(wants_usage), inexact="tools")
    sent = b"".join(map(stream.feed, events))
    assert b"[DONE]" in done and not stream.relay.done
    assert stream.complete() == b"" and stream.relay.done
    assert b'"finish_reason":"' not in sent and b'"finish_reason":"' in stream.relay.finish({})


def test_log_probabilities_of_a_completion_and_pictures_are_inexact():
    assert inexact(call(False, logprobs=0)) == "logprobs"
    picture = {"type": "image_url", "image_url": {"url": "data:"}}
    assert inexact(call(messages=[{"role": "user", "content": [picture]}])) == "messages"


@pytest.mark.parametrize(
    "body",
    [
        {"temperature": 0, "top_p": 0.5, "top_k": 4, "min_p": 0.1, "repetition_penalty": 1.2, "logit_bias": {"5": -1}},
        {"n": 1, "logprobs": False, "presence_penalty": 0.0, "response_format": {"type": "text"}, "tools": None},
        {"stop": ["a"], "seed": 4, "user": "me", "ignore_eos": True, "min_tokens": None},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
    ],
)
def test_what_changes_nothing_is_exact(body):
    assert inexact(call(**body)) is None
