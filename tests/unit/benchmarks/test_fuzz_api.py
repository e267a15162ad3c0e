"""A short run of the API fuzzer on the gateway; `python -m benchmarks.api.fuzz_api` is the long one."""

import random

import pytest

from benchmarks.api import fuzz_api
from serve.gateway.openapi import operations

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tally():
    found = fuzz_api.Tally()
    with fuzz_api.fuzzed_gateway() as (url, _):
        phases = ("examples", "coverage", "fuzzing")
        fuzz_api.fuzz(url, found, cases=5, seed=0, phases=phases, on_request=lambda: None)
    return found


def test_every_answer_is_as_described(tally: fuzz_api.Tally):
    assert tally.failures == {}, "\n\n".join(f"{name}\n{report}" for name, report in tally.failures.items())
    assert tally.server_errors == 0
    assert tally.errors == []


def test_every_operation_and_every_check_had_its_turn(tally: fuzz_api.Tally):
    described = {f"{one.method.upper()} {one.path}" for one in operations()}
    assert tally.operations.keys() == described - {"GET /openapi.json"}  # what is read is left out
    assert all(tally.checks[name] > 0 for name in fuzz_api.CHECKS if name != "missing_required_header")
    assert tally.requests > 1500
    assert {200, 400, 401, 404, 405, 422} <= tally.statuses.keys()


def line(slope: float, noise: float = 0.3, jump_at: int | None = None) -> list[tuple[float, int, float]]:
    """Samples of a process whose memory grows by `slope` MB in 100,000 requests."""
    source = random.Random(1)
    return [
        (i, i * 500, 90 + slope * i * 500 / 1e5 + source.gauss(0, noise) + (5 if jump_at and i > jump_at else 0))
        for i in range(200)
    ]


@pytest.mark.parametrize(("slope", "flat"), [(0.0, True), (0.5, True), (5.0, False), (50.0, False)])
def test_growth_is_distinguished_from_noise(slope, flat):
    found = fuzz_api.growth(line(slope), 100_000)
    low, high = found["ci95"]
    assert low <= found["mb_per_100k"] <= high
    assert low - 0.5 <= slope <= high + 0.5
    assert found["flat"] == flat


def test_a_jump_in_the_warm_up_is_no_growth():
    assert fuzz_api.growth(line(0.0, jump_at=20), 100_000)["flat"]


def test_few_samples_or_requests_say_nothing():
    assert fuzz_api.growth(line(0.0)[:10], 100_000) is None
    assert fuzz_api.growth([], 100_000) is None
    assert fuzz_api.growth(line(0.0), 2_000) is None


def test_progress_tells_what_is_left():
    assert fuzz_api.bar(250, 1000, 10.0) == f"[{'#' * 8}{'.' * 22}] 250/1,000 requests, 25/s, about 0:30 left"
    assert "about 0:00 left" in fuzz_api.bar(1200, 1000, 10.0)
    assert fuzz_api.bar(0, 1000, 0.0).startswith(f"[{'.' * 30}] 0/1,000")
