"""Replica health: what the checks tell of each replica, and how an ejected one comes back. `test_stalls.py` simulates stalls."""

import asyncio
import math
import time
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.lib.sample_catalog import make_live_variant
from serve.gateway.replica_health import (
    ANSWER_S,
    LATE_S,
    MAX_STALL_S,
    MIN_STALL_S,
    PROBE_EVERY_S,
    RAMP_S,
    Exchange,
    ReplicaHealth,
)
from serve.gateway.replica_watch import ReplicaWatch, predicted_reading_s, predicted_silence_s
from serve.routing.prediction import Load

A, B, C = "http://a", "http://b", "http://c"
PREDICTED = dict.fromkeys((A, B, C), MIN_STALL_S)


@pytest.fixture
def health() -> ReplicaHealth:
    health = ReplicaHealth()
    for url in PREDICTED:
        poll(health, url, 0.0)
    return health


def poll(health: ReplicaHealth, url: str, at: float, tokens: float | None = 9.0) -> None:
    health.on_poll_sent(url, at)
    health.on_poll(url, {} if tokens is None else {"tokens": tokens}, at)


def run(health: ReplicaHealth, start: float, end: float, tokens: float | None = 9.0) -> list[tuple[str, str]]:
    """Poll, check and probe twice a second; no probe is answered. Returns what is to be ejected."""
    found = []
    at = start
    while at < end and not found:
        at += 0.5
        for url in PREDICTED:
            poll(health, url, at, tokens)
        found = health.check(PREDICTED, at)
        health.to_probe(at)
    return found


