"""Stalls in simulated time: how soon a stopped engine is ejected, and what must not be taken for one."""

import itertools
import re
from collections import deque
from pathlib import Path

import pytest

from serve.gateway import replica_health
from serve.gateway.replica_health import BUSY_LATE_S, CHECK_S, LATE_S, MAX_STALL_S, MIN_STALL_S, RAMP_S
from tests.support.stalling_engines import TICK_S, Answer, Engine, Platform

A, B, C = "http://a", "http://b", "http://c"
STOPS = ["core", "all"]
AT_ONCE_S = MIN_STALL_S + 3 * CHECK_S


@pytest.fixture(params=[None, 0.0], ids=["gpu", "cpu"])
def platform(request: pytest.FixtureRequest) -> Platform:
    return Platform(*(Engine(url, cpu_s=request.param) for url in (A, B, C)))


def stop(platform: Platform, how: str | None, *urls: str) -> float:
    for url in urls or (A,):
        platform.engines[url].stopped = how
    return platform.now


def resume(platform: Platform, *urls: str) -> None:
    for url in urls or (A,):
        platform.engines[url].stopped = None


class TestFound:
    @pytest.mark.parametrize("how", STOPS)
    @pytest.mark.parametrize("streams", [1, 5])
    @pytest.mark.parametrize("others", [0, 2])
    def test_a_stopped_engine_with_streams(self, platform, how, streams, others):
        for _ in range(streams):
            platform.ask(A)
        for url in [B, C][:others]:
            platform.ask(url)
        platform.run(5)
        stopped_at = stop(platform, how)
        platform.run(10)
        assert MIN_STALL_S <= platform.ejected_at.pop(A) - stopped_at <= AT_ONCE_S
        assert not platform.ejected_at

    @pytest.mark.parametrize("how", STOPS)
    def test_the_first_request_after_the_stop_of_an_idle_engine_moves_on(self, platform, how):
        stop(platform, how)
        platform.run(0.5)
        sent_at = platform.now
        platform.ask(A)
        platform.run(10)
        assert platform.ejected_at[A] - sent_at <= AT_ONCE_S

    @pytest.mark.parametrize("how", STOPS)
    def test_a_unary_request(self, platform, how):
        platform.ask(A, stream=False)
        platform.run(5)
        stopped_at = stop(platform, how)
        platform.run(10)
        assert platform.ejected_at[A] - stopped_at <= AT_ONCE_S + 0.5, "the last poll is half a second old"

    @pytest.mark.parametrize("how", STOPS)
    def test_new_requests_avoid_it_after_half_of_the_time(self, platform, how):
        platform.ask(A)
        platform.run(5)
        stop(platform, how)
        platform.run(MIN_STALL_S / 2 + 2 * CHECK_S)
        assert platform.health.suspects == {A} and platform.health.avoided([A, B], platform.now) == {A}

    @pytest.mark.parametrize("how", STOPS)
    @pytest.mark.parametrize("later_s", [0.25, 0.4, 0.55])
    def test_requests_that_come_after_it_has_stopped_do_not_excuse_it(self, platform, how, later_s):
        """Its stream shows the stop before the next poll does."""
        platform.ask(A)
        platform.run(5)
        stopped_at = stop(platform, how)
        platform.run(later_s)
        for _ in range(40):
            platform.ask(A, reads_s=20.0)
            platform.run(0.1)
        assert platform.ejected_at[A] - stopped_at <= AT_ONCE_S

    def test_a_server_that_stops_while_prompts_are_read(self, platform):
        """Prompts are read in the engine core: they explain no server that does not answer, only one that answers late."""
        platform.ask(A, reads_s=20.0)
        platform.run(1)
        stopped_at = stop(platform, "all")
        platform.run(10)
        assert platform.ejected_at[A] - stopped_at <= AT_ONCE_S + BUSY_LATE_S

    def test_an_engine_core_that_stops_while_prompts_are_read_is_found_when_they_should_have_been(self, platform):
        platform.ask(A, reads_s=5.0)
        platform.run(1)
        started_at = stop(platform, "core") - 1
        platform.run(20)
        assert 10 <= platform.ejected_at[A] - started_at <= 12

    @pytest.mark.parametrize("how", STOPS)
    def test_a_stop_beside_clients_that_read_slowly(self, platform, how):
        platform.ask(A).client_reads = False
        platform.ask(A)
        platform.run(5)
        stopped_at = stop(platform, how)
        platform.run(10)
        assert platform.ejected_at[A] - stopped_at <= AT_ONCE_S

    @pytest.mark.parametrize("how", STOPS)
    @pytest.mark.parametrize("stream", [True, False])
    @pytest.mark.parametrize(("every_s", "leave_s"), [(0.5, 1.5), (0.3, 0.8), (3.0, 1.7)])
    def test_a_stop_that_no_client_waits_for(self, platform, how, stream, every_s, leave_s):
        """They leave before the time after which a silence is a stall."""
        stopped_at = next_at = stop(platform, how)
        in_flight: deque[tuple[float, Answer]] = deque()
        while not platform.ejected_at:
            assert platform.now - stopped_at < 6
            if platform.now >= next_at - TICK_S / 2:
                in_flight.append((platform.now, platform.ask(A, stream=stream)))
                next_at += every_s
            platform.run(TICK_S)
            while in_flight and platform.now - in_flight[0][0] >= leave_s and not platform.ejected_at:
                platform.leave(in_flight.popleft()[1])

    def test_without_work_a_server_that_does_not_answer_is_avoided_and_ejected_later(self, platform):
        stopped_at = stop(platform, "all")
        platform.run(2)
        assert platform.health.suspects == {A}
        platform.run(8)
        assert LATE_S - 1 <= platform.ejected_at[A] - stopped_at <= LATE_S + 1

    @pytest.mark.parametrize("how", STOPS)
    def test_a_stop_of_all_engines_takes_long(self, platform, how):
        """It may be the machine; and there is nowhere to go."""
        for url in (A, B, C):
            platform.ask(url)
        platform.run(5)
        stopped_at = stop(platform, how, A, B, C)
        platform.run(MAX_STALL_S - 1)
        assert not platform.ejected_at
        platform.run(5)
        assert MAX_STALL_S < min(platform.ejected_at.values()) - stopped_at < MAX_STALL_S + 1

    def test_at_most_half_are_ejected_soon(self, platform):
        for url in (A, B, C):
            platform.ask(url)
        platform.run(5)
        stop(platform, "all", A, B)
        platform.run(20)
        assert len(platform.ejected_at) == 1


