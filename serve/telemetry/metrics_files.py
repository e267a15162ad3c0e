"""Files of metrics, in which the gateways of a node share their values, on disk space that is allocated before it is written."""

import logging
import mmap
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from io import BufferedRandom
from pathlib import Path
from time import monotonic
from typing import Any

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

RETRY_S = 10.0  # between two attempts to write a file again
LIVE_GAUGES = "gauge_live*.db"  # of gauges that end with their process; the pid is in the name
_INITIAL_BYTES = 1 << 16
_HEADER_BYTES = 8  # the first four are the number of bytes in use
_ENTRY_BYTES = 40  # of an entry, besides its key, at most
_LOG = logging.getLogger("gearbox.metrics")


class MetricsFile(MmapedDict):
    """prometheus_client's file of values, which outlives a full or read-only disk.

    In a mapped file, a page for which the disk has no space ends the process (SIGBUS). Space is allocated first here; where that
    fails, or no file can be opened, the values are kept in memory, and written to the file when that can be done again. Scrapes do
    not see them meanwhile.
    """

    def __init__(self, filename: str, read_mode: bool = False, clock: Callable[[], float] = monotonic) -> None:
        self._path, self._clock = filename, clock
        self._retry_at: float | None = None  # None: the values are in the file
        try:
            if not read_mode:
                if Path(filename).match(LIVE_GAUGES):
                    Path(filename).unlink(missing_ok=True)  # of an ended process that had the same pid
                _allocate(filename, _INITIAL_BYTES)
            super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]
        except OSError as error:
            if read_mode:
                raise
            self._f: Any = None
            self._fname, self._capacity = filename, _INITIAL_BYTES
            self._positions: dict[str, int] = {}
            self._used = _HEADER_BYTES
            self._m: Any = mmap.mmap(-1, _INITIAL_BYTES)
            self._m[:4] = struct.pack("i", self._used)
            self._on_failure(error)

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        """Set a value."""
        if self._retry_at is not None and self._clock() >= self._retry_at:
            self._return_to_file()
        super().write_value(key, value, timestamp)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        while self._used + len(key.encode()) + _ENTRY_BYTES > self._capacity:
            self._grow()
        super()._init_value(key)  # type: ignore[no-untyped-call]

    def _grow(self) -> None:
        size = 2 * self._capacity
        if self._retry_at is None and (error := self._move_to_file(size)) is not None:
            self._on_failure(error)
        if self._retry_at is not None:
            self._move(mmap.mmap(-1, size), size, None)

    def _on_failure(self, error: OSError) -> None:
        self._retry_at = self._clock() + RETRY_S
        _LOG.error("metrics cannot be written (%s); they are kept in memory, and missing from scrapes", error)

    def _return_to_file(self) -> None:
        if self._move_to_file(self._capacity) is not None:
            self._retry_at = self._clock() + RETRY_S
            return
        self._retry_at = None
        _LOG.warning("metrics are written to %s again", self._path)

    def _move_to_file(self, size: int) -> OSError | None:
        """Go on in the file, with its first `size` bytes; the error where that fails, which changes nothing."""
        try:
            _allocate(self._path, size)
            file = Path(self._path).open("a+b")  # noqa: SIM115
            try:
                mapped = mmap.mmap(file.fileno(), size)
            except OSError:
                file.close()
                raise
        except OSError as error:
            return error
        self._move(mapped, size, file)
        return None

    def _move(self, mapped: mmap.mmap, size: int, file: BufferedRandom | None) -> None:
        """Go on in `mapped`. Its header comes last: until then, scrapes read the file as it was."""
        mapped[_HEADER_BYTES : self._used] = self._m[_HEADER_BYTES : self._used]
        mapped[:_HEADER_BYTES] = self._m[:_HEADER_BYTES]
        self._m.close()
        if self._f is not None:
            self._f.close()
        self._m, self._f, self._capacity = mapped, file, size


def allocate_metrics_files() -> None:
    """Use `MetricsFile` for the metrics of this process. Called before there are any."""
    values.MmapedDict = MetricsFile  # type: ignore[attr-defined]


def _allocate(path: str, size: int) -> None:
    """Allocate the first `size` bytes of a file, which is created. Raises `OSError`, and leaves no empty file then."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        error.filename = path
        raise
    finally:
        if os.fstat(file).st_size == 0:  # no file of metrics: scrapes would fail
            with suppress(OSError):
                Path(path).unlink()
        os.close(file)
