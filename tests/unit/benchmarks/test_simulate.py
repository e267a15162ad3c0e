"""The simulator: its engines have the times of the profile, its traces the stated rates, and its policies are the real ones."""

import itertools
import random
import statistics

import pytest

from benchmarks.lib.sample_catalog import make_live_variant, make_profile
from benchmarks.routing import simulate
from benchmarks.routing.baselines import POLICIES
from benchmarks.routing.simulate import Oracle
from benchmarks.routing.simulated_platform import Engine, Machine, Platform, Running
from benchmarks.routing.workloads import (
    ARRIVALS,
    KINDS,
    Outcome,
    Request,
    TraceError,
    mixed,
    prediction,
    recorded,
    relative,
    summary,
)
from serve.budget import Budget
from serve.routing.admission import Admission
from serve.routing.policy import WithinBudget
from serve.routing.prediction import Features, Latency
from serve.routing.router import Decision
from serve.routing.waiting_queue import Waiting

# a prompt of 100 tokens is read in 100 ms, a token takes 20 ms alone and 40 ms with three others
PROFILE = make_profile([(100, 1, 100), (1000, 1, 1000)], [(1, 20), (4, 40)], prefill_tokens_per_s=1000)


def steady(name: str = "full", **changes):
    profile = PROFILE.model_copy(
        update={"tpot": tuple(p.model_copy(update={"p95_ms": p.p50_ms}) for p in PROFILE.tpot)}
    )
    return make_live_variant(name, profile=profile, **changes)


def request_at(at: float = 0.0, prompt: int = 100, output: int = 11, **limits) -> Request:
    return Request(at, prompt, output, Budget(**limits))


def run(requests: list[Request], machines=(("full",),), variants=None, policy=None) -> list[Outcome]:
    variants = variants or [steady()]
    return list(Platform(variants, machines, policy or POLICIES["full"]()).run(requests))


def test_a_request_alone_takes_what_the_profile_says():
    [one] = run([request_at()])
    assert one.took == pytest.approx((100, 20, 300))


def test_answers_under_way_stand_still_while_a_prompt_is_read_and_advance_together_after_it():
    first, second = run([request_at(0, output=21), request_at(200, output=11)])
    assert first.took is not None and second.took is not None
    # the second waits half a step, is read in 100 ms, then both write at the pace of two
    assert second.took.ttft_ms == pytest.approx(110, abs=1)
    pace = 20 + 20 / 3
    assert second.took.tpot_ms == pytest.approx(pace, rel=0.01)
    assert 100 + 20 * 20 + 110 - 1.5 * 20 < first.took.e2e_ms < 100 + 110 + 20 * pace


def test_prompts_that_wait_are_read_together():
    outcomes = run([request_at(0, prompt=1000), *(request_at(1, prompt=10) for _ in range(3))])
    assert {round(o.took.ttft_ms + o.request.at) for o in outcomes[1:]} == {round(outcomes[1].took.ttft_ms + 1)}


def test_no_more_run_at_once_than_the_engine_takes():
    outcomes = run([request_at(0, output=101) for _ in range(5)])
    assert outcomes[4].took.ttft_ms > outcomes[0].took.e2e_ms


def test_of_the_prompts_that_wait_at_an_engine_the_earliest_deadline_is_read_first():
    def first_tokens(*limits: int) -> list[float]:
        trace = [request_at(0, output=101), *(request_at(1 + i, ttft_ms=limit) for i, limit in enumerate(limits))]
        outcomes = run(trace, variants=[steady(max_running=1)])
        return [o.took.ttft_ms + o.request.at for o in outcomes[1:]]

    late, early = first_tokens(9000, 5000)
    assert early < late
    first, second = first_tokens(5000, 5000)
    assert first < second, "equal deadlines are read in the order of arrival"


def test_variants_on_one_machine_share_it():
    variants = [steady("full"), steady("small", quality=0.5)]
    trace = [request_at(0, output=101), request_at(0, output=101)]
    shared = run(trace, (("full", "small"),), variants, POLICIES["round-robin"]())
    variants = [steady("full"), steady("small", quality=0.5)]
    own = run(trace, (("full",), ("small",)), variants, POLICIES["round-robin"]())
    assert {o.variant for o in shared} == {o.variant for o in own} == {"full", "small"}
    for a, b in zip(shared, own, strict=True):
        assert a.took.e2e_ms == pytest.approx(2 * b.took.e2e_ms, rel=0.01)