class TestNotFound:
    def test_a_busy_engine(self, platform):
        for url in (A, B, C):
            platform.ask(url)
        platform.run(60)
        assert not platform.ejected_at and not platform.suspected

    def test_a_stop_that_is_over_before_the_time(self, platform):
        platform.ask(A)
        platform.run(5)
        stop(platform, "all")
        platform.run(MIN_STALL_S - 0.3)
        resume(platform)
        platform.run(20)
        assert platform.suspected == {A} and not platform.ejected_at

    @pytest.mark.parametrize("streams", [0, 3])
    def test_20000_prompt_tokens_that_are_read(self, platform, streams):
        """Ten seconds at 2,000 a second; nothing changes meanwhile, and the other streams stand still."""
        for _ in range(streams):
            platform.ask(A)
        platform.run(5)
        platform.ask(A, reads_s=10.0)
        platform.run(30)
        assert not platform.ejected_at and not platform.suspected

    def test_prompts_that_are_read_one_after_the_other(self, platform):
        platform.ask(A, reads_s=10.0)
        platform.run(5)
        platform.ask(A, reads_s=10.0, predicted_s=15.0)
        platform.run(30)
        assert not platform.ejected_at

    def test_prompts_that_take_half_as_long_again_as_predicted(self, platform):
        platform.ask(A, reads_s=10.0, predicted_s=6.0)
        platform.run(30)
        assert not platform.ejected_at

    @pytest.mark.parametrize("streams", [0, 3])
    def test_prompts_of_which_nobody_predicted_how_slowly_they_are_read(self, streams):
        platform = Platform(*(Engine(url, cpu_s=0.0) for url in (A, B, C)))
        for _ in range(streams):
            platform.ask(A)
        platform.run(5)
        for _ in range(8):
            platform.ask(A, 2.0, predicted_s=0.3)
        platform.run(30)
        assert not platform.ejected_at, "its CPU time shows that it computes"

    def test_a_prompt_of_unknown_length_that_is_read_in_parts(self, platform):
        """As of another gateway: the KV cache fills with each part."""
        platform.ask(A, reads_s=10.0, predicted_s=0.1)
        for _ in range(10):
            platform.run(1)
            platform.engines[A].kv_usage += 0.01
        platform.run(5)
        assert not platform.ejected_at

    def test_a_prompt_that_is_read_beside_a_stream_that_is_held_back(self, platform):
        """As the call of a function, of which the client gets nothing before its end."""
        answer = platform.ask(A)
        platform.run(5)
        answer.buffered = True
        platform.run(5)
        platform.ask(A, reads_s=10.0)
        platform.run(30)
        assert not platform.ejected_at

    @pytest.mark.parametrize("streams", [0, 1])
    def test_a_long_prompt_that_is_read_after_its_client_has_left(self, platform, streams):
        """The engine ends a step that it has begun."""
        for _ in range(streams):
            platform.ask(A)
        platform.run(5)
        long = platform.ask(A, reads_s=10.0)
        platform.run(4)
        platform.leave(long)
        platform.run(0.5)
        platform.ask(A)
        platform.run(20)
        assert not platform.ejected_at

    def test_clients_that_leave_engines_that_go_on(self, platform):
        platform.ask(A)
        for _ in range(20):
            answer = platform.ask(A, stream=False)
            platform.run(0.9)
            platform.leave(answer)
        platform.run(20)
        assert not platform.ejected_at and not platform.suspected

    def test_one_slow_request_beside_streams(self, platform):
        platform.ask(A)
        platform.ask(A, reads_s=0.1).left = 0
        platform.run(60)
        assert not platform.ejected_at and not platform.suspected

    def test_one_slow_request_alone_while_its_engine_answers_probes(self, platform):
        """It waits outside the engine, as for an image that is fetched."""
        platform.ask(A).left = 0
        platform.run(60)
        assert not platform.ejected_at and platform.suspected == {A}

    def test_a_unary_answer_that_takes_half_a_minute(self, platform):
        platform.ask(A, stream=False)
        platform.run(30)
        assert not platform.ejected_at and not platform.suspected

    @pytest.mark.parametrize("how", [None, "core"])
    def test_a_client_that_reads_slowly_waits_for_nothing(self, platform, how):
        """Its engine has long written all of it."""
        answer = platform.ask(A)
        platform.run(2)
        answer.client_reads, answer.left = False, 20
        platform.run(5)
        stop(platform, how)
        platform.run(60)
        assert not platform.ejected_at and not platform.suspected

    def test_a_client_that_reads_again_does_not_count_the_time_before(self, platform):
        answer = platform.ask(A)
        platform.run(2)
        answer.client_reads = False
        platform.run(20)
        answer.exchange.waiting_since, answer.client_reads = platform.now, True
        platform.run(5)
        assert not platform.ejected_at

    def test_the_first_request_of_an_engine_that_compiles(self):
        platform = Platform(Engine(A), Engine(B), Engine(C), warm=False)
        platform.ask(A, reads_s=MAX_STALL_S - 2, predicted_s=0.1)
        platform.run(60)
        assert not platform.ejected_at

    @pytest.mark.parametrize("step_s", [1.0, 1.5, 3.0, 6.0])
    def test_engines_that_are_slow_together(self, platform, step_s):
        """Their steps are 20 to 120 times as long as predicted, from one moment on, but not in step with each other."""
        for url in (A, B, C):
            platform.ask(url)
        platform.run(5)
        for number, engine in enumerate(platform.engines.values()):
            engine.step_s = step_s * (1 + 0.07 * number)
        platform.run(60)
        assert not platform.ejected_at

    def test_engines_whose_servers_are_slow_together(self, platform):
        for url in (A, B, C):
            platform.ask(url)
        platform.run(5)
        for engine in platform.engines.values():
            engine.step_s = engine.answers_in_s = 2.5
        platform.run(60)
        assert not platform.ejected_at

    def test_an_engine_that_becomes_slow_alone_little_by_little(self, platform):
        platform.ask(A)
        for step_s in (0.5, 1.0, 1.5, 2.5, 4.0, 6.0):
            platform.engines[A].step_s = step_s
            platform.run(20)
        assert not platform.ejected_at

    def test_one_late_poll(self, platform):
        platform.ask(A)
        platform.run(5)
        for answers_in_s in itertools.repeat(1.5, 3):
            platform.engines[A].answers_in_s = answers_in_s
            platform.run(2)
            platform.engines[A].answers_in_s = 0.05
            platform.run(2)
        assert not platform.ejected_at and not platform.suspected

    def test_a_late_answer_to_the_probe_alone(self, platform):
        """The engine takes 1.8 s for one step; its metrics answer."""
        platform.ask(A)
        platform.run(5)
        platform.engines[A].step_s = 1.8
        platform.run(2)
        platform.engines[A].step_s = 0.05
        platform.run(10)
        assert not platform.ejected_at and platform.suspected == {A}

    @pytest.mark.parametrize("slow", ["answers_in_s", "metrics_in_s"])
    def test_late_polls_of_an_engine_without_work(self, platform, slow):
        """None is answered in time; but the probes are answered."""
        setattr(platform.engines[A], slow, 3.0)
        platform.run(60)
        assert not platform.ejected_at

    @pytest.mark.parametrize("metrics_in_s", [1.5, 3.0])
    def test_metrics_alone_that_are_always_late(self, platform, metrics_in_s):
        """As long as it is suspect it gets no requests, and answers nothing: probes must end that."""
        platform.engines[A].metrics_in_s = metrics_in_s
        platform.run(10)
        suspect = 0
        for _ in range(400):
            platform.run(TICK_S)
            suspect += bool(platform.health.suspects)
        assert suspect < 0.2 * 400 and not platform.ejected_at

    def test_metrics_that_are_late_hide_no_stop(self, platform):
        platform.engines[A].metrics_in_s = 3.0
        platform.run(20)
        stop(platform, "all")
        platform.run(10)
        assert platform.ejected_at.keys() == {A}


