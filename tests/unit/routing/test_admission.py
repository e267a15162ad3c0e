"""Admission: which requests start at once, which wait and in what order, and which are refused."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.lib.sample_catalog import REQUEST
from serve.budget import Budget
from serve.errors import RequestError
from serve.routing.admission import BEST_EFFORT_S
from serve.routing.prediction import Features
from serve.routing.router import Decision, Router
from serve.routing.waiting_queue import Waiting
from tests.support.admission_site import PACED, Site, Submitted, engine


def test_a_request_starts_at_once_where_there_is_room():
    one = Site().ask(**PACED, on_no_candidate="reject")
    assert one.started and one.decisions[0].wait_ms == 0 and not one.decisions[0].waited


def test_it_waits_where_the_time_per_token_would_be_too_long_and_starts_when_another_is_complete():
    site = Site()
    first, second, third = (site.ask(**PACED) for _ in range(3))
    assert first.started and second.started and third.waits
    assert len(site.admission) == 1 and site.queued_ms() > 0
    site.complete(first)
    assert third.started and third.decisions[0].waited
    assert len(site.admission) == 0 and site.queued_ms() == 0


def test_a_dry_run_predicts_the_wait_and_changes_nothing():
    site = Site()
    for _ in range(2):
        site.ask(**PACED)
    decision = site.admission.decide(site.variants, Waiting(Budget(**PACED), REQUEST, 0.0, lambda _: None), 0.0)
    assert decision.public()["harm"] == 2 and decision.public()["wait_ms"] > 0
    assert len(site.admission) == 0 and site.queued_ms() == 0


def test_the_one_that_must_start_first_starts_first():
    site = Site()
    running = [site.ask(**PACED) for _ in range(2)]
    patient, late, early = (site.ask(**PACED, ttft_ms=ms) for ms in (20_000, 9000, 4000))
    site.complete(running[0])
    assert (patient.waits, late.waits, early.started) == (True, True, True)
    site.complete(early)
    assert (patient.waits, late.started) == (True, True)


def test_an_arrival_does_not_overtake_one_that_must_start_earlier():
    site = Site()
    running = [site.ask(**PACED) for _ in range(2)]
    early = site.ask(**PACED, ttft_ms=4000)
    running[0].variant.live.on_complete()  # a place that is not given away yet
    assert site.ask(**PACED, ttft_ms=9000).waits
    site.roll(0.5)
    assert early.started


def test_one_that_needs_a_busy_variant_does_not_keep_others_from_an_idle_one():
    full, small = engine(), engine("small", quality=0.5)
    site = Site(full, small)
    running = [site.ask(**PACED) for _ in range(4)]
    floor, free = site.ask(**PACED, min_quality=0.9, ttft_ms=4000), site.ask(**PACED, ttft_ms=9000)
    assert floor.waits and free.waits
    site.complete(next(one for one in running if one.variant is small))
    assert floor.waits and free.started and free.variant is small


def test_what_would_wait_too_long_is_refused_at_once():
    site = Site()
    for _ in range(2):
        site.ask(**PACED)
    for _ in range(50):
        refused = site.ask(**PACED, ttft_ms=600, on_no_candidate="reject")
        if not refused.waits:
            break
    assert (refused.error.status, refused.error.code) == (429, "budget_under_load")
    assert int(refused.error.headers["retry-after"]) >= 1
    assert len(site.admission) < 50


def test_what_waited_and_cannot_be_in_time_any_more_is_refused():
    site = Site()
    for _ in range(2):
        site.ask(**PACED)
    one = site.ask(**PACED, ttft_ms=1500, on_no_candidate="reject")
    assert one.waits
    site.roll(1.0)
    assert one.waits
    site.roll(1.0)
    assert (one.error.status, one.error.code) == (429, "budget_under_load")
    assert len(site.admission) == 0 and site.queued_ms() == 0


@pytest.mark.parametrize(
    ("ttft_ms", "failed", "refusal"),
    [(800, (), (429, "budget_under_load")), (800, ("http://10.0.0.1:30000",), (503, "engine_unavailable")),
     (90, (), (422, "impossible_budget"))],
)  # fmt: skip
def test_a_budget_is_impossible_only_if_it_was_at_the_arrival(ttft_ms: float, failed: tuple[str, ...], refusal: object):
    """The engine needs 100 ms; retrieval, or a replica that failed, has taken 750."""
    site, found = Site(), list[RequestError]()
    budget = Budget(ttft_ms=ttft_ms, on_no_candidate="reject")
    site.admission.submit(site.variants, Waiting(budget, REQUEST, 0.0, found.append, failed=failed), 0.75)
    assert (found[0].status, found[0].code) == refusal


def test_degrade_waits_for_others_only_so_long_and_is_not_refused_while_there_is_room():
    site = Site(engine(max_waiting=100))
    running = [site.ask(**PACED) for _ in range(2)]
    waiting = [site.ask(**PACED, ttft_ms=600) for _ in range(20)]
    assert all(one.waits for one in waiting)
    site.roll(BEST_EFFORT_S)
    assert all(one.waits for one in waiting), "nothing was complete"
    site.roll(1.0)
    assert all(one.started for one in waiting)
    assert all(one.started for one in running) and site.queued_ms() == 0


def test_a_pinned_request_never_waits():
    site = Site()
    for _ in range(2):
        site.ask(**PACED)
    assert site.ask(**PACED, pinned="full").started


def test_a_request_whose_client_has_gone_leaves_nothing_behind():
    site = Site()
    running = [site.ask(**PACED) for _ in range(2)]
    gone, other = site.ask(**PACED), site.ask(**PACED)
    site.admission.withdraw(gone.waiting)
    site.admission.withdraw(gone.waiting)
    assert len(site.admission) == 1
    site.complete(running[0])
    assert other.started and gone.waits and site.queued_ms() == 0
    site.admission.withdraw(running[1].waiting)  # has started already
    assert len(site.admission) == 0


def test_a_variant_that_goes_while_requests_wait_for_it_passes_them_on():
    full, small = engine(), engine("small", quality=0.5, replicas=0)
    site = Site(full, small)
    for _ in range(2):
        site.ask(**PACED)
    floor, free = site.ask(**PACED, min_quality=0.9, on_no_candidate="reject"), site.ask(**PACED)
    assert floor.waits and free.waits
    full.live.replicas, small.live.replicas = 0, 1
    site.roll(0.5)
    assert floor.error.code == "no_healthy_variant", "no variant with the quality is left, for now"
    assert free.variant is small


def test_when_no_variant_is_left_waiting_requests_get_503():
    site = Site()
    for _ in range(2):
        site.ask(**PACED)
    one = site.ask(**PACED)
    site.variants[0].live.replicas = 0
    site.roll(0.5)
    assert (one.error.status, one.error.code) == (503, "no_healthy_variant")
    assert len(site.admission) == 0 and site.queued_ms() == 0


def test_no_more_wait_than_engines_may_have_waiting():
    site = Site(engine(max_waiting=5))
    for _ in range(2):
        site.ask(**PACED)
    submitted = [site.ask(**PACED) for _ in range(6)]
    assert [one.waits for one in submitted] == [True] * 5 + [False]
    assert (submitted[5].error.status, submitted[5].error.code) == (429, "overloaded")
    assert "retry-after" in submitted[5].error.headers


def test_a_dry_run_is_refused_where_too_many_wait_for_the_request_to_wait_too():
    site = Site(engine(max_waiting=4))
    for _ in range(6):
        site.ask(**PACED)

    def dry_run(tenant: str) -> Decision:
        waiting = Waiting(Budget(**PACED), REQUEST, 0.0, lambda _: None, tenant=tenant)
        return site.admission.decide(site.variants, waiting, 0.0)

    with pytest.raises(RequestError) as caught:
        dry_run("")
    assert (caught.value.status, caught.value.code) == (429, "overloaded")
    assert dry_run("other").wait_ms > 0, "it would get the place of one of the tenant with most"
    assert len(site.admission) == 4


@st.composite
def scripts(draw: st.DrawFn) -> list[tuple]:
    """What happens at a gateway: requests arrive, end, are given up; engines come and go; time passes."""
    limit = st.none() | st.floats(20, 20_000)
    request = st.tuples(
        st.just("ask"), limit, st.none() | st.floats(1, 400), limit, st.none() | st.floats(0, 1),
        st.sampled_from(["degrade", "reject"]), st.integers(1, 3),
    )  # fmt: skip
    others = st.tuples(st.sampled_from(["complete", "withdraw", "replicas"]), st.integers(0, 7))
    time = st.tuples(st.just("roll"), st.floats(0.1, 10))
    return draw(st.lists(st.one_of(request, request, others, time), max_size=40))


@given(scripts(), st.integers(1, 4))
@settings(deadline=None, max_examples=150)
def test_every_request_gets_one_decision(script, max_waiting):
    site = Site(
        engine(max_waiting=max_waiting),
        engine("small", quality=0.5, max_waiting=max_waiting, max_running=2),
    )
    submitted: list[Submitted] = []
    withdrawn: set[Submitted] = set()
    for what, *values in script:
        if what == "ask":
            ttft, tpot, e2e, floor, otherwise, sequences = values
            features = Features(100, 11, sequences=sequences)
            limits = {"ttft_ms": ttft, "tpot_ms": tpot, "e2e_ms": e2e, "min_quality": floor}
            submitted.append(site.ask(features=features, **limits, on_no_candidate=otherwise))
        elif what == "complete" and (running := [one for one in submitted if one.started and one not in withdrawn]):
            one = running[values[0] % len(running)]
            withdrawn.add(one)
            site.complete(one)
        elif what == "withdraw" and (waiting := [one for one in submitted if one.waits and one not in withdrawn]):
            one = waiting[values[0] % len(waiting)]
            withdrawn.add(one)
            site.admission.withdraw(one.waiting)
        elif what == "replicas":
            site.variants[values[0] % 2].live.replicas = values[0] // 4
        elif what == "roll":
            site.roll(values[0])
    for _ in range(200):
        under_way = [one for one in submitted if one.started and one not in withdrawn]
        if not under_way and len(site.admission) == 0:
            break
        for one in under_way:
            withdrawn.add(one)
            site.complete(one)
        site.roll(1.0)
    assert all(len(one.decisions) == 1 or (one in withdrawn and one.waits) for one in submitted)
    assert len(site.admission) == 0 and site.queued_ms() == pytest.approx(0, abs=1e-6)
    assert all(variant.live.in_flight == 0 for variant in site.variants)


def test_rounding_leaves_no_queue_behind():
    site = Site()
    waiting = [Waiting(Budget(), REQUEST, 0.0, lambda _: None, work_ms=ms) for ms in (0.1, 0.2, 0.3)]
    for one in waiting:
        one.flow = site.admission.class_of(one.budget).flow(site.admission._shares.tenant("", 1.0))
        site.admission._queue.rank(one)
        site.admission._queue.add(one)
    for one in waiting:
        site.admission.withdraw(one)
    assert site.queued_ms() == 0


def test_a_free_place_costs_few_decisions_however_many_different_requests_wait(monkeypatch):
    site = Site(engine(max_waiting=1000))
    for _ in range(2):
        site.ask(**PACED)
    waiting = [site.ask(**PACED, max_cost=1 + i) for i in range(200)]
    decided, decide = [], Router.decide
    monkeypatch.setattr(Router, "decide", lambda *args, **options: decided.append(1) or decide(*args, **options))
    site.roll(0.5)
    assert all(one.waits for one in waiting) and len(decided) <= 20


def test_waiting_behind_an_earlier_request_is_predicted_longer():
    site = Site()
    for _ in range(2):
        site.ask(**PACED)
    site.ask(**PACED, ttft_ms=4000)

    def wait_ms(ttft_ms: float) -> float:
        waiting = Waiting(Budget(**PACED, ttft_ms=ttft_ms), REQUEST, 0.0, lambda _: None)
        return site.admission.decide(site.variants, waiting, 0.0).wait_ms

    assert wait_ms(9000) > wait_ms(3000) + 200, "its work is at least that of reading and decoding at a full batch"


@pytest.mark.parametrize("limit", ["ttft_ms", "e2e_ms"])
def test_the_latest_start_leaves_the_predicted_time_with_its_margin(limit: str):
    site = Site()
    budget = Budget(**{limit: 5000})
    site.admission.class_of(budget).waits.value = math.log(1.5)
    waiting = Waiting(budget, REQUEST, 1.0, lambda _: None)
    expected = site.admission.decide(site.variants, waiting, 1.0).chosen.prediction.expected
    assert waiting.start_by == pytest.approx(1.0 + (5000 - 1.5 * getattr(expected, limit)) / 1000)


def test_what_cannot_be_in_time_waits_as_one_without_limits_behind_what_can():
    """Else a limit of a millisecond would be the way to go first, and late requests would make the others late too."""
    site = Site(engine(max_waiting=100))
    running = [site.ask(**PACED) for _ in range(2)]
    never, *late = (site.ask(**PACED, ttft_ms=ms) for ms in (1, 600, 600))
    free = Waiting(Budget(**PACED), REQUEST, 0.0, lambda _: None)
    site.admission.decide(site.variants, free, 0.0)
    assert never.waiting.start_by == free.start_by == BEST_EFFORT_S > late[0].waiting.start_by
    site.roll(1.0)
    in_time = site.ask(**PACED, ttft_ms=9000, on_no_candidate="reject")
    for ended, started in zip([*running, in_time, never], [in_time, never, *late], strict=True):
        assert started.waits
        site.complete(ended)
        assert started.started
    assert len(site.admission) == 0 and site.queued_ms() == 0


def test_another_attempt_of_one_that_has_waited_long_starts_at_once():
    """As after a failure of its engine."""
    site = Site()
    for _ in range(2):
        site.ask(**PACED)
    site.now = BEST_EFFORT_S + 1
    waiting = Waiting(Budget(**PACED), REQUEST, 0.0, lambda _: None)
    decision = site.admission.decide(site.variants, waiting, site.now)
    assert decision.chosen.harm == 2 and decision.wait_ms == 0


def test_a_cached_prompt_is_less_work():
    full = engine()
    full.live.kv_tokens = 10_000
    full.live.update_replicas({"http://10.0.0.1:30000": 0})
    features = Features(1000, 11, blocks=(1, 2, 3))
    waiting = [Waiting(Budget(), features, 0.0, lambda _: None) for _ in range(2)]
    site = Site(full)
    site.admission.decide(site.variants, waiting[0], 0.0)
    full.live.remember_prefix(features.blocks, "http://10.0.0.1:30000")
    site.admission.decide(site.variants, waiting[1], 0.0)
    assert waiting[1].work_ms == pytest.approx(waiting[0].work_ms - 750), "three quarters at 1 ms per token"
