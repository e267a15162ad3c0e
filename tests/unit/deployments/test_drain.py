"""Graceful draining: when a node that is shut down may stop. `tests/cluster` tests it with Ray."""

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, repeat
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import httpx
import pytest
from ray.exceptions import RpcError

from deployments import drain
from deployments.drain import drain_worker, wait_for_workers


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Leaving:
    """A cluster whose other workers stay or leave, too."""

    def __init__(self, others_stay: bool, refuses: bool = False) -> None:
        self.drain_requests: list[tuple[str, float]] = []
        self._others_stay, self._refuses = others_stay, refuses

    def drain_node(self, node: str, deadline_s: float) -> None:
        self.drain_requests.append((node, deadline_s))
        if self._refuses:
            raise RuntimeError("the node can't be drained: no")

    def other_workers_stay(self, node: str) -> bool:
        return self._others_stay


Drained = Callable[..., float]


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Drained:
    """How long the node waits, given what is seen of it second by second; the last sight stays."""

    def run(
        replicas: Iterable[int],
        requests: Iterable[int],
        others_stay: bool = True,
        deadline_s: float = 600,
        refuses: bool = False,
    ) -> float:
        clock = Clock()
        monkeypatch.setattr(drain, "time", clock)
        first, second = _lasting(replicas), _lasting(requests)
        monkeypatch.setattr(drain, "replicas", lambda: [None] * next(first))
        monkeypatch.setattr(drain, "in_flight", lambda port: next(second))
        cluster = Leaving(others_stay, refuses)
        drain_worker(cluster, "node", deadline_s, 9464)
        assert cluster.drain_requests == [("node", deadline_s)]
        return clock.now - 1000

    return run


def _lasting(values: Iterable[int]) -> Iterable[int]:
    values = list(values)
    return chain(values, repeat(values[-1]))


def test_an_idle_node_waits_until_everybody_knows(seconds: Drained):
    assert 10 <= seconds([0], [0]) < 13


def test_a_node_waits_for_its_replicas_to_be_replaced(seconds: Drained):
    assert seconds([*[1] * 90, 0], [0]) >= 90


def test_a_node_without_replicas_waits_for_what_passes_through_it(seconds: Drained):
    assert seconds([0], [*[2] * 45, 0]) >= 45


def test_replicas_without_replacement_end_when_no_requests_arrive(seconds: Drained):
    assert 40 <= seconds([1], [*[1] * 30, 0], others_stay=False) < 45


def test_a_pause_between_requests_is_not_the_end(seconds: Drained):
    assert seconds([1], [*[0] * 5, 1, *[0] * 8, 1, 0], others_stay=False) >= 15 + 10


def test_where_nothing_is_replaced_answers_are_waited_for_all_the_same(seconds: Drained):
    assert 40 <= seconds([1], [*[1] * 30, 0], refuses=True) < 45


def test_the_deadline_ends_it(seconds: Drained):
    assert 59 <= seconds([1], [1], deadline_s=60) <= 61


def test_a_request_between_two_attempts_is_nobodys_for_a_moment(seconds: Drained):
    assert seconds([0], [*[1] * 20, 0, 1, 0], others_stay=True) >= 22 + 2


