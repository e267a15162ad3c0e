"""Processes of bare vLLM servers under faults: the engine core is found by its title, and ends with its server."""

import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from benchmarks.cluster.fault_systems import by_target, restarted
from benchmarks.lib.processes import System, python
from tests.support.waiting import eventually

#: A server with an engine core as vLLM starts it: a fork that takes a title, and does not notice the end of its parent.
SERVER = """
import os, time
if not os.fork():
    from setproctitle import setproctitle
    setproctitle("VLLM::EngineCore")
time.sleep(60)
"""


@pytest.fixture
def system() -> Iterator[System]:
    with System("bare", restarted(python("-c", SERVER, "vllm.entrypoints.openai.api_server"))) as system:
        eventually(lambda: len(pids(system, "engine core")) == 1, 20, "the server and its engine core run")
        yield system


def pids(system: System, target: str) -> list[int]:
    return [one.pid for one in by_target(system.processes())[target]]


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_an_engine_core_ends_with_its_killed_server_and_both_are_started_anew(system):
    (server,), (core,) = pids(system, "engine server"), pids(system, "engine core")
    os.kill(server, signal.SIGKILL)
    eventually(lambda: ended(core), 20, "the engine core has ended")
    eventually(lambda: len(pids(system, "engine core")) == 1, 20, "another engine core runs")
    assert len(pids(system, "engine server")) == 1 and not {server, core} & {one.pid for one in system.processes()}


def test_a_stopped_server_has_not_ended(system):
    (server,), (core,) = pids(system, "engine server"), pids(system, "engine core")
    os.kill(server, signal.SIGSTOP)
    eventually(lambda: psutil.Process(server).status() == psutil.STATUS_STOPPED, 20, "the server is stopped")
    os.kill(server, signal.SIGCONT)
    eventually(lambda: psutil.Process(server).status() != psutil.STATUS_STOPPED, 20, "the server goes on")
    assert (pids(system, "engine server"), pids(system, "engine core")) == ([server], [core])


def test_nothing_is_left_of_a_system_that_was_stopped():
    with System("bare", python("-c", SERVER, "vllm.entrypoints.openai.api_server")) as system:
        eventually(lambda: len(pids(system, "engine core")) == 1, 20, "the engine core runs")
        (core,) = pids(system, "engine core")
    assert ended(core)
