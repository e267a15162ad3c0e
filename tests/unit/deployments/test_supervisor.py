"""When a starting platform counts as ready, and what ends the wait."""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import httpx
import psutil
import pytest
from ray import serve as ray_serve

from deployments.replicas import app_name
from deployments.state import PlatformState, VariantState, load_state, private
from deployments.supervisor import Supervisor, _listens, _stop_processes
from serve.budget import Budget
from serve.config.platform import load_config
from tests.support.http_server import serving
from tests.support.waiting import eventually

LOCAL = Path(__file__).resolve().parents[3] / "deployments/local.yaml"


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    """Of a platform whose two engines start."""
    monkeypatch.setattr("deployments.supervisor.time.sleep", lambda seconds: None)
    variants = {name: VariantState(phase="starting") for name in ("full", "int8")}
    state = PlatformState(run_id="r", pid=1, url="http://x", metrics_url="", config="", model="m", variants=variants)
    return Supervisor(load_config(LOCAL), state, tmp_path)


def applications(monkeypatch: pytest.MonkeyPatch, **status: str) -> None:
    """What Ray Serve says of each."""
    statuses = {
        name if name == "gateway" else app_name(name): SimpleNamespace(status=word, message=f"{name} is {word}")
        for name, word in status.items()
    }
    monkeypatch.setattr(ray_serve, "status", lambda: SimpleNamespace(applications=statuses))


