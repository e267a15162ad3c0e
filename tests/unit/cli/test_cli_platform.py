"""`gearbox up | down | status | reload` after each kind of end, and while the state says nothing of the platform that runs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from typer.testing import CliRunner

from deployments import cli
from deployments.state import RUN_ID, STATE_DIR, PlatformState, VariantState, find_run, wait_for_end

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state folder of these tests alone."""
    monkeypatch.setenv(STATE_DIR, str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Starts a process of a platform on this folder: its supervisor, or another one."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*arguments: str, run_id: str = "run-1") -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-S", "-c", "print(flush=True); input()", *arguments]
        environment = {RUN_ID: run_id, STATE_DIR: str(folder)}
        process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def save(folder: Path, pid: int, **changes: object) -> None:
    variants = {"full": VariantState(phase="ready")}
    PlatformState(
        run_id="run-1", pid=pid, url="http://127.0.0.1:1", metrics_url="", config="", model="m", variants=variants
    ).model_copy(update=changes).save(folder)


def gearbox(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result.exit_code, result.stdout + result.stderr


OTHER_VERSION = '{"run_id": "run-1", "pid": 1}'


@pytest.mark.parametrize("written", [None, "", OTHER_VERSION], ids=["not yet", "full disk", "other version"])
def test_a_platform_whose_state_cannot_be_read_is_known_by_its_processes(
    folder: Path, start: Start, written: str | None
):
    supervisor, engine = start("-m", "deployments.supervisor"), start()
    if written is not None:
        (folder / "state.json").write_text(written)
    for command in ("status", "reload", "up"):
        code, said = gearbox(command)
        assert code == 1 and f"a platform is starting (pid {supervisor.pid})" in said, command
        assert "'gearbox down' stops it" in said
    assert gearbox("down") == (0, "stopped\n")
    assert supervisor.wait(5) == -signal.SIGTERM and engine.wait(5) == -signal.SIGKILL
    assert gearbox("down") == (0, "nothing is running\n")


def test_status_says_why_a_variant_did_not_start(folder: Path, start: Start):
    supervisor = start("-m", "deployments.supervisor")
    full, int8 = VariantState(phase="ready"), VariantState(phase="failed", error="no kernel for [W8A8] here")
    save(folder, supervisor.pid, variants={"full": full, "int8": int8})
    code, said = gearbox("status")
    assert code == 0 and "int8: no kernel for [W8A8] here\n" in said


def test_the_platform_of_another_folder_is_not_found(start: Start, tmp_path: Path):
    start("-m", "deployments.supervisor")
    assert find_run(tmp_path) is None


def test_up_stops_what_a_killed_supervisor_has_left(folder: Path, start: Start):
    """Its state is replaced then, and nothing would know of them any more."""
    supervisor, engine = start("-m", "deployments.supervisor"), start()
    save(folder, supervisor.pid)
    supervisor.kill()
    supervisor.wait()
    code, said = gearbox("up", "--config", str(folder / "nowhere.yaml"))
    assert code == 2 and "stopped what was left of the last platform" in said
    assert engine.wait(5) == -signal.SIGKILL


def test_a_second_up_is_refused_once_the_first_has_its_supervisor(
    folder: Path, start: Start, monkeypatch: pytest.MonkeyPatch
):
    """Both have found none before."""
    runs = iter([None])
    monkeypatch.setattr(cli, "_validated", lambda *_: start("-m", "deployments.supervisor"))
    monkeypatch.setattr(cli, "find_run", lambda folder: next(runs, find_run(folder)))
    monkeypatch.setattr(cli, "_start_supervisor", lambda *_: pytest.fail("a second supervisor"))
    code, said = gearbox("up", "--config", str(folder / "nowhere.yaml"))
    assert code == 1 and "a platform is starting (pid " in said


def test_up_waits_while_another_one_starts_its_supervisor(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cli, "_validated", lambda *_: None)
    monkeypatch.setattr(cli, "_LOCK_S", 0.01)
    with FileLock(folder / "up.lock"):
        code, said = gearbox("up", "--config", str(folder / "nowhere.yaml"))
    assert code == 1 and "up.lock" in said


def test_down_stops_what_a_killed_supervisor_has_left(folder: Path, start: Start):
    supervisor, engine = start("-m", "deployments.supervisor"), start()
    save(folder, supervisor.pid)
    supervisor.kill()
    supervisor.wait()
    assert gearbox("down") == (0, "stopped http://127.0.0.1:1\n")
    assert engine.wait(5) == -signal.SIGKILL


def test_down_stops_all_others_though_one_process_ends_meanwhile(
    folder: Path, start: Start, monkeypatch: pytest.MonkeyPatch
):
    first, second = start(), start()
    save(folder, 1)
    first.kill()
    processes = [psutil.Process(first.pid), psutil.Process(second.pid)]
    first.wait()
    monkeypatch.setattr("deployments.state.processes_of", lambda run_id, supervisor: processes)
    assert gearbox("down")[0] == 0
    assert second.wait(5) == -signal.SIGKILL


def test_a_state_that_cannot_be_read_at_all_is_one_line(folder: Path):
    (folder / "state.json").mkdir()
    for command in ("status", "reload", "up", "down"):
        code, said = gearbox(command)
        assert code == 1 and "the state cannot be read: " in said, command


def test_a_supervisor_that_has_ended_is_not_waited_for_where_nobody_takes_its_exit_code():
    """As in containers whose first process is `sleep`."""
    script = "sleep 60 & echo $!; exec sleep 60"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        while psutil.Process(parent.pid).name() == "sh":
            time.sleep(0.01)
        assert not wait_for_end(child, 0)
        child.kill()
        assert wait_for_end(child, 5)
        assert child.status() == psutil.STATUS_ZOMBIE
        parent.kill()


def test_another_process_with_the_supervisors_pid_is_left_alone(folder: Path, start: Start):
    start()
    save(folder, os.getpid())
    assert gearbox("down")[0] == 0
