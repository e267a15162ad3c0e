"""The deadline that each request carries to its engine as a priority."""

import time
from typing import Any

import pytest

from benchmarks.lib.sample_catalog import MODEL
from tests.support.gateway_server import Start, Started


def due_in_ms(gateway: Started, path: str = "/v1/chat/completions", **body: Any) -> float:
    """Time from the request's arrival to its deadline at the engine, to about the time that a request takes."""
    subject = {"prompt": "hello"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "hello"}]}
    sent_ms = time.time() * 1000
    assert gateway.post(path, {"model": MODEL, **subject, **body}).status_code == 200
    (name,) = gateway.engine_calls()
    priority = gateway.engines[name].requests.pop()["priority"]
    assert isinstance(priority, int)
    return priority - sent_ms


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_request_carries_the_deadline_of_its_first_token(gateway: Started, path: str, stream: bool):
    assert 30_000 <= due_in_ms(gateway, path, stream=stream, budget={"ttft_ms": 30_000}) < 35_000


def test_the_time_that_the_variant_takes_after_the_first_token_is_left(gateway: Started):
    """`full` takes 40 ms per token."""
    due = due_in_ms(gateway, model=f"{MODEL}:full", max_tokens=101, budget={"e2e_ms": 60_000}, min_tokens=101)
    assert 60_000 - 101 * 40 <= due < 61_000 - 100 * 40


def test_a_request_without_time_limits_is_due_in_a_minute(gateway: Started):
    assert 60_000 <= due_in_ms(gateway) < 65_000


@pytest.mark.parametrize("limit", ["ttft_ms", "e2e_ms"])
def test_a_request_that_cannot_be_in_time_does_not_go_before_those_that_can(gateway: Started, limit: str):
    assert 60_000 <= due_in_ms(gateway, budget={limit: 1}) < 65_000


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("priority", [-(2**63), 0, "first", {}])
def test_a_client_cannot_set_its_priority(gateway: Started, path: str, priority: object):
    assert 60_000 <= due_in_ms(gateway, path, priority=priority) < 65_000


def test_a_client_cannot_set_its_priority_in_a_header_either(gateway: Started):
    gateway.chat(headers={"X-Vllm-Priority": "-1"})
    assert not any("priority" in name.lower() for name in gateway.engines["full"].headers[0])


def test_another_attempt_keeps_the_deadline(gateway: Started):
    """The clock of the budget starts at the arrival, whatever an attempt takes."""
    gateway.engines["full"].behaviour = "die slowly"
    sent_ms = time.time() * 1000
    assert gateway.chat(budget={"ttft_ms": 30_000}).status_code == 200
    first, second = (gateway.engines[name].requests[0]["priority"] for name in ("full", "int8"))
    assert sent_ms + 30_000 <= first < sent_ms + 35_000
    assert abs(second - first) <= 5, "but for the resolution of the clocks"


def test_a_stream_that_is_continued_is_due_when_it_should_go_on(gateway: Started):
    """Not in a minute, as a new request without limits: its client has been reading."""
    gateway.engines["full"].behaviour = "die mid-stream"
    for budget, due_in_s in ({}, 1.0), ({"tpot_ms": 30_000}, 60.0):
        sent_ms = time.time() * 1000
        assert gateway.chat(stream=True, budget=budget).status_code == 200
        (continued,) = gateway.engines["int8"].requests
        assert due_in_s * 1000 <= continued["priority"] - sent_ms < due_in_s * 1000 + 5000
        gateway.engines["int8"].requests.clear()


@pytest.mark.parametrize("section", ["engine", "frontend"])
def test_engines_that_schedule_by_arrival_get_no_priority(start_gateway: Start, section: str):
    gateway = start_gateway(**{section: {"scheduling_policy": "fcfs"}})
    gateway.chat(priority=-1)
    assert "priority" not in gateway.engines["full"].requests[0]
