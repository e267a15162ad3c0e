"""Goodput by vLLM's own client: what it counts of a gateway and of an engine, and the comparison of both."""

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

import pytest

from benchmarks.lib.sample_catalog import MODEL, make_profile
from benchmarks.lib.vllm_bench import Timed, bench_goodput
from benchmarks.reporting import claim_rows_goodput, plots, routing_plots
from benchmarks.routing.bench_serve import BUDGET, LIMITS_MS, Target, measure, summarise, targets, trace
from tests.support.gateway_server import Started
from tests.support.tiny_model import write_model

REQUESTS = [Timed(0.02 * i, 20 + i, 5) for i in range(6)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tokenizer") / "tiny", layers=1)


@pytest.fixture(scope="module")
def client() -> Iterator[Executor]:
    """A process of its own: vLLM changes the one that imports it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture
def run(client: Executor, tokenizer: Path, tmp_path: Path):
    def run(one: Target, limits: Mapping[str, float]) -> dict[str, float]:
        arguments = one.url, one.model, tokenizer, REQUESTS, limits, tmp_path / "log", one.extra_body, one.headers
        return client.submit(bench_goodput, *arguments).result(300)

    return run


@pytest.mark.slow
def test_answers_within_the_limits_are_good_at_the_gateway_and_at_the_bare_engine(gateway: Started, run):
    for one in targets(gateway.url, MODEL, 1.0, gateway.engines["full"].url):
        row = run(one, {"ttft": 60_000, "tpot": 60_000, "e2el": 60_000})
        assert (row["requests"], row["refused"], row["broken"]) == (6, 0, 0), one.name
        assert row["kept"] == pytest.approx(1) and row["goodput_per_s"] > 0
        assert row["ttft_p50_ms"] > 0 and row["tpot_p95_ms"] > 0
        assert run(one, {"ttft": 0, "tpot": 60_000, "e2el": 60_000})["kept"] == 0, "a late answer is none"
    gateway.finish()
    bodies = gateway.engines["full"].requests
    assert {len(body["prompt"]) for body in bodies} == {one.prompt_tokens for one in REQUESTS}
    assert all(body["ignore_eos"] and body["max_tokens"] == 5 for body in bodies)
    assert len({tuple(body["prompt"]) for body in bodies}) == len(bodies), "no prompt is in a prefix cache"


@pytest.mark.slow
def test_refused_and_broken_requests_are_never_good_nor_sent_again(gateway: Started, run):
    impossible = Target(
        "gearbox", gateway.url, f"{MODEL}@best", {"budget": {"ttft_ms": 1, "on_no_candidate": "reject"}}
    )
    row = run(impossible, LIMITS_MS)
    assert (row["kept"], row["refused"], row["broken"]) == (0, 1, 0) and "ttft_p50_ms" not in row
    gateway.finish()
    assert not any(engine.requests for engine in gateway.engines.values())
    gateway.engines["full"].behaviour = "die before the first token"
    row = run(Target("bare", gateway.engines["full"].url, MODEL), LIMITS_MS)
    assert (row["kept"], row["refused"], row["broken"]) == (0, 0, 1)


def test_both_ways_through_the_gateway_have_the_budget_that_is_counted():
    bare, free, full = targets("gateway", MODEL, 0.98, "engine")
    assert (bare.url, bare.model, bare.extra_body) == ("engine", MODEL, {})
    assert free.extra_body == {"budget": {**BUDGET, "on_no_candidate": "reject"}}
    assert full.extra_body["budget"]["min_quality"] == 0.98
    assert [*LIMITS_MS.items()] == [("ttft", 800), ("tpot", 90), ("e2el", 8000)]
    assert [*BUDGET.values()] == [*LIMITS_MS.values()]


def test_a_run_sends_all_targets_the_same_traces_and_compares_the_rounds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    sent: dict[str, list[Sequence[Timed]]] = {}

    def send(one: Target, requests: Sequence[Timed]) -> Mapping[str, float]:
        sent.setdefault(one.name, []).append(requests)
        share = {"bare": 0.4, "gearbox": 0.9, "gearbox-full": 0.7}[one.name]
        return {"requests": len(requests), "kept": share, "goodput_per_s": share * 2, "refused": 0.1, "broken": 0.0}

    saved: list[tuple[dict, int]] = []
    profile = make_profile([(100, 1, 100)], [(1, 20), (8, 40)])
    compared = targets("gateway", MODEL, 1.0, "engine")
    measure(compared, profile, (0.5, 2.0), 2, 5.0, send, lambda *result: saved.append(result))
    assert [rounds for _, rounds in saved] == [1, 2]
    for traces in sent.values():
        assert traces[1:] == sent["bare"][1:], "after its own warm-up"
    assert len({tuple(requests) for requests in sent["bare"]}) == 5
    result = saved[-1][0]
    assert result["systems"]["gearbox"]["2"]["over_bare"] == {"median": 0.5, "min": 0.5, "max": 0.5, "n": 2}
    assert "over_bare" not in result["systems"]["bare"]["2"]
    monkeypatch.setattr(plots, "IMAGES", tmp_path)
    assert routing_plots.bench_serve(result, "bench-serve").exists()
    figures = {one.id: one for one in claim_rows_goodput.bench_serve(result)}
    share = figures["load-2.gearbox-full.kept"]
    assert (share.measured, share.baseline, share.baseline_measured) == (0.7, "bare", 0.4)
    assert figures["load-2.gearbox-full.over_bare"].measured == pytest.approx(0.3)


def test_a_metric_that_a_round_lacks_is_left_out_of_its_spread():
    row = {"kept": 0.0, "refused": 1.0}
    found = summarise({"bare": {"1": [{**row, "ttft_p50_ms": 5.0}, row]}})
    assert found["systems"]["bare"]["1"]["ttft_p50_ms"]["n"] == 1


def test_traces_have_the_rate():
    assert len(trace(10.0, 100.0, 1)) == pytest.approx(1000, rel=0.15)
