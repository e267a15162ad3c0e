"""Parsing of request bodies: the fields that the gateway reads, and what it rejects before an engine sees it."""

import json
import sys

import orjson
import pytest

from serve.errors import RequestError, overloaded
from serve.request.call import DEFAULT_OUTPUT_TOKENS, Call, ModelRef, parse_call
from serve.routing.replica_state import BLOCK_CHARS


def chat(**fields: object) -> Call:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], **fields}
    return parse_call(json.dumps(body).encode(), "chat", "alice")


def completion(prompt: object, **fields: object) -> Call:
    return parse_call(json.dumps({"model": "m", "prompt": prompt, **fields}).encode(), "completions", "alice")


def refused(raw: bytes, endpoint="chat") -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_call(raw, endpoint, "alice")
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("smollm2-135m", ModelRef("smollm2-135m")),
        ("smollm2-135m@fast", ModelRef("smollm2-135m", profile="fast")),
        ("smollm2-135m:int8", ModelRef("smollm2-135m", variant="int8")),
        ("smollm2-135m:", ModelRef("smollm2-135m", variant="")),
        ("smollm2-135m@", ModelRef("smollm2-135m", profile="")),
        ("m@a@b", ModelRef("m", profile="a@b")),
        ("m:a:b", ModelRef("m", variant="a:b")),
        ("m@a:b", ModelRef("m", profile="a:b")),
    ],
)
def test_the_model_field_names_a_model_a_profile_or_a_variant(text, ref):
    assert ModelRef.parse(text) == ref
    assert chat(model=text).ref == ref


def test_the_budget_is_taken_out_of_what_the_engine_gets():
    call = chat(budget={"ttft_ms": 5})
    assert call.budget == {"ttft_ms": 5}
    assert "budget" not in orjson.loads(call.payload("served"))


@pytest.mark.parametrize("sent", [-(2**63), 3, "x", None])
def test_a_clients_priority_is_replaced(sent):
    call = chat(priority=sent)
    assert json.loads(call.payload("m", 1_800_000_000_000))["priority"] == 1_800_000_000_000
    assert "priority" not in json.loads(call.payload("m")), "another attempt, at an engine that schedules by arrival"


def test_everything_else_reaches_the_engine_as_it_was_sent():
    sent = {
        "messages": [{"role": "user", "content": "größer 😀 \u2028 \u0000"}],
        "temperature": 0.1 + 0.2,
        "seed": 2**63 - 1,
        "logit_bias": {"50256": -100},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
        "vendor_field": [None, True, {"deep": []}],
        "max_tokens": 3,
    }
    arrived = json.loads(chat(**sent).payload("smollm2-135m"))
    assert arrived == {"model": "smollm2-135m", "cache_salt": "alice", **sent}


def test_a_pinned_or_profiled_name_reaches_the_engine_as_the_models_own():
    assert json.loads(chat(model="smollm2-135m:int8").payload("smollm2-135m"))["model"] == "smollm2-135m"


def test_usage_is_requested_from_the_engine_on_every_stream_and_only_there():
    assert json.loads(chat(stream=True).payload("m"))["stream_options"] == {"include_usage": True}
    assert "stream_options" not in json.loads(chat().payload("m"))
    both = {"continuous_usage_stats": True, "include_usage": True}
    for options, sent in (
        (both, both),
        ({"continuous_usage_stats": True}, {"include_usage": True}),
        ({"continuous_usage_stats": True, "include_usage": False}, {"include_usage": True}),
        ({"include_obfuscation": False}, {"include_obfuscation": False, "include_usage": True}),
    ):
        assert json.loads(chat(stream=True, stream_options=options).payload("m"))["stream_options"] == sent


@pytest.mark.parametrize(
    ("options", "wants"),
    [(None, False), ({}, False), ({"include_usage": False}, False), ({"include_usage": True}, True)],
)
def test_whether_the_client_wants_usage_is_remembered(options, wants):
    call = chat(stream=True, stream_options=options)
    call.payload("m")
    call.payload("m")  # a second attempt
    assert call.wants_usage is wants


