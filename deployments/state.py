"""What a running platform tells about itself: one small file that the commands read and the supervisor writes."""

import os
import time
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, Field

VariantPhase = Literal["waiting", "building", "starting", "ready", "failed"]

#: Set in the environment of everything a platform starts, so that `down` stops exactly that.
RUN_ID = "GEARBOX_RUN_ID"


class VariantState(BaseModel):
    """How far one variant, or another part, is."""

    phase: VariantPhase = "waiting"
    stage: str = ""  # what is being done, e.g. "distill"
    done: float = 0
    total: float = 0
    eta_s: float | None = None
    seconds: dict[str, float] = Field(default_factory=dict)  # how long each phase took
    error: str | None = None


class PlatformState(BaseModel):
    """The platform as its supervisor sees it."""

    run_id: str
    pid: int
    started: float = Field(default_factory=time.time)  # unix time
    url: str
    metrics_url: str
    config: str
    model: str
    message: str = ""
    error: str | None = None
    variants: dict[str, VariantState]
    retrieval: VariantState | None = None  # None: the configuration has none
    database: str | None = None  # connection string of the documents' database, where it is the platform's own
    embedder: str | None = None  # folder of the embedding model

    @property
    def parts(self) -> dict[str, VariantState]:
        """Every variant and, after them, retrieval."""
        return {**self.variants, **({"retrieval": self.retrieval} if self.retrieval else {})}

    @property
    def settled(self) -> bool:
        """Nothing more will change by itself: every part is up or has failed."""
        return self.error is not None or all(part.phase in ("ready", "failed") for part in self.parts.values())

    def save(self, folder: Path) -> None:
        """Replace the state file atomically. It is for its owner alone, as the database's address is in it."""
        scratch = folder / f".state-{os.getpid()}"
        scratch.unlink(missing_ok=True)  # of a process that had this number and was killed
        with open(scratch, "x", opener=private) as file:
            file.write(self.model_dump_json(indent=1))
        scratch.replace(folder / "state.json")


def private(path: str, flags: int) -> int:
    """An `opener` for `open`: the file is for its owner alone, also one that an earlier version left for all to read."""
    file = os.open(path, flags, 0o600)
    os.fchmod(file, 0o600)
    return file


def load_state(folder: Path) -> PlatformState | None:
    """The last written state, whether or not that platform still runs; None if there never was one."""
    try:
        return PlatformState.model_validate_json((folder / "state.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def processes_of(run_id: str, supervisor: int | None = None) -> list[psutil.Process]:
    """Every process this platform started that is still there.

    Ray's agents, whose titles overwrite the mark, outlive a killed supervisor by a minute, and keep their ports: what tells
    them is that they are in its session. Give its pid where they matter, too.
    """
    found = []
    for process in psutil.process_iter():
        try:
            agent = process.name().startswith("ray::") and os.getsid(process.pid) == supervisor
            if (agent or process.environ().get(RUN_ID) == run_id) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
            continue
    return found


def is_running(state: PlatformState | None) -> bool:
    """Whether the supervisor that wrote `state` is alive (not merely another process with its pid)."""
    if state is None:
        return False
    try:
        return psutil.Process(state.pid).environ().get(RUN_ID) == state.run_id
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def state_folder() -> Path:
    """Where state, logs and metrics of the platform live: `GEARBOX_STATE_DIR`, else under the XDG state folder."""
    if given := os.environ.get("GEARBOX_STATE_DIR"):
        return Path(given)
    return Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local/state")) / "gearbox"


def cache_folder() -> Path:
    """Where built variants are kept: `GEARBOX_CACHE_DIR`, else under the XDG cache folder."""
    if given := os.environ.get("GEARBOX_CACHE_DIR"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gearbox"
