"""Peers under faults: the engine cores of bare vLLM servers are found and end with them, Ray Serve LLM starts all of its engines."""

import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from benchmarks.cluster import fault_systems
from benchmarks.cluster.fault_systems import by_target, ray_serve_llm, restarted
from benchmarks.lib.processes import NotStarted, System, python
from benchmarks.systems.full_weights import CONFIG
from benchmarks.systems.ray_serve_baseline import UP, logical_cpus
from serve.config.platform import load_config
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


INGRESS = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
BaseHTTPRequestHandler.do_GET = lambda self: self.send_response(200) or self.end_headers()
print(sys.argv[1], flush=True)
HTTPServer(("127.0.0.1", int(sys.argv[2])), BaseHTTPRequestHandler).serve_forever()
"""


@pytest.mark.parametrize(("log", "starts"), [(UP, True), ("one replica is up", False)])
def test_ray_serve_llm_has_started_when_all_of_its_engines_have(monkeypatch, tmp_path, log, starts):
    def stock(name, config, weights, port, folder, replicas):
        return System(name, python("-c", INGRESS, log, str(port)))

    monkeypatch.setattr(fault_systems, "stock", stock)
    monkeypatch.setattr(fault_systems, "PATIENCE_S", 10.0 if starts else 0.3)
    started = ray_serve_llm(load_config(CONFIG), tmp_path, 2)
    if starts:
        with started as site:
            assert site.replicas == 2
    else:
        with pytest.raises(NotStarted), started:
            pass


@pytest.mark.parametrize("replicas", [1, 2, 3, 8])
def test_ray_has_room_for_all_engines_and_the_ingress(monkeypatch, replicas):
    """As `build_openai_app` of Ray 2.60 places them: engines with 2 CPUs each, one ingress with 1."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert logical_cpus(replicas) >= 2 * replicas + 1
