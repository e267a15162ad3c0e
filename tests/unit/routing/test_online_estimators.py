"""Online estimators: regression, quantiles and their coverage, drift, and robustness to outliers."""

import math
import random

import pytest

from benchmarks.lib.sample_catalog import make_profile
from serve.budget import LEVELS
from serve.routing.live_state import LiveState
from serve.routing.online_estimators import Quantiles, Regression, log_ratio, normal_start
from serve.routing.prediction import Features, LatencyModel, Load


def test_a_relation_is_found_and_followed_when_it_changes():
    drawn, learnt = random.Random(1), Regression(2)

    def teach(slope: float, count: int) -> None:
        for _ in range(count):
            x = drawn.random()
            learnt.observe((1.0, x), 0.3 + slope * x + drawn.gauss(0, 0.02))

    teach(0.5, 300)
    assert learnt.predict((1.0, 0.0)) == pytest.approx(0.3, abs=0.03)
    assert learnt.predict((1.0, 1.0)) == pytest.approx(0.8, abs=0.03)
    teach(-0.2, 1500)
    assert learnt.predict((1.0, 1.0)) == pytest.approx(0.1, abs=0.05)


def test_an_outlier_moves_it_no_more_than_a_surprise_does():
    learnt = Regression(1)
    for _ in range(200):
        learnt.observe((1.0,), 0.2)
    learnt.observe((1.0,), 5.0)
    assert learnt.predict((1.0,)) == pytest.approx(0.2, abs=0.005)


def test_it_stays_sound_over_many_observations_of_features_that_hang_together():
    drawn, learnt = random.Random(5), Regression(4)
    for i in range(150_000):
        x = drawn.random() if i % 1000 < 500 else 0.5  # for long times nothing varies
        learnt.observe((1.0, x, 2 * x, 1e-9 * x), 0.2 + x)
    assert all(math.isfinite(weight) and abs(weight) < 3 for weight in learnt.weights)
    assert learnt.predict((1.0, 0.3, 0.6, 0.0)) == pytest.approx(0.5, abs=0.02)


def test_features_that_never_vary_do_not_blow_up():
    learnt = Regression(3)
    for _ in range(20_000):
        learnt.observe((1.0, 0.5, 0.1), 0.4)
    learnt.observe((1.0, 1.0, 2.0), 0.5)
    assert all(math.isfinite(weight) and abs(weight) < 2 for weight in learnt.weights)


@pytest.mark.parametrize(
    "draw",
    [
        lambda drawn, i: drawn.gauss(0, 0.1),
        lambda drawn, i: drawn.expovariate(5),
        lambda drawn, i: drawn.gauss(0.5 if i > 4000 else 0, 0.1),  # drift
        lambda drawn, i: math.sin(i / 300) + drawn.gauss(0, 0.05),  # never at rest
    ],
    ids=["normal", "skewed", "jump", "swinging"],
)
def test_each_level_holds_in_the_long_run_whatever_the_distribution(draw):
    drawn = random.Random(2)
    followed = Quantiles(normal_start(0, 0.5))
    held, count = [0] * len(LEVELS), 8000
    for i in range(count):
        value = draw(drawn, i)
        for at, known in enumerate(followed.values):
            held[at] += value <= known
        followed.observe(value)
    for level, times in zip(LEVELS, held, strict=True):
        assert times / count == pytest.approx(level, abs=0.02), level


def test_the_share_below_a_quantile_is_its_level():
    followed = Quantiles([0.0, 0.1, 0.2, 0.3, 0.5])
    for level, value in zip(LEVELS, followed.values, strict=True):
        assert followed.share_below(value) == pytest.approx(level)
    assert followed.share_below(9) == 0.995
    assert followed.share_below(-0.3) == pytest.approx(0.05)
    assert 0 <= followed.share_below(-99) <= 0.01


def test_a_clock_that_jumped_is_bounded():
    assert log_ratio(0, 5) == -5
    assert log_ratio(1e30, 5) == 5


def model(**profile: object) -> LatencyModel:
    return LatencyModel(make_profile([(100, 1, 100.0)], [(1, 20.0), (4, 40.0)], **profile), 4)


def test_predictions_learn_what_the_machine_really_takes():
    known, drawn = model(), random.Random(3)
    for _ in range(1500):
        load = Load(drawn.randrange(4), 0, 1)
        prediction = known.predict(Features(100, 11), load)
        tpot = 30 * (1 + load.requests) ** 0.5 * drawn.lognormvariate(0, 0.03)
        ttft = 250 * drawn.lognormvariate(0, 0.05)
        prediction.observe(ttft, tpot, ttft + 10 * tpot)
    for requests in (0, 3):
        prediction = known.predict(Features(100, 11), Load(requests, 0, 1))
        assert prediction.expected.ttft_ms == pytest.approx(250, rel=0.06)
        assert prediction.expected.tpot_ms == pytest.approx(30 * (1 + requests) ** 0.5, rel=0.12)
        tail = prediction.tail(0.95)
        assert prediction.expected.ttft_ms < tail.ttft_ms < 1.3 * prediction.expected.ttft_ms
        assert prediction.within(tail.ttft_ms, None, None) == pytest.approx(0.95, abs=0.001)


def test_before_anything_was_learnt_it_is_the_profile_with_its_spread():
    prediction = model().predict(Features(100, 11), Load())
    assert prediction.expected.ttft_ms == pytest.approx(100)
    assert prediction.tail(0.95).ttft_ms == pytest.approx(200, rel=0.01), "as far as the profile's own 95% quantile"
    assert prediction.within(None, None, None) == 1


