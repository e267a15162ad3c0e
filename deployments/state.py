"""Platform state: the file that the supervisor writes and the commands read, and the processes of a platform."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, Field

from deployments.ray_internals import PROCESS_PREFIX

VariantPhase = Literal["waiting", "building", "starting", "ready", "failed"]

#: Environment variable of every process that a platform starts, so that `down` stops exactly those.
RUN_ID = "GEARBOX_RUN_ID"
STATE_DIR = (
    "GEARBOX_STATE_DIR"  # folder for state, logs and metrics; every process of a platform has it, as an absolute path
)
_SUPERVISOR = "deployments.supervisor"
STOPPING = "stopping"  # the last message of a platform that was stopped


class VariantState(BaseModel):
    """Progress of one variant, or of retrieval."""

    phase: VariantPhase = "waiting"
    stage: str = ""  # step of the build, e.g. "distill"
    done: float = 0
    total: float = 0
    eta_s: float | None = None
    seconds: dict[str, float] = Field(default_factory=dict)  # duration of each completed phase
    error: str | None = None


class PlatformState(BaseModel):
    """State of the platform."""

    run_id: str
    pid: int
    started: float = Field(default_factory=time.time)  # unix time
    url: str
    metrics_url: str
    config: str
    model: str
    drain_timeout_s: float = 0
    message: str = ""
    error: str | None = None
    variants: dict[str, VariantState]
    retrieval: VariantState | None = None  # None: the configuration has none
    database: str | None = None  # connection string of the documents' database, if embedded
    embedder: str | None = None  # folder of the embedding model

    @property
    def parts(self) -> dict[str, VariantState]:
        """Every variant and, after them, retrieval."""
        return {**self.variants, **({"retrieval": self.retrieval} if self.retrieval else {})}

    @property
    def settled(self) -> bool:
        """Whether start-up is over: every part is ready or has failed."""
        return self.error is not None or all(part.phase in ("ready", "failed") for part in self.parts.values())

    def save(self, folder: Path) -> None:
        """Replace the state file atomically. Only its owner can read it, as it holds the database's address.

        Raises:
            OSError: it cannot be written; the file is as it was.
        """
        scratch = folder / f".state-{os.getpid()}"
        scratch.unlink(missing_ok=True)  # of a killed process that had the same pid
        try:
            with open(scratch, "x", opener=private) as file:
                file.write(self.model_dump_json(indent=1))
            scratch.replace(folder / "state.json")
        except OSError:
            with suppress(OSError):
                scratch.unlink(missing_ok=True)
            raise


def private(path: str, flags: int) -> int:
    """`opener` for `open` that makes the file readable by its owner only, also if it exists with wider permissions."""
    file = os.open(path, flags, 0o600)
    os.fchmod(file, 0o600)
    return file


def load_state(folder: Path) -> PlatformState | None:
    """The last written state, whether or not that platform still runs; None if there is none that this version can read.

    Raises:
        OSError: it cannot be read by this user, or at all.
    """
    try:
        return PlatformState.model_validate_json((folder / "state.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def processes_of(run_id: str, supervisor: int | None = None) -> list[psutil.Process]:
    """Running processes that the platform with this run id started.

    Ray's agents lose the environment variable, as their titles overwrite it, and outlive a killed supervisor by a minute, with
    their ports. They are recognized by its session.

    Args:
        supervisor: pid of the supervisor, to include Ray's agents.
    """
    processes = []
    if supervisor is not None and _run_id(supervisor) not in (None, run_id):
        supervisor = None  # its pid is that of another platform's supervisor now
    for process in psutil.process_iter():
        try:
            agent = process.name().startswith(PROCESS_PREFIX) and os.getsid(process.pid) == supervisor
            if (agent or process.environ().get(RUN_ID) == run_id) and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
            continue
    return processes


def _run_id(pid: int) -> str | None:
    try:
        return psutil.Process(pid).environ().get(RUN_ID)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


@dataclass(frozen=True, slots=True)
class Run:
    """A platform by its processes: its run id, and the pid of its supervisor."""

    run_id: str
    supervisor: int

    def processes(self) -> list[psutil.Process]:
        """All of its processes."""
        return processes_of(self.run_id, self.supervisor)


def find_run(folder: Path) -> Run | None:
    """The platform whose supervisor runs on this folder, by its environment, whatever its state file says.

    The file is missing while the supervisor starts and where the disk is full, and may be of another version.
    """
    for process in psutil.process_iter():
        try:
            if _SUPERVISOR in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                environment = process.environ()
                if RUN_ID in environment and environment.get(STATE_DIR) == str(folder.resolve()):
                    return Run(environment[RUN_ID], process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return None


def kill(processes: Sequence[psutil.Process]) -> None:
    """Kill processes, of which some may have ended meanwhile, and wait for their end."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    end = time.monotonic() + 5
    for process in processes:
        wait_for_end(process, end - time.monotonic())


def wait_for_end(process: psutil.Process, timeout_s: float) -> bool:
    """Wait until a process has ended; False if it has not in time. A zombie has: its parent may never take its exit code."""
    end = time.monotonic() + timeout_s
    with suppress(psutil.NoSuchProcess):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
    return True


def is_running(state: PlatformState | None) -> bool:
    """Whether the supervisor that wrote `state` is alive (not merely another process with its pid)."""
    return state is not None and _run_id(state.pid) == state.run_id


def state_folder() -> Path:
    """Folder for state, logs and metrics of the platform: `GEARBOX_STATE_DIR`, otherwise in the XDG state folder."""
    if folder := os.environ.get(STATE_DIR):
        return Path(folder)
    return Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local/state")) / "gearbox"


def cache_folder() -> Path:
    """Folder for built and downloaded weights: `GEARBOX_CACHE_DIR`, otherwise in the XDG cache folder."""
    if folder := os.environ.get("GEARBOX_CACHE_DIR"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gearbox"
