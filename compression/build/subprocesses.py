"""Run modules of this package as subprocesses in their own Python environments, and read their progress."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from compression.progress import Progress, read_progress

# glibc returns large freed blocks to the system and requests them again in every training step: a fifth of the time.
MALLOC_ENV = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**35), "MALLOC_TOP_PAD_": str(2**28)}


class SubprocessFailed(Exception):
    """A failed subprocess. The message is its error line, or its exit status; `known_cause` if it reported the reason."""

    def __init__(self, message: str, known_cause: bool) -> None:
        super().__init__(message)
        self.known_cause = known_cause


def compression_python() -> Path:
    """Interpreter with llm-compressor: `GEARBOX_COMPRESSION_PYTHON`, or that of `.venv-compression` beside this one."""
    beside = Path(sys.prefix).with_name(".venv-compression") / "bin/python"
    return Path(os.environ.get("GEARBOX_COMPRESSION_PYTHON") or beside)


def run_subprocess(
    command: Sequence[str],
    env: Mapping[str, str],
    log: Path,
    on_progress: Callable[[Progress], None],
    background: bool = False,
) -> None:
    """Run `command` to its end: output goes to `log`, progress to `on_progress`. Any exception terminates it.

    Args:
        background: at the lowest priority (nice 19), below that of the platform's engines.

    Raises:
        SubprocessFailed: its exit code is not 0.
    """
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, **env, "PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1"}
    command = list(command)
    if background:
        command = ["nice", "-n", "19", *command]
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
        if background:
            # Where Linux shares the CPU between sessions first, niceness counts only inside each (sched(7), autogroup). 10 for
            # the session: a tenth of what the platform's session gets, as 19 is beside engines in the same session.
            with contextlib.suppress(OSError):
                Path(f"/proc/{process.pid}/autogroup").write_text("10")
        try:
            for progress in read_progress(process.stdout or ()):
                on_progress(progress)
            process.wait()
        finally:
            _terminate_group(process)
    if process.returncode:
        raise SubprocessFailed(_failure_reason(log, start, process.returncode), known_cause=process.returncode == 2)


def _failure_reason(log: Path, start: int, code: int) -> str:
    """The error line of the subprocess, else its exit status and the last line of its log."""
    with log.open(errors="replace") as stream:
        stream.seek(start)
        lines = [line.strip() for line in stream if line.strip()]
    for line in reversed(lines):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    outcome = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{outcome}: {lines[-1]}" if lines else outcome


def _terminate_group(process: "subprocess.Popen[str]") -> None:
    """Terminate the subprocess's process group. SIGKILL follows because vLLM's processes survive a SIGTERM."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
