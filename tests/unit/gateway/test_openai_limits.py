"""Values on the edge of what OpenAI's API takes: the gateway refuses them exactly where the description forbids them."""

import json

import jsonschema
import pytest

from benchmarks.lib.sample_catalog import MODEL, make_config
from serve.errors import RequestError
from serve.gateway.openapi import describe
from serve.request.call import parse_call
from serve.request.chat_fields import read_fields
from serve.retrieval.ingest.metadata import check_meta

DOCUMENT = json.loads(describe(make_config(retrieval={})))
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"model": MODEL, "prompt": "hi"}


def described(name, body):
    """Whether the description allows the body."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    return jsonschema.Draft202012Validator(schema).is_valid(body)


def refusal(work, *arguments):
    """The error that a call raises, if it raises one."""
    try:
        work(*arguments)
    except RequestError as error:
        return error
    return None


def tool(name):
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "bot", "content": "hi"}]}, "messages[0].role"), ({"messages": [{"role": "", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"), ({"messages": [{"role": "function", "name": "f", "content": "hi"}]}, None),
        ({"messages": [{"role": "developer", "content": "hi"}]}, None),
        ({"tools": [tool("f"), tool("")]}, "tools[1].function.name"), ({"tools": [tool("f")]}, None),
        ({"logit_bias": {"5": 100}}, None), ({"logit_bias": {"5": 101}}, "logit_bias.5"), ({"logit_bias": {"5": -100.5}}, "logit_bias.5"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"), ({"logit_bias": {" 5": 1}}, "logit_bias. 5"),
        ({"seed": 2**53}, None), ({"seed": -(2**63)}, None), ({"seed": 2**63 - 1}, None), ({"stop": ["a"] * 4}, None),
    ],
)  # fmt: skip
def test_a_chat_is_refused_exactly_where_the_description_forbids_it(fields, param):
    body = {**CHAT, **fields}
    error = refusal(parse_call, json.dumps(body).encode(), "chat", "tenant")
    assert (error and (error.status, error.param)) == (param and (400, param))
    assert described("ChatCompletionRequest", body) == (error is None)
    if "logit_bias" in fields:
        completion = {**COMPLETION, **fields}
        again = refusal(parse_call, json.dumps(completion).encode(), "completions", "tenant")
        assert (again and again.param) == param
        assert described("CompletionRequest", completion) == (again is None)


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": ["a"] * 5}, {"stop": ""}, {"stop": ["a", ""]}, {"tools": []}, {"seed": 2**63}, {"top_logprobs": 21, "logprobs": True},
    ],
)  # fmt: skip
def test_what_the_engine_refuses_the_description_forbids(fields):
    assert not described("ChatCompletionRequest", {**CHAT, **fields})
    assert refusal(read_fields, {**CHAT, **fields}) is not None  # compared with the engine in tests/integration


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({"max_tokens": 0}, False), ({"max_tokens": 0, "echo": False}, False), ({"max_tokens": 0, "echo": True}, True),
        ({"max_tokens": None}, True), ({"max_tokens": 1}, True), ({"max_tokens": -1, "echo": True}, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["CompletionRequest", "RouteCompletionRequest"])
def test_only_an_echo_may_be_without_output(name, fields, allowed):
    body = {**COMPLETION, **fields}
    assert described(name, body) is allowed
    assert (refusal(parse_call, json.dumps(body).encode(), "completions", "tenant") is None) is allowed


@pytest.mark.parametrize(
    ("meta", "allowed"),
    [
        ({"a": 1e300}, True), ({"a": 1.1e300}, False), ({"a": {"b": 1}}, False), ({"a": [[1]]}, False), ({"a": [1, "x", None, True]}, True),
        ({"": 1}, False), ({"a\0": 1}, False), ({"a": "x\0"}, False), ({"a": "x\n"}, True), ({"a": [-1e301]}, False), ({}, True),
    ],
)  # fmt: skip
def test_metadata_is_refused_exactly_where_the_description_forbids_it(meta, allowed):
    assert described("NewDocument", {"source": "a.md", "content": "x", "meta": meta}) is allowed
    assert (refusal(check_meta, meta) is None) is allowed


@pytest.mark.parametrize("pattern", ["[0-9]+", r"\p{L}+", "(a|b)*", "x" * 20_000])
def test_regular_expressions_of_other_dialects_are_left_for_the_engine(pattern):
    assert refusal(read_fields, {**CHAT, "structured_outputs": {"regex": pattern}}) is None
