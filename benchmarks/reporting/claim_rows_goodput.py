"""Figures and aims of the live routing benchmark. Pure functions of a result as it was saved."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.reporting.cells import Result
from benchmarks.reporting.claim_rows import SATURATED, TIMES
from benchmarks.reporting.figures import Figure, Figures, figure

OF_ADMITTED, REFUSAL_MS = 0.95, 50  # aims: share kept of the requests admitted; p99 until a refusal
OVER_FULL, OVER_ADMISSION = 2, 1.25  # aims from saturation on: ratios of kept budgets
ERROR, COVERED = 0.1, "0.93 to 0.98"  # aims of predictions


def goodput(result: Result) -> Iterator[Figure]:
    """Kept budgets of every policy, how `budget` compares, its refusals, fairness and predictions."""
    platform = result["platform"]
    yield figure("load_1", "routing", f"{platform} platform: requests that full does by its profile: load 1", result["full_per_s"], "requests/s")  # fmt: skip
    for shape, by_load in result["live"].items():
        for load, by_policy in by_load.items():
            id, of = f"{shape}.load-{load}", f"{platform} platform, {shape}, load {load}"
            simulated = result["simulated"].get(shape, {}).get(load, {})
            for policy, row in by_policy.items():
                base = ("simulator", simulated[policy]["attainment"]) if policy in simulated else None
                yield figure(f"{id}.{policy}.kept", "routing", f"{of}, {policy}: requests within budget", row["attainment"], "share", against=base)  # fmt: skip
                yield figure(f"{id}.{policy}.late", "routing", f"{of}, {policy}: requests answered late", row["late"], "share")  # fmt: skip
                yield figure(f"{id}.{policy}.quality", "routing", f"{of}, {policy}: mean quality of answers", row["quality"])  # fmt: skip
            if "budget" in by_policy:
                yield from _ours(id, f"{of}, policy budget", by_policy["budget"])
                yield from _compared(id, f"{of}, policy budget", float(load), result["compared"][shape][load])


def _ours(id: str, of: str, row: Mapping[str, Any]) -> Iterator[Figure]:
    yield figure(f"{id}.refused", "routing", f"{of}: requests refused", row["refused"], "share")
    yield figure(f"{id}.delivered", "routing", f"{of}: quality of answers within budget, over all requests", row["delivered"])  # fmt: skip
    if "kept_of_admitted" in row:
        yield figure(f"{id}.kept_of_admitted", "routing", f"{of}: of the requests admitted, within budget", row["kept_of_admitted"], "share", aim=f">= {OF_ADMITTED}")  # fmt: skip
    if "refusal_p99_ms" in row:
        yield figure(f"{id}.refusal_p99", "routing", f"{of}: p99 until a refusal", row["refusal_p99_ms"], "ms", aim=f"< {REFUSAL_MS}")  # fmt: skip
    for key, value in row.items():
        if key.endswith(".of_fair"):
            kind = key.partition(".")[0]
            yield figure(f"{id}.{kind}.of_fair", "routing", f"{of}: {kind} work kept, over its max-min fair share", value, "times", aim=">= 1")  # fmt: skip
    for time, words in TIMES.items():
        if f"{time}_error" in row:
            aim = f"<= {ERROR}" if time != "e2e_ms" and float(id.rpartition("load-")[2]) <= SATURATED else None
            yield figure(f"{id}.{time}_error", "routing", f"{of}: {words} predicted, median error", row[f"{time}_error"], "share", aim=aim)  # fmt: skip
            yield figure(f"{id}.{time}_covered", "routing", f"{of}: {words} within its predicted 95% bound", row[f"{time}_covered"], "share", aim=COVERED)  # fmt: skip
    if "e2e_known_length_error" in row:
        yield figure(f"{id}.e2e_known_length_error", "routing", f"{of}: E2E predicted for the true length, median error", row["e2e_known_length_error"], "share")  # fmt: skip


def _compared(id: str, of: str, load: float, row: Mapping[str, Any]) -> Iterator[Figure]:
    if over := row.get("over_best"):
        words = f"{of}: requests within budget, less the best baseline's of the same round ({row['best']})"
        yield figure(f"{id}.over_best", "routing", words, over, "share")
        yield figure(f"{id}.over_best_high", "routing", f"{words}, best round", over["max"], "share", aim=">= 0")
    for name, limit in (("full", OVER_FULL), ("admission", OVER_ADMISSION)):
        if (over := row.get(f"over_{name}")) and load >= SATURATED:
            yield figure(f"{id}.over_{name}", "routing", f"{of}: requests within budget, over {name}'s of the same round", over, "times", aim=f">= {limit:g}")  # fmt: skip
    if scheduling := row.get("scheduling"):
        yield figure(f"{id}.scheduling", "routing", f"{of} with full alone: requests within budget, less plain full's", scheduling, "share")  # fmt: skip
    if shifting := row.get("shifting"):
        yield figure(f"{id}.shifting", "routing", f"{of}: requests within budget, less those with full alone", shifting, "share")  # fmt: skip


#: Function that extracts the figures of a result, by the result's name.
FIGURES: Mapping[str, Figures] = {"goodput-default": goodput, "goodput-split": goodput}
