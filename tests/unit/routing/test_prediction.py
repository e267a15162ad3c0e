"""Latency predictions: equal to the profile at its points, linear between them, and monotonic in the work."""

import random

import pytest

from benchmarks.lib.sample_catalog import make_profile
from serve.routing.prediction import Features, Latency, LatencyModel, Load

TTFT = [(100, 1, 100.0), (200, 1, 300.0), (200, 4, 600.0)]
TPOT = [(1, 10.0), (4, 40.0)]


def predict(
    prompt: int, output: int = 11, load: int = 0, replicas: int = 1, ttft=TTFT, tpot=TPOT, max_running: int = 4
) -> Latency:
    model = LatencyModel(make_profile(ttft, tpot, startup_s=7), max_running)
    return model.predict(Features(prompt, output), Load(load, 0, replicas)).expected


@pytest.mark.parametrize(("prompt", "ttft_ms"), [(100, 100), (200, 300), (150, 200), (1, 100), (300, 500)])
def test_time_to_first_token_follows_the_profile_over_prompt_length(prompt, ttft_ms):
    """On its points, between them, constant below the first and along the last slope above the last."""
    assert predict(prompt).ttft_ms == pytest.approx(ttft_ms)


@pytest.mark.parametrize(("load", "tpot_ms"), [(0, 10), (1, 20), (3, 40)])
def test_time_per_token_is_the_profiles_at_the_concurrency_the_request_would_share(load, tpot_ms):
    assert predict(100, load=load).tpot_ms == pytest.approx(tpot_ms)


def test_time_to_first_token_grows_with_the_crowd_as_it_did_in_the_profile():
    assert predict(100, load=3).ttft_ms == pytest.approx(100 * 600 / 300)


def test_end_to_end_is_the_first_token_and_the_others_after_it():
    latency = predict(100, output=11)
    assert latency.e2e_ms == pytest.approx(latency.ttft_ms + 10 * latency.tpot_ms)
    assert predict(100, output=1).e2e_ms == predict(100, output=1).ttft_ms


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_an_answer_never_ends_before_it_begins_though_answers_were_shorter_than_expected(level):
    model = LatencyModel(make_profile(TTFT, TPOT, startup_s=7), 4)
    for _ in range(200):
        model.predict(Features(100, 100), Load()).observe(100.0, None, 101.0)
    prediction = model.predict(Features(100, 11), Load())
    assert prediction.e2e_ms >= prediction.ttft_ms
    tail = prediction.tail(level)
    assert tail.e2e_ms >= tail.ttft_ms


def test_a_full_batch_makes_the_next_request_wait_for_a_place():
    running, queued = predict(100, load=3), predict(100, load=4)
    assert queued.tpot_ms == running.tpot_ms
    assert queued.ttft_ms == pytest.approx(running.ttft_ms + 1 / 4 * 11 * 40)


def test_load_is_shared_by_the_replicas():
    assert predict(100, load=6, replicas=2) == predict(100, load=3, replicas=1)


def test_a_variant_scaled_to_zero_takes_its_start_up_longer():
    assert predict(100, replicas=0).ttft_ms == pytest.approx(predict(100, replicas=1).ttft_ms + 7000)


def test_a_profile_of_one_point_is_constant():
    one = {"ttft": [(100, 1, 50.0)], "tpot": [(1, 5.0)]}
    assert predict(5000, load=3, **one).ttft_ms == 50
    assert predict(1, **one).tpot_ms == 5


def test_a_profile_measured_only_under_load_is_used_as_it_is():
    under_load = [(100, 2, 100.0), (200, 2, 300.0), (200, 4, 600.0)]
    assert predict(100, ttft=under_load).ttft_ms > 0
    assert predict(300, ttft=under_load).ttft_ms >= 300, "two points at one prompt length are no division by zero"


def rising(generator: random.Random, xs: list[int], y: float = 20) -> list[tuple[int, float]]:
    return [(x, y := y + generator.choice([0, generator.uniform(0, 80)])) for x in xs]


