"""SSE relay: however the network splits a stream, the client gets the same bytes, with one object added."""

import json
from collections.abc import Iterable

import pytest

from serve.errors import RequestError
from serve.gateway.sse_relay import EngineFault, StreamRelay, error_event, splice
from serve.request.engine_report import Choice, EngineReport

GEARBOX = {"variant": "int8", "ttft_ms": 12.5, "why": 'a "quoted" }] reason'}
DONE = b"data: [DONE]\n\n"
NASTY = [
    "data: [DONE]",
    'data: [DONE]\n\ndata: {"error":{"message":"no"}}\n\n',
    '"finish_reason":"stop"',
    '"usage":{',
    '{"usage":{"prompt_tokens":1},"choices":[]}',
    '"finish_reason":"stop"}],"usage":{"completion_tokens":9',
    'data: {"error":{"code":500}}',
    "\n\n",
    "\\",
    '\\"',
    "größer 😀 \u2028",
    "}",
    "",
]


def event(document: object) -> bytes:
    return b"data: " + json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


def chunk(*choices: dict[str, object], **more: object) -> bytes:
    head = {"id": "chatcmpl-8d3", "object": "chat.completion.chunk", "created": 1790000000, "model": "smollm2-135m"}
    return event({**head, "choices": list(choices), **more})


def delta(text: str, index: int = 0, finish: str | None = None, **more: object) -> dict[str, object]:
    ending = {"stop_reason": None} if finish else {}
    return {"index": index, "delta": {"content": text, **more}, "logprobs": None, "finish_reason": finish, **ending}


USAGE = chunk(
    usage={"prompt_tokens": 31, "total_tokens": 40, "completion_tokens": 9},
    metrics={"time_to_first_token_ms": 8.25, "generation_time_ms": 96.5, "queue_time_ms": 0.5},
)
USAGE_NOW = {"prompt_tokens": 31, "total_tokens": 32, "completion_tokens": 1}
CALL = {"id": "c1", "type": "function", "index": 0, "function": {"name": "f", "arguments": '{"usage":{"a":1}}'}}
STREAMS = {
    "words": [
        chunk(delta("", role="assistant")),
        chunk(delta("Hi")),
        chunk(delta(" you")),
        chunk(delta("", 0, "stop")),
    ],
    "one token": [chunk(delta("", role="assistant")), chunk(delta("Hi", 0, "length"))],
    "nothing but an end": [chunk(delta("", 0, "stop"))],
    "two choices": [
        chunk(delta("", 0, role="assistant")),
        chunk(delta("", 1, role="assistant")),
        chunk(delta("a", 0)),
        chunk(delta("b", 1)),
        chunk(delta("", 0, "stop")),
        chunk(delta("c", 1)),
        chunk(delta("", 1, "length")),
    ],
    "two ends in one chunk": [chunk(delta("a", 0), delta("b", 1)), chunk(delta("", 0, "stop"), delta("", 1, "stop"))],
    "tool call": [chunk(delta("", 0, tool_calls=[CALL])), chunk(delta("", 0, "tool_calls"))],
    "nasty text": [*(chunk(delta(text)) for text in NASTY), chunk(delta('"usage":{', 0, "stop"))],
    "usage on every chunk": [
        chunk(delta("", role="assistant"), usage=USAGE_NOW),
        chunk(delta("Hi"), usage=USAGE_NOW),
        chunk(delta("", 0, "stop"), usage=USAGE_NOW),
    ],
}


def relayed(parts: Iterable[bytes], wants_usage: bool) -> tuple[bytes, StreamRelay]:
    relay = StreamRelay(wants_usage)
    out = b"".join([relay.feed(part) for part in parts])
    assert relay.done
    return out + relay.finish(GEARBOX), relay


def documents(stream: bytes) -> list[dict[str, object]]:
    """Every chunk as a client reads it; the stream ends with exactly one end marker."""
    *events, marker, rest = stream.split(b"\n\n")
    assert (marker, rest) == (b"data: [DONE]", b"")
    assert all(one.startswith(b"data: ") for one in events)
    return [json.loads(one.removeprefix(b"data: ")) for one in events]


both_ways = pytest.mark.parametrize("wants_usage", [False, True])
every_stream = pytest.mark.parametrize("name", STREAMS)