def test_stream_is_false_by_default_and_null():
    assert chat().stream is False
    assert chat(stream=None).stream is False
    assert chat(stream=True).stream is True


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"hello", b'{"model": "m",}', b"\xff\xfe", b'{"model": "\xff"}', b'{"model": "\\ud800"}', b"[" * 5000],
)
def test_what_is_not_json_is_refused(raw):
    assert refused(raw).code == "invalid_json"


@pytest.mark.parametrize("raw", [b"[]", b'"text"', b"5", b"null", b"true"])
def test_a_body_that_is_no_object_is_refused(raw):
    assert refused(raw).code == "invalid_body"


@pytest.mark.parametrize("model", [None, "", 5, ["m"], {}])
def test_a_model_is_required(model):
    error = refused(json.dumps({"model": model, "messages": [{}]}).encode())
    assert (error.param, error.code) == ("model", "missing_model")
    assert refused(b'{"messages": [{}]}').param == "model"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stream", "true"),
        ("stream", 1),
        ("stream", 0),
        ("stream", ""),
        ("cache_salt", 5),
        ("cache_salt", {}),
        ("cache_salt", ["own"]),
        ("stream_options", "usage"),
        ("stream_options", [1]),
        ("messages", None),
        ("messages", []),
        ("messages", "hello"),
        ("messages", {"role": "user"}),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", "10"),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_completion_tokens", 0),
        ("n", 0),
        ("n", -1),
        ("n", "2"),
        ("n", 1.5),
        ("n", True),
        ("n", [2]),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_by_its_name(field, value):
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], field: value}
    error = refused(json.dumps(body).encode())
    assert error.param == field
    assert field in error.message


def test_a_wrong_limit_is_refused_though_the_other_one_counts():
    body = {"model": "m", "messages": [{"role": "user"}], "max_completion_tokens": 5, "max_tokens": "many"}
    assert refused(json.dumps(body).encode()).param == "max_tokens"


def test_a_whole_number_may_be_written_with_a_point():
    assert chat(max_tokens=8.0).max_output_tokens == 8
    assert completion([1.0, 2]).prompt_tokens == 2


@pytest.mark.parametrize("value", [{}, [], "yes", 1])
def test_what_the_gateway_reads_of_stream_options_is_checked(value):
    body = {"model": "m", "messages": [{}], "stream": True, "stream_options": {"include_usage": value}}
    assert refused(json.dumps(body).encode()).param == "stream_options.include_usage"


def test_a_message_that_is_no_object_is_refused_by_its_place():
    assert refused(b'{"model": "m", "messages": [{}, "hi"]}').param == "messages[1]"


@pytest.mark.parametrize(
    "prompt",
    [{}, 5, True, [{"a": 1}], ["a", 1], [1, "a"], [[1], "a"], ["a", [1, 2]], [True], [[1, None]], [[["a"]]], [1.5]],
)
def test_a_prompt_that_is_neither_text_nor_tokens_is_refused(prompt):
    error = refused(json.dumps({"model": "m", "prompt": prompt}).encode(), "completions")
    assert (error.param, error.code) == ("prompt", "invalid_type")


@pytest.mark.parametrize("body", [{}, {"prompt": None}, {"prompt": []}])
def test_a_prompt_is_required(body):
    error = refused(json.dumps({"model": "m", **body}).encode(), "completions")
    assert (error.param, error.code) == ("prompt", "missing_prompt")


@pytest.mark.parametrize("prompt", ["", [[]], [[1], []]])
def test_an_empty_prompt_is_refused_as_the_engine_does(prompt):
    error = refused(json.dumps({"model": "m", "prompt": prompt}).encode(), "completions")
    assert (error.param, error.code) == ("prompt", "invalid_value")


@pytest.mark.parametrize(
    ("prompt", "size"),
    [
        ("four", (1, 4, 0, 1)),
        (["a", "longest", "bb"], (3, 10, 0, 0.7)),
        (["", ""], (2, 0, 0, 0)),
        ([1, 2, 3], (1, 0, 3, 1)),
        ([[1], [1, 2, 3, 4]], (2, 0, 5, 0.8)),
    ],
)
def test_the_size_of_a_list_of_prompts_is_that_of_all_of_them(prompt, size):
    call = completion(prompt)
    assert (call.prompts, call.prompt_chars, call.prompt_tokens, call.longest) == size