def noisy(generator: random.Random, xs: list[int], y: float = 20) -> list[tuple[int, float]]:
    """As really measured: two neighbours may lie the wrong way round."""
    return [(x, ms * generator.uniform(0.8, 1.25)) for x, ms in rising(generator, xs, y)]


@pytest.mark.parametrize("points", [rising, noisy])
def test_more_load_never_lowers_a_prediction(points):
    generator = random.Random(7)
    for _ in range(100):
        lengths = sorted(generator.sample(range(1, 4000), generator.randint(1, 4)))
        crowds = sorted({1, *generator.sample(range(1, 64), generator.randint(1, 3))})
        ttft = [(x, 1, ms) for x, ms in points(generator, lengths)]
        ttft += [(lengths[-1], x, ms) for x, ms in points(generator, crowds, ttft[-1][2]) if x > 1]
        max_running, replicas = generator.randint(1, 80), generator.randint(0, 3)
        model = LatencyModel(make_profile(ttft, points(generator, crowds)), max_running)
        features = Features(generator.randint(1, 5000), generator.randint(1, 500))
        before = model.predict(features, Load(0, 0, replicas)).expected
        for load in range(1, 100, generator.randint(1, 9)):
            after = model.predict(features, Load(load, 0, replicas)).expected
            for name in ("ttft_ms", "tpot_ms", "e2e_ms"):
                assert getattr(after, name) >= getattr(before, name) - 1e-9, (name, load, ttft)
            before = after


def test_longer_prompts_and_answers_and_fewer_replicas_never_lower_a_prediction():
    generator = random.Random(8)
    for _ in range(100):
        lengths = sorted(generator.sample(range(1, 4000), 3))
        ttft = [(x, 1, ms) for x, ms in rising(generator, lengths)]
        model = LatencyModel(make_profile(ttft, rising(generator, [1, 8])), 8)
        prompt, output, load = generator.randint(1, 5000), generator.randint(1, 500), generator.randint(0, 40)
        base = model.predict(Features(prompt, output), Load(load, 0, 2)).expected
        longer = model.predict(
            Features(prompt + generator.randint(0, 900), output + generator.randint(0, 90)), Load(load, 0, 2)
        ).expected
        crowded = model.predict(Features(prompt, output), Load(load, 0, 1)).expected
        assert longer.ttft_ms >= base.ttft_ms - 1e-9
        assert longer.e2e_ms >= base.e2e_ms - 1e-9
        assert crowded.e2e_ms >= base.e2e_ms - 1e-9


@pytest.mark.parametrize(
    "changed",
    [Load(colocated_busy_variants=1), Load(prefill_per_token=20.0), None],
    ids=["beside others", "prompts", "drift"],
)
def test_places_follow_the_load_and_the_speed(changed: Load | None):
    """Also where they are known of another load."""
    model = LatencyModel(make_profile(tpot=[(1, 20), (8, 160)]), max_running=8)
    assert model.places(Load(), 80) == 4
    if changed is None:
        model.observe_steps(40.0, 1e9, 1, Load())  # twice as slow
    assert 0 < model.places(changed or Load(), 80) <= 2
    assert [model.places(Load(), 80, colocated) for colocated in (0, 3)] == ([4, 1] if changed else [2, 0])


def test_one_sequence_waits_for_no_other_prompt():
    model = LatencyModel(make_profile(tpot=[(1, 20), (8, 160)]), max_running=8)
    crowded = Load(prefill_per_token=10.0)
    assert model.step_ms(crowded, 1) == model.step_ms(Load(), 1)
    assert model.step_ms(crowded, 3) == model.step_ms(Load(), 3) + 20, "1 ms per token, for each of two others"


def test_a_cached_part_of_the_prompt_takes_no_time():
    model = LatencyModel(make_profile(TTFT, TPOT), max_running=4)
    cached, short = model.predict(Features(200, 11), Load(cached_tokens=100)), model.predict(Features(100, 11), Load())
    assert cached.expected.ttft_ms == short.expected.ttft_ms
