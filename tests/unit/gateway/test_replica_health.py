"""Replica health: what is a stall and what is not, and how an ejected replica comes back."""

import pytest

from benchmarks.lib.sample_catalog import make_live_variant
from serve.gateway.replica_health import (
    CEILING_S,
    FLOOR_S,
    HUNG_S,
    LATE_S,
    PROBE_EVERY_S,
    RAMP_S,
    Exchange,
    ReplicaHealth,
)
from serve.gateway.replica_watch import silence_limit_s
from serve.routing.prediction import Load

A, B = "http://a", "http://b"


@pytest.fixture
def health() -> ReplicaHealth:
    health = ReplicaHealth()
    for url in (A, B):
        health.on_poll(url, True, 0.0)
    return health


def begin(health: ReplicaHealth, at: float, *, decoding: bool = True) -> Exchange:
    exchange = health.begin(A, at)
    exchange.decoding = decoding
    return exchange


class TestStalls:
    @pytest.mark.parametrize("decoding", [True, False])
    def test_a_silent_replica_whose_metrics_do_not_answer_has_stalled(self, health, decoding):
        begin(health, 10.0, decoding=decoding)
        health.on_poll(A, False, 12.0)
        assert not health.stalled(A, 2.5, alone=False, now=12.4)
        assert health.stalled(A, 2.5, alone=False, now=12.6)
        assert not health.stalled(B, 2.5, alone=False, now=12.6)

    def test_one_slow_request_is_no_stall(self, health):
        """The other streams of the replica go on."""
        slow = begin(health, 10.0, decoding=False)
        other = begin(health, 10.0)
        health.on_poll(A, False, 50.0)
        other.replica.active_at = 59.0
        assert slow.replica is other.replica
        assert not health.stalled(A, 2.0, alone=False, now=60.0)

    def test_a_long_prompt_is_no_stall_while_metrics_answer(self, health):
        begin(health, 10.0, decoding=False)
        health.on_poll(A, True, 50.0)
        assert not health.stalled(A, 30.0, alone=False, now=50.0)
        assert health.stalled(A, 30.0, alone=False, now=71.0), "twice what is predicted is no prompt any more"

    @pytest.mark.parametrize(
        ("tokens", "stalled"), [(lambda at: at, False), (lambda at: 7.0, True), (lambda at: None, True)]
    )
    def test_an_answer_that_is_not_streamed_may_take_long_while_its_engine_counts_tokens(self, health, tokens, stalled):
        begin(health, 10.0, decoding=False)
        for at in range(11, 80):
            health.on_poll(A, True, float(at), tokens(float(at)))
        assert health.stalled(A, 2.0, alone=False, now=80.0) == stalled

    def test_streams_that_stand_still_for_long_are_one_though_metrics_answer(self, health):
        begin(health, 10.0)
        health.on_poll(A, True, 9.0 + HUNG_S)
        assert not health.stalled(A, 2.0, alone=False, now=9.0 + HUNG_S)
        assert health.stalled(A, 2.0, alone=False, now=11.0 + HUNG_S)

    def test_without_work_only_a_replica_that_does_not_answer_for_long_is_one(self, health):
        health.on_poll(A, False, LATE_S - 1)
        assert not health.stalled(A, 2.0, alone=False, now=LATE_S - 1)
        assert health.stalled(A, 2.0, alone=False, now=LATE_S + 1)

    def test_one_that_has_never_answered_is_starting(self):
        health = ReplicaHealth()
        health.on_poll(A, False, 100.0)
        assert not health.stalled(A, 2.0, alone=False, now=200.0)

    def test_the_only_replica_gets_more_time(self, health):
        begin(health, 10.0)
        health.on_poll(A, False, 12.0)
        assert not health.stalled(A, 2.0, alone=True, now=9.0 + CEILING_S)
        assert health.stalled(A, 2.0, alone=True, now=11.0 + CEILING_S)

    def test_idle_time_does_not_count(self, health):
        health.end(begin(health, 10.0))
        begin(health, 100.0)
        health.on_poll(A, False, 101.0)
        assert not health.stalled(A, 2.0, alone=False, now=101.0)

    def test_time_in_which_the_gateway_stood_still_does_not_count(self, health):
        begin(health, 10.0)
        health.on_poll(A, False, 12.0)
        health.resume(100.0)
        assert not health.stalled(A, 2.0, alone=False, now=101.0)

    def test_the_limit_follows_the_prediction(self):
        variant = make_live_variant(tpot_ms=20)
        assert silence_limit_s(variant, Load(1)) == FLOOR_S
        assert silence_limit_s(variant, Load(1, pending_prefill_tokens=9000)) == pytest.approx(9.16)
        assert silence_limit_s(make_live_variant(tpot_ms=1000), Load(1)) == pytest.approx(8.0)


class TestEjection:
    def test_its_requests_are_interrupted(self, health):
        interrupted = []
        exchange = begin(health, 1.0)
        exchange.interrupt = lambda: interrupted.append(exchange)
        assert health.eject(A, 2.0)
        assert (interrupted, exchange.stalled) == ([exchange], True)
        assert not health.eject(A, 3.0), "once"

    def test_it_comes_back_gradually_after_a_good_probe(self, health):
        health.eject(A, 10.0)
        assert health.avoided([A, B], 10.0) == {A}
        assert health.to_probe(10.0 + PROBE_EVERY_S) == [A]
        assert health.to_probe(20.0) == [], "one probe at a time"
        health.on_probe(A, False, 20.0)
        assert health.ejected([A]) == {A}
        assert health.to_probe(20.0 + PROBE_EVERY_S) == [A]
        health.on_probe(A, True, 30.0)
        assert health.ejected([A]) == set()
        assert health.avoided([A, B], 30.0 + RAMP_S / 2, lambda: 0.6) == {A}
        assert health.avoided([A, B], 30.0 + RAMP_S / 2, lambda: 0.4) == set()
        assert health.troubled
        health.forget({A, B}, 31.0 + RAMP_S)
        assert not health.troubled

    def test_it_is_no_stall_right_after_it_came_back(self, health):
        begin(health, 1.0)
        health.on_poll(A, False, 3.0)
        health.eject(A, 10.0)
        health.on_probe(A, True, 30.0)
        assert not health.stalled(A, 2.0, alone=False, now=31.0)

    def test_one_that_no_longer_runs_is_forgotten(self, health):
        exchange = begin(health, 1.0)
        health.eject(A, 2.0)
        health.forget({B}, 3.0)
        assert health.ejected([A]) == {A}, "a request of it has not ended yet"
        health.end(exchange)
        health.forget({B}, 4.0)
        assert not health.troubled
        health.on_probe(A, True, 5.0)
