"""The gateway's polling of its engines continues after any failure."""

import asyncio
import logging
import threading
from contextlib import suppress
from types import SimpleNamespace
from unittest.mock import AsyncMock, Mock, call

import pytest
from ray import serve as ray_serve
from ray.serve.exceptions import RayServeException

from benchmarks.lib.sample_catalog import make_config, make_live_variant
from deployments import gateway
from deployments.gateway import GatewayDeployment
from deployments.replicas import ServeReplicas
from deployments.retrieval import RetrievalHandle
from serve.routing.live_state import LiveState


class FailsFirst:
    """Replicas whose first look fails, and of which Serve says nothing."""

    polls = 0
    stays_away = False  # whether all of them fail

    async def sync(self, variants: object) -> None:
        await asyncio.Event().wait()

    async def refresh(self, variant: str, live: LiveState, session: object) -> None:
        self.polls += 1
        if self.polls == 1 or self.stays_away:
            raise ConnectionError("the engine is away")
        live.update_from_engines(2, 5, 0, 0.0)


class Hanging(FailsFirst):
    """Replicas that do not answer."""

    async def refresh(self, variant: str, live: LiveState, session: object) -> None:
        await asyncio.Event().wait()


async def test_a_failed_poll_is_logged_and_the_next_one_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(gateway, "REFRESH_S", 0.001)
    watcher = GatewayDeployment.__new__(GatewayDeployment)
    watcher._retrieval = RetrievalHandle(enabled=False)
    watcher._reload_files = watcher._save_learned = watcher._exchange_prefixes = AsyncMock()
    watcher._replicas, watcher._variants = FailsFirst(), {"full": make_live_variant("full")}
    hanging = asyncio.Event()  # a store that does not answer
    watcher._app = SimpleNamespace(
        export_quotas=AsyncMock(side_effect=hanging.wait), refresh=Mock(), check_replicas=Mock(), loaded=asyncio.Event()
    )
    task = asyncio.create_task(watcher._run_background())
    with caplog.at_level(logging.ERROR):
        for _ in range(1000):
            await asyncio.sleep(0.001)
            if watcher._replicas.polls >= 20 and watcher._app.export_quotas.await_count:
                break
    assert not task.done()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    (line,) = caplog.messages
    assert "ConnectionError at " in line and "is away" not in line
    assert watcher._variants["full"].live.replicas == 2
    assert watcher._replicas.polls >= 20, "neither a store nor a controller that hangs holds up the polls"
    watcher._app.export_quotas.assert_awaited()


@pytest.mark.parametrize(("stopping", "steps"), [(True, [("sleep", 28.0), "end"]), (False, [])])
async def test_a_replica_that_serve_stops_ends_its_requests_before_it_is_killed(
    monkeypatch: pytest.MonkeyPatch, stopping: bool, steps: list[object]
):
    watcher = GatewayDeployment.__new__(GatewayDeployment)
    watcher._config = make_config(server={"drain_timeout_s": 30.0})
    seen: list[object] = []
    watcher._app = SimpleNamespace(end_requests=lambda: seen.append("end") or 3)
    monkeypatch.setattr(gateway, "replica_is_stopping", lambda: stopping)
    sleep = AsyncMock(side_effect=lambda seconds: seen.append(("sleep", seconds)))
    monkeypatch.setattr(gateway, "asyncio", SimpleNamespace(sleep=sleep))
    await watcher._end_requests()
    assert seen == steps


@pytest.mark.parametrize("replicas", [FailsFirst, Hanging])
async def test_waiting_requests_are_decided_whatever_polling_does(
    monkeypatch: pytest.MonkeyPatch, replicas: type[FailsFirst]
):
    monkeypatch.setattr(gateway, "REFRESH_S", 0.001)
    watcher = GatewayDeployment.__new__(GatewayDeployment)
    watcher._retrieval = RetrievalHandle(enabled=False)
    watcher._reload_files = watcher._save_learned = watcher._exchange_prefixes = AsyncMock()
    watcher._replicas, watcher._variants = replicas(), {"full": make_live_variant("full")}
    watcher._replicas.stays_away = True
    watcher._app = SimpleNamespace(
        export_quotas=AsyncMock(), refresh=Mock(), check_replicas=Mock(), loaded=asyncio.Event()
    )
    frozen = Mock()
    monkeypatch.setattr(gateway, "gc", frozen)
    task = asyncio.create_task(watcher._run_background())
    for _ in range(1000):
        await asyncio.sleep(0.001)
        if watcher._app.refresh.call_count >= 5:
            break
    assert frozen.mock_calls == []
    watcher._app.loaded.set()  # what start-up has loaded is no garbage
    await asyncio.sleep(0.001)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert watcher._app.refresh.call_count >= 5
    assert frozen.mock_calls == [call.collect(), call.freeze()]


class Handle:
    """Serve's handle, which remembers where it was made ready."""

    def options(self) -> "Handle":
        self.loop = asyncio.get_running_loop()
        return self


async def test_the_controller_is_called_in_another_thread_and_handles_are_made_in_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
):
    """It may be slow to answer, which must not hold up the loop."""
    threads: list[int] = []

    def get_app_handle(name: str) -> Handle:
        threads.append(threading.get_ident())
        return Handle()

    monkeypatch.setattr(ray_serve, "get_app_handle", get_app_handle)
    replicas, retrieval = ServeReplicas(None), RetrievalHandle(enabled=True)
    await replicas.sync(["full"])
    await retrieval.sync()
    assert len(threads) == 2 and threading.get_ident() not in threads
    assert replicas._handles["full"].loop is retrieval._handle.loop is asyncio.get_running_loop()


async def test_handles_are_held_for_what_is_deployed_and_no_longer(monkeypatch: pytest.MonkeyPatch):
    requested: list[str] = []

    def get_app_handle(name: str) -> Handle:
        requested.append(name)
        if name == "variant-later":
            raise RayServeException("not there")
        return Handle()

    monkeypatch.setattr(ray_serve, "get_app_handle", get_app_handle)
    replicas = ServeReplicas(None)
    for _ in range(2):
        await replicas.sync(["full", "later"])
    assert set(replicas._handles) == {"full"}
    assert requested.count("variant-full") == 1 and requested.count("variant-later") == 2
    await replicas.sync(["later"])
    assert not replicas._handles


async def test_a_gateway_whose_parts_have_ended_is_not_healthy():
    own = GatewayDeployment.__new__(GatewayDeployment)
    serving = threading.Event()
    thread = threading.Thread(target=serving.wait)
    thread.start()
    own._metrics_server, own._refreshing = SimpleNamespace(thread=thread), None
    own.check_health()
    own._refreshing = asyncio.create_task(asyncio.sleep(0))
    own.check_health()
    await own._refreshing
    with pytest.raises(RuntimeError, match="the background refresh has stopped"):
        own.check_health()
    own._refreshing = None
    serving.set()
    thread.join()
    with pytest.raises(RuntimeError, match="the metrics server has stopped"):
        own.check_health()
