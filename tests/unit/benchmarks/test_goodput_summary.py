"""Comparisons of the live routing benchmark: the best admission, paired differences, max-min fairness, refusals."""

import pytest

from benchmarks.lib.sample_catalog import make_profile
from benchmarks.routing.goodput_summary import Cell, summarise
from benchmarks.routing.workloads import Outcome, Request, admission, by_kind, max_min, work_s
from serve.budget import Budget
from serve.routing.prediction import Latency


def cells(policy: str, shares: list[float], load: float = 1.0, **row: float) -> list[Cell]:
    """A cell for each round."""
    return [
        Cell("live", number, "square", load, policy, {"attainment": share, "requests": 10, **row})
        for number, share in enumerate(shares)
    ]


def compare(*groups: list[Cell]) -> dict:
    return summarise([cell for group in groups for cell in group])["compared"]["square"]["1"]


def test_differences_are_of_the_same_round():
    row = compare(cells("budget", [0.5, 0.9, 0.7]), cells("full", [0.4, 0.8, 0.6]), cells("fastest", [0.1, 0.1, 0.1]))
    assert row["best"] == "full"
    assert row["over_best"] == {"median": 0.1, "min": 0.1, "max": 0.1, "n": 3}
    assert row["over_full"]["median"] == pytest.approx(0.7 / 0.6, abs=1e-4)  # of 1.25, 1.125, 1.167


def test_what_scheduling_and_what_shifting_gains_are_apart():
    row = compare(cells("budget", [0.9]), cells("budget-full", [0.6]), cells("full", [0.2]))
    assert row["scheduling"]["median"] == pytest.approx(0.4)
    assert row["shifting"]["median"] == pytest.approx(0.3)
    assert row["best"] == "full"  # with `full` alone the router is no baseline


def test_a_baseline_with_nothing_within_budget_is_no_division_by_zero():
    assert compare(cells("budget", [0.5]), cells("full", [0.0]))["over_full"]["median"] == pytest.approx(5)


def test_the_admission_is_the_best_of_its_limits_at_each_load():
    found = summarise(
        cells("budget", [0.9, 0.9])
        + cells("admission-8", [0.5, 0.6]) + cells("admission-16", [0.7, 0.8])
        + cells("admission-8", [0.4, 0.4], 2.0) + cells("admission-16", [0.3, 0.3], 2.0)
    )  # fmt: skip
    by_load = found["live"]["square"]
    assert list(by_load) == ["1", "2"]
    assert (by_load["1"]["admission"]["limit"], by_load["2"]["admission"]["limit"]) == (16, 8)
    assert by_load["1"]["admission"]["attainment"]["max"] == 0.8
    assert {"admission-8", "admission-16"} <= set(by_load["1"])
    row = found["compared"]["square"]["1"]
    assert (row["best"], row["over_admission"]["n"]) == ("admission", 2)


def test_max_min_divides_what_small_kinds_leave():
    assert max_min({"a": 1, "b": 5, "c": 9}, 9) == {"a": 1, "b": 4, "c": 4}
    assert max_min({"a": 1, "b": 5}, 100) == {"a": 1, "b": 5}
    assert max_min({"a": 4, "b": 4}, 2) == {"a": 1, "b": 1}
    assert max_min({}, 2) == {}


def test_fairness_is_over_the_work_within_budget_of_full_or_an_admission():
    def one(policy: str, share: float, a: float, b: float) -> list[Cell]:
        work = {"a.offered_s": 1.0, "b.offered_s": 9.0, "a.kept_s": a, "b.kept_s": b}
        return cells(policy, [share], **work)

    rows = summarise(one("full", 0.1, 1, 1) + one("admission-8", 0.3, 1, 4) + one("budget", 0.9, 0.5, 6))
    row = rows["live"]["square"]["1"]["budget"]
    assert row["a.of_fair"]["median"] == pytest.approx(0.5)  # capacity 5: all of a's work, and 4 of b's
    assert row["b.of_fair"]["median"] == pytest.approx(1.5)


def outcome(kind: str, in_time: bool = True, refused_ms: float | None = None) -> Outcome:
    took = None if refused_ms is not None else Latency(10, 1, 10 if in_time else 100)
    return Outcome(Request(1000, 100, 10, Budget(e2e_ms=50), kind), took=took, refused_ms=refused_ms)


def test_refusals_are_timed_and_kinds_counted():
    profile = make_profile(prefill_tokens_per_s=1000, decode_tokens_per_s=100)
    outcomes = [outcome("a"), outcome("a", in_time=False), *(outcome("b", refused_ms=ms) for ms in range(1, 101))]
    assert work_s(profile, outcomes[0].request) == pytest.approx(0.2)
    found = admission(outcomes)
    assert found["kept_of_admitted"] == 0.5
    assert (found["refusal_p50_ms"], found["refusal_p99_ms"], found["refusal_max_ms"]) == (50.5, 99, 100)
    assert admission([outcome("a")]) == {"kept_of_admitted": 1}
    assert admission([outcome("a", refused_ms=0.0)])["refusal_max_ms"] == 0, "as in the simulator"
    kinds = by_kind(outcomes, profile)
    assert (kinds["a.kept"], kinds["a.late"], kinds["b.refused"]) == (0.5, 0.5, 1)
    assert (kinds["a.offered_s"], kinds["a.kept_s"], kinds["b.kept_s"]) == (pytest.approx(0.4), pytest.approx(0.2), 0)
