"""Admission: requests that need much room at an engine, those that go before them meanwhile, and the queue behind both."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.lib.sample_catalog import REQUEST
from serve.budget import Budget
from serve.routing.fair_shares import Flow
from serve.routing.places import FreePlaces
from serve.routing.prediction import Features
from serve.routing.router import Router
from serve.routing.waiting_queue import Waiting, WaitingQueue
from tests.support.admission_site import PACED, Site, Submitted, engine

LARGE = Features(100, 11, sequences=2)


def test_one_that_needs_two_places_lets_others_have_the_one_that_is_free():
    site = Site()
    first, _ = (site.ask(**PACED) for _ in range(2))
    large, small = site.ask(features=LARGE, **PACED, ttft_ms=9000), site.ask(**PACED, ttft_ms=9500)
    assert large.waits and small.waits
    site.complete(first)
    assert large.waits and small.started


def test_sequences_that_slow_each_other_beyond_their_limit_do_not_fit_at_an_idle_engine():
    """Two take 40 ms per token, three 60 ms."""
    two, three = Features(100, 11, sequences=2), Features(100, 11, sequences=3)
    limits = {**PACED, "on_no_candidate": "reject"}
    assert Site().ask(features=two, **limits).started
    assert Site().ask(features=three, **limits).error.code == "impossible_budget"
    (degraded,) = Site().ask(features=three, **PACED).decisions
    assert degraded.reason == "nearest_miss" and degraded.chosen.ruled_out == "tpot"


def test_an_arrival_takes_a_place_that_is_not_enough_for_one_before_it():
    site = Site()
    running = [site.ask(**PACED) for _ in range(2)]
    large = site.ask(features=LARGE, **PACED, ttft_ms=9000)
    site.complete(running[0])
    assert large.waits and site.ask(**PACED, ttft_ms=9500).started


USUAL, LONG = Features(100, 100), Features(1000, 100)


def busy_site() -> tuple[Site, list[Submitted]]:
    """A site whose engine has the two usual requests that it may have."""
    site = Site(engine(max_waiting=1000))
    running = [site.ask(features=USUAL, **PACED) for _ in range(2)]
    site.variants[0].live.usual_prompt = 100
    return site, running


def test_one_with_a_long_prompt_does_not_keep_shorter_ones_from_a_place():
    site, running = busy_site()
    long = site.ask(features=LONG, **PACED, ttft_ms=12_000)
    short = site.ask(features=USUAL, **PACED, ttft_ms=13_000)
    site.complete(running[0])
    assert long.waits, "reading it would stall the other"
    assert short.started


@pytest.mark.parametrize("large", [Features(100, 100, sequences=2), LONG])
@pytest.mark.parametrize("floor", [None, 0.9])
def test_one_that_needs_much_room_starts_in_time_however_many_go_before_it(large: Features, floor: float | None):
    """Requests with the same and with other limits, one after the other, would always take the place that is free."""
    site, running = busy_site()
    one = site.ask(features=large, **PACED, ttft_ms=14_000, on_no_candidate="reject")
    before: list[Submitted] = []
    while one.waits:
        assert site.now < 20
        before.append(site.ask(features=USUAL, **PACED, ttft_ms=29_000, min_quality=floor))
        site.roll(0.5)
        site.variants[0].live.usual_prompt = 100
        if running:
            site.complete(running.pop(0))
        running += [other for other in before if other.started]
        before = [other for other in before if other.waits]
    assert one.started and site.now < 14
    assert site.now > 4, "others went before it"


def test_a_dry_run_does_not_make_a_large_request_hold_its_variant():
    site, running = busy_site()
    large = site.ask(features=LONG, **PACED, ttft_ms=12_000)
    running[0].variant.live.on_complete()  # a place that is not given away yet
    site.now = 8.5
    small = Waiting(Budget(**PACED, ttft_ms=20_000), USUAL, site.now, lambda _: None)
    assert site.admission.decide(site.variants, small, site.now).wait_ms > 0, "behind the large one"
    assert not large.waiting.holds
    site.admission.pump(site.variants, site.now)
    assert large.waits and large.waiting.holds


def test_a_full_engine_costs_a_completion_no_decision(monkeypatch: pytest.MonkeyPatch):
    site = Site(engine(max_waiting=1000))
    for _ in range(2):
        site.ask(**PACED)
    waiting = [site.ask(**PACED, max_cost=1 + i % 20, ttft_ms=9000 + i) for i in range(200)]
    decided, decide = [], Router.decide
    monkeypatch.setattr(Router, "decide", lambda *args, **options: decided.append(1) or decide(*args, **options))
    site.admission.pump(site.variants, site.now)
    assert all(one.waits for one in waiting) and not decided


def request(start_by: float, variant: str, floor: float | None, work_ms: float) -> Waiting:
    return Waiting(
        Budget(min_quality=floor), REQUEST, 0.0, lambda _: None, start_by=start_by, gives_up=start_by, variant=variant,
        work_ms=work_ms, flow=Flow(),
    )  # fmt: skip


REQUESTS = st.builds(
    request, st.integers(0, 9).map(float), st.sampled_from("ab"), st.sampled_from([None, 0.5]), st.floats(1, 100)
)


@given(st.lists(st.tuples(REQUESTS, st.booleans())), st.integers(0, 10))
def test_the_queue_is_in_order_whatever_comes_and_goes(changes: list[tuple[Waiting, bool]], now: int):
    queue, there = WaitingQueue(), list[Waiting]()
    for one, goes in changes:
        queue.rank(one)
        queue.add(one)
        there.append(one)
        if goes:
            queue.remove(there.pop(len(there) // 2))
    there.sort(key=lambda one: one.rank)
    assert len(queue) == len(there)
    for variant in "ab":
        assert queue.line(variant) == [one for one in there if one.variant == variant]
    for one in there:
        ahead = [other.work_ms for other in there if other.variant == one.variant and other.rank < one.rank]
        assert queue.ahead_ms(one) == pytest.approx(sum(ahead))
    firsts = {(one.variant, one.budget.min_quality): one for one in reversed(there)}
    assert list(queue.heads()) == sorted(firsts.values(), key=lambda one: one.rank)
    due = queue.due(now)
    assert due is (there[0] if there and there[0].start_by < now else due)
    assert (due is None) == (not any(one.start_by < now for one in there))
    for head in queue.heads():
        queue.remove(head)
    assert len(queue) == 0 and queue.due(now) is None
    assert all(one.flow.queued_ms == 0 for one in there)


@given(st.lists(st.tuples(REQUESTS, st.integers(0, 9))), st.lists(st.integers(0, 20)))
def test_what_is_late_is_ranked_again_and_comes_out_once(requests: list[tuple[Waiting, int]], times: list[int]):
    queue, gone = WaitingQueue(), list[Waiting]()
    for one, patience_s in requests:
        one.gives_up = one.start_by + patience_s
        queue.rank(one)
        queue.add(one)
    for now in sorted(times):
        while (due := queue.due(now)) is not None:
            assert due.gives_up < now
            queue.remove(due)
            gone.append(due)
    now, left = max(times, default=0), [one for one, _ in requests if one.queued]
    assert len(queue) == len(left) and len(gone) == len({id(one) for one in gone}) == len(requests) - len(left)
    assert all(one.start_by >= now for one in left), "in time, or late and allowed to be"
    left.sort(key=lambda one: one.rank)
    assert [one.start_by for one in left] == sorted(one.start_by for one in left)
    for variant in "ab":
        assert queue.line(variant) == [one for one in left if one.variant == variant]


def test_one_whose_place_will_predictably_not_come_in_time_is_refused_at_its_arrival():
    """Answers of two seconds end, one a second at a time, and it has less."""
    site, _ = busy_site()
    limits = {**PACED, "on_no_candidate": "reject"}
    assert site.ask(features=USUAL, ttft_ms=1800, **limits).error.code == "budget_under_load"
    assert site.ask(features=USUAL, ttft_ms=9000, **limits).waits


def test_one_that_begins_to_hold_its_variant_goes_on_and_one_that_would_be_late_does_not_begin():
    full = engine()
    full.live.usual_prompt, full.live.usual_output, full.live.in_flight = 100, 100, 2

    def holds(one: Waiting, now: float) -> bool:
        one.holds = FreePlaces([(full, full.live.load())], 50.0).holds(one, 50.0, now)
        return one.holds

    def large() -> Waiting:
        return Waiting(Budget(), Features(100, 100, sequences=2), 0.0, lambda _: None, variant="full", start_by=20.0)

    one = large()
    assert [holds(one, now) for now in (5.0, 15.0)] == [False, True], "answers take four seconds"
    full.live.in_flight = 1
    assert holds(one, 19.5), "the last of them is about to end"
    assert not holds(large(), 19.5)
    usual = Waiting(Budget(), REQUEST, 0.0, lambda _: None, variant="full", start_by=20.0)
    assert not holds(usual, 15.0)
