"""The state file of a platform, and identification of the platform's processes."""

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from deployments.state import (
    RUN_ID,
    PlatformState,
    VariantState,
    cache_folder,
    is_running,
    load_state,
    processes_of,
    state_folder,
)


def state(pid: int = 1, run_id: str = "run-1", **phases: str) -> PlatformState:
    return PlatformState(
        run_id=run_id,
        pid=pid,
        url="http://127.0.0.1:8000",
        metrics_url="http://127.0.0.1:9464",
        config="local.yaml",
        model="smollm2-135m",
        variants={name: VariantState(phase=phase) for name, phase in phases.items()},
    )


@pytest.fixture
def process() -> Iterator[subprocess.Popen]:
    """A process that a platform with the run id `run-1` started."""
    command = [sys.executable, "-S", "-c", "print(flush=True); input()"]
    with subprocess.Popen(command, env={RUN_ID: "run-1"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        started.stdout.readline()
        yield started
        started.kill()


def test_the_state_survives_the_disk(tmp_path):
    written = state(full="ready", int8="building")
    written.variants["int8"].error = "näh"
    written.save(tmp_path)
    assert load_state(tmp_path) == written
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]


def test_there_is_no_state_where_none_was_written(tmp_path):
    assert load_state(tmp_path) is None
    assert load_state(tmp_path / "nowhere") is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"pid": 1}', b"\xff"])
def test_a_broken_state_file_is_no_state(tmp_path, content):
    (tmp_path / "state.json").write_bytes(content)
    assert load_state(tmp_path) is None


@pytest.mark.parametrize(
    ("phases", "settled"),
    [
        ({"full": "ready", "int8": "ready"}, True),
        ({"full": "ready", "int8": "failed"}, True),
        ({"full": "ready", "int8": "building"}, False),
        ({"full": "starting"}, False),
        ({"full": "waiting"}, False),
    ],
)
def test_a_platform_has_settled_when_every_variant_is_up_or_has_failed(phases, settled):
    assert state(**phases).settled is settled
    broken = state(**phases)
    broken.error = "no Ray"
    assert broken.settled


def test_a_platforms_processes_are_known_by_its_run_id(process):
    assert [found.pid for found in processes_of("run-1")] == [process.pid]
    assert processes_of("run-2") == []


def test_a_process_that_has_ended_is_not_there_any_more(process):
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead and not yet reaped
    assert processes_of("run-1") == []


def test_an_agent_of_ray_without_the_mark_is_identified_by_its_session(tmp_path):
    agent, other = tmp_path / "ray::Agent", tmp_path / "other"
    for link in (agent, other):
        link.symlink_to(shutil.which("sleep"))
    script = f"{agent} 60 & {other} 60 & echo; wait"
    with subprocess.Popen(["sh", "-c", script], env={}, stdout=subprocess.PIPE, start_new_session=True) as supervisor:
        supervisor.stdout.readline()
        children = psutil.Process(supervisor.pid).children()
        while any(child.name() == "sh" for child in children):  # not yet what it is to be
            time.sleep(0.01)
        found = [process.name() for process in processes_of("run-1", supervisor.pid)]
        without = processes_of("run-1"), processes_of("run-1", os.getpid())
        for process in (*children, supervisor):
            process.kill()
    assert found == ["ray::Agent"] and without == ([], [])


def test_agents_of_another_platform_whose_supervisor_has_the_pid_now_are_left_alone(tmp_path):
    agent = tmp_path / "ray::Agent"
    agent.symlink_to(shutil.which("sleep"))
    script = f"env -u {RUN_ID} {agent} 60 & echo; wait"
    with subprocess.Popen(
        ["sh", "-c", script], env={RUN_ID: "run-2"}, stdout=subprocess.PIPE, start_new_session=True
    ) as other:
        other.stdout.readline()
        while not any(child.name() == "ray::Agent" for child in psutil.Process(other.pid).children()):
            time.sleep(0.01)
        found = processes_of("run-1", other.pid), len(processes_of("run-2", other.pid))
        for process in (*psutil.Process(other.pid).children(), other):
            process.kill()
    assert found == ([], 2)


def test_a_platform_runs_while_its_supervisor_lives(process):
    assert is_running(state(process.pid))
    process.kill()
    process.wait()
    assert not is_running(state(process.pid))
    assert not is_running(None)


def test_another_process_with_the_supervisors_pid_is_not_the_platform(process):
    assert not is_running(state(process.pid, run_id="run-2"))
    assert not is_running(state(os.getpid()))


def test_the_folders_are_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert state_folder() == tmp_path / "state/gearbox"
    assert cache_folder() == tmp_path / "cache/gearbox"
    monkeypatch.setenv("GEARBOX_STATE_DIR", str(tmp_path / "own-state"))
    monkeypatch.setenv("GEARBOX_CACHE_DIR", str(tmp_path / "own-cache"))
    assert state_folder() == tmp_path / "own-state"
    assert cache_folder() == tmp_path / "own-cache"


def test_a_state_that_cannot_be_written_leaves_the_last_one_whole(tmp_path, monkeypatch):
    state(full="building").save(tmp_path)

    def full(self: PlatformState, **_: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken, pytest.raises(OSError, match="No space left"):
        broken.setattr(PlatformState, "model_dump_json", full)
        state(full="ready").save(tmp_path)
    last = load_state(tmp_path)
    assert last is not None and last.variants["full"].phase == "building"
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]