def test_the_replica_with_the_shorter_queue_is_taken():
    outcomes = run([request_at(0, output=51), request_at(1, output=51)], (("full",), ("full",)))
    assert [round(o.took.e2e_ms) for o in outcomes] == [1100, 1100]


def test_every_request_ends_and_nothing_is_left_in_flight():
    variants = [steady("full"), steady("small", quality=0.5)]
    trace = list(itertools.islice(mixed(ARRIVALS["bursty"](20.0, 3), relative(PROFILE), 3), 500))
    platform = Platform(variants, [["full"], ["small"]], WithinBudget(), 1)
    outcomes = list(platform.run(trace))
    assert len(outcomes) == 500
    assert all((o.took is None) == (o.variant == "") for o in outcomes)
    assert all(v.live.in_flight == v.live.pending_prefill_tokens == 0 for v in variants)
    assert all(o.took.ttft_ms > 0 and o.took.e2e_ms >= o.took.ttft_ms for o in outcomes if o.took)


def test_while_answers_are_written_the_gateway_follows_their_pace_and_the_offered_work():
    def last_expected(drift: float) -> Latency:
        """Of a request beside a long answer, after others of one token each, which tell nothing of the time per token."""
        long = request_at(0, output=400, e2e_ms=60_000)
        platform = Platform([steady()], [["full"]], WithinBudget(), 1, drift=lambda _: drift)
        short = (request_at(at, prompt=10, output=1) for at in range(1000, 8000, 500))
        *_, last = platform.run([long, *short, request_at(8000)])
        assert platform.admission.class_of(long.budget).offered_ms > 0
        return last.expected

    assert last_expected(2.0).tpot_ms > 1.3 * last_expected(1.0).tpot_ms


def test_an_answer_that_could_not_be_in_time_teaches_no_margin():
    """As in the gateway."""
    platform = Platform([steady()], [["full"]], WithinBudget(), 1)
    [one] = platform.run([request_at(ttft_ms=1)])
    assert one.reason == "nearest_miss" and one.took is not None
    assert platform.admission.class_of(one.request.budget).waits.state() == [0.0]


def test_thousands_of_waiting_requests_start_one_after_the_other(monkeypatch: pytest.MonkeyPatch):
    platform = Platform([steady(max_running=10_000)], [["full"]], POLICIES["full"]())
    found: list[Decision] = []
    platform.admission.submit(platform.variants, Waiting(Budget(), Features(100, 11), 0.0, found.append), 0.0)
    found[0].waited = True
    left = iter(range(5000))

    def pump(self: Admission, *_: object) -> None:
        if next(left, None) is not None:
            platform._dispatch(Outcome(request_at()), found[0])

    monkeypatch.setattr(Admission, "pump", pump)
    platform._pump()
    [(engine, _)] = platform.engines["full"]
    assert engine.requests == 5000


def test_the_same_seed_gives_the_same_outcomes():
    def once() -> list[object]:
        variants = [
            make_live_variant("full", profile=PROFILE),
            make_live_variant("small", profile=PROFILE, quality=0.5),
        ]
        trace = itertools.islice(mixed(ARRIVALS["bursty"](8.0, 3), relative(PROFILE), 3), 200)
        return [(o.variant, o.took) for o in Platform(variants, [["full"], ["small"]], WithinBudget(), 1).run(trace)]

    assert once() == once()


def test_what_an_engine_would_take_alone_is_what_it_takes_when_nothing_comes_after():
    variant = steady()
    engine = Engine(variant, random.Random(0), lambda _: 1.0)
    machine = Machine([engine])
    engine.take(Running(Outcome(request_at(0, output=31))))
    machine.next_event()
    machine.advance(100.0)
    assert [what for what, _ in engine.step()] == ["first"]
    machine.advance(250.0)
    predicted = engine.alone(request_at(250), 1.0)
    [_, second] = run([request_at(0, output=31), request_at(250)])
    assert predicted == pytest.approx(second.took, rel=1e-6)
    assert engine.requests == 1, "and asking changes nothing"


def test_the_oracle_meets_every_budget_that_can_be_met():
    variants = [steady("full"), steady("small", quality=0.5)]
    oracle = Oracle()
    oracle.platform = platform = Platform(variants, [["full"], ["small"]], oracle, 1)
    limits = {"e2e_ms": 301, "on_no_candidate": "reject"}
    outcomes = list(platform.run([request_at(0, **limits), request_at(1, **limits), request_at(2, **limits)]))
    assert [o.variant for o in outcomes[:2]] == ["full", "small"]
    assert outcomes[2].took is None, "a third would be late on both"


