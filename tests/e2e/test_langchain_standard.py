"""LangChain's standard tests of chat model integrations, on `full`: the contract is the same for every variant.

`REASONS` lists what a model of 135M parameters cannot do. These tests are skipped: neither outcome would be a fault.
"""

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from tests.support.platform import KEYS, Platform

pytestmark = pytest.mark.platform
REASONS = {
    "test_tool_calling_with_no_arguments": "it writes blanks inside the arguments until the answer's limit",
    "test_structured_output_optional_param": "it writes blanks, or a joke without an end, until the answer's limit",
    "test_agent_loop": "it answers in words instead of calling the tool that it is offered",
    "test_unicode_tool_call_integration": "it does not copy a Japanese name into an argument",
}


class TestFull(ChatModelIntegrationTests):
    """The suite, at temperature 0 and with answers of a bounded length."""

    @pytest.fixture(autouse=True)
    def _with_platform(self, request: pytest.FixtureRequest) -> None:
        if reason := REASONS.get(request.node.originalname):
            pytest.skip(reason)
        platform: Platform = request.getfixturevalue("platform")
        self._url = platform.url

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "base_url": f"{self._url}/v1", "api_key": KEYS["alice"]["key"], "model": "smollm2-135m:full",
            "temperature": 0, "max_tokens": 200, "max_retries": 0, "stream_usage": True,
        }  # fmt: skip
