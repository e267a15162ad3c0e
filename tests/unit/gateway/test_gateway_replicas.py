"""Replicas of a variant: a request goes to the one that its decision is for, and counts there."""

import pytest

from benchmarks.lib.sample_catalog import MODEL
from serve.gateway.replica_health import Exchange, ReplicaHealth
from tests.support.gateway_server import Started

LONG = "a tale of sheep " * 200


@pytest.fixture
def replicated(gateway: Started) -> Started:
    """`full` has two replicas: its own engine, and that of `distilled`."""
    urls = [gateway.engines["full"].url, gateway.engines["distilled"].url]
    gateway.replicas.by_variant["full"] = urls
    live = gateway.variants["full"].live
    live.update_from_engines(2, 0, 0, 0.0, kv_tokens=10_000)
    live.update_replicas(dict.fromkeys(urls, 0))
    return gateway


def chat(gateway: Started, text: str = LONG) -> None:
    assert gateway.chat(text, model=f"{MODEL}:full").status_code == 200


def route(gateway: Started, text: str = LONG) -> dict[str, object]:
    body = {"model": f"{MODEL}:full", "messages": [{"role": "user", "content": text}]}
    candidate: dict[str, object] = gateway.post("/v1/route", body).json()["candidates"][0]
    return candidate


def test_a_chat_stays_at_the_replica_that_has_read_it_and_the_dry_run_says_so(replicated: Started):
    second = replicated.engines["distilled"]
    replicated.variants["full"].live.on_dispatch(100, 1, 10, replicated.engines["full"].url)
    for _ in range(3):
        chat(replicated)
    assert replicated.engine_calls() == {"distilled": 3}
    shown = route(replicated)
    assert (shown["replica"], shown["replica_in_flight"]) == (2, 0) and shown["cached_tokens"] > 500  # type: ignore[operator]
    assert replicated.variants["full"].live.by_replica[second.url].in_flight == 0
    replicated.variants["full"].live.on_complete(1, replicated.engines["full"].url)


def test_the_next_replica_knows_that_a_request_has_left_another(replicated: Started, monkeypatch):
    """So that it is not ejected, too, where the request keeps one after the other silent."""
    begin, moved = ReplicaHealth.begin, list[bool]()

    def note(health: ReplicaHealth, *args: float, **more: bool) -> Exchange:
        exchange = begin(health, *args, **more)  # type: ignore[arg-type]
        moved.append(exchange.moved)
        return exchange

    monkeypatch.setattr(ReplicaHealth, "begin", note)
    chat(replicated)
    replicated.engines[next(iter(replicated.engine_calls()))].behaviour = "die"
    chat(replicated)
    assert moved == [False, False, True]


def test_a_request_that_fails_is_predicted_and_counted_where_it_goes_next(replicated: Started):
    chat(replicated)
    first = next(iter(replicated.engine_calls()))
    replicated.engines[first].behaviour = "die"
    assert route(replicated)["cached_tokens"] > 500  # type: ignore[operator]
    chat(replicated)
    other = {"full": "distilled", "distilled": "full"}[first]
    assert replicated.engine_calls() == {first: 2, other: 1}
    live = replicated.variants["full"].live
    assert not live.by_replica[replicated.engines[first].url].answers
    assert [(state.in_flight, state.pending_prefill_tokens) for state in live.by_replica.values()] == [(0, 0)] * 2
    chat(replicated, "something else")
    assert replicated.engine_calls() == {first: 2, other: 2}, "the broken one is left until it answers again"


def test_a_replica_that_has_stopped_since_the_last_refresh_gets_nothing(replicated: Started):
    chat(replicated)
    first = next(iter(replicated.engine_calls()))
    other = {"full": "distilled", "distilled": "full"}[first]
    replicated.replicas.by_variant["full"] = [replicated.engines[other].url]
    assert replicated.chat(LONG, model=f"{MODEL}:full").json()["gearbox"]["attempts"] == 2, "it was decided again"
    assert replicated.engine_calls() == {first: 1, other: 1}
    replicated.replicas.by_variant["full"] = []
    assert replicated.chat(LONG, model=f"{MODEL}:full").status_code == 503


def test_a_replica_that_has_started_since_the_last_refresh_answers(replicated: Started):
    replicated.replicas.by_variant["full"] = [replicated.engines["int8"].url]
    chat(replicated)
    assert replicated.engine_calls() == {"int8": 1}


def test_a_prompt_that_is_cached_by_estimate_may_take_as_long_as_one_that_is_not(replicated: Started, monkeypatch):
    """Before its replica seems to have stalled: the engine may have evicted it."""
    begin, reading_s = ReplicaHealth.begin, list[float]()

    def note(health: ReplicaHealth, url: str, now: float, predicted_s: float = 0.0, **more: bool) -> Exchange:
        reading_s.append(predicted_s)
        return begin(health, url, now, predicted_s, **more)

    monkeypatch.setattr(ReplicaHealth, "begin", note)
    for _ in range(2):
        chat(replicated)
    assert route(replicated)["cached_tokens"] > 500  # type: ignore[operator]
    assert reading_s[1] == pytest.approx(reading_s[0], rel=0.2)


def test_a_prompt_is_cached_where_it_was_read(replicated: Started):
    """Not where it was to be read before that replica was avoided."""
    first, second = (replicated.engines[name].url for name in ("full", "distilled"))
    live = replicated.variants["full"].live
    live.on_dispatch(100, 1, 10, first)
    replicated.replicas.health.suspects.add(second)
    chat(replicated)
    live.on_complete(1, first)
    assert replicated.engine_calls() == {"full": 1}
    assert [live.by_replica[url].cached_blocks > 0 for url in (first, second)] == [True, False]
