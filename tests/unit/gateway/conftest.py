"""Fixtures of the gateway's tests: scripted retrieval and a gateway with it, and a Redis."""

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.lib.scripted_retrieval import FakeRetrieval
from tests.support.gateway_server import Start, Started


@pytest.fixture
def retrieval() -> FakeRetrieval:
    return FakeRetrieval()


@pytest.fixture
def grounded(start_gateway: Start, retrieval: FakeRetrieval) -> Started:
    return start_gateway(
        searches=retrieval, retrieval={"collection": "docs", "timeout_s": 0.3, "verification_timeout_s": 0.3}
    )


@pytest.fixture
def redis(
    tmp_path: Path, system_command: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A real Redis: its URI, and its process to be stopped and continued."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [system_command("redis-server", "redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen([*command, "--dir", str(tmp_path)], stdout=subprocess.DEVNULL)
    now = time.time() // 60 * 60 + 30  # the limits' minute must not end in the middle of a test
    monkeypatch.setattr(time, "time", lambda: now)
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert process.poll() is None
        time.sleep(0.01)
    yield f"async+redis://127.0.0.1:{port}/0", process
    process.kill()
    process.wait()
