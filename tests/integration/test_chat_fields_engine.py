"""The real engine accepts and rejects the same chat fields as the gateway, when the gateway answers without an engine."""

from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.chat_bodies import REFUSED, REFUSED_ELSEWHERE, TAKEN, said


def taken(body: dict[str, Any]) -> bool:
    """Whether the engine reads the request and makes sampling parameters of it."""
    exceptions = pytest.importorskip(
        "vllm.exceptions"
    )  # not before it is needed: who collects tests need not wait for it
    protocol = pytest.importorskip("vllm.entrypoints.openai.chat_completion.protocol")
    try:
        request = protocol.ChatCompletionRequest.model_validate({"model": "m", **said(), **body})
        request.to_sampling_params(request.max_completion_tokens or request.max_tokens or 16, {})
    except (ValidationError, exceptions.VLLMValidationError):
        return False
    return True


def test_it_takes(subtests: pytest.Subtests):
    for body in [*TAKEN, *(body for body, _ in REFUSED_ELSEWHERE)]:
        with subtests.test(str(body)):
            assert taken(body)


def test_it_refuses(subtests: pytest.Subtests):
    for body, _ in REFUSED:
        with subtests.test(str(body)):
            assert not taken(body)
