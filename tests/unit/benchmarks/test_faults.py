"""Load, recovery, journal and results of `benchmarks.cluster.faults`, on engines and gateways of the tests."""

import asyncio
import dataclasses
import json
import os
import subprocess
from contextlib import contextmanager, nullcontext, suppress

import psutil
import pytest

from benchmarks.cluster import faults
from benchmarks.cluster.fault_load import PROMPTS, Record, send
from benchmarks.cluster.fault_run import check, strike
from benchmarks.cluster.fault_schedule import Fault
from benchmarks.cluster.fault_summary import numbers, summary
from benchmarks.cluster.fault_systems import by_target
from benchmarks.reporting import claims, fault_plots, fault_tables, results
from benchmarks.reporting.results import Progress
from tests.support.greedy_engine import STREAM, encode, greedy
from tests.support.waiting import eventually

MACHINE = json.loads((claims.RESULTS / "decision.json").read_text())["machine"]


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch):
    monkeypatch.setattr("benchmarks.cluster.fault_run.SETTLE_S", 0.1)
    monkeypatch.setattr("benchmarks.cluster.fault_run._PROBE_EVERY_S", 0.05)


class TestTokens:
    @pytest.mark.parametrize(
        ("behaviour", "found"),
        [
            ("answer", {}),
            ("error", {}),
            ("lose 3", {"lost": 3}),
            ("end 3 early", {"lost": 3}),
            ("double 3", {"doubled": 3}),
            ("migrate", {"migrated": 1}),
        ],
    )
    async def test_streams_are_compared_with_undisturbed_ones(self, engine, bench, session, behaviour, found):
        await bench.prepare()
        engine.behaviour = behaviour
        record = await send(session, STREAM, 1)
        tokens = await check([record], bench.references, bench.continuation)
        assert dataclasses.asdict(tokens) == {
            "checked": 1, "migrated": 0, "diverged": 0, "unchecked": 0, "lost": 0, "doubled": 0, **found,
        }  # fmt: skip

    @pytest.mark.parametrize(("shift", "found"), [(0, (0, 0)), (2, (2, 0)), (-2, (0, 2))])
    async def test_a_seam_is_compared_with_what_the_other_variant_continues(self, engine, bench, shift, found):
        """The other variant's undisturbed answer is another one: only its continuation of this prefix tells a loss."""
        await bench.prepare()
        bench.references["int8"] = [
            dataclasses.replace(one, tokens=one.tokens[::-1]) for one in bench.references["int8"]
        ]
        prompt = encode(PROMPTS[0])
        answer = greedy(prompt, 60)
        moved = answer[:20] + answer[20 + shift :][:28]
        migrations = [{"to": "int8", "at_token": 20}]
        record = Record("stream", 0, 0.0, outcome="ok", variant="full", tokens=moved, prompt_tokens=prompt)
        record.migrations = migrations
        tokens = await check([record], bench.references, bench.continuation)
        assert (tokens.lost, tokens.doubled, tokens.diverged, tokens.migrated) == (*found, 0, 1)

    async def test_text_is_compared_where_there_are_no_token_ids(self, bench):
        await bench.prepare()
        text = bench.references["full"][0].text
        record = Record("stream", 0, 0.0, outcome="interrupted", variant="full", text=text[:40] + text[50:])
        assert (await check([record], bench.references, bench.continuation)).lost == 10
        record.outcome, record.text = "ok", text[:40]
        assert (await check([record], bench.references, bench.continuation)).lost == len(text) - 40
        record.variant = "unknown"
        assert (await check([record], bench.references, bench.continuation)).unchecked == 1


