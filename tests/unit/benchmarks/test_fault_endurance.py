"""Soak and overload: samples of processes and queues, slopes, bounds and results."""

import dataclasses
import json

import psutil
import pytest

from benchmarks.cluster import fault_endurance as endurance
from benchmarks.cluster import faults
from benchmarks.cluster.fault_schedule import Fault
from benchmarks.reporting import claims, fault_plots, fault_tables
from tests.support.greedy_engine import UNARY

MACHINE = json.loads((claims.RESULTS / "decision.json").read_text())["machine"]
FAULTS = (Fault("kill", "engine core", 0.2, 0.0, 0.0), Fault("stop", "engine core", 0.2, 0.1, 0.0))


def samples(count: int, mb_per_h: float = 0.0, restart_at: int | None = None, grows: float = 0.0):
    return [
        {
            "at_s": 1000.0 + 30 * i, "pids": {"gateway": [1 if restart_at is None or i < restart_at else 2], "supervisor": [9]},
            "rss_mb": {"gateway": 200 + mb_per_h * i / 120 + (i % 3) * 0.1, "supervisor": 300.0}, "fds": {"gateway": 50.0 + grows * i},
            "waiting": 8.0 + i % 2,
        }
        for i in range(count)
    ]  # fmt: skip


class TestEndurance:
    @pytest.mark.parametrize("mb_per_h", [0.0, 12.0])
    def test_the_slope_is_in_mb_an_hour(self, mb_per_h):
        found = endurance.memory(samples(120, mb_per_h), "gateway")
        low, high = found["ci95"]
        assert low <= found["mb_per_h"] <= high and abs(found["mb_per_h"] - mb_per_h) < 1
        assert found["hours"] == pytest.approx(1, abs=0.01)
        assert endurance.memory(samples(120), "supervisor")["mb_per_h"] == 0

    def test_the_longest_life_counts_where_the_gateway_was_replaced(self):
        found = endurance.memory(samples(120, restart_at=33), "gateway")
        assert (found["processes"], found["hours"]) == (2, pytest.approx(0.717, abs=0.01))

    def test_too_few_samples_say_nothing(self):
        assert endurance.memory(samples(10), "gateway") is None
        assert endurance.memory([], "gateway") is None
        assert endurance.growth(samples(8), "fds") is None

    def test_growth_is_distinguished_from_a_level(self):
        assert endurance.growth(samples(90), "fds") == {"max": 50.0, "growth": 1.0}
        assert endurance.growth(samples(90), "waiting")["max"] == 9.0
        assert endurance.growth(samples(90, grows=2.0), "fds")["growth"] > endurance.BOUNDED
        assert endurance.growth(samples(90), "threads") is None
        again = [{"waiting": 300.0 if i // 30 != 1 else 100.0} for i in range(90)]
        assert endurance.growth(again, "waiting") == {"max": 300.0, "growth": 3.0}

    def test_descriptors_and_memory_of_a_process_are_read(self):
        found = endurance.used({"gateway": [psutil.Process()], "supervisor": []})
        assert found["rss_mb"]["gateway"] > 10 and found["fds"]["gateway"] > found["sockets"]["gateway"] >= 0
        assert found["pids"] == {"gateway": [psutil.Process().pid]}

    async def test_an_overload_and_its_recovery(self, site, bench, monkeypatch, tmp_path):
        monkeypatch.setattr(endurance, "_IDLE_S", 0.2)
        monkeypatch.setattr(endurance, "_SAMPLE_S", 0.1)
        monkeypatch.setattr("benchmarks.reporting.plots.IMAGES", tmp_path)
        this = psutil.Process()
        watched = dataclasses.replace(
            site, kinds=(UNARY,), find=lambda: {"gateway": [this]}, supervisor=this.pid, metrics_url=site.url
        )
        sampler = endurance.Sampler(watched, every_s=0.1)
        bench.site, bench.per_s = watched, 5.0
        row = await endurance.overload(bench, 2.0, sampler)
        assert row["recovered_s"] < 2 and row["requests"]["ok"] > 20
        assert row["bounds"].keys() == set(endurance.MEASURES)
        assert [row["bounds"][name]["max"] for name in ("in_flight", "waiting")] == [3.0, 4.0]
        result = {
            "machine": MACHINE, "command": "x", "factor": 5.0, "aims": faults.AIMS, "bounded": endurance.BOUNDED, **row,
        }  # fmt: skip
        found = {one.id: one for one in claims.rows("faults-overload", result, None)}
        assert found["faults-overload.recovered"].met is True
        assert found["faults-overload.fds.growth"].aim == "<= 1.1"
        assert "of 5 times that were aimed at (25.0 requests/s)" in fault_tables.TABLES["faults-overload"](result)
        assert fault_plots.PLOTS["faults-overload"](result).exists()

    async def test_a_soak(self, site, bench, monkeypatch, tmp_path):
        monkeypatch.setattr(endurance, "INTERVAL_S", 0.8)
        monkeypatch.setattr("benchmarks.cluster.fault_run.SETTLE_S", 0.1)
        monkeypatch.setattr("benchmarks.cluster.fault_run._PROBE_EVERY_S", 0.05)
        monkeypatch.setattr("benchmarks.lib.memory_slope.MIN_POINTS", 5)
        monkeypatch.setattr("benchmarks.reporting.plots.IMAGES", tmp_path)
        await bench.prepare()
        bench.per_s = 60.0
        watched = dataclasses.replace(site, find=lambda: {**site.find(), "gateway": [psutil.Process()]}, supervisor=psutil.Process().pid)  # fmt: skip
        bench.site = watched
        rows = [
            await endurance.soak_interval(bench, fault, i, endurance.Sampler(watched, every_s=0.05))
            for i, fault in enumerate(FAULTS)
        ]
        result = {
            "machine": MACHINE, "command": "x",
            **faults.soak_result(rows, [one for row in rows for one in row["samples"]], 0, 0.7, 40.0),
        }  # fmt: skip
        assert (result["faults"], result["lost"], result["intervals"]) == (2, 0, 2)
        assert result["requests"] > 20 and result["memory"]["gateway"]["points"] >= 5
        found = {one.id: one for one in claims.rows("faults-soak", result, None)}
        assert found["faults-soak.all.lost"].met is True and "faults-soak.memory.gateway" in found
        assert "MB/h" in fault_tables.TABLES["faults-soak"](result)
        assert fault_plots.PLOTS["faults-soak"](result).exists()