def test_an_engine_that_runs_is_ready_when_the_gateway_has_found_it(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    seen: list[dict[str, str]] = []
    polls = iter([set(), {"int8"}, {"int8"}, {"full", "int8"}])

    def found() -> set[str]:
        state = load_state(tmp_path)
        seen.append({name: part.phase for name, part in state.parts.items()} if state else {})
        return next(polls)

    monkeypatch.setattr(supervisor, "_routable_variants", found)
    applications(monkeypatch, gateway="RUNNING", full="RUNNING", int8="RUNNING")
    supervisor._monitor_apps()
    both = {"full": "starting", "int8": "starting"}
    assert seen == [{}, both, both | {"int8": "ready"}, both | {"int8": "ready"}]
    state = load_state(tmp_path)
    assert state is not None and state.settled and state.message == "up"
    assert all(part.phase == "ready" and "starting" in part.seconds for part in state.variants.values())


def test_a_failed_engine_is_reported_and_the_others_continue(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(supervisor, "_routable_variants", lambda: {"full"})
    applications(monkeypatch, gateway="RUNNING", full="RUNNING", int8="DEPLOY_FAILED")
    supervisor._monitor_apps()
    state = load_state(tmp_path)
    assert state is not None and state.error is None
    assert (state.variants["full"].phase, state.variants["int8"].phase) == ("ready", "failed")
    assert state.variants["int8"].error == "int8 is DEPLOY_FAILED"


def test_a_gateway_that_fails_ends_the_start(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(supervisor, "_routable_variants", set)
    applications(monkeypatch, gateway="DEPLOY_FAILED", full="RUNNING", int8="DEPLOYING")
    supervisor._monitor_apps()
    state = load_state(tmp_path)
    assert state is not None and state.settled and state.error == "the gateway: gateway is DEPLOY_FAILED"


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (httpx.Response(200, json={"status": "ready", "variants": ["full"]}), {"full"}),
        (httpx.Response(503, json={"error": {"code": "not_ready"}}), set()),
        (httpx.Response(502, text="<html>"), set()),
        (httpx.ConnectError("refused"), set()),
    ],
    ids=["ready", "not_ready", "no_json", "refused"],
)
def test_what_the_gateway_has_found(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, answer: httpx.Response | Exception, found: set[str]
):
    monkeypatch.setattr("deployments.supervisor.httpx.get", Mock(side_effect=[answer]))
    assert supervisor._routable_variants() == found


def test_a_thread_that_dies_ends_the_platform_with_its_reason(supervisor: Supervisor, tmp_path: Path, caplog):
    def work() -> None:
        raise LookupError("no such\napplication")

    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
    try:
        with pytest.raises(SystemExit):  # at any moment once the thread runs
            supervisor._start_thread("monitor", work)
            threading.Event().wait(10)
    finally:
        signal.signal(signal.SIGTERM, before)
    state = load_state(tmp_path)
    assert state is not None and state.settled
    assert state.error == "the monitor failed: no such application"
    assert "the monitor failed: LookupError at " in caplog.text and "no such" not in caplog.text


def test_the_platform_stops_with_a_reason_when_ray_has_ended(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Ray itself goes on for a minute and then aborts this process, which could stop nothing any more."""
    polls = iter([None, None, "gcs_server (exit code -9)"])
    monkeypatch.setattr("deployments.supervisor.ended_ray_process", lambda: next(polls, "gcs_server (exit code -9)"))
    kill, delete = Mock(), Mock()
    monkeypatch.setattr("deployments.supervisor.os.kill", kill)
    monkeypatch.setattr("deployments.supervisor.gateway_requests", lambda url: 3.0)
    monkeypatch.setattr("deployments.supervisor._listens", lambda url: True)
    monkeypatch.setattr("deployments.supervisor.start_deleting_app", delete)
    supervisor._monitor_ray()
    assert kill.call_args.args[1] == signal.SIGTERM and next(polls, "read") == "read"
    state = load_state(tmp_path)
    assert state is not None and (state.error or "").startswith("Ray's gcs_server (exit code -9) has ended")
    supervisor._drain()
    assert not delete.called, "Ray could not do it"


@pytest.mark.parametrize("ended", [False, True])
def test_a_ray_that_has_ended_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, ended: bool):
    process, shutdown = Mock(pid=0), Mock()
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.shutdown", shutdown)
    monkeypatch.setattr("deployments.supervisor.processes_of", lambda run_id, pid: [process])
    monkeypatch.setattr("psutil.wait_procs", lambda processes, timeout: ([], processes))
    _stop_processes("r", ended)
    assert shutdown.called is not ended
    assert process.terminate.called and process.kill.called


def test_what_fails_while_the_platform_stops_is_no_reason(supervisor: Supervisor):
    failed = threading.Event()

    def work() -> None:
        failed.set()
        raise LookupError("Ray is gone")

    supervisor._stopping = True
    supervisor._start_thread("monitor", work)
    assert failed.wait(10)
    for thread in threading.enumerate():
        if thread.name == "monitor":
            thread.join(10)
    assert supervisor._state.error is None


def test_a_state_that_cannot_be_written_does_not_end_the_platform_and_is_written_later(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "state.json").mkdir()  # no file can take its place
    monkeypatch.setattr("deployments.supervisor.Weights", Mock())
    monkeypatch.setattr("deployments.supervisor._SAVE_AGAIN_S", 0.0)
    for step in ("_start_ray", "_deploy", "_start_thread", "_deploy_retrieval", "_build"):
        monkeypatch.setattr(supervisor, step, Mock())
    waits = iter(range(10))

    def sleep(_: float) -> None:
        match next(waits):
            case 3:
                (tmp_path / "state.json").rmdir()
            case 6:
                raise SystemExit(signal.SIGINT)

    monkeypatch.setattr("deployments.supervisor.time.sleep", sleep)
    monkeypatch.setattr("deployments.supervisor.signal.signal", Mock())
    supervisor.run()
    state = load_state(tmp_path)
    assert state is not None and state.error is None and state.message == "stopping"
    failures = [record.getMessage() for record in caplog.records if "writing the state failed" in record.getMessage()]
    assert "Is a directory" in failures[0] and failures[-1].endswith("it succeeds again")


Drain = Callable[..., tuple[float, int]]


@pytest.fixture
def drained(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> Drain:
    """Seconds of a drain with a limit of 5 s, and how often it deleted the gateway, whose load is this at each look."""

    def run(loads: Sequence[float | None], listens: Sequence[bool] = (True,), interrupt_after_s: int = 99) -> Any:
        deleted: list[str] = []
        now = 0.0
        look, listening = iter(loads), chain(listens, repeat(listens[-1]))
        server = supervisor._config.server.model_copy(update={"drain_timeout_s": 5})
        supervisor._config = supervisor._config.model_copy(update={"server": server})

        def wait(seconds: float) -> bool:
            nonlocal now
            now += seconds
            return now >= interrupt_after_s

        monkeypatch.setattr(supervisor, "_interrupted", Mock(wait=wait))
        monkeypatch.setattr("deployments.supervisor.time.monotonic", lambda: now)
        monkeypatch.setattr("deployments.supervisor.gateway_requests", lambda url: next(look))
        monkeypatch.setattr("deployments.supervisor._listens", lambda url: next(listening))
        monkeypatch.setattr("deployments.supervisor.start_deleting_app", deleted.append)
        supervisor._drain()
        assert set(deleted) <= {"gateway"}
        return now, len(deleted)

    return run


def test_it_drains_while_requests_are_under_way_and_no_longer_than_it_may(drained: Drain):
    assert drained([2.0, 2.0, 1.0, 0.0]) == (5, 1)
    assert drained([0.0]) == (2, 1), "a request may arrive until the gateway is deleted"
    assert drained([1.0] * 50) == (6, 1), "the drain timeout"
    assert drained([], listens=[False]) == (0, 0), "no gateway runs"


def test_a_gateway_that_does_not_listen_on_loopback_is_drained_too(
    drained: Drain, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
):
    server = supervisor._config.server.model_copy(update={"host": "::1", "metrics_port": 19464})
    supervisor._config = supervisor._config.model_copy(update={"server": server})
    polled: list[str] = []
    drained([1.0], interrupt_after_s=1)
    monkeypatch.setattr("deployments.supervisor._listens", lambda url: polled.append(url) or False)
    supervisor._drain()
    assert polled == ["http://[::1]:19464"]


def test_a_gateway_whose_load_cannot_be_read_once_is_waited_for(drained: Drain):
    assert drained([1.0, None, 1.0, 0.0]) == (5, 1)
    assert drained([1.0, None], listens=[True, False]) == (3, 1), "it has ended"


def test_down_now_ends_a_drain_that_is_under_way(drained: Drain, supervisor: Supervisor):
    assert drained([1.0] * 50, interrupt_after_s=2)[0] <= 3
    supervisor._interrupted = threading.Event()
    supervisor._stopping = True
    supervisor._on_stop_signal(signal.SIGTERM, None)
    assert not supervisor._interrupted.is_set()
    supervisor._on_stop_signal(signal.SIGINT, None)
    assert supervisor._interrupted.is_set()


def test_what_listens_is_known_though_it_does_not_answer():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert not _listens(url)
        server.listen()
        assert _listens(url)
    assert not _listens("http://no-such-host.invalid:1")


def test_signals_while_the_platform_stops_do_not_end_that(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch):
    """`gearbox up` sends one as soon as the state has an error, monitors of parts that fail together send several."""
    stopped: list[str] = []

    def fail() -> None:
        raise LookupError("no Ray")

    def save() -> None:
        if supervisor._state.error or supervisor._stopping:
            signal.raise_signal(signal.SIGTERM)
            stopped.append(supervisor._state.error or "")

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr("deployments.supervisor.Weights", Mock())
    monkeypatch.setattr(supervisor, "_start_ray", fail)
    monkeypatch.setattr(supervisor, "_save", save)
    monkeypatch.setattr(supervisor, "_drain", lambda: signal.raise_signal(signal.SIGTERM))
    supervisor.handle_stop_signals()
    try:
        supervisor.run()
        assert stopped == ["no Ray"]
        supervisor._stopping, supervisor._state.error = False, None
        monkeypatch.setattr(supervisor, "_start_ray", lambda: signal.raise_signal(signal.SIGTERM))
        supervisor.run()
        assert stopped == ["no Ray", ""]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_reload_that_ray_serve_refuses_does_not_end_the_platform(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    supervisor._state.config = str(LOCAL)
    monkeypatch.setattr(supervisor, "_deploy", Mock(side_effect=RuntimeError("the controller is restarting")))
    supervisor._reload()
    assert "to retry: RuntimeError at " in caplog.text and "is restarting" not in caplog.text


def test_a_reload_that_does_not_go_with_the_running_platform_changes_nothing(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    access = supervisor._config.access.model_copy(update={"anonymous_profile": "mine"})
    mine = {**supervisor._config.profiles, "mine": Budget(ttft_ms=100)}
    supervisor._config = supervisor._config.model_copy(update={"access": access, "profiles": mine})
    monkeypatch.setattr(supervisor, "_deploy", deploy := Mock())
    supervisor._state.config, before = str(LOCAL), supervisor._reloaded  # in which no profile is called 'mine'
    supervisor._reload()
    assert supervisor._reloaded is before and not deploy.called
    assert "access.anonymous_profile: unknown budget profile 'mine'" in caplog.text and "restart it" in caplog.text


def test_a_reload_is_applied_while_variants_are_built(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch):
    reloaded, built = threading.Event(), threading.Event()
    ready = Mock(ready=lambda variant: None)
    monkeypatch.setattr("deployments.supervisor.Weights", lambda *_: ready)
    for step in ("_start_ray", "_deploy", "_monitor_ray", "_monitor_apps", "_deploy_retrieval", "_drain"):
        monkeypatch.setattr(supervisor, step, Mock())
    monkeypatch.setattr(supervisor, "_reload", reloaded.set)

    def build(*_: object) -> None:
        supervisor.reload_requested.set()
        assert reloaded.wait(10)
        built.set()
        raise SystemExit(signal.SIGINT)

    monkeypatch.setattr(supervisor, "_build", build)
    supervisor.run()
    assert built.is_set()


def test_a_database_that_hangs_does_not_keep_the_other_processes_running(supervisor: Supervisor):
    supervisor._database = Mock(stop=Mock(side_effect=subprocess.TimeoutExpired("postgres", 10)))
    supervisor.close()


def test_a_process_that_ends_meanwhile_does_not_keep_the_others_running(monkeypatch: pytest.MonkeyPatch):
    gone = Mock(
        pid=0, terminate=Mock(side_effect=psutil.NoSuchProcess(0)), kill=Mock(side_effect=psutil.NoSuchProcess(0))
    )
    other = Mock(pid=0)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("deployments.supervisor.processes_of", lambda run_id, pid: [gone, other])
    monkeypatch.setattr("psutil.wait_procs", lambda processes, timeout: ([], processes))
    _stop_processes("r", False)
    assert other.terminate.called and other.kill.called


def test_the_gateway_is_not_polled_through_the_proxy_of_the_shell(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Ready)) as url:
        supervisor._state.url = url
        assert supervisor._routable_variants() == {"full"}


class Ready(BaseHTTPRequestHandler):
    """A gateway that routes to one variant."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"variants": ["full"]}')

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(("number", "drained"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_only_gearbox_down_now_does_not_drain(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, drained: bool
):
    drain = Mock()
    monkeypatch.setattr(supervisor, "_drain", drain)
    monkeypatch.setattr(supervisor, "_start_ray", Mock(side_effect=SystemExit(number)))
    monkeypatch.setattr("deployments.supervisor.Weights", Mock())
    monkeypatch.setattr("deployments.supervisor.signal.signal", Mock())
    supervisor.run()
    assert drain.called is drained


@pytest.mark.slow
def test_a_drain_outlasts_the_handlers_that_ray_installs(tmp_path: Path):
    """Ray's handler of SIGTERM calls the one before it, and aborts the process 3 s later if it still runs."""
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen([sys.executable, "-c", _DRAINS_FOR_5_S, str(tmp_path)], stdout=output, stderr=output)
    try:
        eventually(lambda: "deployed" in log.read_text() or process.poll() is not None, 120, "Ray is up")
        process.terminate()
        assert process.wait(60) == 0, log.read_text()
        assert "drained" in log.read_text()
    finally:
        process.kill()
        process.wait()


_DRAINS_FOR_5_S = """
import sys, threading, time
from pathlib import Path
from unittest.mock import patch
from ray import serve as ray_serve
from benchmarks.lib.sample_catalog import make_config
from deployments.state import PlatformState
from deployments.supervisor import Supervisor

class Draining(Supervisor):
    def _deploy(self, folders):
        print("deployed", flush=True)
        threading.Event().wait()

    def _drain(self):
        time.sleep(5)
        print("drained", flush=True)

state = PlatformState(run_id="r", pid=1, url="", metrics_url="", config="", model="m", variants={})
supervisor = Draining(make_config(server={"metrics_port": 19764}), state, Path(sys.argv[1]))
supervisor.handle_stop_signals()
with patch("deployments.supervisor.Weights"), patch.object(ray_serve, "start"):
    supervisor.run()
"""


def test_no_thread_of_the_supervisor_is_started_past_the_one_that_tells_of_its_end():
    source = Path(sys.modules[Supervisor.__module__].__file__ or "").read_text()
    assert source.count("threading.Thread(") == 1


def test_a_log_that_all_could_read_is_its_owners_alone_once_it_is_written_again(tmp_path: Path):
    log = tmp_path / "platform.log"
    log.write_text("of an earlier version")
    log.chmod(0o644)
    with open(log, "w", opener=private):
        assert log.stat().st_mode & 0o777 == 0o600
