"""Open requests: what a drain waits for, also while no engine has a request."""

from typing import Any

import pytest

from benchmarks.lib.scripted_retrieval import QUESTION, FakeRetrieval
from tests.support.gateway_server import Start, Started

Load = dict[str, tuple[float, float]]


@pytest.fixture
def retrieval() -> FakeRetrieval:
    return FakeRetrieval()


@pytest.fixture
def grounded(start_gateway: Start, retrieval: FakeRetrieval) -> Started:
    return start_gateway(searches=retrieval, retrieval={"ground_by_default": True})


@pytest.fixture
def loads(grounded: Started, retrieval: FakeRetrieval, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Open requests, and those that engines have, during each call of retrieval."""
    seen: Load = {}
    answer = retrieval.call

    async def call(method: str, **arguments: Any) -> Any:
        seen[method] = grounded.sample("gearbox_requests_open"), grounded.sample("gearbox_requests_in_flight")
        return await answer(method, **arguments)

    monkeypatch.setattr(retrieval, "call", call)
    return seen


def test_a_grounded_request_is_open_while_documents_are_searched(grounded: Started, loads: Load):
    assert grounded.chat(QUESTION).status_code == 200
    assert loads["ground"] == (1, 0)
    assert grounded.sample("gearbox_requests_open") == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/documents", {"source": "1.md", "content": "Ada leads."}),
        ("/v1/search", {"query": QUESTION}),
        ("/v1/embeddings", {"input": "Ada leads."}),
    ],
)
def test_documents_searches_and_embeddings_are_open(grounded: Started, loads: Load, path: str, body: dict[str, str]):
    assert grounded.post(path, body).status_code == 200
    assert loads and set(loads.values()) == {(1, 0)}
    assert grounded.sample("gearbox_requests_open") == 0


def test_what_is_refused_or_fails_is_not_open_any_more(gateway: Started):
    gateway.engines["full"].behaviour = "die mid-stream"
    gateway.chat(stream=True)
    gateway.chat(model="unknown")
    gateway.http.get("/nowhere")
    gateway.finish()
    assert gateway.sample("gearbox_requests_open") == 0
