"""When a node that leaves may go. That Ray does what is asked of it is `tests/integration/test_cluster.py`'s."""

from collections.abc import Callable, Iterable
from itertools import chain, repeat

import pytest

from deployments import drain as module
from deployments.drain import drain, outlast


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

    def __init__(self, others_stay: bool) -> None:
        self.told: list[tuple[str, float]] = []
        self._others_stay = others_stay

    def leave(self, node: str, deadline_s: float) -> None:
        self.told.append((node, deadline_s))

    def others_stay(self, node: str) -> bool:
        return self._others_stay


Drained = Callable[..., float]


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Drained:
    """How long the node waits, given what is seen of it second by second; the last sight stays."""

    def run(
        replicas: Iterable[int], requests: Iterable[int], others_stay: bool = True, deadline_s: float = 600
    ) -> float:
        clock = Clock()
        monkeypatch.setattr(module, "time", clock)
        first, second = _lasting(replicas), _lasting(requests)
        monkeypatch.setattr(module, "replicas", lambda: [None] * next(first))
        monkeypatch.setattr(module, "requests", lambda port: next(second))
        cluster = Leaving(others_stay)
        drain(cluster, "node", deadline_s, 9464)
        assert cluster.told == [("node", deadline_s)]
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


def test_replicas_that_nobody_replaces_end_when_nothing_is_asked_any_more(seconds: Drained):
    assert 40 <= seconds([1], [*[1] * 30, 0], others_stay=False) < 45


def test_a_pause_between_requests_is_not_the_end(seconds: Drained):
    assert seconds([1], [*[0] * 5, 1, *[0] * 8, 1, 0], others_stay=False) >= 15 + 10


def test_the_deadline_ends_it(seconds: Drained):
    assert 59 <= seconds([1], [1], deadline_s=60) <= 61


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
    monkeypatch.setattr(module, "time", clock)
    cluster.workers = lambda: next(seen)
    outlast(cluster, "head", 60)
    assert least <= clock.now - 1000 <= most
    assert cluster.told == [], "a head is not drained: Ray's control store runs there"
