"""An engine is stopped and killed under a mixed load, by `benchmarks.cluster.faults` in its short form: nothing is cut or wrong."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from benchmarks.cluster import faults
from benchmarks.cluster.fault_systems import attached
from tests.support.platform import KEYS, Platform
from tests.support.waiting import eventually

pytestmark = pytest.mark.platform
STOP, KILL = "stop engine core", "kill engine core"


@pytest.fixture(scope="module")
def result(platform: Platform) -> Iterator[dict[str, Any]]:
    headers = {"authorization": f"Bearer {KEYS['alice']['key']}"}
    yield asyncio.run(faults.short(attached(platform.state_dir, headers), "full", 0))
    body = {"model": f"{platform.model}:full", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}

    def back() -> bool:
        with platform.http() as http:
            try:
                return http.post("/v1/chat/completions", json=body).status_code == 200
            except httpx.HTTPError:
                return False

    eventually(back, 180, "full is back")


def test_both_faults_were_injected_under_load(result: dict[str, Any]) -> None:
    assert result["skipped"] == {}
    assert [result["faults"][name]["requests"] > 8 for name in (STOP, KILL)] == [True, True], result


def test_no_stream_is_cut_silently_and_no_token_is_lost_or_doubled(result: dict[str, Any]) -> None:
    found = result["all"]
    assert found["silently_truncated"] == 0, found["problems"]
    assert found["tokens"]["checked"] > 4
    assert (found["tokens"]["lost"], found["tokens"]["doubled"]) == (0, 0), found["tokens"]


def test_a_stop_loses_no_request(result: dict[str, Any]) -> None:
    assert result["faults"][STOP]["lost"] == 0, result["faults"][STOP]["problems"]
    assert result["faults"][STOP]["recovery"]["healthy_s"]["never"] == 0


def test_a_kill_loses_no_request_and_new_ones_are_answered_meanwhile(result: dict[str, Any]) -> None:
    found = result["faults"][KILL]
    assert found["lost"] == 0, found["problems"]
    assert found["recovery"]["first_success_s"]["never"] == 0