class TestChecks:
    def test_a_replica_where_nobody_listens_is_ejected_at_once_though_it_is_the_last(self, health):
        for url in PREDICTED:
            health.on_refused(url)
        assert health.check(PREDICTED, 0.1) == [(url, "unreachable") for url in PREDICTED]
        for url in PREDICTED:
            health.eject(url, 0.1)
        assert health.check(PREDICTED, 0.2) == []

    def test_where_one_of_three_refuses_the_second_is_not_ejected_soon(self, health):
        health.begin(A, 0.0)
        assert run(health, 0.0, 1.5) == []
        health.on_refused(C)
        assert health.check(PREDICTED, 3.0) == [(C, "unreachable")]

    def test_one_that_listens_again_stays(self, health):
        health.on_refused(A)
        poll(health, A, 0.1)
        assert health.check(PREDICTED, 0.2) == []

    def test_a_request_that_kept_one_replica_silent_does_not_have_the_next_one_ejected(self, health):
        """Such as the first of a kind for which the engine compiles a kernel: else it would end one replica after the other."""
        exchange = health.begin(A, 0.0)
        assert run(health, 0.0, 5.0) == [(A, "stalled")]
        health.eject(A, 5.0)
        health.end(exchange)
        health.on_probe(A, False, 5.0)
        health.to_probe(6.0)
        health.on_probe(A, True, 6.0)
        assert health.ejected(PREDICTED) == set(), "it is back: so many serve that B would be ejected soon"
        health.begin(B, 6.0, moved=True)
        assert run(health, 6.0, 6.0 + MAX_STALL_S) == []
        assert run(health, 6.0 + MAX_STALL_S, 40.0) == [(B, "stalled")]

    def test_one_that_reads_prompts_may_answer_polls_later(self, health):
        """On cores that engines share, reading prompts takes the time of the server that answers them."""
        health.begin(A, 0.0, reading_s=10.0)
        health.on_poll_sent(A, 0.5)
        found: dict[float, list[tuple[str, str]]] = {}
        for at in (0.6, 1.6, 2.0, 3.0, 4.0, 5.0, 6.0):
            poll(health, B, at), poll(health, C, at)
            found[at] = health.check(PREDICTED, at)
            health.to_probe(at)
        assert A in health.suspects, "new requests avoid it"
        assert {at for at, ejected in found.items() if ejected} == {4.0, 5.0, 6.0}, "without an answer for BUSY_LATE_S"

    def test_a_stall_needs_a_probe_that_is_not_answered(self, health):
        health.begin(A, 0.0)
        assert run(health, 0.0, 1.5) == []
        health.on_probe(A, True, 1.8)
        assert run(health, 2.0, 3.5) == [], "the silence begins anew"
        assert run(health, 3.5, 5.0) == [(A, "stalled")]

    def test_a_probe_that_fails_is_repeated_and_proves_nothing_else(self, health):
        health.begin(A, 0.0)
        health.check(PREDICTED, 1.1)
        assert health.to_probe(1.1) == [A]
        assert health.to_probe(2.2) == [], "one at a time"
        health.on_probe(A, False, 2.2)
        assert health.to_probe(2.3) == []
        assert health.to_probe(2.2 + PROBE_EVERY_S) == [A]

    def test_engines_that_count_no_tokens_get_more_time(self, health):
        health.begin(A, 0.0).on_first_token(0.0)
        assert run(health, 0.0, MAX_STALL_S, None) == []
        assert run(health, MAX_STALL_S, MAX_STALL_S + 2, None) == [(A, "stalled")]

    def test_one_that_has_never_answered_is_starting(self):
        health = ReplicaHealth()
        poll(health, B, 0.0)
        poll(health, C, 0.0)
        health.on_poll_sent(A, 100.0)
        assert health.check(PREDICTED, 100.0 + 2 * LATE_S) == []

    def test_the_only_replica_gets_more_time(self, health):
        health.begin(A, 0.0)
        health.on_poll_sent(A, 0.1)
        for at in range(2, round(MAX_STALL_S)):
            assert health.check({A: MIN_STALL_S}, float(at)) == []
            health.to_probe(float(at))
        assert health.check({A: MIN_STALL_S}, MAX_STALL_S + 1) == [(A, "stalled")]

    def test_idle_time_does_not_count(self, health):
        health.end(health.begin(A, 10.0))
        health.begin(A, 100.0)
        health.check(PREDICTED, 100.9)
        assert not health.suspects
        health.check(PREDICTED, 101.1)
        assert health.suspects == {A}

    def test_a_longer_predicted_silence_is_waited_for(self, health):
        health.begin(A, 0.0)
        health.check({**PREDICTED, A: 10.0}, 4.9)
        assert not health.suspects
        health.check({**PREDICTED, A: 10.0}, 5.1)
        assert health.suspects == {A}

    def test_time_in_which_the_gateway_stood_still_does_not_count(self, health):
        health.begin(A, 10.0)
        health.on_poll_sent(A, 10.1)
        health.on_poll_sent(B, 10.1)
        health.resume(100.0)
        assert health.check(PREDICTED, 100.5) == [] and not health.suspects

    def test_a_silence_goes_on_with_those_who_wait_and_ends_without_them(self, health):
        first, second = health.begin(A, 10.0), health.begin(A, 10.5)
        health.leave(first, 10.9)
        health.check(PREDICTED, 11.1)
        assert health.suspects == {A}
        health.leave(second, 11.2)
        health.check(PREDICTED, 11.3)
        assert not health.suspects
        health.leave(health.begin(A, 11.4, 0.4), 11.5)
        health.check(PREDICTED, 11.6)
        health.begin(A, 11.8)
        health.check(PREDICTED, 12.7)
        assert not health.suspects

    def test_a_prompt_may_be_read_after_its_client_has_left(self, health):
        """A poll after that shows what was before, and this process may stand still."""
        exchange = health.begin(A, 10.0, 10.0)
        exchange.replica.active_at = 10.1
        health.leave(exchange, 10.3)
        poll(health, A, 10.5, 20.0)
        health.begin(A, 10.6)
        health.check(PREDICTED, 12.5)
        assert not health.suspects
        health.resume(20.0)
        health.check(PREDICTED, 21.5)
        assert not health.suspects
        health.check(PREDICTED, 30.1)
        assert health.suspects == {A}, "twice as long as predicted"

    def test_a_stream_whose_client_has_left_shows_nothing(self, health):
        stream = health.begin(A, 10.0)
        stream.on_first_token(10.1)
        health.begin(A, 10.2)
        health.leave(stream, 10.3)
        health.begin(A, 10.9, 10.0)
        poll(health, A, 11.0, 20.0)
        health.check(PREDICTED, 12.5)
        assert not health.suspects

    def test_a_late_poll(self, health):
        assert not health.is_late(A, 50.0)
        health.on_poll_sent(A, 50.0)
        health.on_poll_sent(A, 52.0)
        assert not health.is_late(A, 49.9 + ANSWER_S)
        assert health.is_late(A, 50.0 + ANSWER_S), "since the first that was not answered"
        poll(health, A, 53.0)
        assert not health.is_late(A, 60.0)


