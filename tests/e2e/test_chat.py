"""`gearbox chat` used interactively in a terminal."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.platform import KEYS, Platform

pytestmark = pytest.mark.platform


class Terminal:
    """A command in a pseudo-terminal."""

    def __init__(self, *command: str, **env: str) -> None:
        self._fd, child = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160", **env}
        self.process = subprocess.Popen(
            command, stdin=child, stdout=child, stderr=child, env=environment, close_fds=True
        )
        os.close(child)
        self.screen = ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, text: str, within_s: float = 60) -> None:
        """Read until `text` appears after what was read before."""
        seen, end = "", time.monotonic() + within_s
        while text not in seen:
            assert time.monotonic() < end, f"no {text!r} in {seen!r}"
            if select.select([self._fd], [], [], 0.5)[0]:
                seen += os.read(self._fd, 65536).decode(errors="replace")
        self.screen += seen


def test_chat_streams_and_shows_variant_and_timings(platform: Platform) -> None:
    command = str(Path(sys.executable).with_name("gearbox"))
    terminal = Terminal(
        command, "chat", "--url", platform.url, "--max-tokens", "12", GEARBOX_API_KEY=KEYS["alice"]["key"]
    )
    terminal.wait_for("you>")
    terminal.type("What is the capital of France?\n")
    terminal.wait_for("first token")
    assert re.search(r"(full|int8) \((latency|explore)\)", terminal.screen) and "quality" in terminal.screen
    terminal.type(f"/model {platform.model}:full\n")
    terminal.wait_for("you>")
    terminal.type("And of Spain?\n")
    terminal.wait_for("full (pinned)")
    terminal.type("/model nonsense\nhello\n")
    terminal.wait_for("does not exist")
    terminal.type("\x04")
    assert terminal.process.wait(10) == 0


def test_chat_says_when_nobody_answers() -> None:
    command = str(Path(sys.executable).with_name("gearbox"))
    result = subprocess.run(
        [command, "chat", "--url", "http://127.0.0.1:9"], capture_output=True, text=True, timeout=60
    )
    assert (
        result.returncode != 0 and "Traceback" not in result.stderr and "127.0.0.1:9" in result.stdout + result.stderr
    )