@every_stream
@both_ways
def test_the_client_gets_the_engines_bytes_and_one_object_on_the_last_chunk(name, wants_usage):
    out, _ = relayed([b"".join(STREAMS[name]) + USAGE + DONE], wants_usage)
    expected = b"".join(STREAMS[name]) + (USAGE if wants_usage else b"")
    addition = b',"gearbox":' + json.dumps(GEARBOX, separators=(",", ":")).encode()
    assert out == expected.removesuffix(b"}\n\n") + addition + b"}\n\n" + DONE
    *before, last = documents(out)
    assert last["gearbox"] == GEARBOX
    assert not any("gearbox" in document for document in before)
    assert ("usage" in last and not last["choices"]) == wants_usage


@every_stream
@both_ways
def test_a_cut_at_any_byte_changes_nothing(name, wants_usage):
    stream = b"".join(STREAMS[name]) + USAGE + DONE
    whole, _ = relayed([stream], wants_usage)
    for at in range(len(stream) + 1):
        out, relay = relayed([stream[:at], stream[at:]], wants_usage)
        assert out == whole, f"cut after {stream[:at][-40:]!r}"
        assert relay.report.completion_tokens == 9
    byte_by_byte, _ = relayed((stream[i : i + 1] for i in range(len(stream))), wants_usage)
    event_by_event, _ = relayed([*STREAMS[name], USAGE, DONE], wants_usage)
    assert byte_by_byte == event_by_event == whole


@both_ways
def test_what_has_arrived_whole_is_passed_on_at_once(wants_usage):
    """A token is not delayed until the next one arrives; only the chunk that may be the last is."""
    relay = StreamRelay(wants_usage)
    for one in STREAMS["words"][:-1]:
        assert relay.feed(one) == one
    assert relay.feed(STREAMS["words"][-1]) == b""


@both_ways
def test_an_unfinished_event_is_buffered_until_its_end_arrives(wants_usage):
    relay = StreamRelay(wants_usage)
    first, second = STREAMS["words"][:2]
    assert relay.feed(first + second[:10]) == first
    assert relay.feed(second[10:-1]) == b""
    assert relay.feed(second[-1:]) == second


def test_the_report_is_the_engines_usage_and_timing():
    _, relay = relayed([*STREAMS["words"], USAGE, DONE], wants_usage=False)
    assert relay.report == EngineReport(prompt_tokens=31, completion_tokens=9, queue_s=0.0005, decode_s=0.0965)
    assert relay.report.total_tokens == 40


def test_a_report_copes_with_what_an_engine_leaves_out():
    assert EngineReport.of({"choices": []}) == EngineReport()
    assert EngineReport.of({"usage": None, "metrics": None}) == EngineReport()
    assert EngineReport.of({"usage": {"prompt_tokens": None}, "metrics": {"queue_time_ms": None}}) == EngineReport()
    assert EngineReport.of([]) == EngineReport()
    assert EngineReport.of({"metrics": {"generation_time_ms": 0.0}}).decode_s == 0


class TestCollecting:
    """What a stream's choices say, for whoever has to know them."""

    @pytest.mark.parametrize("by", [1, 7, 10_000])
    def test_choices_are_relayed_separately(self, by):
        stream = b"".join(STREAMS["two choices"]) + USAGE + DONE
        relay = StreamRelay(False, collects=True)
        for at in range(0, len(stream), by):
            relay.feed(stream[at : at + by])
        assert relay.choices == {0: Choice("a", "stop"), 1: Choice("bc", "length")}
        assert relay.text == "a"

    def test_a_text_ended_by_a_stop_says_by_which(self):
        relay = StreamRelay(False, collects=True)
        relay.feed(chunk(delta("Hi")) + chunk({**delta(" you", 0, "stop"), "stop_reason": "!"}) + USAGE + DONE)
        assert relay.choices == {0: Choice("Hi you", "stop", "!")}

    @both_ways
    def test_what_is_added_follows_all_of_the_text(self, wants_usage):
        """The chunk that ends an answer may have text too."""
        relay = StreamRelay(wants_usage, collects=True)
        out = relay.feed(chunk(delta("Hi")) + chunk(delta(" you", 0, "stop")) + USAGE + DONE)
        events = documents(out + relay.finish(GEARBOX, " – größer"))
        parts = [part for one in events for part in one["choices"]]
        assert "".join(part["delta"]["content"] for part in parts) == "Hi you – größer"
        assert [part["finish_reason"] for part in parts] == [None, "stop"]
        assert events[-1]["gearbox"] == GEARBOX
        assert ("usage" in events[-1]) == wants_usage

    def test_choices_of_a_whole_answer(self):
        call = {"message": {"content": None, "tool_calls": [CALL]}, "finish_reason": "tool_calls"}
        said = {"message": {"content": "Hi"}, "finish_reason": "stop", "stop_reason": 2}
        whole = {"choices": [call, said, {"text": "Hi", "finish_reason": "length"}]}
        assert Choice.all_of(whole) == [Choice("", "tool_calls"), Choice("Hi", "stop", 2), Choice("Hi", "length")]


