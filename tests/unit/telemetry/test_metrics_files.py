"""Metrics on a full or read-only disk: the process goes on, and the file is right again when the disk is."""

import errno
import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, values
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
    open_files = [os.readlink(one) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]  # noqa: PTH115
    assert str(path) not in open_files


@pytest.mark.parametrize("missing", [lambda path: path / "no" / "folder", lambda path: path], ids=["absent", "folder"])
def test_a_file_that_cannot_be_opened_is_kept_in_memory(tmp_path, missing: Callable[[Path], Path]):
    file = MetricsFile(str(missing(tmp_path)))
    file.write_value("first", 1.0, 0.0)
    assert file.read_value("first")[0] == 1.0


def test_without_a_file_descriptor_values_are_kept_and_no_space_is_used_that_was_not_allocated(tmp_path):
    """A file that grows without allocation ends the process when the disk is full."""
    path, now = tmp_path / "counter_1.db", 0.0
    file = MetricsFile(str(path), clock=lambda: now)
    file.write_value("first", 1.0, 0.0)
    keys = [f"{number}" * 100 for number in range(1000)]
    unused = os.dup(0)
    os.close(unused)
    _, hard = before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (unused, hard))  # as when thousands of requests are open
    try:
        for key in keys:
            file.write_value(key, 2.0, 0.0)
        other = MetricsFile(str(tmp_path / "histogram_1.db"), clock=lambda: now)
        other.write_value("first", 1.0, 0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert path.stat().st_size == 1 << 16, "it has not grown"
    now = RETRY_S
    file.write_value("first", 3.0, 0.0)
    other.write_value("first", 4.0, 0.0)
    assert in_file(path) == {"first": 3.0, **dict.fromkeys(keys, 2.0)}
    assert in_file(tmp_path / "histogram_1.db") == {"first": 4.0}


def test_a_process_with_the_pid_of_an_ended_one_goes_on_with_its_counters_alone(tmp_path):
    """In a container, whose processes begin with the same pids again after a restart."""
    for name in ("counter_1.db", "gauge_livesum_1.db"):
        MetricsFile(str(tmp_path / name)).write_value("first", 3.0, 0.0)
    assert MetricsFile(str(tmp_path / "counter_1.db")).read_value("first")[0] == 3.0
    assert MetricsFile(str(tmp_path / "gauge_livesum_1.db")).read_value("first")[0] == 0.0


KEY = json.dumps(["gearbox_requests_open", "gearbox_requests_open", {}, "help"])


def exposed(folder: Path) -> list[str]:
    """The lines of a scrape, without those of the variants."""
    page, _ = expose(Exposition(Metrics(CollectorRegistry()), MODEL, three_gears, str(folder)))
    return [line for line in page.decode().splitlines() if line.startswith("gearbox_requests_open{")]


def test_live_gauges_of_an_ended_process_go_though_another_process_has_its_pid(tmp_path):
    def write(pid: int) -> Path:
        path = tmp_path / f"gauge_livesum_{pid}.db"
        MetricsFile(str(path)).write_value(KEY, 3.0, 0.0)
        return path

    own, other = write(os.getpid()), write(os.getppid())
    keeps_open = own.open("rb")
    assert exposed(tmp_path)[0].endswith(" 6.0"), "a process that has created its file opens it now"
    for path in (own, other):
        os.utime(path, (0, 0))
    assert exposed(tmp_path)[0].endswith(" 3.0")
    assert own.exists() and not other.exists()
    keeps_open.close()


def test_a_file_that_is_empty_or_damaged_does_not_fail_the_scrapes(tmp_path, caplog):
    MetricsFile(str(tmp_path / "gauge_livesum_1.db")).write_value(KEY, 3.0, 0.0)
    (tmp_path / "counter_2.db").touch()  # another gateway is creating it
    assert exposed(tmp_path)[0].endswith(" 3.0") and caplog.text == ""
    damaged = tmp_path / "counter_3.db"
    MetricsFile(str(damaged)).write_value("first", 3.0, 0.0)
    with damaged.open("r+b") as file:  # the header was written before the machine crashed, and the entry was not
        file.seek(8)
        file.write(bytes(64))
    assert exposed(tmp_path)[0].endswith(" 3.0") and f"{damaged} is left out" in caplog.text


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

    monkeypatch.setattr("serve.telemetry.metrics_server.Path.unlink", read_only)
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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
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