class TestStrike:
    async def test_a_kill_is_recovered_from(self, engine, bench):
        await bench.prepare()
        engine.token_s, bench.per_s = 0.005, 90.0
        row = await strike(bench, Fault("kill", "engine core", 0.3, 0.0, 0.0), 1)
        assert row["fault"]["name"] == "kill engine core"
        assert row["fault"]["variant"] in bench.references, "the one with the most streams"
        assert 0 <= row["recovery"]["first_success_s"] <= row["recovery"]["healthy_s"] + 0.5
        assert sum(counts["ok"] for counts in row["requests"].values()) > 10
        assert row["problems"] == {} and row["lost"] == [] and row["tokens"]["lost"] == 0
        assert row["tokens"]["checked"] > 2 and row["gaps_s"]
        assert json.loads(json.dumps(row)) == row

    async def test_the_gaps_of_migrations_are_compared_with_the_first_token_after_the_same_prompt(self, engine, bench):
        await bench.prepare()
        engine.behaviour = "migrate"
        row = await strike(bench, None, 1, seconds=0.3)
        assert len(row["seams"]) == row["tokens"]["migrated"] > 0
        assert all(gap_s >= 0 and prefix_s > 0 for gap_s, prefix_s in row["seams"])
        row["seams"] = [[1.5, 1.0], [0.4, 0.3]]
        assert numbers([row])["seams"] == {"p50": 0.4, "p95": 1.5, "streams": 2, "over_prefix_p95": 0.5}

    async def test_what_does_not_recover_is_said(self, engine, bench):
        await bench.prepare()
        bench.patience_s = 0.3
        engine.refused = True
        row = await strike(bench, Fault("stop", "engine core", 0.1, 0.2, 0.0), 1)
        assert row["recovery"] == {"first_success_s": None, "healthy_s": None}
        assert "429 overloaded" in row["lost"][0][-1]
        found = numbers([row])
        assert found["recovery"]["healthy_s"] == {"never": 1}
        assert found["lost"] == found["outcomes"]["refused"] > 0

    async def test_a_process_that_is_missing_is_not_healthy(self, site, session):
        assert await site.healthy(session, {"engine core": 1})
        assert not await site.healthy(session, {"engine core": 2})

    async def test_a_fault_that_is_not_possible_is_skipped(self, bench):
        await bench.prepare()
        row = await strike(bench, Fault("disk full", "disk", 0.1, 1.0, 0.0), 1)
        assert "small disk" in row["skipped"]
        assert summary([row])["skipped"] == {"disk full": row["skipped"]}
        assert summary([row])["all"]["faults"] == 0


def test_the_time_left_is_estimated_from_the_steps_alone(monkeypatch, capsys):
    now = iter([1000.0, 1010.0])  # after the platform's start, and after a step
    monkeypatch.setattr(results.time, "monotonic", lambda: next(now))
    progress = Progress([("first", 10.0), ("second", 30.0)], started=0.0)
    progress.step("first")
    progress.step("second")
    assert "about 0:30 left: second" in capsys.readouterr().out


@pytest.fixture
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(faults, "UNDISTURBED_S", 0.2)
    return faults.Journal.open(tmp_path / "journal.jsonl")


FAULTS = [
    ("gearbox/undisturbed", None),
    ("gearbox/0", Fault("kill", "engine core", 0.2, 0.0, 0.0)),
    ("gearbox/1", Fault("disk full", "disk", 0.2, 0.1, 0.0)),
    ("gearbox/2", Fault("stop", "engine core", 0.2, 0.1, 0.0)),
]


def row_of(fault: Fault | None, healthy_s: float | None = 2.0) -> dict:
    return {
        "fault": {**dataclasses.asdict(fault), "name": fault.name} if fault else None, "skipped": "", "gaps_s": [0.5],
        "recovery": {"first_success_s": 0.5, "healthy_s": healthy_s} if fault else {}, "requests": {"stream": {"ok": 3}},
        "problems": {}, "tokens": {"checked": 3}, "lost": [], "seams": [[1.5, 1.0]] if fault else [],
    }  # fmt: skip