FAULT = (
    b'data: {"error": {"message": "boom \\"usage\\":{", "type": "InternalServerError", "param": null, "code": 500}}\n\n'
)


def until_fault(parts: Iterable[bytes]) -> tuple[bytes, EngineFault]:
    relay, out = StreamRelay(False), b""
    with pytest.raises(EngineFault) as caught:
        for part in parts:
            out += relay.feed(part)
    assert not relay.done
    return out, caught.value


def test_an_error_event_at_the_start_is_a_fault_however_it_is_cut():
    stream = FAULT + DONE
    for at in range(len(stream) + 1):
        out, fault = until_fault([stream[:at], stream[at:]])
        assert out == b""
        assert fault.status == 500
        assert json.loads(fault.body)["error"]["message"] == 'boom "usage":{'
    until_fault(stream[i : i + 1] for i in range(len(stream)))


def test_an_error_event_in_the_middle_is_a_fault_and_never_passed_on():
    before = STREAMS["words"][:3]
    stream = b"".join(before) + FAULT + DONE
    starts = [b"".join(before[:n]) for n in range(4)]
    for at in range(len(stream) + 1):
        out, _ = until_fault([stream[:at], stream[at:]])
        assert out in starts, "whole chunks from the beginning, and nothing else"
    assert until_fault(stream[i : i + 1] for i in range(len(stream)))[0] == starts[-1]
    assert until_fault([*before, FAULT])[0] == starts[-1]


def test_an_engine_that_states_no_code_is_at_fault_itself():
    assert until_fault([b'data: {"error":{"message":"x","code":"odd"}}\n\n'])[1].status == 500
    assert until_fault([b'data: {"error":{"message":"x","code":400}}\n\n'])[1].status == 400


@pytest.mark.parametrize("error", ['"out of memory"', "null", "[]", "{}"])
def test_an_error_event_of_an_unknown_shape_is_a_fault_like_any_other(error):
    _, fault = until_fault([STREAMS["words"][0], b'data: {"error":' + error.encode() + b"}\n\n"])
    assert fault.status == 500


def test_a_cut_stream_is_not_done():
    relay = StreamRelay(False)
    relay.feed(b"".join(STREAMS["words"]) + USAGE + DONE[:-1])
    assert not relay.done


@pytest.mark.parametrize(
    "document",
    [
        b'{"id":"x","choices":[{"message":{"content":"}"}}]}',
        b'{ "id" : "x" ,\n "a": { } }\n',
        '{"text":"größer 😀","n":1.0e-7,"big":18446744073709551616}'.encode(),
        b'{"text":"\\u00e9\\/"}',
    ],
)
def test_splice_leaves_the_document_byte_for_byte_as_it_was(document):
    out = splice(document, GEARBOX)
    addition = b',"gearbox":' + json.dumps(GEARBOX, separators=(",", ":")).encode()
    assert out.count(addition) == 1
    assert out.replace(addition, b"") == document
    assert json.loads(out) == {**json.loads(document), "gearbox": GEARBOX}


def test_an_interrupted_stream_ends_with_an_sse_error_event():
    error = RequestError(500, "broke\noff", param="stop", code="stream_interrupted")
    name, data, *rest = error_event(error).split(b"\n")
    assert name == b"event: error"
    assert json.loads(data.removeprefix(b"data: ")) == json.loads(error.body())
    assert rest == [b"", b""]
