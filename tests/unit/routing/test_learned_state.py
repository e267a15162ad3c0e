"""What a gateway has learned, taken over by another."""

import orjson
import pytest

from benchmarks.lib.sample_catalog import REQUEST, make_card, make_live_variant, three_gears
from serve.budget import Budget
from serve.routing import learned_state
from serve.routing.admission import Admission
from serve.routing.output_lengths import OutputLengths
from serve.routing.policy import WithinBudget
from serve.routing.prediction import Load
from serve.routing.router import Router

SLOW = Load(requests=2)


def taught() -> bytes:
    variants, lengths, admission = three_gears(), OutputLengths(), Admission(Router(WithinBudget()))
    for variant in variants:
        for _ in range(50):
            variant.latency.predict(REQUEST, SLOW).observe(900, 90, 1800)
        variant.latency.observe_steps(80.0, 1000, 2, SLOW)
    for _ in range(20):
        lengths.observe("alice", "best", 7)
        admission.class_of(Budget(tpot_ms=50)).steps.observe(1.0)
    return learned_state.dump(variants, lengths, admission)


def test_a_new_gateway_predicts_as_the_one_before():
    data = taught()
    variants, lengths, admission = three_gears(), OutputLengths(), Admission(Router(WithinBudget()))
    naive = [variant.latency.predict(REQUEST, SLOW).expected for variant in variants]
    assert learned_state.restore(data, variants, lengths, admission)
    for variant, before in zip(variants, naive, strict=True):
        after = variant.latency.predict(REQUEST, SLOW)
        assert after.expected != before
        assert after.expected.ttft_ms == pytest.approx(900, rel=0.2)
        assert variant.latency.observed == 50 and variant.latency.drift != 0
        after.observe(900, 90, 1800)
    assert lengths.expect("alice", "best", 100) == lengths.expect("bob", "fast", 100) < 15
    assert admission.class_of(Budget(tpot_ms=50)).step_margin > 1.5
    assert learned_state.restore(
        learned_state.dump(variants, lengths, admission), three_gears(), OutputLengths(), admission
    )


def test_other_weights_begin_anew():
    variant = make_live_variant("full", ttft_ms=400, tpot_ms=40)
    data = learned_state.dump([variant], OutputLengths(), Admission(Router(WithinBudget())))
    object.__setattr__(variant, "card", make_card("full", digest="sha256:" + "1" * 64))
    variant.latency.observed = 0
    known = variant.latency.state()
    learned_state.restore(data, [variant], OutputLengths(), Admission(Router(WithinBudget())))
    assert variant.latency.state() == known


def test_what_is_too_old_is_not_used(monkeypatch):
    data = taught()
    monkeypatch.setattr(learned_state, "time", lambda: 2e10)
    assert not learned_state.restore(data, three_gears(), OutputLengths(), Admission(Router(WithinBudget())))


@pytest.mark.parametrize("data", [b"", b"{}", b'{"version": 1}', b"[]"])
def test_what_is_broken_is_an_error(data):
    with pytest.raises((ValueError, KeyError, TypeError)):
        learned_state.restore(data, three_gears(), OutputLengths(), Admission(Router(WithinBudget())))


def test_a_state_of_another_size_or_with_gaps_is_not_taken():
    variant = make_live_variant("full", ttft_ms=400, tpot_ms=40)
    for weights in ([0.0] * 5, [None] * 4):
        state = variant.latency.state()
        state["tpot"] = [weights, *state["tpot"][1:]]
        with pytest.raises((ValueError, TypeError)):
            variant.latency.restore(state)
        assert variant.latency.predict(REQUEST, SLOW).expected
    with pytest.raises(TypeError):
        Admission(Router(WithinBudget())).classes.restore([[[None, 50.0, None, None, None], [None], [0.0]]])


def test_a_slow_moment_is_forgotten_by_a_variant_that_gets_nothing_more():
    variant = make_live_variant("full", ttft_ms=400, tpot_ms=40)
    usual = variant.latency.step_ms(SLOW, 1)
    variant.latency.observe_steps(20 * usual, 10_000, 1, SLOW)
    assert variant.latency.step_ms(SLOW, 1) > 10 * usual
    for _ in range(600):
        variant.latency.observe_steps(0.0, 0, 0, SLOW)
        variant.latency.tick()
    assert variant.latency.step_ms(SLOW, 1) < 1.1 * usual


@pytest.mark.parametrize("change", ["hardware", "batch", "answers"])
def test_what_was_learned_elsewhere_or_is_known_here_is_not_taken(change: str):
    data = taught()
    for variant in (variants := three_gears()):
        if change == "hardware":
            object.__setattr__(variant, "profile", variant.profile.model_copy(update={"hardware": "4 cores"}))
        elif change == "batch":
            object.__setattr__(variant, "max_running", variant.max_running + 1)
        else:
            variant.latency.predict(REQUEST, SLOW).observe(100, 10, 200)
    before = [variant.latency.state() for variant in variants]
    assert learned_state.restore(data, variants, OutputLengths(), Admission(Router(WithinBudget())))
    assert [variant.latency.state() for variant in variants] == before


@pytest.mark.parametrize(("change", "taken"), [({}, True), ({"version": 0}, False), ({"at": 3e9}, False)])
def test_another_version_or_a_time_to_come_is_not_used(change: dict[str, float], taken: bool):
    data = orjson.dumps({**orjson.loads(taught()), **change})
    found = learned_state.restore(data, three_gears(), OutputLengths(), Admission(Router(WithinBudget())))
    assert found == taken
