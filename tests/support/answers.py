"""Chat requests to the gateway, and parsers of its answers that check what must hold for every answer."""

import json
from typing import Any

import httpx
import pytest

from benchmarks.lib.scripted_retrieval import QUESTION
from tests.support.gateway_server import Started

MESSAGES = [{"role": "user", "content": "hello there"}]
EVERY_PATH = {
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/v1/route": "POST",
    "/v1/search": "POST",
    "/v1/embeddings": "POST",
    "/v1/models": "GET",
    "/v1/variants": "GET",
    "/healthz": "GET",
    "/readyz": "GET",
    "/readyz/all": "GET",
}
streamed_or_not = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


def ask(gateway: Started, text: str = QUESTION, stream: bool = False, **body: Any) -> httpx.Response:
    """A chat request with grounding."""
    return gateway.chat(text, **{"retrieval": True, "stream": stream, **body})


def chunks(response: httpx.Response) -> list[dict]:
    """The events of a complete stream."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, end, rest = response.text.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def text_of(response: httpx.Response, stream: bool) -> str:
    if not stream:
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["message"]["content"]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks(response) for choice in chunk["choices"])


def gearbox_of(response: httpx.Response, stream: bool) -> dict:
    return chunks(response)[-1]["gearbox"] if stream else response.json()["gearbox"]


def error_of(response: httpx.Response, status: int) -> dict:
    """The error object of an answer that must be an error in OpenAI's format."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    return _error(response.json())


def event_error_of(response: httpx.Response) -> dict:
    """The error object of the event that ends a stream, in OpenAI's format too."""
    assert response.status_code == 200, response.text
    *_, last, rest = response.text.split("\n\n")
    name, data = last.split("\n")
    assert (name, rest) == ("event: error", ""), "the stream ends there"
    return _error(json.loads(data.removeprefix("data: ")))


def _error(document: dict) -> dict:
    assert set(document) == {"error"}
    error = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert all(isinstance(error[name], str) and error[name] for name in ("message", "type", "code")), error
    assert error["param"] is None or error["param"]
    return error
