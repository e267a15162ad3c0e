"""Fixtures of the gateway's tests: scripted retrieval and a gateway with it, and a Redis."""

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
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
    command = [
        system_command("redis-server", "redis-server"),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
        str(tmp_path),
    ]
    port, process = _started(command)
    now = time.time() // 60 * 60 + 30  # the limits' minute must not end in the middle of a test
    monkeypatch.setattr(time, "time", lambda: now)
    yield f"async+redis://127.0.0.1:{port}/0", process
    process.kill()
    process.wait()


def _started(command: list[str]) -> tuple[int, subprocess.Popen[bytes]]:
    """The port and the process of a Redis that answers. Where another process took its port meanwhile, it gets another one."""
    for _ in range(5):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while process.poll() is None:
            if _answers(port, process.pid):
                return port, process
            if time.monotonic() > deadline:
                process.kill()
                process.wait()
                pytest.fail("Redis does not answer within 10 s")
            time.sleep(0.01)
    pytest.fail("Redis found no port that was free")


def _answers(port: int, pid: int) -> bool:
    """Whether it is this process that listens at the port."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
        connection.sendall(b"INFO server\r\n")
        return b"process_id:%d\r\n" % pid in connection.recv(4096)
    return False
