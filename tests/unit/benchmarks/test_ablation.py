"""The simulated comparisons of routers: each part taken out has its effect and comes back, recovery after a jump, the simulator's error."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.lib.sample_catalog import make_live_variant, make_profile, three_gears
from benchmarks.reporting import claim_rows_goodput, goodput_tables, plots, routing_plots
from benchmarks.routing import ablation, goodput_simulated, live_platform, recovery, simulator_error
from benchmarks.routing.ablation import PARTS, WHOLE, without
from benchmarks.routing.baselines import POLICIES
from benchmarks.routing.goodput import speeds
from benchmarks.routing.goodput_cells import Setting, Size
from benchmarks.routing.goodput_summary import Cell, summarise
from benchmarks.routing.live_platform import Machine
from benchmarks.routing.recovery_windows import since_jump
from benchmarks.routing.simulated_bench import bench, default_setup, settings_of
from benchmarks.routing.simulator_error import NoLiveResult, errors_of
from benchmarks.routing.workloads import Outcome, Request, predicted, times
from serve.budget import Budget
from serve.config.platform import load_config
from serve.routing.prediction import Latency

SIZE = Size((1.0, 3.0), ("square",), (), 2, 4.0)
MACHINE = {"cpu": "x", "cores": 2, "memory_gb": 1, "measured": "2026-11-29T22:00:00Z", "commit": "0"}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """The sample variants as those of the default platform."""
    names = [variant.name for variant in three_gears()]
    cards = {variant.name: variant.card for variant in three_gears()}
    for module in (goodput_simulated, live_platform):
        monkeypatch.setattr(module, "load_card", lambda name: cards[name])
    yield Machine(load_config(live_platform.CONFIG), {(name, 0): name for name in names})  # type: ignore[dict-item]


def simulate(requests: list[Request], policy: str = "budget") -> list[Outcome]:
    profile = make_profile([(100, 1, 100), (1000, 1, 1000)], [(1, 20), (8, 160)], prefill_tokens_per_s=1000)
    variants = [make_live_variant(name, profile=profile, quality=quality) for name, quality in (("full", 1.0), ("int8", 0.9))]  # fmt: skip
    return list(goodput_simulated.Platform(variants, [["full", "int8"]], POLICIES[policy](), 1).run(requests))


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_taken_out_and_comes_back(part: str):
    """Under a crowd of two classes, each part decides something; the deadlines do where nothing waits in the gateway."""
    paced = Budget(ttft_ms=2500, tpot_ms=60, on_no_candidate="reject")
    whole = Budget(e2e_ms=9000, on_no_candidate="reject")
    trace = [Request(150 * i, 60 + 7 * (i % 5), 20 + i % 17, paced if i % 3 else whole) for i in range(200)]
    policy = "full" if part == "deadlines in the engines" else "budget"

    def once() -> list[object]:
        return [(outcome.variant, outcome.took) for outcome in simulate(trace, policy)]

    before = once()
    with without(WHOLE):
        assert once() == before
    with without(part):
        assert once() != before
    assert once() == before


def test_the_gain_of_a_part_is_of_the_same_seed():
    def cells(*shares: float) -> list[list[Cell]]:
        row = {"late": 0.0, "quality": 1.0, "delivered": 0.5, "chat.kept": 0.9}
        return [[Cell("simulated", seed, "square", 1.0, "budget", {**row, "attainment": one, "careful.kept": one / 2})] for seed, one in enumerate(shares)]  # fmt: skip

    found = ablation.summarise({WHOLE: cells(0.5, 0.9), "places": cells(0.4, 0.7)}, (1.0,))
    assert found["gain"]["places"]["1"]["attainment"] == {"median": 0.15, "min": 0.1, "max": 0.2, "n": 2}
    assert found["gain"]["places"]["1"]["worst_kind"]["max"] == pytest.approx(0.1)
    assert WHOLE not in found["gain"]


def test_an_ablation_is_simulated_plotted_and_claimed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(ablation, "PARTS", {"places": PARTS["places"]})
    result = ablation.measure(bench(SIZE, machine))
    assert set(result["routers"]) == {WHOLE, "places"} and result["seeds"] == 2
    monkeypatch.setattr(plots, "IMAGES", tmp_path)
    assert routing_plots.ablation(result, "ablation").exists()
    with ablation.drifting():
        slower = ablation.measure(bench(SIZE, machine))
    assert slower["routers"][WHOLE]["3"]["attainment"]["median"] < result["routers"][WHOLE]["3"]["attainment"]["median"]
    assert "| places | " in goodput_tables.ablation({**result, "machine": MACHINE})
    assert "places.load-3.kept" in {one.id for one in claim_rows_goodput.ablation(result)}


def rows(second: float, count: int, took: float, bound: float) -> list[list[float]]:
    return [[second * 1000 + i, took, 100.0, bound, 20.0, 20.0, 30.0] for i in range(count)]


def test_coverage_and_error_are_reported_by_the_second_since_the_jump():
    """Of two periods of 20 s: covered before the jump, not for 4 s after it, then 95 of 100."""
    requests = [one for at in range(10) for one in rows(at, 20, 100, 120)]
    requests += [one for at in range(10, 14) for one in rows(at + 20, 20, 200, 120)]
    for at in range(14, 20):
        requests += [*rows(at, 19, 125, 130), *rows(at, 1, 200, 130)]
    found = since_jump(requests, 20.0)
    by_second = {row["second"]: row for row in found["ttft"]["seconds"]}
    assert sorted(by_second) == list(range(-10, 10))
    assert (by_second[-1]["covered"], by_second[-1]["error"]) == (1.0, 0.0)
    assert (by_second[0]["covered"], by_second[0]["error"], by_second[0]["answers"]) == (0.0, 0.5, 20)
    assert by_second[4]["covered"] == 0.95
    assert found["ttft"]["back_s"] == 4
    assert found["tpot"]["back_s"] is None, "all are covered, which is more than the bound says"


def test_answers_of_one_token_have_no_time_per_token():
    found = since_jump([[0.0, 10.0, 10.0, 11.0, 0.0, 20.0, 30.0]], 10.0)
    assert found["ttft"]["seconds"][0]["answers"] == 1
    assert found["tpot"] == {"seconds": [], "back_s": None}


def test_goodput_keeps_the_predictions_of_the_router_under_square_waves(machine: Machine):
    measured = bench(replace(SIZE, shapes=("square", "poisson"), policies=("budget", "full"), seconds=12.0), machine)
    cells = [cell for policy in measured.size.policies for cell in goodput_simulated.simulated(measured, goodput_setting(policy), 0)]  # fmt: skip
    with_predictions = {(cell.policy, cell.shape) for cell in cells if cell.requests}
    assert with_predictions == {("budget", "square")}
    assert all("ttft_p50_ms" in cell.row and "tpot_p95_ms" in cell.row for cell in cells)
    live = [replace(cell, where="live") for cell in cells]
    found = summarise(live)["recovery"]
    assert set(found) == {"1", "3", "all"}
    answers = {
        load: sum(row["answers"] for row in predictions["ttft"]["seconds"]) for load, predictions in found.items()
    }
    assert answers["all"] == answers["1"] + answers["3"] == sum(len(cell.requests) for cell in live)
    assert "recovery" not in summarise([replace(cell, requests=()) for cell in live])
    figures = {one.id for one in claim_rows_goodput._after_jump("recovery.load-all", "x", found["all"])}
    assert "recovery.load-all.ttft.lowest" in figures


def goodput_setting(policy: str) -> Setting:
    return settings_of([policy])[0]


def test_predicted_rows_and_times_leave_out_what_was_not_answered():
    answered, refused = (Outcome(Request(10.0, 5, 5, Budget())) for _ in range(2))
    answered.took, answered.expected, answered.tail = Latency(100, 20, 180), Latency(90, 18, 170), Latency(120, 25, 220)
    assert predicted([answered, refused]) == [[10.0, 100, 90, 120, 20, 18, 25]]
    assert times([answered, refused]) == {
        "ttft_p50_ms": 100, "ttft_p95_ms": 100, "tpot_p50_ms": 20, "tpot_p95_ms": 20
    }  # fmt: skip
    assert times([refused]) == {}


def test_recovery_is_simulated_plotted_and_claimed(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    result = recovery.measure(bench(Size(), machine), periods=2, seeds=1)
    seconds = result["simulated"]["ttft"]["seconds"]
    assert seconds[0]["second"] >= -20 and seconds[-1]["second"] == 19
    before = sum(row["answers"] for row in seconds if row["second"] < 0)
    assert sum(row["answers"] for row in seconds) > 3 * before
    monkeypatch.setattr(plots, "IMAGES", tmp_path)
    live = {"recovery": {"all": result["simulated"]}}
    assert routing_plots.recovery(result, live).exists() and routing_plots.recovery(result, None).exists()
    page = goodput_tables.recovery({**result, "machine": MACHINE}, live)
    assert "| simulated, 0.25 to 2: TTFT |" in page and "| live, square, load all: TPOT |" in page
    assert any(one.id == "simulated.ttft.lowest" for one in claim_rows_goodput.recovery(result))


def test_the_simulator_is_compared_with_what_was_measured_live(machine: Machine):
    measured = bench(replace(SIZE, policies=("budget", "admission-4")), machine)
    cells = [replace(cell, where="live") for number in range(2) for cell in goodput_simulated.simulated(measured, goodput_setting("budget"), number)]  # fmt: skip
    setup = default_setup()
    live = {
        "size": {"loads": [1.0, 3.0], "shapes": ["square"], "policies": ["budget", "admission-4"], "rounds_measured": 2, "seconds": 4.0},
        "variants": {name: {"cores": {"shared": speeds(machine.profile(name, setup))}} for name in setup.variants},
        "machine": MACHINE,
        "live": summarise(cells)["live"],
    }  # fmt: skip
    result = simulator_error.measure(live, machine)
    assert set(result["errors"]["square"]["3"]) == {"budget"}
    assert {metric["error"] for by in result["errors"]["square"].values() for metric in by["budget"].values()} == {0.0}
    page = goodput_tables.simulator_error({**result, "machine": MACHINE})
    assert "| budget: within budget | " in page and "| budget: TTFT p50 | " in page
    assert {"square.load-3.budget.late", "square.load-3.budget.late.error"} < {
        one.id for one in claim_rows_goodput.simulator_error(result)
    }
    live["variants"]["full"]["cores"]["shared"]["tpot_ms"] += 1
    with pytest.raises(NoLiveResult, match="'full'"):
        simulator_error.measure(live, machine)


def test_errors_are_differences_of_shares_and_ratios_of_times():
    live = {"attainment": {"median": 0.5}, "late": {"median": 0.1}, "ttft_p50_ms": {"median": 200.0}}
    simulated = {"attainment": {"median": 0.6}, "ttft_p50_ms": {"median": 150.0}, "tpot_p50_ms": {"median": 1.0}}
    assert errors_of(live, simulated) == {
        "attainment": {"live": 0.5, "simulated": 0.6, "error": 0.1},
        "ttft_p50_ms": {"live": 200.0, "simulated": 150.0, "error": -0.25},
    }
