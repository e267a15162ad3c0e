"""The live routing benchmark: its requests, its outcomes, and identical traces for all settings."""

import asyncio
from types import SimpleNamespace

import pytest

from benchmarks.lib.sample_catalog import MODEL
from benchmarks.routing import goodput
from benchmarks.routing.goodput import Bench, Setting, Size, replay, settings, simulated
from benchmarks.routing.simulate import catalog
from benchmarks.routing.workloads import Request, summary
from serve.budget import Budget
from serve.config.platform import load_config
from tests.support.gateway_server import Started

QUALITIES = {"full": 1.0, "int8": 0.95, "distilled": 0.8}


def test_outcomes_are_what_the_client_saw(gateway: Started):
    trace = [
        Request(0, 5, 3, Budget(on_no_candidate="reject"), "chat"),
        Request(5, 5, 3, Budget(ttft_ms=1, on_no_candidate="reject"), "chat"),
        Request(10, 5, 3, Budget(objective="cost"), "patient"),
    ]
    first, refused, cheap = asyncio.run(replay(SimpleNamespace(url=gateway.url, model=MODEL), trace, QUALITIES, 1))
    gateway.finish()
    assert (first.variant, first.reason, first.quality) == ("full", "quality", 1.0)
    assert first.took and first.expected and first.tail
    assert 0 < first.took.ttft_ms <= first.took.e2e_ms
    assert first.tail.e2e_ms > first.expected.e2e_ms
    assert (refused.variant, refused.reason, refused.took) == ("", "422", None)
    assert cheap.variant == "distilled"
    assert gateway.engines["full"].requests[0]["prompt"] != gateway.engines["distilled"].requests[0]["prompt"]
    assert len(gateway.engines["full"].requests[0]["prompt"]) == 5


def test_an_answer_that_breaks_off_is_no_answer(gateway: Started):
    gateway.engines["full"].behaviour = "die mid-stream"
    [one] = asyncio.run(
        replay(SimpleNamespace(url=gateway.url, model=MODEL), [Request(0, 5, 3, Budget(), "chat")], QUALITIES, 1)
    )
    gateway.finish()
    assert (one.took, one.reason) == (None, "interrupted")


def test_every_setting_gets_the_same_traces_and_as_many_cores():
    compared = settings(4)
    assert {one.cores * len(one.gears) for one in compared} == {4}
    assert [one.policy for one in compared if len(one.gears) == 2] == list(goodput.SPLIT)
    orders = [[one.label for one in goodput._rotated(compared, number)] for number in range(2)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_the_simulation_beside_it_has_the_same_cells(monkeypatch: pytest.MonkeyPatch):
    cards = {variant.name: variant.card for variant in catalog(goodput.GEARS)}
    monkeypatch.setattr(goodput, "load_card", lambda name: cards[name])
    bench = Bench(
        load_config(goodput.CONFIG), {(name, 1): name for name in goodput.GEARS}, cards["full"].profile, 3.0,
        Size((0.3, 2.0), 1, 5.0),
    )  # fmt: skip
    found = simulated(bench, Setting("budget", goodput.GEARS, 1, "budget"), 0)
    assert {load: len(cell) for load, cell in found.items()} == {load: len(cell) for load, cell in bench.cells(0)}
    assert summary(found["0.3"])["attainment"] >= summary(found["2"])["attainment"]
    assert max(o.request.at for o in found["2"]) < 5000
