"""Metrics on a full or read-only disk: the process goes on, and the file is right again when the disk is."""

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

from benchmarks.lib.sample_catalog import MODEL, three_gears
from serve.telemetry.metrics import Metrics
from serve.telemetry.metrics_files import RETRY_S, MetricsFile, allocate_metrics_files
from serve.telemetry.metrics_server import Exposition, expose

ROOT = Path(__file__).parents[3]


class Disk:
    """A disk that takes new bytes only while it is not `full`, and a clock."""

    def __init__(self) -> None:
        self.full, self.now = False, 0.0

    def allocate(self, file: int, offset: int, size: int) -> None:
        if self.full and os.fstat(file).st_size < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.truncate(file, max(size, os.fstat(file).st_size))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr("serve.telemetry.metrics_files.os.posix_fallocate", disk.allocate)
    return disk


def in_file(path: Path) -> dict[str, float]:
    """What a scrape reads."""
    return {key: value for key, value, *_ in MmapedDict.read_all_values_from_file(path)}


def test_a_full_disk_keeps_values_in_memory_until_there_is_space(tmp_path, disk: Disk, caplog):
    path = tmp_path / "counter_1.db"
    file = MetricsFile(str(path), clock=lambda: disk.now)
    file.write_value("first", 1.0, 0.0)
    disk.full = True
    keys = [f"{number}" * 100 for number in range(300)]  # more than the first 64 KiB
    with caplog.at_level(logging.WARNING):
        for key in keys:
            file.write_value(key, 2.0, 0.0)
            file.write_value("first", 3.0, 0.0)
    assert [record.levelname for record in caplog.records] == ["ERROR"], "once"
    assert str(path) in caplog.text and "No space left" in caplog.text
    before = in_file(path)
    assert "first" in before and len(before) < len(keys), "whole entries, those that had space"
    disk.full = False
    file.write_value("first", 4.0, 0.0)
    assert in_file(path) == before, "it is not tried for each value"
    disk.now += RETRY_S
    with caplog.at_level(logging.WARNING):
        file.write_value("first", 5.0, 0.0)
    assert in_file(path) == {"first": 5.0, **dict.fromkeys(keys, 2.0)}
    assert "again" in caplog.text
    file.write_value("new", 6.0, 0.0)
    assert in_file(path)["new"] == file.read_value("new")[0] == 6.0


def test_a_process_that_starts_on_a_full_disk_leaves_no_empty_file(tmp_path, disk: Disk):
    """An empty file is no file of metrics: it would fail the scrapes of all gateways."""
    path, disk.full = tmp_path / "counter_1.db", True
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    file = MetricsFile(str(path), clock=lambda: disk.now)
    file.write_value("first", 1.0, 0.0)
    assert not path.exists()
    disk.now += RETRY_S
    file.write_value("first", 2.0, 0.0)
    assert not path.exists(), "still full"
    disk.full, disk.now = False, 2 * RETRY_S
    file.write_value("first", 3.0, 0.0)
    assert in_file(path) == {"first": 3.0}
    file.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


@pytest.mark.parametrize("missing", [lambda path: path / "no" / "folder", lambda path: path], ids=["absent", "folder"])
def test_a_file_that_cannot_be_opened_is_kept_in_memory(tmp_path, missing: Callable[[Path], Path]):
    file = MetricsFile(str(missing(tmp_path)))
    file.write_value("first", 1.0, 0.0)
    assert file.read_value("first")[0] == 1.0


def test_prometheus_client_uses_it(tmp_path, monkeypatch):
    monkeypatch.setattr(values, "MmapedDict", MmapedDict)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    allocate_metrics_files()
    value = values.MultiProcessValue()("counter", "m", "m_total", ("a",), ("1",), "help")
    value.inc(2)
    assert isinstance(value._file, MetricsFile)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_blocks * 512 >= 1 << 16, "its space is allocated"
    assert list(in_file(file).values()) == [2.0]


def test_a_scrape_answers_without_the_folder(tmp_path):
    metrics = Metrics()
    metrics.initialize_series(["full"], ["best"])
    page, _ = expose(Exposition(metrics, MODEL, three_gears, str(tmp_path / "absent")))
    assert b"gearbox_budget_requests_total" in page


def test_a_scrape_answers_where_files_of_ended_gateways_cannot_be_removed(tmp_path, monkeypatch):
    (tmp_path / "gauge_livesum_999999999.db").write_bytes(bytes(1 << 16))

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("prometheus_client.multiprocess.os.remove", read_only)
    page, _ = expose(Exposition(Metrics(), MODEL, three_gears, str(tmp_path)))
    assert b"gearbox_build_info" in page


_ON_A_SMALL_DISK = """
from serve.telemetry.metrics_files import allocate_metrics_files
allocate_metrics_files()
from serve.telemetry.metrics import Metrics
metrics = Metrics()
for number in range(1000):
    metrics.ttft.labels("full", f"p{number}").observe(0.3)
print("alive")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_the_process_outlives_a_disk_that_is_full(tmp_path):
    """Without allocation the process ends by SIGBUS."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "gearbox-test", tmp_path]).returncode:
        pytest.skip("this machine allows no mounts")
    try:
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        command = [sys.executable, "-c", _ON_A_SMALL_DISK]
        ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert (ended.returncode, ended.stdout.strip()) == (0, "alive"), ended.stderr
