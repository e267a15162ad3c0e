"""The fields that the API description names for the engine are those that vLLM reads."""

import jsonschema
import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.exceptions import VLLMValidationError

from benchmarks.lib.sample_catalog import make_config
from serve.gateway.openapi import describe

DOCUMENT = describe(make_config())
OURS = {"budget", "retrieval", "best_of"}  # the engine does not know them
REQUESTS = [
    ("/v1/chat/completions", "ChatCompletionRequest", ChatCompletionRequest),
    ("/v1/completions", "CompletionRequest", CompletionRequest),
]


@pytest.mark.parametrize(
    ("path", "name", "request_model"), REQUESTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_described_field_is_one_of_the_engines(path, name, request_model):
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
    with pytest.raises((ValueError, VLLMValidationError)):
        ChatCompletionRequest.model_validate(body)
