"""Injection of faults: signals to processes, and a disk that is full. Stopped processes are continued, whatever happens."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from benchmarks.cluster.fault_schedule import PULSE_S, Fault

Processes = Mapping[str, Sequence[psutil.Process]]  # by target of faults

DISK_MB = 1024  # of the small disk: an empty database and its log need a third of it


class NoTarget(Exception):
    """There is no process to hit; the message says which."""


async def inject(fault: Fault, processes: Processes, disk: Path | None) -> None:
    """Inject `fault` and wait until it is over, or what was killed has ended. Raises `NoTarget`."""
    if fault.action == "disk full":
        if disk is None:
            raise NoTarget(
                "the state of the platform is not on a small disk: this command did not start it, or not as root"
            )
        ballast = disk / "ballast"
        try:
            await asyncio.to_thread(fill, ballast)
            await asyncio.sleep(fault.hold_s)
        finally:
            ballast.unlink(missing_ok=True)
        return
    process = victim(fault, processes)
    with contextlib.suppress(psutil.NoSuchProcess):
        if fault.action == "kill":
            process.kill()
            await _ended(process)
        elif fault.action == "stop":
            await _stop(process, fault.hold_s)
        else:
            end = asyncio.get_running_loop().time() + fault.hold_s
            while asyncio.get_running_loop().time() < end:
                await _stop(process, PULSE_S)
                await asyncio.sleep(PULSE_S)


def victim(fault: Fault, processes: Processes) -> psutil.Process:
    """The process that `fault` hits. Raises `NoTarget`."""
    candidates = sorted(processes.get(fault.target, ()), key=lambda process: process.pid)
    if not candidates:
        raise NoTarget(f"no process of the {fault.target} runs")
    return candidates[min(int(fault.draw * len(candidates)), len(candidates) - 1)]


async def _ended(process: psutil.Process) -> None:
    """Wait until a killed process is gone, or waits for its parent; before, it frees its memory, and still counts as running."""
    for _ in range(1000):
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return
        await asyncio.sleep(0.01)


async def _stop(process: psutil.Process, seconds: float) -> None:
    process.suspend()
    try:
        await asyncio.sleep(seconds)
    finally:
        process.resume()


def fill(file: Path) -> None:
    """Write to `file` until its file system is full."""
    with file.open("wb", buffering=0) as ballast:
        for block in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while ballast.write(bytes(block)) == block:
                    pass


@contextlib.contextmanager
def small_disk() -> Iterator[Path | None]:
    """A file system in memory that is small enough to be filled; None where it cannot be mounted, which needs root."""
    folder = Path(tempfile.mkdtemp(prefix="gbx-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=0755", "gearbox-faults", str(folder)]
    try:
        mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
        yield folder if mounted else None
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)