class TestResults:
    def test_an_interrupted_run_goes_on_where_it_stopped(self, quick, monkeypatch, capsys):
        ran: list[list[str]] = []

        async def run_schedule(site, plan, load, journal, progress):
            ran.append([key for key, _ in plan])
            for key, fault in plan[:2]:  # a system that did not recover from the second is started anew
                progress.step(key)
                journal.write(key, row_of(fault))

        monkeypatch.setattr(faults, "run_schedule", run_schedule)
        monkeypatch.setattr(faults, "_started", lambda system, *_, **__: nullcontext(system))
        monkeypatch.setattr(
            faults, "steps", lambda system, *_: [(f"{system}/{i}", one) for i, (_, one) in enumerate(FAULTS)]
        )
        for system in ("gearbox", "litellm"):
            quick.write(f"{system}/saturation", 60.0)
        for i in (0, 1, 2):
            quick.write(f"gearbox/{i}", row_of(FAULTS[i][1]))
        with quick.path.open("a") as file:
            file.write('{"gearbox/3": {"fau')  # killed while it wrote
        again = faults.Journal.open(quick.path)
        result = faults.measure({"gearbox": None, "litellm": 2}, 0, 1, 0.5, None, again)
        assert ran == [["gearbox/3"], [f"litellm/{i}" for i in range(4)], ["litellm/2", "litellm/3"]]
        assert faults.Journal.open(quick.path).rows == again.rows
        assert result["systems"]["gearbox"]["all"]["faults"] == result["systems"]["litellm"]["all"]["faults"] == 3
        assert "[3/8] done before: gearbox/2" in capsys.readouterr().out
        assert [one["engines"] for one in result["systems"].values()] == [3, 2]

    async def test_after_a_fault_without_recovery_the_system_is_started_anew(self, engine, site, quick, monkeypatch):
        async def struck(bench, fault, *_):
            return row_of(fault, healthy_s=None if fault else 1.0)

        monkeypatch.setattr(faults, "strike", struck)
        quick.write("gearbox/saturation", 60.0)
        await faults.run_schedule(site, FAULTS, 0.5, quick, Progress([(key, 1.0) for key, _ in FAULTS]))
        assert quick.rows.keys() == {"gearbox/saturation", "gearbox/undisturbed", "gearbox/0"}
        assert engine.documents == 1 and engine.deleted == 1

    async def test_tables_plots_and_claims_are_made(self, site, quick, tmp_path, monkeypatch):
        monkeypatch.setattr("benchmarks.reporting.plots.IMAGES", tmp_path)
        quick.write("gearbox/saturation", 60.0)
        await faults.run_schedule(site, FAULTS, 0.5, quick, Progress([(key, 1.0) for key, _ in FAULTS]))
        system = {"saturation_per_s": 60.0, **summary([quick.rows[key] for key, _ in FAULTS])}
        result = {
            "machine": MACHINE, "command": "python -m benchmarks.cluster.faults", "aims": faults.AIMS, "slow_network": "stops",
            "engines": 3, "systems": {"gearbox": system, "litellm": {**system, "engines": 2}},
        }  # fmt: skip
        found = {one.id: one for one in claims.rows("faults", result, None)}
        assert found["faults.gearbox.all.lost"].met is True
        assert found["faults.gearbox.all.tokens.doubled"].aim == "== 0"
        assert found["faults.litellm.all.lost"].aim is None
        assert found["faults.gearbox.kill-engine-core.healthy_s"].unit == "s"
        assert "faults.gearbox.disk-full.requests" not in found
        table = fault_tables.TABLES["faults"](result)
        assert "| gearbox | kill engine core |" in table and "`litellm` without 'disk full'" in table
        assert "`litellm` with 2 engines instead of 3." in table and table.count("engines instead") == 1
        assert fault_plots.PLOTS["faults"](result).exists()

    def test_a_duration_has_a_unit(self):
        assert [faults.duration(text) for text in ("90s", "1.5m", "1h")] == [90, 90, 3600]
        for text in ("90", "0m", "h", "-1h"):
            with pytest.raises(ValueError, match="duration"):
                faults.duration(text)


class TestShort:
    async def test_it_stops_and_kills_the_engine_of_one_variant(self, site, monkeypatch):
        monkeypatch.setattr(faults, "_SHORT", (FAULTS[3][1], FAULTS[1][1]))
        monkeypatch.setattr(faults, "_SHORT_PER_S", 20.0)
        monkeypatch.setattr(faults, "_SHORT_PATIENCE_S", 0.5)
        script = "bash -c 'exec -a VLLM::EngineCore sleep 60' & wait"
        engines = {
            name: subprocess.Popen(
                [f"ray::ServeReplica:variant-{name}:engine:{name}", "-c", script],
                executable="/bin/bash",
                start_new_session=True,
            )
            for name in ("full", "int8")
        }
        servers = [psutil.Process(one.pid) for one in engines.values()]
        await asyncio.to_thread(
            eventually, lambda: all(len(one.children(recursive=True)) for one in servers), 10, "engines run"
        )
        monkeypatch.setattr(
            "benchmarks.cluster.fault_injection.psutil.Process.suspend", lambda self: stopped.append(self.ppid())
        )
        stopped: list[int] = []
        try:
            both = [*servers, *(child for one in servers for child in one.children(recursive=True))]
            found = dataclasses.replace(site, find=lambda: by_target([one for one in both if one.is_running()]))
            result = await faults.short(found, "int8", 0)
            assert stopped == [engines["int8"].pid]
            assert engines["int8"].wait(10) is not None and engines["full"].poll() is None
        finally:
            for one in engines.values():
                with suppress(ProcessLookupError):
                    os.killpg(one.pid, 9)
                one.wait()
        assert result["faults"].keys() == {"stop engine core", "kill engine core"}
        assert result["faults"]["kill engine core"]["recovery"]["healthy_s"] == {"never": 1}
        assert (result["all"]["lost"], result["all"]["silently_truncated"]) == (0, 0)
        assert result["all"]["tokens"]["checked"] > 0


