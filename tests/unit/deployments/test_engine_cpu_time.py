"""CPU time of an engine's processes, among the metrics of its replica."""

import subprocess
import sys
import time

import psutil
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from deployments.engine_cpu_time import report_engine_cpu_time
from tests.support.waiting import eventually

BUSY = "import sys\nprint(flush=True)\nwhile sys.stdin.readable(): pass"
NAME = "gearbox_engine_cpu_seconds_total"


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    report_engine_cpu_time(registry)
    return registry


def cpu_s(registry: CollectorRegistry) -> float | None:
    lines = generate_latest(registry).decode().splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith(NAME)), None)


def test_a_process_that_computes_uses_time_and_one_that_is_stopped_none(registry):
    with subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as engine:
        assert engine.stdout and engine.stdout.readline()
        try:
            eventually(lambda: (cpu_s(registry) or 0) > 0.2, 10, "it computes")
            psutil.Process(engine.pid).suspend()
            time.sleep(0.05)
            stopped = cpu_s(registry)
            time.sleep(0.2)
            assert cpu_s(registry) == stopped
        finally:
            engine.kill()


def test_an_engine_that_has_ended_is_looked_for_anew(registry):
    for _ in range(2):
        with subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as engine:
            assert engine.stdout and engine.stdout.readline()
            try:
                eventually(lambda: (cpu_s(registry) or 0) > 0, 10, "it computes")
            finally:
                engine.kill()