@pytest.mark.parametrize("fails", ["connect", "ask"])
def test_without_a_control_store_answers_are_waited_for_all_the_same(monkeypatch: pytest.MonkeyPatch, fails: str):
    def connect() -> SimpleNamespace:
        if fails == "connect":
            raise ConnectionError("Could not find any running Ray instance")

        def is_head(node: str) -> bool:
            raise RpcError("timed out")

        return SimpleNamespace(is_head=is_head)

    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(drain, "ControlStore", connect)
    monkeypatch.setattr(drain, "local_node_id", lambda: "node")
    monkeypatch.setattr(drain, "drain_worker", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr("sys.argv", ["drain", "--deadline-s", "60"])
    drain.main()
    assert calls == [(None, "node", 60.0, 9464)]


def test_a_node_without_a_control_store_waits_for_its_requests(monkeypatch: pytest.MonkeyPatch):
    clock, requests = Clock(), _lasting([*[1] * 30, 0])
    monkeypatch.setattr(drain, "time", clock)
    monkeypatch.setattr(drain, "replicas", lambda: [None])
    monkeypatch.setattr(drain, "in_flight", lambda port: next(requests))
    drain_worker(None, "node", 600, 9464)
    assert 40 <= clock.now - 1000 < 45


@pytest.mark.parametrize(
    ("workers", "others_stay", "least", "most"),
    [
        ([{"a", "b"}] * 30 + [set()], False, 38, 45),  # all go: it outlasts them
        ([{"a"}], True, 10, 11),  # it goes alone
        ([set()], False, 10, 11),
        ([{"a"}], False, 59, 62),  # one hangs: the deadline ends it
    ],
)
def test_the_head_outlasts_its_workers_where_all_go(monkeypatch, workers, others_stay, least, most):
    clock, cluster, seen = Clock(), Leaving(others_stay), _lasting(workers)
    monkeypatch.setattr(drain, "time", clock)
    cluster.workers = lambda: next(seen)
    wait_for_workers(cluster, "head", 60)
    assert least <= clock.now - 1000 <= most
    assert cluster.drain_requests == [], "a head is not drained: Ray's control store runs there"


ENGINE = 'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_waiting{engine="0"} 2.0\n'
IDLE_ENGINE = 'vllm:num_requests_running{engine="0"} 0.0\nvllm:num_requests_waiting{engine="0"} 0.0\n'
GATEWAY = 'gearbox_build_info{model="m",version="1"} 1.0\n'
IDLE_GATEWAY = GATEWAY + 'gearbox_requests_open{model="m"} 0.0\n'


class Replica:
    """A process of Ray Serve, as psutil shows it. `ports`: what it listens on, or why that is not known."""

    def __init__(self, title: str, ports: Iterable[int] | Exception = ()) -> None:
        self.info = {"cmdline": [f"ray::ServeReplica:{title}"], "name": "ray::ServeRepl"}
        self._ports = ports

    def net_connections(self, kind: str) -> list[SimpleNamespace]:
        if isinstance(self._ports, Exception):
            raise self._ports
        listen = drain.psutil.CONN_LISTEN
        return [SimpleNamespace(laddr=SimpleNamespace(port=port), status=listen) for port in self._ports]


def haproxies(count: int) -> list[SimpleNamespace]:
    return [haproxy(SimpleNamespace(status="LISTEN", raddr=())) for _ in range(count)]


def haproxy(*connections: SimpleNamespace) -> SimpleNamespace:
    info = {"cmdline": ["haproxy"], "name": "haproxy"}
    return SimpleNamespace(info=info, net_connections=lambda kind: list(connections))


def established(port: int) -> SimpleNamespace:
    return SimpleNamespace(status="ESTABLISHED", raddr=SimpleNamespace(ip="10.0.0.2", port=port))


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Callable[..., float]:
    """Requests on a node with these processes, whose metrics say this by port: a page, a status or an exception."""

    def run(processes: list[object], pages: dict[int, object] | None = None) -> float:
        def get(url: str, timeout: float, trust_env: bool) -> httpx.Response:
            assert not trust_env, "HTTP_PROXY is for other machines"
            page = (pages or {}).get(int(url.split(":")[2].split("/")[0]), httpx.ConnectError("refused"))
            if isinstance(page, Exception):
                raise page
            status, text = (page, "") if isinstance(page, int) else (200, str(page))
            return httpx.Response(status, text=text, request=httpx.Request("GET", url))

        monkeypatch.setattr(drain.psutil, "process_iter", lambda attrs: iter(processes))
        monkeypatch.setattr(drain.httpx, "get", get)
        monkeypatch.setattr(drain, "haproxy_sockets", lambda: list(tmp_path.glob("*/admin.sock")))
        return drain.in_flight(9464)

    return run


def test_requests_are_those_of_engines_and_gateways(load):
    processes = [Replica("variant-full:engine:full", [30001, 45000]), Replica("gateway:gateway", [30002, 9464])]
    gateway = GATEWAY + 'gearbox_requests_open{model="m"} 4.0\n'
    assert load(processes, {30001: ENGINE, 30002: 404, 9464: gateway}) == 9
    assert load(processes, {30001: IDLE_ENGINE, 30002: 404, 9464: IDLE_GATEWAY}) == 0
    assert load([Replica("retrieval:retrieval", [30003])], {30003: 500}) == 0, (
        "a process without load of its own is not polled"
    )
    assert load([]) == 0


@pytest.mark.parametrize(
    "page", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), 500, 404, "", "<html>", 'vllm:other{x="1"} 0.0']
)
def test_an_engine_whose_load_cannot_be_read_is_not_taken_to_be_idle(load, page):
    assert load([Replica("variant-full:engine:full", [30001])], {30001: page}) >= 1


