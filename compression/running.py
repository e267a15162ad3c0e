"""Runs a build or a measurement as a subprocess: its progress, its log, its one clear line, and its end."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from compression.progress import Progress


class RunFailed(Exception):
    """A subprocess failed. The message is one line and names the log."""


def run_reported(
    command: Sequence[str],
    env: Mapping[str, str],
    log: Path,
    on_progress: Callable[[Progress], None],
    background: bool = False,
) -> None:
    """Run `command` from this package's root; on any exception it is ended with everything it started.

    Args:
        env: added to this process's environment.
        log: everything it prints that is not progress is appended here.
        background: at a lower priority (nice 10), while the platform already answers.

    Raises:
        RunFailed: with its own one clear line, else the last line it printed.
    """
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, **env, "PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1"}
    if background:
        command = ["nice", "-n", "10", *command]
        # threads that spin at barriers would take the cores from the engines, and wait for each other 50 times longer
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with log.open("a") as stream:
        start = stream.tell()
        process = subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            start_new_session=True,
        )
        try:
            for line in process.stdout or ():
                try:
                    progress = Progress.model_validate_json(line)
                except ValidationError:  # a print of some library before standard output was taken over
                    continue
                on_progress(progress)
            process.wait()
        finally:
            _end(process)
    if process.returncode:
        raise RunFailed(f"{_reason(log, start, process.returncode)} (log: {log})")


def _reason(log: Path, start: int, code: int) -> str:
    """The subprocess's own one line, else the last line of its log."""
    with log.open(errors="replace") as stream:
        stream.seek(start)
        lines = [line.strip() for line in stream if line.strip()]
    for line in reversed(lines):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{how}: {lines[-1]}" if lines else how


def _end(process: "subprocess.Popen[str]") -> None:
    """End the subprocess and everything it started; it leads a group of its own. vLLM's processes outlive a SIGTERM."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