class TestPredictions:
    def test_the_silence_follows_the_time_per_token(self):
        variant = make_live_variant(tpot_ms=20)
        assert predicted_silence_s(variant, Load(1)) == MIN_STALL_S
        assert predicted_silence_s(make_live_variant(tpot_ms=1000), Load(1)) == pytest.approx(8.0)

    def test_the_silence_contains_the_prompts_of_other_gateways_alone(self):
        """This gateway's own are with its requests."""
        variant = make_live_variant(tpot_ms=20)
        load = Load(1, pending_prefill_tokens=9000)
        assert predicted_silence_s(variant, load) == pytest.approx(9.16)
        variant.live.on_dispatch(9000)
        assert predicted_silence_s(variant, load) == MIN_STALL_S

    def test_reading_takes_the_prompts_ahead_at_the_present_speed(self):
        variant = make_live_variant(tpot_ms=20)
        alone = predicted_reading_s(variant, Load(), 1000)
        assert alone >= 1.0
        assert predicted_reading_s(variant, Load(pending_prefill_tokens=20_000), 1000) == pytest.approx(21.0)
        assert predicted_reading_s(variant, Load(colocated_busy_variants=2), 20_000) == pytest.approx(60.0)
        variant.latency.drift = math.log(2)
        assert predicted_reading_s(variant, Load(), 20_000) == pytest.approx(40.0)


def begin(health: ReplicaHealth, at: float) -> Exchange:
    return health.begin(A, at)


class TestEjection:
    def test_its_requests_are_interrupted(self, health):
        interrupted = []
        exchange = begin(health, 1.0)
        exchange.interrupt = lambda: interrupted.append(exchange)
        assert health.eject(A, 2.0)
        assert (interrupted, exchange.stalled) == ([exchange], True)
        assert not health.eject(A, 3.0), "once"
        other = health.begin(B, 3.0)
        health.eject(B, 3.0, "unreachable")
        assert not other.stalled

    def test_it_comes_back_gradually_after_a_good_probe(self, health):
        health.eject(A, 10.0)
        assert health.avoided([A, B], 10.0) == {A}
        assert health.to_probe(10.0 + PROBE_EVERY_S) == [A]
        assert health.to_probe(20.0) == [], "one probe at a time"
        health.on_probe(A, False, 20.0)
        assert health.ejected([A]) == {A}
        assert health.to_probe(29.9) == [A]
        health.on_probe(A, True, 30.0)
        assert health.ejected([A]) == set()
        assert health.avoided([A, B], 30.0 + RAMP_S / 2, lambda: 0.6) == {A}
        assert health.avoided([A, B], 30.0 + RAMP_S / 2, lambda: 0.4) == set()
        assert health.troubled
        health.forget({A, B}, 31.0 + RAMP_S)
        assert not health.troubled

    def test_after_a_late_answer_to_a_probe_another_one_decides(self, health):
        health.eject(A, 10.0)
        assert health.to_probe(11.0) == [A]
        health.on_probe(A, True, 11.1 + ANSWER_S)
        assert health.ejected([A]) == {A}
        assert health.to_probe(11.1 + ANSWER_S) == [A], "at once"
        health.on_probe(A, True, 15.0)
        assert health.ejected([A]) == set()

    def test_it_is_no_stall_right_after_it_came_back(self, health):
        begin(health, 1.0)
        assert run(health, 1.0, 10.0) == [(A, "stalled")]
        health.eject(A, 10.0)
        health.to_probe(29.9)
        health.on_probe(A, True, 30.0)
        assert health.check(PREDICTED, 30.5) == [] and not health.suspects

    async def test_a_probe_that_raises_is_not_the_last(self, health):
        async def probe(url: str, model: str) -> bool:
            raise RuntimeError(url)

        engines: Any = SimpleNamespace(health=health, urls=lambda _: [A], probe=probe)
        variant = make_live_variant()
        ejected_at = time.perf_counter() - PROBE_EVERY_S
        health.eject(A, ejected_at)
        ReplicaWatch(engines, {variant.name: variant}, "model").check([(variant, Load())])
        await asyncio.sleep(0.01)
        assert health.to_probe(time.perf_counter() + PROBE_EVERY_S) == [A]

    def test_one_that_no_longer_runs_is_forgotten(self, health):
        exchange = begin(health, 1.0)
        health.eject(A, 2.0)
        health.forget({B}, 3.0)
        assert health.ejected([A]) == {A}, "a request of it has not ended yet"
        health.end(exchange)
        health.forget({B}, 4.0)
        assert not health.troubled
        health.on_probe(A, True, 5.0)