def test_an_oracle_foresees_what_a_request_takes_when_nothing_comes_after():
    oracle = Oracle()
    oracle.platform = platform = Platform([steady()], [["full"]], oracle, 1, drift=lambda _: 2.0)
    [one] = platform.run([request_at()])
    assert one.expected == pytest.approx(one.took) == (200, 40, 600), "twice what the profile says"


@pytest.mark.parametrize("name", ARRIVALS)
def test_arrivals_have_the_rate_they_say(name):
    times = list(itertools.takewhile(lambda at: at < 1_200_000, ARRIVALS[name](5.0, 7)))
    assert len(times) / 1200 == pytest.approx(5.0, rel=0.05)
    assert times == sorted(times)


def test_bursts_are_four_times_as_busy():
    times = itertools.takewhile(lambda at: at < 2_000_000, ARRIVALS["bursty"](5.0, 7))
    busy = [at / 1000 % 20 < 5 for at in times]
    share = sum(busy) / len(busy)
    assert share == pytest.approx(4 / 7, abs=0.02)


def test_requests_have_the_kinds_and_limits_of_the_mix():
    requests = list(itertools.islice(mixed(ARRIVALS["poisson"](1.0, 1), relative(PROFILE), 1), 2000))
    for kind, (share, floor, *_) in KINDS.items():
        of_kind = [request for request in requests if request.kind == kind]
        assert len(of_kind) / 2000 == pytest.approx(share, abs=0.04)
        assert {request.budget.min_quality for request in of_kind} == {floor}
    assert statistics.median(request.output_tokens for request in requests) == pytest.approx(24, abs=3)


def test_a_recorded_trace_is_replayed(tmp_path):
    file = tmp_path / "trace.jsonl"
    file.write_text(
        '{"at": 0, "prompt_tokens": 10, "output_tokens": 5}\n'
        '{"at": 20, "prompt_tokens": 30, "output_tokens": 7, "budget": {"e2e_ms": 900}, "kind": "chat"}\n'
    )
    first, second = recorded(file)
    assert (first.at, first.prompt_tokens, first.budget) == (0, 10, Budget())
    assert (second.kind, second.budget.e2e_ms) == ("chat", 900)


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"at": 0}', '{"at": 0, "prompt_tokens": 0, "output_tokens": 1}',
     '{"at": -1, "prompt_tokens": 1, "output_tokens": 1}',
     '{"at": 0, "prompt_tokens": 1, "output_tokens": 1, "budget": {"speed": 1}}'],
)  # fmt: skip
def test_a_broken_trace_names_the_line(tmp_path, line):
    file = tmp_path / "trace.jsonl"
    file.write_text('{"at": 0, "prompt_tokens": 10, "output_tokens": 5}\n' + line + "\n")
    with pytest.raises(TraceError, match="line 2"):
        list(recorded(file))


def test_the_numbers_of_a_run():
    late, in_time, refused = (Outcome(request_at(0, e2e_ms=100)) for _ in range(3))
    late.took, late.quality = Latency(10, 1, 200), 1.0
    in_time.took, in_time.quality = Latency(10, 1, 90), 0.5
    in_time.expected, in_time.tail = Latency(10, 1, 99), Latency(11, 2, 89)
    found = summary([late, in_time, refused])
    assert [found[name] for name in ("attainment", "late", "refused")] == pytest.approx([1 / 3] * 3)
    assert found["quality"] == 0.75
    assert found["delivered"] == pytest.approx(0.5 / 3)
    assert prediction([late, in_time, refused])["e2e_ms_error"] == pytest.approx(0.1)
    assert prediction([late, in_time, refused])["e2e_ms_covered"] == 0
    assert prediction([late, in_time, refused])["e2e_known_length_error"] == pytest.approx(7 / 9), (
        "20 ms at 11 tokens, not 90"
    )


def test_the_measured_cards_make_a_catalog_that_the_default_policy_serves_well():
    full = simulate.catalog(["full"])[0].profile
    cell = simulate.Cell("", "budget", simulate.GEARS, "poisson", 4.0, 60.0, 0)
    found = summary(simulate.simulate(cell))
    worse = summary(simulate.simulate(simulate.Cell("", "full", simulate.GEARS, "poisson", 4.0, 60.0, 0)))
    assert full.decode_tokens_per_s > 0
    assert found["attainment"] > 0.9 > worse["attainment"]