class TestCommand:
    @pytest.fixture
    def started(self, monkeypatch, tmp_path):
        """State folders that the platform was started with."""
        folders: list[str | None] = []

        @contextmanager
        def gearbox(config, disk):
            folders.append(os.environ.get("GEARBOX_STATE_DIR"))
            yield disk

        monkeypatch.setattr(faults, "gearbox", gearbox)
        monkeypatch.setattr(faults, "small_disk", lambda: nullcontext(tmp_path))
        monkeypatch.setenv("GEARBOX_STATE_DIR", "before")
        return folders

    def test_a_platform_is_started_with_its_state_on_the_small_disk(self, started, monkeypatch, tmp_path):
        monkeypatch.setattr(faults, "is_running", lambda _: False)
        with faults._started("gearbox", None, alone=True) as disk:
            assert disk == tmp_path
        assert started == [str(tmp_path / "state")]
        assert os.environ["GEARBOX_STATE_DIR"] == "before"

    def test_a_running_platform_keeps_its_state_and_no_peer_is_measured_beside_it(self, started, monkeypatch):
        monkeypatch.setattr(faults, "is_running", lambda _: True)
        with faults._started("gearbox", None, alone=False):
            pass
        assert started == ["before"]
        for system, alone in (("gearbox", True), ("litellm", False)):
            with pytest.raises(faults.Busy, match="gearbox down"), faults._started(system, None, alone=alone):
                pass

    @pytest.mark.parametrize(
        ("option", "name"),
        [((), "faults"), (("--soak", "1h"), "faults-soak"), (("--overload", "5m"), "faults-overload")],
    )
    def test_a_result_is_saved_plotted_and_shown_then_its_journal_goes(
        self, monkeypatch, tmp_path, capsys, option, name
    ):
        done: list[str] = []

        def measured(*arguments):
            journal = arguments[-1]
            journal.write("gearbox/saturation", 1.0)
            done.append(journal.path.name.partition("-")[0])
            return {"name": name}

        monkeypatch.setattr(faults, "WORK", tmp_path)
        for function in ("measure", "soak", "overload"):
            monkeypatch.setattr(faults, function, measured)
        monkeypatch.setattr(faults, "save", lambda name, result: done.append(f"saved {name}"))
        monkeypatch.setattr(fault_plots, "PLOTS", {name: lambda result: done.append("plotted")})
        monkeypatch.setattr(fault_tables, "TABLES", {name: lambda result: f"table of {result['name']}"})
        assert faults.main([*option, "--seed", "3"]) == 0
        assert done == ["faults", f"saved {name}", "plotted"]
        assert list(tmp_path.iterdir()) == []
        assert f"table of {name}" in capsys.readouterr().out

    def test_a_system_may_have_fewer_engines(self):
        assert faults.systems("gearbox,stock:2") == {"gearbox": None, "stock": 2}

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--systems", "nginx"], ["--systems", "gearbox:2"], ["--systems", "stock:0"], ["--systems", "stock:"], ["--soak", "90"],
            ["--soak", "1h", "--short"],
        ],
    )  # fmt: skip
    def test_what_is_no_option_is_refused(self, arguments, capsys):
        with pytest.raises(SystemExit):
            faults.main(arguments)
        assert "error:" in capsys.readouterr().err

    def test_other_arguments_have_another_journal(self):
        assert (
            faults._journal_path("faults", 1) == faults._journal_path("faults", 1) != faults._journal_path("faults", 2)
        )