class TestReturn:
    @pytest.mark.parametrize("how", STOPS)
    def test_it_comes_back_gradually_when_it_goes_on(self, platform, how):
        platform.ask(A)
        platform.run(5)
        stop(platform, how)
        platform.run(20)
        assert platform.health.ejected([A]) == {A}
        resumed_at = platform.now
        resume(platform)
        platform.run(2)
        back_at = platform.returned_at[A]
        assert back_at - resumed_at <= 1 + 2 * CHECK_S
        for share in (0.3, 0.9):
            platform.run(back_at + share * RAMP_S - platform.now)
            assert platform.health.avoided([A, B], platform.now, lambda s=share: s + 0.05) == {A}
            assert platform.health.avoided([A, B], platform.now, lambda s=share: s - 0.05) == set()
        platform.ask(A)
        platform.run(RAMP_S)
        assert not platform.health.troubled and list(platform.ejected_at) == [A]

    @pytest.mark.parametrize("how", STOPS)
    def test_a_second_stop_is_found_as_soon(self, platform, how):
        platform.ask(A)
        platform.run(5)
        stop(platform, how)
        platform.run(20)
        resume(platform)
        platform.run(40)
        platform.ask(A)
        platform.run(5)
        stopped_at = stop(platform, how)
        platform.run(10)
        assert platform.ejected_at[A] - stopped_at <= AT_ONCE_S + CHECK_S

    def test_one_that_is_slow_alone_is_ejected_once(self, platform):
        """After that it is known to be slow: the probe took as long as its steps."""
        platform.ask(A)
        platform.run(5)
        platform.engines[A].step_s = 3.0
        platform.run(11)
        if platform.engines[A].cpu_s is not None:
            assert platform.suspected == {A} and not platform.ejected_at, "it computes"
            return
        first = platform.ejected_at[A]
        for _ in range(3):
            platform.ask(A)
        platform.run(60)
        assert platform.ejected_at[A] == first


def test_the_page_has_all_thresholds():
    page = (Path(__file__).parents[3] / "docs/operations/failover.md").read_text()
    stated = {name: float(value) for name, value in re.findall(r"^\| `([A-Z_]+)` \| ([\d.]+) \|", page, re.MULTILINE)}
    assert stated == {name: value for name, value in vars(replica_health).items() if name.isupper()}
