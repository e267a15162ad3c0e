"""Baselines of the live routing benchmark: which variant they pin, and the admission's order, limit and refusals."""

import asyncio

import pytest

from benchmarks.lib.sample_catalog import make_profile
from benchmarks.routing.dispatchers import (
    Admission,
    Dispatcher,
    InFlight,
    Pinned,
    Place,
    dispatcher,
    round_robin,
    threshold,
    token_load,
)
from benchmarks.routing.workloads import Outcome, Request
from serve.budget import Budget
from serve.routing.prediction import Latency

# 1000 prompt tokens take a second to read, a token takes 20 ms to write
PROFILE = make_profile(tpot=[(1, 20)], prefill_tokens_per_s=1000)


def request(kind: str = "a", prompt: int = 10, output: int = 24, **limits: float) -> Request:
    return Request(0, prompt, output, Budget(**limits), kind)


def full_and_int8() -> list[InFlight]:
    return [InFlight("full", 1.0, 2.0), InFlight("int8", 0.9, 1.0)]


def test_round_robin_takes_turns():
    choose, variants = round_robin(), full_and_int8()
    assert [choose(variants).name for _ in range(3)] == ["full", "int8", "full"]


def test_threshold_takes_the_best_until_it_is_busy_then_the_cheapest():
    full, int8 = variants = full_and_int8()
    assert threshold(variants) is full
    full.requests = 8
    assert threshold(variants) is int8
    int8.requests = 8
    assert threshold(variants) is int8


def test_token_load_counts_prompts_until_they_are_read_and_answers_until_they_are_written():
    variants = full_and_int8()
    pinned = Pinned("m", variants, token_load)
    long = request(prompt=100, output=40)
    first = asyncio.run(pinned.place(long))
    assert first.model == "m:full"  # ties go to quality
    assert asyncio.run(pinned.place(request(prompt=50))).model == "m:int8"
    assert asyncio.run(pinned.place(request(prompt=50))).model == "m:int8"
    pinned.on_first_token(long, first)
    assert variants[0].tokens == 40, "what the answer has, not a guess"
    assert asyncio.run(pinned.place(request(prompt=50))).model == "m:full"
    pinned.on_end(first, Outcome(long, took=Latency(1, 1, 1), first_token=True))
    assert (variants[0].requests, variants[0].tokens) == (1, 74)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_admission_bounds_what_is_in_flight_and_takes_the_earliest_deadline_first():
    async def run() -> list[str]:
        admission, order = Admission("m", "full", PROFILE, 2), []

        async def one(kind: str, **limits: float) -> None:
            assert await admission.place(request(kind, **limits)) == Place("m:full")
            order.append(kind)

        tasks = [
            asyncio.create_task(one(*pair[:1], **pair[1]))
            for pair in (
                ("first", {"e2e_ms": 60_000}), ("second", {"e2e_ms": 60_000}), ("unlimited", {}),
                ("late", {"e2e_ms": 50_000}), ("soon", {"ttft_ms": 40_000}),
            )
        ]  # fmt: skip
        await settled()
        assert (order, admission.in_flight) == (["first", "second"], 2)
        for _ in range(3):
            admission.on_end(Place("m:full"), Outcome(request()))
            await settled()
            assert admission.in_flight == 2
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(run()) == ["first", "second", "soon", "late", "unlimited"]


def test_a_request_whose_budget_cannot_be_met_any_more_is_refused():
    async def run() -> None:
        clock = Clock()
        admission = Admission("m", "full", PROFILE, 1, clock)
        assert await admission.place(request()) is not None
        # a prompt of 500 tokens takes 0.5 s, 24 tokens at 20 ms 0.48 s
        waiting = asyncio.create_task(admission.place(request(prompt=500, e2e_ms=60_000)))
        reading = asyncio.create_task(admission.place(request(prompt=500, ttft_ms=60_000)))
        await settled()
        clock.now = 59.3  # room now: in time for a first token, too late for the whole answer
        admission.on_end(Place("m:full"), Outcome(request()))
        await settled()
        assert await waiting is None
        assert await reading is not None
        assert admission.in_flight == 1

    asyncio.run(run())


def test_a_waiting_request_is_refused_when_its_time_is_over_and_leaves_no_place_taken():
    async def run() -> None:
        admission = Admission("m", "full", PROFILE, 1)
        assert await admission.place(request()) is not None
        assert await admission.place(request(ttft_ms=30)) is None
        admission.on_end(Place("m:full"), Outcome(request()))
        assert admission.in_flight == 0
        assert await admission.place(request(ttft_ms=30)) is not None

    asyncio.run(run())


def test_the_admission_follows_the_engines_pace():
    async def run() -> None:
        admission = Admission("m", "full", PROFILE, 1)
        assert await admission.place(request(e2e_ms=1000, output=60)) is None, (
            "60 tokens at 20 ms do not fit into a second"
        )
        # 24 tokens at 20 ms do, at 60 ms they don't
        for _ in range(40):
            assert await admission.place(request(e2e_ms=60_000)) is not None
            admission.on_end(Place("m:full"), Outcome(request(), took=Latency(10, 60, 1400)))
        assert await admission.place(request(e2e_ms=1000)) is None

    asyncio.run(run())


def test_dispatchers_by_name():
    profiles = {"full": PROFILE}

    def place(policy: str) -> Place | None:
        chooser = dispatcher(policy, "m", full_and_int8(), profiles, 0)
        return asyncio.run(chooser.place(request(ttft_ms=60_000)))

    own = {"ttft_ms": 60_000.0, "objective": "quality", "on_no_candidate": "degrade"}
    assert place("budget") == place("budget-full") == Place("m@best", own)
    assert place("fastest") == Place("m@best", {"objective": "latency"})
    assert place("admission-16") == Place("m:full")
    assert place("int8") == Place("m:int8")
    assert {place(policy).model for policy in ("full", "threshold", "token-load", "round-robin")} == {"m:full"}  # type: ignore[union-attr]
    assert type(dispatcher("budget", "m", [], {}, 0)) is Dispatcher
    with pytest.raises(KeyError):
        place("nothing")


def test_each_name_has_a_choice_of_its_own():
    def chosen(policy: str, seed: int = 0) -> list[str]:
        """Of three requests that stay in flight, while `full` has many requests and `int8` many tokens."""
        variants = [InFlight("full", 1.0, 2.0, requests=8), InFlight("int8", 0.9, 1.0, tokens=10_000)]
        chooser = dispatcher(policy, "m", variants, {}, seed)
        return [asyncio.run(chooser.place(request())).model.removeprefix("m:") for _ in range(3)]  # type: ignore[union-attr]

    assert chosen("threshold") == ["int8"] * 3
    assert chosen("token-load") == ["full"] * 3
    assert chosen("round-robin") == ["full", "int8", "full"]
    assert len({tuple(chosen("random", seed)) for seed in range(20)}) > 2
