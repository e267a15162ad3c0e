"""CPU priority of engines and helpers below that of the gateway."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deployments import cpu_priority

ROOT = Path(__file__).parents[3]
REPLICA = """
import json, os, subprocess, sys, threading
from pathlib import Path
from deployments.cpu_priority import lower_cpu_priority
forever = threading.Event()
thread = threading.Thread(target=forever.wait, daemon=True)
thread.start()  # such as those of Ray, which run before the engine is prepared
before = os.getpriority(os.PRIO_PROCESS, 0)
niceness = []
for _ in range(3):
    lower_cpu_priority(10)
    threads = [os.getpriority(os.PRIO_PROCESS, int(path.name)) for path in Path("/proc/self/task").iterdir()]
    child = [sys.executable, "-c", "import os; print(os.getpriority(os.PRIO_PROCESS, 0))"]
    niceness.append({"threads": threads, "child": int(subprocess.check_output(child))})
print(json.dumps([before, niceness]))
"""


def test_every_thread_and_child_of_the_process_gets_a_lower_priority() -> None:
    output = subprocess.check_output([sys.executable, "-c", REPLICA], env={**os.environ, "PYTHONPATH": str(ROOT)})
    before, niceness = json.loads(output)
    for times, lowered in enumerate(niceness, start=1):
        expected = min(before + 10 * times, 19)
        assert set(lowered["threads"]) == {expected} and len(lowered["threads"]) >= 2
        assert lowered["child"] == expected


def test_a_system_that_forbids_it_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forbidden(*arguments: object) -> None:
        raise PermissionError("not permitted")

    monkeypatch.setattr(os, "setpriority", forbidden)
    with caplog.at_level(logging.WARNING):
        cpu_priority.lower_cpu_priority(10)
    assert "the CPU priority could not be lowered: not permitted" in caplog.text


def test_a_thread_that_has_ended_meanwhile_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def ended(*arguments: object) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(os, "setpriority", ended)
    with caplog.at_level(logging.WARNING):
        cpu_priority.lower_cpu_priority(10)
    assert not caplog.records