@pytest.mark.parametrize(
    ("call", "sequences"),
    [
        (chat(), 1),
        (chat(n=None), 1),
        (chat(n=8), 8),
        (chat(n=2, best_of=5), 2),
        (completion("a", n=3), 3),
        (completion("a", n=2, best_of=2), 2),
        (completion("a", best_of=None), 1),
        (completion(["a", "b"], n=3), 6),
        (completion([[1], [2], [3]]), 3),
    ],
)
def test_a_request_is_as_many_sequences_as_choices_times_prompts(call, sequences):
    assert call.sequences == sequences


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"best_of": 8}, "unsupported_value"), ({"n": 2, "best_of": 3}, "unsupported_value"),
        ({"n": 2, "best_of": 1}, "invalid_value"), ({"best_of": 0}, "invalid_value"), ({"best_of": "2"}, "invalid_type"),
    ],
)  # fmt: skip
def test_best_of_may_only_be_n(fields, code):
    error = refused(json.dumps({"model": "m", "prompt": "a", **fields}).encode(), "completions")
    assert (error.param, error.code) == ("best_of", code)


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, 0), ({"min_tokens": 200}, 200), ({"min_tokens": None}, 0), ({"min_tokens": "x"}, 0), ({"min_tokens": -1}, 0),
        ({"ignore_eos": True, "max_tokens": 90}, 90), ({"ignore_eos": True, "min_tokens": 5, "max_tokens": 90}, 90),
        ({"ignore_eos": False, "max_tokens": 90}, 0), ({"ignore_eos": True}, sys.maxsize),
    ],
)  # fmt: skip
def test_an_answer_is_at_least_as_long_as_the_request_makes_it(fields, tokens):
    assert chat(**fields).min_output_tokens == tokens


def test_the_size_of_a_conversation_counts_every_text_and_the_template():
    messages = [
        {"role": "system", "content": "12345"},
        {"role": "user", "content": [{"type": "text", "text": "678"}, {"type": "image_url"}, "odd", {"text": 5}]},
        {"role": "assistant", "content": None, "tool_calls": []},
    ]
    call = chat(messages=messages)
    assert call.prompt_chars == 8
    assert call.prompt_tokens == 3 * 4
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert chat(messages=messages, tools=tools).prompt_chars == 8 + len(orjson.dumps(tools))


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, DEFAULT_OUTPUT_TOKENS),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 9}, 9),
        ({"max_completion_tokens": 9, "max_tokens": 7}, 9),
        ({"max_completion_tokens": None, "max_tokens": 7}, 7),
    ],
)
def test_the_longest_answer_is_what_the_client_allows(fields, tokens):
    assert chat(**fields).max_output_tokens == tokens


@pytest.mark.parametrize(
    ("fields", "tokens", "limited"),
    [
        ({}, 16, True),
        ({"max_tokens": None}, 16, True),
        ({"max_tokens": 5, "max_completion_tokens": 900}, 5, True),
        ({"max_tokens": 0, "echo": True}, 0, True),
    ],
)
def test_a_completion_is_limited_to_16_tokens_unless_it_says_otherwise(fields, tokens, limited):
    call = completion("a", **fields)
    assert (call.max_output_tokens, call.limits_output) == (tokens, limited)


