"""The live routing benchmark: outcomes at the client, identical traces, the run as a whole on engine stubs, resuming."""

import asyncio
import itertools
import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from benchmarks.lib.processes import NotStarted
from benchmarks.lib.sample_catalog import MODEL, three_gears
from benchmarks.reporting import claims, goodput_tables, plots
from benchmarks.routing import goodput, goodput_cells, goodput_simulated, live_platform, load_client
from benchmarks.routing.dispatchers import Admission, Dispatcher, InFlight, Pinned, round_robin, token_load
from benchmarks.routing.goodput_cells import ARRIVALS, Bench, Journal, Setting, Size, make_trace, rotated, settings
from benchmarks.routing.goodput_simulated import simulated
from benchmarks.routing.live_platform import SPLIT, Machine, Setup
from benchmarks.routing.load_client import Replayed, replay
from benchmarks.routing.workloads import ABSOLUTE, Request
from serve.budget import Budget
from serve.config.platform import load_config
from tests.support.gateway_server import Started

QUALITIES = {"full": 1.0, "int8": 0.95, "distilled": 0.8}
NAMES = tuple(QUALITIES)
PROFILE = three_gears()[0].profile


def send(gateway: Started, trace: list[Request], dispatcher: Dispatcher | None = None) -> Replayed:
    return asyncio.run(replay(gateway.url, dispatcher or Dispatcher(MODEL), trace, QUALITIES, 1))


def test_outcomes_are_what_the_client_saw(gateway: Started):
    trace = [
        Request(0, 5, 3, Budget(on_no_candidate="reject"), "chat"),
        Request(5, 5, 3, Budget(ttft_ms=1, on_no_candidate="reject"), "chat"),
        Request(10, 5, 3, Budget(objective="cost"), "patient"),
    ]
    replayed = send(gateway, trace)
    first, refused, cheap = replayed.outcomes
    gateway.finish()
    assert (first.variant, first.reason, first.quality, first.refused_ms) == ("full", "quality", 1.0, None)
    assert first.took and first.expected and first.tail
    assert 0 < first.took.ttft_ms <= first.took.e2e_ms
    assert first.tail.e2e_ms > first.expected.e2e_ms
    assert (refused.variant, refused.reason, refused.took) == ("", "422", None)
    assert refused.refused_ms is not None and 0 < refused.refused_ms < 5000
    assert cheap.variant == "distilled"
    assert gateway.engines["full"].requests[0]["prompt"] != gateway.engines["distilled"].requests[0]["prompt"]
    assert len(gateway.engines["full"].requests[0]["prompt"]) == 5
    assert replayed.cpu_share > 0 and replayed.send_lag_p99_ms >= 0


def test_an_answer_that_breaks_off_is_no_answer(gateway: Started):
    for engine in gateway.engines.values():
        engine.behaviour = "500"
    gateway.engines["full"].behaviour = "die mid-stream"  # and nothing continues it
    [one] = send(gateway, [Request(0, 5, 3, Budget(), "chat")]).outcomes
    gateway.finish()
    assert (one.took, one.reason) == (None, "interrupted")


def test_a_gateway_that_is_gone_is_an_outcome_too():
    trace = [Request(0, 5, 3, Budget(), "chat")]
    [one] = asyncio.run(replay("http://127.0.0.1:9", Dispatcher(MODEL), trace, QUALITIES, 1)).outcomes
    assert one.took is None and one.reason.startswith("failed: ")


def test_waiting_in_the_client_is_part_of_the_measured_and_of_the_predicted_times(gateway: Started):
    class Late(Dispatcher):
        async def place(self, request: Request):
            await asyncio.sleep(0.3)
            return await super().place(request)

    [one] = send(gateway, [Request(0, 5, 3, Budget(), "chat")], Late(MODEL)).outcomes
    gateway.finish()
    assert one.took and one.expected and one.tail
    for times in (one.took, one.expected, one.tail):
        assert times.ttft_ms > 300 > times.tpot_ms and times.e2e_ms > 300


def test_a_baseline_pins_its_requests_and_sends_no_budget(gateway: Started):
    variants = [InFlight(name, quality) for name, quality in QUALITIES.items()]
    trace = [Request(0, 5, 3, Budget(ttft_ms=1, on_no_candidate="reject"), "chat")] * 4
    outcomes = send(gateway, trace, Pinned(MODEL, variants, round_robin())).outcomes
    gateway.finish()
    assert [one.variant for one in outcomes] == ["full", "int8", "distilled", "full"]
    assert {one.reason for one in outcomes} == {"pinned"}
    assert all("budget" not in body for engine in gateway.engines.values() for body in engine.requests)
    assert [one.requests for one in variants] == [0, 0, 0]
    assert [one.tokens for one in variants] == pytest.approx([0, 0, 0])


