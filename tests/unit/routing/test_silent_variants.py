"""Variants whose engines have been silent for longer than predicted: others are preferred, but no budget is given up for that."""

import pytest

from benchmarks.lib.sample_catalog import choose, decide, three_gears
from serve.budget import Budget
from serve.routing.catalog import Variant
from serve.routing.prediction import Features
from serve.routing.replica_state import ReplicaState
from serve.routing.replica_state import choose as choose_replica
from tests.unit.routing.test_router import rules

ONE, TWO = "http://10.0.0.1:30000", "http://10.0.0.2:30000"
REQUEST = Features(100, 11)


@pytest.fixture
def gears() -> list[Variant]:
    gears = three_gears()
    gears[0].live.silent = True
    return gears


def test_another_variant_is_preferred(gears):
    decision = choose(gears)
    assert decision.variant.name == "int8"
    assert rules(decision)["full"] == "silent"
    assert "silent" in decision.candidates[0].public()["why"]
    gears[0].live.silent = False
    assert choose(gears).variant.name == "full"


@pytest.mark.parametrize("limits", [{"min_quality": 0.99}, {"min_quality": 0.99, "on_no_candidate": "reject"}])
def test_one_that_alone_meets_the_budget_is_used(gears, limits):
    decision = choose(gears, **limits)
    assert (decision.variant.name, rules(decision)["full"]) == ("full", None)


def test_a_pinned_one_is_used(gears):
    assert decide(gears, Budget(), REQUEST, pinned="full").variant.name == "full"


def test_where_all_are_silent_it_makes_no_difference(gears):
    for variant in gears:
        variant.live.silent = True
    assert choose(gears).variant.name == "full"


def test_one_that_rests_is_preferred_to_those_that_are_silent(gears):
    gears[1].live.silent = True
    decision = decide(gears, Budget(), REQUEST, resting={"distilled"})
    assert decision.variant.name == "distilled"


def test_of_variants_that_miss_the_budget_one_that_is_not_silent_is_nearest(gears):
    gears[2].live.silent, gears[0].live.silent = True, False
    assert choose(gears, ttft_ms=1).variant.name == "int8"


def test_a_variant_is_silent_when_all_its_replicas_are(gears):
    live = gears[0].live
    live.update_replicas({ONE: 0, TWO: 0})
    live.on_silence({ONE})
    assert not live.silent
    live.on_silence({ONE, TWO, "http://another"})
    assert live.silent
    live.update_replicas({ONE: 0, TWO: 0})
    assert [state.silent for state in live.by_replica.values()] == [True, True], "until the next check"
    live.on_silence(set())
    assert not live.silent
    live.update_replicas({})
    live.on_silence({ONE})
    assert not live.silent, "one without replicas has none"


def test_within_a_variant_the_other_replica_is_chosen(gears):
    replicas = {ONE: ReplicaState(silent=True), TWO: ReplicaState(in_flight=3)}
    load = gears[0].load(REQUEST)
    chosen = choose_replica(replicas, REQUEST, load, gears[0].latency)
    assert chosen is not None and chosen.replica == TWO
    replicas[TWO].answers = False
    chosen = choose_replica(replicas, REQUEST, load, gears[0].latency)
    assert chosen is not None and chosen.replica == ONE, "of two in doubt, the one with less to do"


def test_an_ejected_replica_counts_no_more(gears):
    live = gears[0].live
    live.update_replicas({ONE: 0, TWO: 0})
    live.replicas = 2
    live.on_ejected(ONE)
    live.on_ejected(ONE)
    assert (live.replicas, list(live.by_replica)) == (1, [TWO])
    live.on_ejected(TWO)
    assert live.replicas == 0