def tool(**function: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": "f", **function}}


@pytest.mark.parametrize(
    ("sent", "arrives"), [({}, True), ({"strict": None}, True), ({"strict": True}, True), ({"strict": False}, False)]
)
@pytest.mark.parametrize("choice", [None, "auto", "required", {"type": "function", "function": {"name": "f"}}])
def test_tool_calls_follow_their_schema_unless_a_function_says_otherwise(sent, arrives, choice):
    call = chat(tools=[tool(**sent)], tool_choice=choice)
    call.constrain_tool_calls()
    assert call.body["tools"][0]["function"]["strict"] is arrives


@pytest.mark.parametrize("fields", [{}, {"tools": None}, {"tools": 5}, {"tools": [5, {"function": 5}, {}]}])
def test_tools_of_the_wrong_kind_are_left_for_the_engine_to_refuse(fields):
    call = chat(**fields)
    call.constrain_tool_calls()
    assert call.body.get("tools") == fields.get("tools")


def test_tools_that_may_not_be_called_need_no_constraint():
    call = chat(tools=[tool()], tool_choice="none")
    call.constrain_tool_calls()
    assert "strict" not in call.body["tools"][0]["function"]


@pytest.mark.parametrize("body", [{"prompt": "a"}, {"prompt": "a", "echo": False}])
def test_nothing_is_generated_only_for_an_echo(body):
    assert refused(json.dumps({"model": "m", "max_tokens": 0, **body}).encode(), "completions").param == "max_tokens"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"), (401, "authentication_error"), (404, "not_found_error"),
        (413, "invalid_request_error"), (422, "invalid_request_error"), (429, "rate_limit_error"),
        (503, "service_unavailable_error"), (500, "server_error"), (409, "invalid_request_error"), (507, "server_error"),
    ],
)  # fmt: skip
def test_an_error_is_in_openais_shape(status, kind):
    body = orjson.loads(RequestError(status, "why", param="model", code="invalid_value").body())
    assert body == {"error": {"message": "why", "type": kind, "param": "model", "code": "invalid_value"}}
    assert orjson.loads(RequestError(status, "why", code="invalid_value").body())["error"]["param"] is None


def test_a_message_that_is_a_function_is_composed_when_it_is_read():
    composed = []
    error = RequestError(422, lambda: composed.append(1) or "why", code="impossible_budget")
    assert not composed
    assert error.message == str(error) == error.parts()["message"] == "why"


@pytest.mark.parametrize(("wait_s", "header"), [(0, "1"), (-5, "1"), (0.2, "1"), (7.0, "7")])
def test_retry_after_is_whole_seconds_and_at_least_one(wait_s, header):
    error = overloaded("later", wait_s, "overloaded")
    assert (error.status, error.headers) == (429, {"retry-after": header})


def blocks(*contents: str, tenant: str = "alice", **fields: object) -> tuple[int, ...]:
    messages = [{"role": "user", "content": content} for content in contents]
    return parse_call(json.dumps({"model": "m", "messages": messages, **fields}).encode(), "chat", tenant).blocks


def test_a_chat_that_goes_on_begins_with_the_blocks_it_had():
    first = blocks("a" * 3 * BLOCK_CHARS)
    assert len(first) == len(set(first)) == 3, "each block stands for all before it too"
    assert blocks("a" * 3 * BLOCK_CHARS, "and then?")[:3] == first
    assert blocks("a" * 2 * BLOCK_CHARS + "b" * BLOCK_CHARS)[:2] == first[:2]
    assert not set(blocks("b" + "a" * 3 * BLOCK_CHARS)) & set(first)
    assert completion("a" * BLOCK_CHARS).blocks and not completion("short").blocks
    assert not completion(["a" * BLOCK_CHARS]).blocks and not completion([1] * BLOCK_CHARS).blocks


def test_the_prefix_cache_reveals_no_other_tenants_requests():
    mine = blocks("a" * BLOCK_CHARS)
    assert not set(blocks("a" * BLOCK_CHARS, tenant="bob")) & set(mine)
    assert not set(blocks("a" * BLOCK_CHARS, cache_salt="own")) & set(mine)
    assert not set(blocks("a" * BLOCK_CHARS, cache_salt="own")) & set(blocks("a" * BLOCK_CHARS, cache_salt="other"))


@pytest.mark.parametrize("salt", ["own", "a" * 5000, "\\/@\0", "größer"])
def test_any_salt_is_one_that_engines_take(salt):
    assert chat().body["cache_salt"] == chat(cache_salt="").body["cache_salt"] == "alice"
    sent = chat(cache_salt=salt).body["cache_salt"]
    assert sent.startswith("alice ") and len(sent) < 100 and not set(sent) & set("\\/@\0")


def test_a_salt_is_text():
    for salt in (5, [], {}, False):
        with pytest.raises(RequestError, match="'cache_salt' must be a string"):
            chat(cache_salt=salt)
