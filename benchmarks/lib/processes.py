"""Processes of systems under test: started with a marker, CPU time measured by role, all stopped at the end, on Ctrl-C too."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil

from deployments.ray_internals import actor_class, replica_app

MARK = "BENCHMARK_RUN_ID"  # in the environment of every process a benchmark starts, and so of all their children
#: For `setproctitle`: a title leaves the environment of a process readable, and so the marker. Ray sets it for its workers; the engine
#: core of a bare vLLM server loses its environment without.
_KEEPS_ENVIRONMENT = {"SPT_NOENV": "1"}
BACKGROUND = "background"


#: Advice to the user of a resumable benchmark after an interruption.
RESUMES = "run it again, it goes on where it stopped"


class NotStarted(Exception):
    """A system did not start; the message is one line with the end of its log."""


class System:
    """One system under test. Use as a context manager: its processes are stopped at the end."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.command = list(command)
        self.mark = secrets.token_hex(8)
        self.env = {**os.environ, "PYTHONUNBUFFERED": "1", **_KEEPS_ENVIRONMENT, **(env or {}), MARK: self.mark}
        # Importing vLLM without bytecode takes three times as long.
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)
        self.log = Path(tempfile.mkdtemp(prefix="gb-")) / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                self.command,
                env=self.env,
                cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the started process."""
        assert self._process is not None
        return self._process.pid

    def wait(self, answers: Callable[[], bool], patience_s: float) -> float:
        """Wait until `answers` returns true; returns the seconds. Raises `NotStarted` when the process ends or time is up first."""
        assert self._process is not None
        started = time.monotonic()
        while time.monotonic() - started < patience_s:
            if self._process.poll():
                raise NotStarted(f"{self.name} ended with code {self._process.returncode}: {self.last_words()}")
            try:
                if answers():
                    return time.monotonic() - started
            except (httpx.HTTPError, OSError):
                pass
            time.sleep(0.3)
        raise NotStarted(f"{self.name} did not answer within {patience_s:.0f} s: {self.last_words()}")

    def last_words(self) -> str:
        """The last lines of the log, as one line."""
        return " ".join(self.log.read_text(errors="replace").split()[-60:]) + f" (log: {self.log})"

    def processes(self) -> list[psutil.Process]:
        """All running processes of this system."""
        running = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    running.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return running

    def cpu(self) -> "Cpu":
        """CPU seconds used so far by every process."""
        used: dict[int, tuple[str, float]] = {}
        for process in self.processes():
            try:
                times = process.cpu_times()
                used[process.pid] = (role(process.cmdline()), times.user + times.system)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return Cpu(time.monotonic(), used)

    def stop(self) -> None:
        """Ask the first process to end, then end all the others that have the marker."""
        interrupts = [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            if self._process is not None and self._process.poll() is None:
                self._process.terminate()
                try:
                    self._process.wait(20)
                except subprocess.TimeoutExpired:
                    self._process.kill()
            others = self.processes()
            for process in others:
                process.terminate()
            _, stubborn = psutil.wait_procs(others, timeout=5)
            for process in stubborn:
                process.kill()
            psutil.wait_procs(stubborn, timeout=5)
        finally:
            for number, handler in zip((signal.SIGINT, signal.SIGTERM), interrupts, strict=True):
                signal.signal(number, handler)


class Cpu:
    """CPU seconds by process at one moment."""

    def __init__(self, moment: float, used: dict[int, tuple[str, float]]) -> None:
        self.moment = moment
        self.used = used

    def since(self, earlier: "Cpu") -> dict[str, float]:
        """CPU seconds by role used between `earlier` and now, by processes that still run."""
        by_role: dict[str, float] = defaultdict(float)
        for pid, (name, seconds) in self.used.items():
            by_role[name] += seconds - earlier.used.get(pid, (name, 0.0))[1]
        return dict(by_role)


def role(command: Sequence[str]) -> str:
    """Role of a process in serving a request: haproxy, gateway, backend, litellm, …; else `background: NAME`."""
    first = command[0] if command else "?"
    line = " ".join(command)
    app, actor = replica_app(command), actor_class(command)
    if app is not None and app.startswith("gateway"):
        return "gateway"
    if app is not None or ("benchmarks.systems.mock_engine" in line and "_platform" not in line):
        return "backend"
    if actor == "ProxyActor":
        return "proxy actor"  # Ray's Python proxy; beside HAProxy it only stands by
    if actor == "HAProxyManager":
        return "haproxy manager"  # reads a log line of every request for Serve's own metrics
    if Path(first).name.startswith("haproxy"):
        return "haproxy"
    if "litellm" in line:
        return "litellm"
    if actor is not None:
        return f"{BACKGROUND}: {actor}"
    script = next((part for part in command[1:] if part.endswith(".py") or part.startswith("benchmarks.")), first)
    return f"{BACKGROUND}: {Path(script).stem}"


def python(*arguments: str) -> list[str]:
    """Command line that runs a module in this interpreter."""
    return [sys.executable, *arguments]


def free_ports(count: int) -> list[int]:
    """`count` consecutive free ports."""
    for first in range(18100, 28000, count):
        ports = list(range(first, first + count))
        if all(_is_free(port) for port in ports):
            return ports
    raise NotStarted("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def command(known: tuple[type[Exception], ...], interrupted: str) -> Iterator[None]:
    """Context of a benchmark's command: a `known` error is one line and exit code 2; Ctrl-C and SIGTERM exit with code 130."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except known as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        print(f"interrupted: {interrupted}", file=sys.stderr)
        raise SystemExit(130) from None
