"""Files of metrics, in which the gateways of a node share their values, on disk space that is allocated before it is written."""

import logging
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

RETRY_S = 10.0  # between two attempts to write a file again
_INITIAL_BYTES = 1 << 16
_ENTRY_BYTES = 40  # of an entry, besides its key, at most
_LOG = logging.getLogger("gearbox.metrics")


class MetricsFile(MmapedDict):
    """prometheus_client's file of values, which outlives a full or read-only disk.

    In a mapped file, a page for which the disk has no space ends the process (SIGBUS). Space is allocated first here; where that
    fails, the values are kept in memory, and written to the file when that can be done again. Scrapes do not see them meanwhile.
    """

    def __init__(self, filename: str, read_mode: bool = False, clock: Callable[[], float] = monotonic) -> None:
        self._path, self._clock = filename, clock
        self._retry_at: float | None = None  # None: the values are in the file
        if read_mode or (error := _allocate(filename, _INITIAL_BYTES)) is None:
            super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]
            return
        self._on_failure(error)
        with _memory() as path:
            super().__init__(path)  # type: ignore[no-untyped-call]

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        """Set a value."""
        if self._retry_at is not None and self._clock() >= self._retry_at:
            self._return_to_file()
        super().write_value(key, value, timestamp)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        full = self._used + len(key.encode()) + _ENTRY_BYTES > self._capacity
        if full and self._retry_at is None and (error := _allocate(self._path, 2 * self._capacity)) is not None:
            self._on_failure(error)
            with _memory() as path:
                self._move(path)
        super()._init_value(key)  # type: ignore[no-untyped-call]

    def _on_failure(self, error: OSError) -> None:
        self._retry_at = self._clock() + RETRY_S
        _LOG.error("metrics cannot be written (%s); they are kept in memory, and missing from scrapes", error)

    def _return_to_file(self) -> None:
        if _allocate(self._path, self._capacity) is not None:
            self._retry_at = self._clock() + RETRY_S
            return
        self._move(self._path)
        self._retry_at = None
        _LOG.warning("metrics are written to %s again", self._path)

    def _move(self, path: str) -> None:
        """Go on in the file `path`. Its header comes last: until then, scrapes read it as it was."""
        file = Path(path).open("a+b")  # noqa: SIM115
        file.truncate(self._capacity)
        mapped: Any = mmap.mmap(file.fileno(), self._capacity)
        mapped[8 : self._used] = self._m[8 : self._used]
        mapped[:8] = self._m[:8]
        self._m.close()
        self._f.close()
        self._m, self._f = mapped, file


def allocate_metrics_files() -> None:
    """Use `MetricsFile` for the metrics of this process. Called before there are any."""
    values.MmapedDict = MetricsFile  # type: ignore[attr-defined]


def _allocate(path: str, size: int) -> OSError | None:
    """Allocate the first `size` bytes of a file, which is created; the error where that fails, without an empty file."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.posix_fallocate(file, 0, size)
        finally:
            if os.fstat(file).st_size == 0:  # no file of metrics: scrapes would fail
                with suppress(OSError):
                    Path(path).unlink()
            os.close(file)
    except OSError as error:
        error.filename = path
        return error
    return None


@contextmanager
def _memory() -> Iterator[str]:
    """Path of a new file in memory, which lasts while it is open."""
    file = os.memfd_create("gearbox-metrics")
    try:
        yield f"/proc/self/fd/{file}"
    finally:
        os.close(file)
