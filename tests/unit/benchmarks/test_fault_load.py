"""Requests of the load under faults, and how each one ended, on engines and gateways of the tests."""

import asyncio
import dataclasses
import time

import aiohttp
import pytest

from benchmarks.cluster.fault_load import PROMPTS, Load, Record, first_success, plan, saturation, send
from benchmarks.lib.sample_catalog import make_live_variant
from tests.support.greedy_engine import EMBEDDINGS, GROUNDED, STREAM, UNARY, encode


class TestOutcomes:
    @pytest.mark.parametrize(
        ("behaviour", "outcome", "problem", "tokens"),
        [
            ("answer", "ok", "", 48),
            ("error", "interrupted", "stream_interrupted", 20),
            ("cut", "truncated", "without an error event", 20),
            ("reset", "truncated", "ClientPayloadError", 20),
            ("stop", "truncated", "finish_reason stop", 20),
            ("lose 3", "truncated", "3 tokens short", 45),
            ("double 3", "ok", "", 51),
        ],
    )
    async def test_of_streams(self, engine, session, behaviour, outcome, problem, tokens):
        engine.behaviour = behaviour
        record = await send(session, STREAM, 0)
        assert (record.outcome, len(record.tokens), record.variant) == (outcome, tokens, "full")
        assert problem in record.problem
        assert record.prompt_tokens == encode(PROMPTS[0])
        assert record.missing == {"lose 3": 3, "double 3": -3}.get(behaviour, 0)

    @pytest.mark.parametrize("kind", [UNARY, GROUNDED, EMBEDDINGS], ids=lambda kind: kind.name)
    async def test_of_unary_requests(self, session, kind):
        assert (await send(session, kind, 1)).outcome == "ok"

    async def test_a_refusal_has_the_documented_shape(self, engine, session):
        engine.refused = True
        record = await send(session, UNARY, 0)
        assert (record.outcome, record.problem) == ("refused", "429 overloaded")

    async def test_what_has_no_shape_or_no_answer_failed(self, engine, session):
        record = await send(session, dataclasses.replace(UNARY, path="/nowhere"), 0)
        assert (record.outcome, record.status) == ("failed", 404)
        engine.token_s = 0.3
        record = await send(session, STREAM, 0, timeout_s=0.1)
        assert (record.outcome, record.problem) == ("failed", "TimeoutError")
        await engine.stop()
        assert (await send(session, UNARY, 0)).outcome == "failed"

    @pytest.mark.parametrize(
        ("behaviour", "variants", "outcome", "migrations"),
        [
            ("answer", 2, "ok", 0), ("die mid-stream", 2, "ok", 1), ("end early", 2, "ok", 1),
            ("die mid-stream", 1, "interrupted", 0), ("500", 2, "ok", 0),
        ],
    )  # fmt: skip
    async def test_the_gateways_streams_are_understood(self, start_gateway, behaviour, variants, outcome, migrations):
        gateway = start_gateway(variants=[make_live_variant(name) for name in ("full", "int8")[:variants]])
        for engine in gateway.engines.values():
            engine.ending = {"finish_reason": "length"}
        gateway.engines["full"].behaviour = behaviour
        kind = dataclasses.replace(STREAM, model=gateway.config.model.name, tokens=17)  # as many as the stub answers
        async with aiohttp.ClientSession(gateway.url) as session:
            record = await send(session, kind, 0)
        assert record.outcome == outcome, record.problem
        assert record.variant and len(record.migrations) == migrations
        if outcome == "interrupted":
            assert record.problem == "stream_interrupted"

    async def test_the_gap_of_a_broken_stream_ends_with_it(self):
        record = Record("stream", 0, 0.0, ended_s=9.0, outcome="ok", events_s=[1.0, 2.0, 4.0])
        assert record.gap_s == 2.0
        record.outcome = "interrupted"
        assert record.gap_s == 5.0

    async def test_the_gap_of_a_migration_is_that_between_the_parts(self):
        record = Record("stream", 0, 0.0, events_s=[1.0, 1.1, 3.0, 3.1], counts=[1, 4, 5, 6])
        record.migrations = [{"to": "int8", "at_token": 4}, {"to": "full", "at_token": 6}]
        assert [(to, at, round(gap, 3)) for to, at, gap in record.seams()] == [("int8", 4, 1.9)]
        record.migrations = [{"to": "int8", "at_token": 0}]
        assert list(record.seams()) == [], "nothing was before it"


class TestLoad:
    def test_the_same_seed_gives_the_same_requests(self):
        draws = [[plan((STREAM, UNARY), seed)() for _ in range(1)] for seed in ("a", "a")]
        assert draws[0] == draws[1]
        one, two = (plan((STREAM, UNARY, EMBEDDINGS), seed) for seed in ("a", "b"))
        assert [one() for _ in range(30)] != [two() for _ in range(30)]

    async def test_requests_arrive_at_the_rate_whatever_the_answers_take(self, engine, bench):
        engine.token_s, started, seen = 0.01, time.monotonic(), 0
        async with bench.load("x", 100) as load:
            while len(load.records) + load.in_flight < 40:
                await asyncio.sleep(0.01)
                seen = max(seen, load.in_flight)
            elapsed_s = time.monotonic() - started
            records = await load.finish()
        assert elapsed_s > 0.2, "40 of 100 a second take about 0.4 s, longer where the machine is busy"
        assert seen > 5, "requests do not wait for answers"
        assert {record.kind for record in records} == {"stream", "unary", "grounded", "embeddings"}
        assert load.in_flight == 0

    async def test_refused_requests_are_no_throughput(self, engine, session):
        assert await saturation(session, (UNARY,), 2, 0.2) > 5
        engine.refused = True
        assert await saturation(session, (UNARY,), 2, 0.2) == 0

    async def test_the_first_success_does_not_wait_for_a_request_that_hangs(self):
        attempts = 0

        async def ask() -> bool:
            nonlocal attempts
            attempts += 1
            await asyncio.sleep(60 if attempts == 1 else 0)
            return attempts >= 4

        took = await first_success(ask, 0.05, 5)
        assert took is not None and 0.1 < took < 2

        async def never() -> bool:
            return False

        assert await first_success(never, 0.05, 0.3) is None


def test_the_busiest_variant_writes_the_most_streams():
    load = Load(None, (), 1.0, "seed")
    assert load.busiest is None
    written = [
        ("int8", [1.0]),
        ("full", [1.0]),
        ("full", [2.0]),
        ("int8", []),
        ("int8", []),
        ("", [1.0]),
        ("", [1.0]),
        ("", [1.0]),
    ]
    for number, (variant, events) in enumerate(written):
        load._under_way[number] = Record("stream", 0, 0.0, variant=variant, events_s=events)
    assert load.busiest == "full", "requests without a first token are no streams, and other systems name no variant"
