"""Figures and aims of the routing benchmarks: goodput, ablation, recovery, the simulator's error. Pure functions of a result."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.reporting.cells import Result
from benchmarks.reporting.claim_rows import SATURATED, TIMES
from benchmarks.reporting.figures import Figure, Figures, figure

OF_ADMITTED, REFUSAL_MS = 0.95, 50  # aims: share of the admitted requests within budget; p99 until a refusal
OVER_FULL, OVER_ADMISSION = 2, 1.25  # aims from saturation on: ratios of requests within budget
SECONDS = (-1, 0, 1, 2, 3, 5, 10, 15)  # since a jump of the load, of which predictions are stated
ERROR, COVERED = 0.1, "0.93 to 0.98"  # aims of predictions


def goodput(result: Result) -> Iterator[Figure]:
    """Requests within budget of every policy, how `budget` compares, its refusals, fairness and predictions."""
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
    for load, by_time in result.get("recovery", {}).items():
        yield from _after_jump(f"recovery.load-{load}", f"{platform} platform, square, load {load}", by_time)


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
            yield figure(f"{id}.{kind}.of_fair", "routing", f"{of}: {kind} work within budget, over its max-min fair share", value, "times", aim=">= 1")  # fmt: skip
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


def bench_serve(result: Result) -> Iterator[Figure]:
    """Goodput by vLLM's own client, of the gateway and of the bare engine."""
    bare = result["systems"]["bare"]
    yield figure("load_1", "routing", "vLLM's client: requests that full does by its profile: load 1", result["full_per_s"], "requests/s")  # fmt: skip
    for system, by_load in result["systems"].items():
        for load, row in by_load.items():
            id, of = f"load-{load}.{system}", f"vLLM's client, load {load}, {system}"
            for metric, words, unit in (("kept", "requests within the limits", "share"), ("goodput_per_s", "goodput", "requests/s")):  # fmt: skip
                base = None if system == "bare" else ("bare", bare[load][metric])
                yield figure(f"{id}.{metric}", "routing", f"{of}: {words}", row[metric], unit, against=base)
            yield figure(f"{id}.refused", "routing", f"{of}: requests refused", row["refused"], "share")
            yield figure(f"{id}.broken", "routing", f"{of}: requests that failed otherwise", row["broken"], "share", aim="== 0")  # fmt: skip
            if "over_bare" in row:
                yield figure(f"{id}.over_bare", "routing", f"{of}: requests within the limits, less the bare engine's of the same trace", row["over_bare"], "share")  # fmt: skip


def ablation(result: Result) -> Iterator[Figure]:
    """What each part of the router adds, in the simulator."""
    metrics = {"attainment": ("kept", "requests within budget"), "worst_kind": ("worst_kind", "requests within budget, of the kind with the lowest share")}  # fmt: skip
    for load, row in result["routers"]["whole router"].items():
        for metric, (id, words) in metrics.items():
            yield figure(f"whole.load-{load}.{id}", "routing", f"simulated, load {load}, whole router: {words}", row[metric], "share")  # fmt: skip
    for part, by_load in result["gain"].items():
        for load, row in by_load.items():
            of = f"simulated, load {load}, whole router less the router without '{part}'"
            for metric, (id, words) in metrics.items():
                yield figure(f"{part}.load-{load}.{id}", "routing", f"{of}: {words}", row[metric], "points", scale=100)


def recovery(result: Result) -> Iterator[Figure]:
    """Predictions after a jump of the load, in the simulator."""
    of = f"simulated, load {result['low']:g} to {result['high']:g}"
    yield from _after_jump("simulated", of, result["simulated"])


def _after_jump(id: str, of: str, by_time: Mapping[str, Any]) -> Iterator[Figure]:
    for time, after_jump in by_time.items():
        after = [row for row in after_jump["seconds"] if row["second"] >= 0]
        words = f"{of}: predicted {time.upper()}"
        if after:
            lowest = min(row["covered"] for row in after)
            yield figure(f"{id}.{time}.lowest", "routing", f"{words}: lowest share within its 95% bound in a second after the jump", lowest, "share")  # fmt: skip
        for row in after_jump["seconds"]:
            if row["second"] in SECONDS:
                at, moment = f"{id}.{time}.{row['second']}s", f"{words}, {row['second']} s after the jump"
                yield figure(f"{at}.covered", "routing", f"{moment}: share within its 95% bound", row["covered"], "share")  # fmt: skip
                yield figure(f"{at}.error", "routing", f"{moment}: median error", row["error"], "share")
        if after_jump["back_s"] is not None:
            yield figure(f"{id}.{time}.back", "routing", f"{words}: after the jump until 93 to 98% are within its bound", after_jump["back_s"], "s")  # fmt: skip


def simulator_error(result: Result) -> Iterator[Figure]:
    """The simulator against the live platform."""
    words = {"attainment": "requests within budget", "late": "requests answered late", "refused": "requests refused", "ttft_p50_ms": "median TTFT", "tpot_p50_ms": "median TPOT"}  # fmt: skip
    for shape, by_load in result["errors"].items():
        for load, by_policy in by_load.items():
            for policy, row in by_policy.items():
                for metric, compared in row.items():
                    id, of = f"{shape}.load-{load}.{policy}.{metric}", f"{shape}, load {load}, {policy}: {words[metric]}"  # fmt: skip
                    if metric.endswith("_ms"):
                        yield figure(f"{id}.error", "routing", f"simulator over live less one, {of}", compared["error"], "share")  # fmt: skip
                    else:
                        yield figure(f"{id}.error", "routing", f"simulator less live, {of}", compared["error"], "points", scale=100)  # fmt: skip
                    unit = "ms" if metric.endswith("_ms") else "share"
                    yield figure(id, "routing", f"simulated, {of}", compared["simulated"], unit, against=("live", compared["live"]))  # fmt: skip


#: Function that extracts the figures of a result, by the result's name.
FIGURES: Mapping[str, Figures] = {
    "goodput-default": goodput,
    "goodput-split": goodput,
    "bench-serve": bench_serve,
    "ablation": ablation,
    "ablation-drift": ablation,
    "recovery": recovery,
    "simulator-error": simulator_error,
}
