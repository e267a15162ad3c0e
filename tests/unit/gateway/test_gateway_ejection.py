"""The gateway when a replica stalls or is dead: it gets no more requests, and those that it has go on elsewhere."""

import errno
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import aiohttp
import httpx
import pytest

from benchmarks.lib.sample_catalog import MODEL
from serve.gateway import replica_health, replica_watch
from serve.gateway.engine_client import Engines, EngineUnreachable
from serve.gateway.replica_health import ReplicaHealth
from tests.support.answers import MESSAGES, chunks, error_of, text_of
from tests.support.gateway_server import GatewayServer, Started


@contextmanager
def in_background(gateway: Started, **body: Any) -> Iterator[list[httpx.Response]]:
    """A chat request in a thread; its response is in the list at the end."""
    responses: list[httpx.Response] = []
    thread = threading.Thread(
        target=lambda: responses.append(
            gateway.http.post("/v1/chat/completions", json={"model": MODEL, "messages": MESSAGES, **body})
        )
    )
    thread.start()
    yield responses
    thread.join(30)
    gateway.finish()


class TestStalls:
    @pytest.fixture(autouse=True)
    def _fast(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module, name, value in [
            (replica_watch, "MIN_STALL_S", 0.05),
            (replica_watch, "SILENT_TOKENS", 0.0),
            (replica_health, "MIN_STALL_S", 0.05),
            (replica_health, "PREFILL_FACTOR", 0.0),
            (replica_health, "GAP_FACTOR", 0.0),
            (replica_health, "ANSWER_S", 0.02),
            (replica_health, "PROBE_EVERY_S", 0.0),
        ]:
            monkeypatch.setattr(module, name, value)

    def _poll(self, gateway: Started, url: str, answered: bool) -> None:
        health, now = gateway.replicas.health, time.perf_counter()
        health.on_poll_sent(url, now)
        if answered:
            health.on_poll(url, {"tokens": 1.0}, now)

    def _watch(self, gateway: Started, server: GatewayServer, polls_answered: bool, seconds: float = 20.0) -> bool:
        """Watch until `full` is ejected, or for some seconds. Returns whether it was."""
        url = gateway.engines["full"].url
        end = time.monotonic() + seconds
        while time.monotonic() < end and not gateway.replicas.health.ejected([url]):
            self._poll(gateway, url, polls_answered)
            server.check_replicas(gateway)
            time.sleep(0.01)
        return bool(gateway.replicas.health.ejected([url]))

    def _stall(self, gateway: Started, server: GatewayServer, polls_answered: bool = False) -> None:
        """Wait until the engine of `full` has the request, then until the gateway has noticed that it does nothing."""
        full = gateway.engines["full"]
        self._poll(gateway, full.url, True)
        while not full.running:
            time.sleep(0.01)
        assert self._watch(gateway, server, polls_answered)

    @pytest.mark.parametrize("behaviour", ["hold", "hang"])
    @pytest.mark.parametrize("stream", [True, False])
    @pytest.mark.parametrize("polls_answered", [True, False])
    def test_its_requests_go_on_elsewhere(self, gateway: Started, _server, behaviour, stream, polls_answered):
        """`hold` stands still between two tokens, `hang` before the first."""
        gateway.engines["full"].behaviour = behaviour
        with in_background(gateway, stream=stream) as responses:
            self._stall(gateway, _server, polls_answered)
        (response,) = responses
        assert text_of(response, stream) == "You said: hello there"
        assert gateway.sample("gearbox_replica_ejections_total", variant="full", cause="stalled") == 1
        moved = chunks(response)[-1]["gearbox"]["migrations"] if stream else []
        assert [m["reason"] for m in moved] == (["stalled"] if stream and behaviour == "hold" else [])

    def test_new_requests_prefer_others_before_it_is_ejected(self, gateway: Started, _server, monkeypatch):
        monkeypatch.setattr(replica_health, "ANSWER_S", 60.0)
        full = gateway.engines["full"]
        gateway.variants["full"].live.update_replicas({full.url: 0})
        full.behaviour = "hold"
        with in_background(gateway, stream=True) as responses:
            while not full.running:
                time.sleep(0.01)
            assert not self._watch(gateway, _server, False, 0.1)
            response = httpx.post(
                f"{gateway.url}/v1/chat/completions", json={"model": MODEL, "messages": MESSAGES}, timeout=60
            )
            full.let_go()
        assert (response.headers["x-gearbox-variant"], response.json()["gearbox"]["attempts"]) == ("int8", 1)
        assert text_of(responses[0], True) == "You said: hello there", "which goes on where it is"
        assert gateway.sample("gearbox_candidates_excluded_total", variant="full", rule="silent") == 1
        _server.check_replicas(gateway)
        assert gateway.chat().headers["x-gearbox-variant"] == "full"

    def test_a_client_that_leaves_does_not_end_the_silence(self, gateway: Started, _server, monkeypatch):
        """Others wait too; what ends by an answer ends it."""
        left: list[str] = []
        monkeypatch.setattr(ReplicaHealth, "leave", lambda _, exchange, now: left.append(exchange.replica.url))
        full = gateway.engines["full"]
        gateway.chat()
        full.behaviour = "hang"
        _server.run_and_cancel(gateway, {"model": MODEL, "messages": MESSAGES}, lambda: full.running)
        assert left == [full.url]

    def test_half_of_all_replicas_stay(self, gateway: Started, _server):
        """When most seem to have stalled, the machine is slow, and moving their requests would make it slower."""
        urls = [engine.url for engine in gateway.engines.values()]
        health, now = gateway.replicas.health, time.perf_counter()
        for url in urls:
            health.on_poll(url, {}, now - 2 * replica_health.LATE_S)
        for url in urls[:2]:
            health.on_poll_sent(url, now - 2 * replica_health.LATE_S)
        _server.check_replicas(gateway)
        assert len(health.ejected(urls)) == 1

    def test_it_gets_nothing_until_a_probe_succeeds_and_then_ever_more(self, gateway: Started, _server):
        full = gateway.engines["full"]
        full.behaviour = "hold"
        with in_background(gateway, stream=True):
            self._stall(gateway, _server)
        before = len(full.requests)
        assert gateway.chat().headers["x-gearbox-variant"] == "int8"
        assert len(full.requests) == before
        full.behaviour = "answer"
        full.let_go()
        end = time.monotonic() + 20
        while gateway.replicas.health.ejected([full.url]):
            assert time.monotonic() < end
            _server.check_replicas(gateway)
            time.sleep(0.02)
        assert full.requests[-1]["max_tokens"] == 1, "the probe"
        assert gateway.chat().headers["x-gearbox-variant"] == "full", "the only replica of its variant"

    @pytest.mark.parametrize("stream", [True, False])
    def test_a_client_that_does_not_read_is_no_stall(self, gateway: Started, _server, stream):
        full = gateway.engines["full"]
        self._poll(gateway, full.url, True)
        ejected: list[bool] = []

        def meanwhile() -> None:
            full.behaviour = "hang"  # the engine has written all of it
            ejected.append(self._watch(gateway, _server, True, 0.3))

        body = _server.read_slowly(gateway, {"model": MODEL, "messages": MESSAGES, "stream": stream}, meanwhile)
        assert ejected == [False] and b" there" in body
        assert len(full.requests) == 1, "there is nothing to be probed for"

    def test_an_answer_that_waits_as_a_whole_for_its_client_outlives_its_replica(self, gateway: Started, _server):
        """Also one that no other engine could continue."""
        full, ejected = gateway.engines["full"], threading.Event()

        def eject() -> None:
            gateway.app._engines.eject(gateway.variants["full"], full.url, "stalled")
            ejected.set()

        def meanwhile() -> None:
            while full.running:
                time.sleep(0.01)
            time.sleep(0.05)  # until the gateway has read the end
            _server._loop.call_soon_threadsafe(eject)
            assert ejected.wait(10)

        body = _server.read_slowly(gateway, {"model": MODEL, "messages": MESSAGES, "stream": True, "n": 2}, meanwhile)
        assert body.endswith(b"data: [DONE]\n\n") and b"error" not in body
        assert gateway.engine_calls() == {"full": 1}

    def test_streams_that_go_on_keep_a_replica_whose_metrics_are_late(self, gateway: Started, _server, monkeypatch):
        monkeypatch.setattr(replica_watch, "MIN_STALL_S", 5.0)
        full = gateway.engines["full"]
        full.behaviour = "hold"
        with in_background(gateway, stream=True) as responses:
            while not full.running:
                time.sleep(0.01)
            assert not self._watch(gateway, _server, False, 0.1)
            full.let_go()
        assert text_of(responses[0], True) == "You said: hello there"
        assert gateway.engine_calls() == {"full": 1}


class TestDeadEngines:
    """A variant is up for as long as a replica of it can answer."""

    @pytest.fixture(autouse=True)
    def _known(self, gateway: Started) -> None:
        live = gateway.variants["full"].live
        live.update_replicas({gateway.engines["full"].url: 0})

    def _wait_until_down(self, gateway: Started) -> None:
        end = time.monotonic() + 20
        while gateway.variants["full"].live.replicas:
            assert time.monotonic() < end
            time.sleep(0.005)

    @pytest.mark.parametrize("stream", [True, False])
    def test_one_that_refuses_connections_is_down_at_once(self, gateway: Started, stream):
        refuses = "http://127.0.0.1:9"
        gateway.replicas.by_variant["full"] = [refuses]
        gateway.variants["full"].live.update_replicas({refuses: 0})
        assert gateway.chat(stream=stream).headers["x-gearbox-variant"] == "int8"
        assert gateway.variants["full"].live.replicas == 0
        assert gateway.sample("gearbox_failovers_total", variant="full") == 1
        gateway.chat(stream=stream)
        assert gateway.sample("gearbox_failovers_total", variant="full") == 1, "it is not tried again"

    def test_a_gateway_that_can_open_no_more_connections_ejects_nobody(self, gateway: Started, monkeypatch):
        """Without file descriptors of its own: those that have connections go on."""

        async def no_file_descriptors(_: object, request: Any, *__: object) -> None:
            raise aiohttp.ClientConnectorError(request.connection_key, OSError(errno.EMFILE, "Too many open files"))

        full = gateway.engines["full"]
        full.behaviour = "hold"
        with in_background(gateway, stream=True) as responses:
            while not full.running:
                time.sleep(0.01)
            with monkeypatch.context() as patch:
                patch.setattr(aiohttp.TCPConnector, "_create_connection", no_file_descriptors)
                body = {"model": MODEL, "messages": MESSAGES}
                refused = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=60)
            full.let_go()
        error_of(refused, 503)
        assert chunks(responses[0])[-1]["gearbox"]["migrations"] == []
        assert gateway.chat().headers["x-gearbox-variant"] == "full"
        assert gateway.sample("gearbox_replica_ejections_total") == 0

    def test_one_that_refuses_a_poll_is_down_before_a_request_fails(self, gateway: Started, _server):
        gateway.replicas.health.on_refused(gateway.engines["full"].url)
        _server.check_replicas(gateway)
        assert gateway.variants["full"].live.replicas == 0
        shown = {one["name"]: one["ejected_replicas"] for one in gateway.http.get("/v1/variants").json()["data"]}
        assert shown == {"full": 1, "int8": 0, "distilled": 0}
        assert gateway.chat().json()["gearbox"]["attempts"] == 1
        assert gateway.sample("gearbox_replica_ejections_total", variant="full", cause="unreachable") == 1

    @pytest.mark.parametrize(("behaviour", "stream"), [("500", False), ("500", True), ("error event mid-stream", True)])
    def test_one_whose_server_reports_a_dead_engine_is_down_after_one_failure(
        self, gateway: Started, behaviour, stream
    ):
        full = gateway.engines["full"]
        full.behaviour, full.health_status = behaviour, 503
        assert text_of(gateway.chat(stream=stream), stream) == "You said: hello there"
        self._wait_until_down(gateway)
        assert gateway.chat().json()["gearbox"]["attempts"] == 1
        assert gateway.engine_calls()["full"] == 1
        assert gateway.sample("gearbox_replica_ejections_total", variant="full", cause="unreachable") == 1

    def test_streams_that_its_end_interrupts_did_not_stall(self, gateway: Started):
        full = gateway.engines["full"]
        full.behaviour, full.health_status = "hold", 503
        with in_background(gateway, stream=True) as responses:
            while not full.holding or gateway.variants["full"].live.pending_prefill_tokens:
                time.sleep(0.01)
            full.behaviour = "500"
            httpx.post(f"{gateway.url}/v1/chat/completions", json={"model": MODEL, "messages": MESSAGES}, timeout=60)
        (migration,) = chunks(responses[0])[-1]["gearbox"]["migrations"]
        assert (migration["to"], migration["reason"]) == ("int8", "connection")
        full.let_go()

    def test_one_that_fails_a_request_and_lives_is_tried_again(self, gateway: Started):
        full = gateway.engines["full"]
        full.behaviour = "500"
        gateway.chat()
        full.behaviour = "answer"
        assert gateway.chat().headers["x-gearbox-variant"] == "full"
        assert gateway.variants["full"].live.replicas == 1


async def test_a_response_that_begins_while_its_replica_is_ejected_is_not_waited_for():
    exchange = SimpleNamespace(replica=SimpleNamespace(url="http://r"), stalled=False, interrupt=None)
    response = Mock()

    async def post(*_: Any, **__: Any) -> Any:
        exchange.stalled = True  # `interrupt` was called, and has no effect any more
        return response

    engines = SimpleNamespace(_open=lambda: SimpleNamespace(post=post), _timeout=None, health=Mock())
    with pytest.raises(EngineUnreachable, match="a stalled replica"):
        await Engines._send(engines, exchange, "/v1/completions", b"{}", {}, SimpleNamespace(name="full"))
    response.close.assert_called_once()
