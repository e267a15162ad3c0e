"""Running the modules of this package as subprocesses, each in the environment it needs, and reading their progress."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from compression.progress import Progress, read_reports

# glibc gives large freed blocks back to the system and fetches them again in every training step: a fifth of the time.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**35), "MALLOC_TOP_PAD_": str(2**28)}


class ChildFailed(Exception):
    """A subprocess failed: the message is its own clear line, or how it ended. `refused` means it knew the reason."""

    def __init__(self, message: str, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused


def compression_python() -> Path:
    """The interpreter with llm-compressor: `GEARBOX_COMPRESSION_PYTHON`, or of the environment beside this one."""
    beside = Path(sys.prefix).with_name(".venv-compression") / "bin/python"
    return Path(os.environ.get("GEARBOX_COMPRESSION_PYTHON") or beside)


def run_child(
    command: Sequence[str],
    env: Mapping[str, str],
    log: Path,
    on_progress: Callable[[Progress], None],
    background: bool = False,
) -> None:
    """Run `command` to its end; what it prints goes to `log`, its progress to `on_progress`. Ended on any exception.

    Args:
        background: at a lower priority (nice 10).

    Raises:
        ChildFailed: it did not end well.
    """
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, **env, "PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1"}
    command = list(command)
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
            for progress in read_reports(process.stdout or ()):
                on_progress(progress)
            process.wait()
        finally:
            _end(process)
    if process.returncode:
        raise ChildFailed(_reason(log, start, process.returncode), refused=process.returncode == 2)


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
