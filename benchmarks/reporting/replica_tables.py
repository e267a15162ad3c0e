"""Table and figures of the choice of a replica: TTFT, cache hits and balance by number of replicas and load."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.reporting.cells import Result, machine_line, table
from benchmarks.reporting.figures import Figure, figure

OURS = "prefix+load"
METRICS = {
    "ttft_p50_ms": ("TTFT p50", "ms"),
    "ttft_p95_ms": ("TTFT p95", "ms"),
    "hit_share": ("share of the prompts' tokens found in a prefix cache", "share"),
    "busiest": ("work of the busiest replica, over the mean", "times"),
}
MOST_BUSY, LEAST_GAIN = 1.1, 1.2


def replicas(result: Result) -> str:
    """Every choice by number of replicas and load, then several gateways."""
    loads = list(next(iter(result["simulated"].values())))
    rows = [
        [count, choice, *(_cell(by_load[load][choice]) for load in loads)]
        for count, by_load in result["simulated"].items()
        for choice in by_load[loads[0]]
    ]
    several = result["several"]
    head = f"{several['gateways']} gateways, {several['replicas']} replicas, load {several['load']}"
    others = [[choice, _cell(row)] for choice, row in several["choices"].items()]
    note = (
        "TTFT p50 / p95, ms / share of the prompts' tokens found in a prefix cache / work of the busiest replica over the mean; "
        f"medians of {len(result['seeds'])} seeds of {result['seconds']:.0f} s after {result['warmup_s']:.0f} s. Load 1 is "
        f"{result['chats_per_s_at_1']:.3f} new chats a second for each replica: what it sustains if nothing is read twice."
    )
    main = table(["replicas", "choice", *(f"load {load}" for load in loads)], rows)
    return f"{main}\n\n{note}\n\n{table(['choice', head], others)}\n\n{machine_line(result)}"


def _cell(row: Mapping[str, Any]) -> str:
    p50, p95, hits, busiest = (row[metric]["median"] for metric in METRICS)
    return f"{p50:.0f} / {p95:.0f} / {hits:.0%} / {busiest:.2f}"


def figures(result: Result) -> Iterator[Figure]:
    """Figures of every cell, and the gain over the baselines in the same seeds."""
    for count, by_load in result["simulated"].items():
        for load, by_choice in by_load.items():
            id, of = f"{count}.load-{load}", f"simulated chats, {count} replicas, load {load}"
            for choice, row in by_choice.items():
                yield from _row(f"{id}.{choice}", f"{of}, {choice}", row, choice == OURS)
            ours = by_choice[OURS]
            yield figure(f"{id}.ttft_error", "routing", f"{of}: median error of predicted TTFT", ours["ttft_error"], "share")  # fmt: skip
            for baseline, gains in result["gains"][count][load].items():
                for metric, gain in gains.items():
                    aim = f">= {LEAST_GAIN}" if baseline == "power-of-two" else None
                    yield figure(f"{id}.{metric}_gain_over_{baseline}", "routing", f"{of}: {METRICS[metric][0]} of {baseline} over that of {OURS}", gain, "times", aim=aim)  # fmt: skip
    several = result["several"]
    of = f"simulated chats, {several['gateways']} gateways, {several['replicas']} replicas, load {several['load']}"
    for choice, row in several["choices"].items():
        yield from _row(f"gateways.{choice}", f"{of}, {choice}", row, choice == OURS)


def _row(id: str, of: str, row: Result, ours: bool) -> Iterator[Figure]:
    for metric, (words, unit) in METRICS.items():
        aim = f"<= {MOST_BUSY}" if ours and metric == "busiest" else None
        yield figure(f"{id}.{metric}", "routing", f"{of}: {words}", row[metric], unit, aim=aim)


def live_figures(result: Result) -> Iterator[Figure]:
    """The same at running engines."""
    for choice, row in result["live"].items():
        of = f"chats at {result['replicas']} running engines, load {result['load']:g}, {choice}"
        yield from _row(choice, of, row, choice == OURS)