def test_prompts_that_are_not_read_yet_come_first():
    idle, behind = (model().predict(Features(100, 11), Load(0, unread, 1)) for unread in (0, 500))
    assert behind.expected.ttft_ms - idle.expected.ttft_ms == pytest.approx(500), "1000 tokens a second"


def test_what_is_cached_need_not_be_read():
    cached = model().predict(Features(100, 11), Load(cached_tokens=99)).expected
    assert cached.ttft_ms <= model().predict(Features(1, 11), Load()).expected.ttft_ms
    longer = LatencyModel(make_profile([(100, 1, 100.0), (1000, 1, 1000.0)], [(1, 20.0)]), 4)
    assert longer.predict(Features(1000, 11), Load(cached_tokens=900)).expected.ttft_ms == pytest.approx(100)


def test_reading_prompts_takes_time_from_answers_under_way():
    beside, reading, idle, alone = (
        model().predict(Features(100, 11), Load(others, prefill_per_token=share)).expected
        for others, share in ((1, 0), (1, 20), (0, 0), (0, 20))
    )
    assert reading.tpot_ms == pytest.approx(beside.tpot_ms + 20), (
        "20 prompt tokens of the other, 1000 are read a second"
    )
    assert alone.tpot_ms == idle.tpot_ms, "there are no others whose prompts would delay it"


def test_what_other_variants_do_to_this_one_is_learnt():
    known = model()
    for i in range(400):
        load = Load(colocated_busy_variants=i % 2)
        slow = 1 + load.colocated_busy_variants  # they share a machine
        known.predict(Features(100, 11), load).observe(100 * slow, 20 * slow, 300 * slow)
    alone, beside = (known.predict(Features(100, 11), Load(colocated_busy_variants=busy)).expected for busy in (0, 1))
    assert beside.ttft_ms == pytest.approx(2 * alone.ttft_ms, rel=0.1)
    assert beside.tpot_ms == pytest.approx(2 * alone.tpot_ms, rel=0.1)


def test_the_bound_holds_as_often_as_it_says_when_the_spread_comes_and_goes():
    known, drawn, held, count = model(), random.Random(6), 0, 6000
    for i in range(count):
        prediction = known.predict(Features(100, 11), Load())
        ttft = 100 * drawn.lognormvariate(0, 0.02 if i % 400 < 300 else 0.3)
        held += ttft <= prediction.tail(0.95).ttft_ms
        prediction.observe(ttft, 20.0, ttft + 200)
    assert held / count == pytest.approx(0.95, abs=0.015)


def test_a_prediction_follows_everything_that_was_learned_since_the_one_before():
    known, at = model(), (Features(100, 11), Load(2))

    def times(of: LatencyModel) -> tuple[object, ...]:
        prediction = of.predict(*at)
        return prediction.expected, prediction.tail(0.95)

    elsewhere = model()
    elsewhere.predict(*at).observe(50, 5, 100)
    for learn in (
        lambda: known.predict(*at).observe(1000, 100, 3000),
        lambda: known.predict(*at).observe(500, None, 500),
        lambda: known.observe_steps(40.0, 500, 1, Load()),
        lambda: [known.tick() for _ in range(3)],
        lambda: known.restore(elsewhere.state()),
    ):
        before = times(known)
        learn()
        same = model()
        same.restore(known.state())
        assert times(known) == times(same) != before


def stream(live: LiveState, known: LatencyModel, step_ms: float, seconds: float) -> None:
    """What a gateway does while all sequences in flight get a token every `step_ms`."""
    for _ in range(round(seconds * 2)):
        for _ in range(round(500 / step_ms)):
            for _ in range(live.in_flight):
                live.on_tokens(1, step_ms / 1000)
        known.observe_steps(*live.take_steps(), live.load())


@pytest.mark.parametrize("slower", [0.4, 1.0, 3.0])
def test_a_jump_of_the_time_per_token_is_followed_within_seconds_of_chunks(slower: float):
    known, live = LatencyModel(make_profile([(100, 1, 100)], [(1, 5), (8, 10)]), 8), LiveState(replicas=1)
    for _ in range(8):
        live.on_dispatch(0)
    before = known.step_ms(live.load(), 8)
    stream(live, known, before * slower, 10)
    assert known.step_ms(live.load(), 8) == pytest.approx(before * slower, rel=0.15)
    stream(live, known, before, 10)
    assert known.step_ms(live.load(), 8) == pytest.approx(before, rel=0.15), "and back"


@pytest.mark.parametrize(("own", "others", "replicas"), [(8, 0, 2), (2, 6, 2), (4, 4, 1)])
def test_engines_that_are_as_fast_as_profiled_do_not_drift(own: int, others: int, replicas: int):
    """Whoever sent the sequences, and however many replicas share them."""
    known, live = LatencyModel(make_profile([(100, 1, 100)], [(1, 20), (8, 160)]), 8), LiveState()
    for _ in range(own):
        live.on_dispatch(0)
    live.update_from_engines(replicas, own + others, 0, 0.0)
    stream(live, known, 20 * (own + others) / replicas, 5)
    assert known.drift == pytest.approx(0, abs=0.01)


def test_no_chunks_change_nothing():
    known, live = model(), LiveState()
    known.observe_steps(*live.take_steps(), live.load())
    assert known.drift == 0
