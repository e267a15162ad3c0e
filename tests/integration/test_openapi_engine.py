"""The fields that the API description names for the engine are those that vLLM reads."""

import json
from importlib import import_module

import jsonschema
import pytest

from benchmarks.lib.sample_catalog import make_config
from serve.gateway.openapi import describe

DOCUMENT = json.loads(describe(make_config()))
OURS = {"budget", "retrieval", "best_of"}  # taken out by the gateway
REQUESTS = [
    ("/v1/chat/completions", "ChatCompletionRequest", "chat_completion"),
    ("/v1/completions", "CompletionRequest", "completion"),
]


def engines_model(name: str, module: str):
    """How vLLM reads a request. Imported when it is needed: who only collects tests need not wait for vLLM."""
    return getattr(import_module(f"vllm.entrypoints.openai.{module}.protocol"), name)


@pytest.mark.parametrize(("path", "name", "module"), REQUESTS)
def test_every_described_field_is_one_of_the_engines(path, name, module):
    request_model = engines_model(name, module)
    described = DOCUMENT["components"]["schemas"][name]["properties"].keys()
    assert described - OURS <= request_model.model_fields.keys()
    for one in DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"].values():
        request_model.model_validate({key: value for key, value in one["value"].items() if key not in OURS})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "warm"), ("top_p", {}), ("seed", "x"), ("seed", 1.5), ("n", "two"), ("stop", 5), ("logit_bias", [1]),
        ("tools", [{}]), ("tool_choice", "maybe"), ("response_format", {"type": "xml"}), ("logprobs", "many"), ("user", 5),
    ],
)  # fmt: skip
def test_what_the_description_forbids_the_engine_refuses(field, value):
    body = {"model": "smollm2-135m", "messages": [{"role": "user", "content": "hi"}], field: value}
    schema = {"$ref": "#/components/schemas/ChatCompletionRequest", "components": DOCUMENT["components"]}
    assert not jsonschema.Draft202012Validator(schema).is_valid(body)
    refusals = (ValueError, import_module("vllm.exceptions").VLLMValidationError)
    with pytest.raises(refusals):
        engines_model("ChatCompletionRequest", "chat_completion").model_validate(body)