def test_a_failed_request_leaves_no_token_load(gateway: Started):
    gateway.engines["full"].behaviour = "500"
    variants = [InFlight("full", 1.0)]
    send(gateway, [Request(0, 5, 3, Budget(), "chat")], Pinned(MODEL, variants, token_load))
    gateway.finish()
    assert (variants[0].requests, variants[0].tokens) == (0, pytest.approx(0))


def test_an_admission_sends_what_it_admits_to_full_alone(gateway: Started):
    limits = Budget(e2e_ms=60_000)
    trace = [Request(0, 5, 3, limits, "patient"), Request(0, 5, 3, Budget(ttft_ms=0.001), "interactive")]
    admitted, hopeless = send(gateway, trace, Admission(MODEL, "full", PROFILE, 1)).outcomes
    gateway.finish()
    assert (admitted.variant, admitted.reason) == ("full", "pinned")
    assert (hopeless.reason, hopeless.took) == ("shed", None)
    assert hopeless.refused_ms is not None


def test_a_busy_client_is_said(gateway: Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(load_client, "MAX_CPU", 0.0)
    send(gateway, [Request(0, 5, 3, Budget(), "chat")])
    gateway.finish()
    assert "warning: the client used" in capsys.readouterr().out


def test_on_the_default_platform_all_variants_share_the_cores():
    compared = settings("default", Size().policies, 2, NAMES)
    assert {one.setup for one in compared} == {Setup(NAMES), Setup(("full",))}
    assert [one.policy for one in compared if one.setup == Setup(("full",))] == ["budget-full"]
    assert [one.policy for one in compared if one.policy.startswith("admission")] == [
        "admission-4", "admission-6", "admission-8", "admission-12", "admission-16"
    ]  # fmt: skip


def test_on_a_split_machine_every_setting_has_as_many_cores():
    compared = settings("split", [*Size().policies, "lora-healed"], 4, NAMES)
    assert {one.setup.cores * len(one.setup.variants) for one in compared} == {4}
    alone = {one.policy for one in compared if one.setup == Setup(("full",), 4)}
    assert alone == {"full", "budget-full", "admission-4", "admission-6", "admission-8", "admission-12", "admission-16"}
    assert Setting("lora-healed", Setup(("lora-healed",), 4)) in compared
    assert Setting("budget", Setup(SPLIT, 2)) in compared


def test_one_limit_of_the_admission_can_be_chosen():
    [one] = settings("split", ["admission-16"], 2, NAMES)
    assert one == Setting("admission-16", Setup(("full",), 2))


def test_rounds_have_another_order_and_platforms_start_once():
    compared = settings("split", Size().policies, 2, NAMES)
    orders = [rotated(compared, number) for number in range(2)]
    assert orders[0] != orders[1]
    for order in orders:
        assert sorted(one.policy for one in order) == sorted(one.policy for one in compared)
        assert len([key for key, _ in itertools.groupby(order, lambda one: one.setup)]) == 2


@pytest.mark.parametrize("shape", ARRIVALS)
def test_traces_have_the_rate_the_kinds_and_a_heavy_tail(shape: str):
    trace = make_trace(shape, 20.0, 400.0, 3)
    assert trace == make_trace(shape, 20.0, 400.0, 3)
    assert len(trace) == pytest.approx(20 * 400, rel=0.1)
    for kind, (share, budget) in ABSOLUTE.items():
        of_kind = [request for request in trace if request.kind == kind]
        assert len(of_kind) / len(trace) == pytest.approx(share, abs=0.03)
        assert of_kind[0].budget == budget
    prompts = sorted(request.prompt_tokens for request in trace)
    assert prompts[-1] == 1000
    assert prompts[len(prompts) // 2] == pytest.approx(60, rel=0.1)
    assert 0.003 < sum(tokens > 500 for tokens in prompts) / len(prompts) < 0.02


def test_the_shapes_differ():
    halves = {}
    for shape in ARRIVALS:
        trace = make_trace(shape, 50.0, 40.0, 1)
        halves[shape] = sum(request.at % 10_000 < 5000 for request in trace) / len(trace)
    assert halves["square"] == pytest.approx(0.2, abs=0.04)
    assert halves["bursty"] == pytest.approx(5 / 7, abs=0.05)
    assert halves["poisson"] == pytest.approx(0.5, abs=0.05)
    rising = make_trace("ramp", 50.0, 40.0, 1)
    assert sum(request.at < 20_000 for request in rising) / len(rising) == pytest.approx(5 / 16, abs=0.04)


@pytest.mark.parametrize(("setup", "threads"), [(Setup(NAMES), "2"), (Setup(("full", "lora-healed"), 1), "1")])
def test_the_platform_is_what_up_starts_without_retrieval(setup: Setup, threads: str, tmp_path: Path):
    config = load_config(live_platform.CONFIG)
    folders = {(name, setup.cores): tmp_path / name for name in setup.variants}
    file = tmp_path / "gearbox.yaml"
    file.write_text(yaml.safe_dump(live_platform.document(Machine(config, folders), setup, 9000)))
    deployed = load_config(file)
    assert [one.name for one in deployed.variants] == list(setup.variants)
    assert deployed.env == {**config.env, "OMP_NUM_THREADS": threads}
    assert (deployed.engine, deployed.frontend, deployed.model) == (config.engine, config.frontend, config.model)
    assert deployed.retrieval is None and deployed.server.port == 9000
    assert deployed.variants[0].price_usd_per_hour == config.variants[0].price_usd_per_hour


SIZE = Size((0.5, 2.0), ("square",), ("budget", "budget-full", "full", "admission", "token-load"), 2, 0.15)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """The sample variants instead of cached ones; cells without warm-up."""
    cards = {variant.name: variant.card for variant in three_gears()}
    hardware = Machine(load_config(live_platform.CONFIG), {(name, 0): name for name in NAMES})  # type: ignore[dict-item]
    for module in (goodput_simulated, live_platform):
        monkeypatch.setattr(module, "load_card", lambda name: cards[name])
    monkeypatch.setattr(goodput, "machine", lambda *_: hardware)
    monkeypatch.setattr(goodput, "WORK", tmp_path)
    monkeypatch.setattr(goodput_cells, "WARM_S", 0.1)
    monkeypatch.setattr(goodput, "full_load", lambda *_: 40.0)
    monkeypatch.setattr(goodput_cells, "LIMITS", (8, 16))
    return hardware


@pytest.fixture
def starts(machine: Machine, gateway: Started, monkeypatch: pytest.MonkeyPatch) -> list[Setup]:
    """The platforms that a run starts: all are the gateway with its engine stubs."""
    started: list[Setup] = []

    @contextmanager
    def serving(_: Machine, setup: Setup):
        started.append(setup)
        yield gateway.url

    monkeypatch.setattr(goodput, "serving", serving)
    return started


def test_a_whole_run_measures_compares_plots_and_claims(
    starts: list[Setup],
    gateway: Started,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    saved: list[tuple[dict, int]] = []
    goodput.measure("default", SIZE, lambda result, rounds: saved.append((result, rounds)))
    assert [rounds for _, rounds in saved] == [1, 2]
    result = json.loads(json.dumps(saved[-1][0]))
    assert set(result["part"]) == {"loads", "shapes", "policies", "rounds", "seconds"}
    assert result["size"]["rounds_measured"] == 2
    for shape in SIZE.shapes:
        for load in ("0.5", "2"):
            by_policy = result["live"][shape][load]
            assert {"budget", "budget-full", "full", "admission", "admission-8", "token-load"} <= set(by_policy)
            assert len({row["requests"]["median"] for row in by_policy.values()}) == 1
            assert by_policy["admission"]["limit"] in (8, 16)
            row = by_policy["budget"]
            assert row["attainment"]["n"] == 2
            assert {"interactive.kept", "ttft_ms_covered", "client_cpu_share"} <= set(row)
            total = row["attainment"]["median"] + row["late"]["median"] + row["refused"]["median"]
            assert total == pytest.approx(1, abs=0.01)
            assert result["simulated"][shape][load]["budget"]["attainment"]["n"] == 2
            assert result["compared"][shape][load]["over_best"]["n"] == 2
    prompts = [tuple(body["prompt"]) for engine in gateway.engines.values() for body in engine.requests]
    assert len(set(prompts)) == len(prompts)  # none is in a prefix cache from another cell
    assert len(starts) == 2 * 2  # two platforms in each round
    assert not list(tmp_path.glob("*.jsonl"))
    monkeypatch.setattr(plots, "IMAGES", tmp_path)
    assert plots.goodput_shapes(result, "goodput-default-part").exists()
    machine = {"cpu": "x", "cores": 2, "memory_gb": 1, "measured": "2026-11-29T22:00:00Z", "commit": "0"}
    document = {**result, "machine": machine, "command": "python -m x"}
    page = goodput_tables.goodput_shapes(document)
    assert "| square | load 0.5 | load 2 |" in page and "| budget | 100% / 0% / 1.00 |" in page
    assert "| admission |" in page and "admission-8" not in page
    rows = claims.rows("goodput-default", document, None)
    assert {row.area for row in rows} == {"routing"}
    assert any(row.id == "goodput-default.square.load-2.over_full" and row.aim == ">= 2" for row in rows)
    assert not any(row.id == "goodput-default.square.load-0.5.over_full" for row in rows)
    goodput.print_aims(result)
    assert "aims missed" in capsys.readouterr().out.splitlines()[-1]


def test_an_interrupted_run_goes_on_where_it_stopped(
    starts: list[Setup], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    size = Size((0.5, 1.0), ("poisson",), ("full", "budget"), 1, 0.15)
    replayed: list[int] = []
    measured = load_client.replay

    async def replay_until_broken(*args):
        replayed.append(1)
        if len(replayed) == 4:
            raise NotStarted("broken")
        return await measured(*args)

    monkeypatch.setattr(goodput, "replay", replay_until_broken)
    with pytest.raises(NotStarted):
        goodput.measure("default", size, lambda *_: None)
    [journal] = tmp_path.glob("*.jsonl")
    before = [json.loads(line) for line in journal.read_text().splitlines() if line]
    assert [(entry["policy"], entry["load"]) for entry in before] == [("full", 0.5), ("full", 1.0)]
    journal.write_text(journal.read_text() + '{"where": "cut o')
    results = []
    goodput.measure("default", size, lambda result, _: results.append(result))
    assert (
        len(replayed) == 4 + 3
    )  # the cells of `full` are not measured again, only those of `budget`, after its warm-up
    first = before[0]
    row = results[0]["live"]["poisson"][f"{first['load']:g}"][first["policy"]]
    assert row["attainment"]["median"] == round(first["row"]["attainment"], 4)
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_journal_keeps_what_is_written_after_a_line_that_was_cut_off(tmp_path: Path):
    cells = [goodput_cells.Cell("live", number, "square", 1.0, "full", {"attainment": 0.5}) for number in range(2)]
    path = tmp_path / "cells.jsonl"
    for cell in cells:
        path.open("a").write('{"where": "cut o')
        Journal.open(path).write(cell)
    assert Journal.open(path).cells == cells


def test_the_simulation_beside_it_has_the_same_cells(machine: Machine):
    bench = Bench(machine, PROFILE, Size((0.3, 2.0), ("square",)), Journal(Path("none")), 3.0)
    cells = simulated(bench, Setting("budget", Setup(NAMES)), 0)
    assert [(cell.load, cell.row["requests"]) for cell in cells] == [
        (load, len(bench.trace(0, "square", load))) for load in (0.3, 2.0)
    ]
    assert simulated(bench, Setting("admission-8", Setup(NAMES)), 0) == []
    bench.size = Size((8.0, 0.2), ("square",))
    overload, after = simulated(bench, Setting("full", Setup(NAMES)), 0)
    assert overload.row["attainment"] < 0.2 and after.row["attainment"] > 0.8, "it begins when the overload is over"
    assert after.row["goodput_per_s"] == pytest.approx(0.2 * 3, rel=0.5), "and its time is its own"
    bench.size = Size((0.3, 2.0), ("square",))
    static = simulated(bench, Setting("distilled", Setup(NAMES)), 0)
    assert static[0].row["quality"] == pytest.approx(machine.quality("distilled"))


def test_the_command_says_what_it_does_not_know(capsys: pytest.CaptureFixture[str]):
    for arguments in (
        ["--policies", "lora-healed"],
        ["--policies", "nothing"],
        ["--shapes", "round"],
        ["--loads", "-1"],
    ):
        with pytest.raises(SystemExit):
            goodput.main(arguments)
    said = capsys.readouterr().err
    assert "unknown policy nothing" in said and "unknown policy lora-healed" in said  # only `split` deploys it
    assert Size().part() == []