@pytest.mark.parametrize("page", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), 503, "<html>", GATEWAY])
def test_a_gateway_whose_load_cannot_be_read_is_not_taken_to_be_idle(load, page):
    assert load([Replica("gateway:gateway", [30002])], {9464: page}) >= 1


def test_an_unreadable_engine_is_not_idle_and_one_that_has_ended_is(load):
    assert load([Replica("variant-full:engine:full", drain.psutil.AccessDenied())]) >= 1
    assert load([Replica("variant-full:engine:full", ())]) >= 1, "it closed its port and may finish answers"
    assert load([Replica("variant-full:engine:full", drain.psutil.NoSuchProcess(1))]) == 0


@contextmanager
def admin(folder: Path, answer: bytes) -> Iterator[None]:
    """HAProxy's socket in `folder`, which answers every command with this."""
    folder.mkdir()
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "admin.sock"))
    server.listen()

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = server.accept()
                client.recv(100)
                client.sendall(answer)
                client.close()

    thread = Thread(target=serve, daemon=True)
    thread.start()
    yield
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


STATISTICS = b"# pxname,svname,qcur,scur\nengine,FRONTEND,,7\nengine,srv1,0,2\nengine,BACKEND,1,2\n"


def test_what_haproxy_passes_on_is_what_it_says(load, tmp_path):
    with admin(tmp_path / "node", STATISTICS):
        assert load(haproxies(1)) == 3
        assert load(haproxies(2)) == 4, "one that starts may have a request"


def test_a_haproxy_that_was_replaced_has_the_requests_that_it_passes_on(load, tmp_path):
    client, busy = established(51000), established(30007)
    with admin(tmp_path / "node", STATISTICS):
        assert load([*haproxies(1), haproxy(client, client)]) == 3, "its clients send nothing, and may stay for long"
        assert load([*haproxies(1), haproxy(client, busy), haproxy(busy, busy)]) == 6
        assert load([*haproxies(1), haproxy(client, established(8500))]) == 4, "over Serve's own proxy"


@pytest.mark.parametrize(
    "answer", [b"", b"Unknown command", b"# pxname,svname,qcur,scur\na,BACKEND,x,y\n", b"\xff\xfe"]
)
def test_a_haproxy_whose_load_cannot_be_read_is_not_taken_to_be_idle(load, tmp_path, answer):
    with admin(tmp_path / "node", answer):
        assert load(haproxies(1)) == 1


def test_a_socket_that_a_haproxy_left_behind_is_nobodys_load(load, tmp_path):
    with admin(tmp_path / "node", STATISTICS):
        pass
    assert load([]) == 0
    assert load(haproxies(1)) == 1, "but one that runs and has no socket yet may have some"
