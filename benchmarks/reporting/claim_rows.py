"""Figures and aims of each result: variants, overhead, routing, upgrades, fuzzing.

Pure functions of a result as its benchmark saved it; `benchmarks.reporting.claims` turns them into rows.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.reporting.cells import Result
from benchmarks.reporting.figures import Figure, Figures, figure

TIMES = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "e2e_ms": "E2E"}
SPEEDS = {"decode_1": "decode, one stream", "decode_32": "decode, 32 streams", "prefill": "prefill"}
STATIC = ("full everywhere", "lora-healed everywhere")  # simulator policies with a fixed variant
SATURATED = 1.0  # load from which `full` cannot keep up


def variants(result: Result) -> Iterator[Figure]:
    """Size, quality, speed and cost of the demo's variants."""
    full = result["variants"]["full"]
    for name, row in result["variants"].items():
        of = f"variant {name}"

        def base(key: str, name: str = name) -> tuple[str, Any] | None:
            return None if name == "full" else ("full", full[key])

        yield figure(f"{name}.bytes", "gears", f"{of}: weights on disk", row["bytes"], "MB", scale=1e-6, against=base("bytes"))  # fmt: skip
        yield figure(f"{name}.resident", "gears", f"{of}: resident memory", row["resident_bytes"], "GB", scale=1e-9, against=base("resident_bytes"))  # fmt: skip
        yield figure(f"{name}.parameters", "gears", f"{of}: parameters", row["parameters"], "million", scale=1e-6)
        low, high = row["kl_ci95"]
        yield _quality(name, of, row["kl_to_full"], low, high)
        yield figure(f"{name}.kl_to_full", "gears", f"{of}: KL to full per token", {"mean": row["kl_to_full"], "ci95": (low, high)}, "nats")  # fmt: skip
        yield figure(f"{name}.perplexity", "gears", f"{of}: perplexity", row["perplexity"], against=base("perplexity"))
        yield figure(f"{name}.top1_agreement", "gears", f"{of}: same most likely token as full", row["top1_agreement"], "share")  # fmt: skip
        for speed, words in SPEEDS.items():
            yield figure(f"{name}.{speed}", "gears", f"{of}: {words}", row[speed], "tokens/s", against=base(speed))
            yield figure(f"{name}.{speed}_ratio", "gears", f"{of}: {words}, over full's", row["ratios"][speed], "times")
        for kind, usd in row["usd_per_million"].items():
            yield figure(f"{name}.usd_{kind}", "economics", f"{of}: cost of {kind} tokens", usd, "USD per million")


def _quality(name: str, of: str, kl: float, low: float, high: float) -> Figure:
    value = {"mean": math.exp(-kl), "ci95": (math.exp(-high), math.exp(-low))}
    return figure(f"{name}.quality", "gears", f"{of}: quality, exp(-KL to full)", value)


def overhead_engine(result: Result) -> Iterator[Figure]:
    """Overhead of Gearbox and Ray Serve LLM over a bare engine."""
    aims = result["aims"]
    for name, points in result["systems"].items():
        for at, point in points.items():
            of, id = f"{name}, streams at once: {at}, real engine", f"{name}.{at}"
            ours = name == "gearbox"
            base = None if name == "bare" else ("bare server", result["systems"]["bare"][at]["tokens_per_s"])
            yield figure(f"{id}.tokens_per_s", "datapath", f"{of}: throughput", point["tokens_per_s"], "tokens/s", against=base)  # fmt: skip
            ratio_aim = f">= {aims['tokens_per_s_ratio_at_32']:g}" if ours and at == "32" else None
            yield figure(f"{id}.ratio", "datapath", f"{of}: throughput over the bare server's", point["ratio"], "times", aim=ratio_aim)  # fmt: skip
            yield figure(f"{id}.ttft", "datapath", f"{of}: TTFT p50", point["ttft_p50_ms"], "ms")
            added_aim = f"< {aims['added_ttft_ms']:g}" if ours else None
            yield figure(f"{id}.added_ttft", "datapath", f"{of}: TTFT p50 added to the bare server's", point["added_ttft_ms"], "ms", aim=added_aim)  # fmt: skip
            yield figure(f"{id}.tpot", "datapath", f"{of}: TPOT p50", point["tpot_p50_ms"], "ms")


INSTANT = {
    "unary-1": ("unary", "a unary request, one connection"),
    "unary-32": ("unary", "a unary request, 32 connections"),
    "scatter": ("token", "a streamed token, 32 streams each in its own phase"),
    "step": ("token", "a streamed token, 32 streams in step"),
    "saturated": ("token", "a streamed token, 32 streams as fast as they go"),
}


def overhead_instant(result: Result) -> Iterator[Figure]:
    """CPU per request and per token with a mock engine."""
    for name, system in result["systems"].items():
        points = system["points"]
        unary = points["unary-32"]
        yield figure(f"{name}.per_s", "datapath", f"{name} on an engine that takes no time: unary requests, 32 connections", unary["per_s"], "requests/s")  # fmt: skip
        yield figure(f"{name}.p50", "datapath", f"{name} on an engine that takes no time: unary p50, 32 connections", unary["p50_ms"], "ms")  # fmt: skip
        for at, (kind, words) in INSTANT.items():
            aim = f"<= {result['aims_us'][kind]:g}" if name == "gearbox" else None
            if at in points:
                yield figure(f"{name}.{at}.cpu", "datapath", f"{name}: CPU of all processes for {words}", points[at]["on_the_way_us"], "µs", aim=aim)  # fmt: skip


def observing(result: Result) -> Iterator[Figure]:
    """Overhead of metrics, log lines and traces."""
    off = result["systems"]["off"]["points"]
    for name, system in result["systems"].items():
        of, points = f"telemetry {name}, engine that takes no time", system["points"]
        yield figure(f"{name}.per_s", "datapath", f"{of}: unary requests", points["unary"]["per_s"], "requests/s", against=("no telemetry", off["unary"]["per_s"]))  # fmt: skip
        yield figure(f"{name}.tokens_per_s", "datapath", f"{of}: tokens", points["saturated"]["per_s"], "tokens/s", against=("no telemetry", off["saturated"]["per_s"]))  # fmt: skip
        yield figure(f"{name}.cpu", "datapath", f"{of}: CPU of a unary request", points["unary"]["whole_us"], "µs", against=("no telemetry", off["unary"]["whole_us"]))  # fmt: skip
        if name not in result["real"]:
            continue
        yield figure(f"{name}.request", "datapath", f"{of}: added CPU of a request", system["request_us"], "µs")
        yield figure(f"{name}.token", "datapath", f"{of}: added CPU of a token", system["token_us"], "µs")
        yield figure(f"{name}.added_ttft", "datapath", f"{of}: added to TTFT", points["first"]["added_p50_ms"], "µs", scale=1000)  # fmt: skip
        yield figure(f"{name}.scrape", "datapath", f"{of}: CPU of a scrape", result["scrapes"][name]["cpu_ms"], "ms")
        for at, real in result["real"][name].items():
            yield figure(f"{name}.{at}.of_request", "datapath", f"telemetry {name}: computed share of a request's time on full, {at} streams", real["time"], "share")  # fmt: skip
        worst = max(max(real["time"], real["cpu"]) for real in result["real"][name].values())
        yield figure(f"{name}.of_request", "datapath", f"telemetry {name}: largest computed share of a request's time or the machine's cores", worst, "share", aim=f"< {result['aim']:g}")  # fmt: skip
    yield figure("traces.arrived", "datapath", "traces that reached the collector", system["traces_arrived"], "share")


def observing_engine(result: Result) -> Iterator[Figure]:
    """Telemetry overhead on the real engine: none against all of it."""
    for name, points in result["systems"].items():
        for at, point in points.items():
            of, id = f"telemetry {name}, real engine, {at} streams", f"{name}.{at}"
            yield figure(f"{id}.ttft", "datapath", f"{of}: TTFT p50", point["ttft_p50_ms"], "ms")
            yield figure(f"{id}.tokens_per_s", "datapath", f"{of}: throughput", point["tokens_per_s"], "tokens/s")
            if name == "off":
                continue
            off = result["systems"]["off"][at]["ttft_p50_ms"]
            yield figure(f"{id}.ratio", "datapath", f"{of}: throughput over none's", point["ratio"], "times", aim=">= 0.99")  # fmt: skip
            yield figure(f"{id}.added_ttft", "datapath", f"{of}: added to TTFT p50", point["added_ttft_ms"], "ms")
            yield figure(f"{id}.added_ttft_share", "datapath", f"{of}: added to TTFT p50, of TTFT without telemetry", point["added_ttft_ms"], "share", scale=1 / off["median"], aim="< 0.01")  # fmt: skip


def compression(result: Result) -> Iterator[Figure]:
    """Every technique on one model."""
    cards = result["variants"]
    full = cards["full"]["profile"]
    one_stream: dict[str, float] = {}
    for name, card in cards.items():
        of, quality, profile = f"technique {name}", card["quality"], card["profile"]
        low, high = quality["kl_ci95"]
        yield _quality(name, of, quality["kl_to_full"], low, high)
        yield figure(f"{name}.bytes", "gears", f"{of}: weights on disk", card["bytes_on_disk"], "MB", scale=1e-6)
        yield figure(f"{name}.perplexity", "gears", f"{of}: perplexity", quality["perplexity"])
        yield figure(f"{name}.kl_to_full", "gears", f"{of}: KL to full per token", quality["kl_to_full"], "nats")
        yield figure(f"{name}.top1_agreement", "gears", f"{of}: same most likely token as full", quality["top1_agreement"], "share")  # fmt: skip
        if answers := quality["answers"]:
            value = {"share": answers["equal_tokens"], "ci95": answers["equal_tokens_ci95"]}
            yield figure(f"{name}.answers", "gears", f"{of}: tokens of a greedy answer before the first that differs from full's", value, "share")  # fmt: skip
        if drift := quality["drift"]:
            yield figure(f"{name}.drift", "gears", f"{of}: mean difference of log-probabilities from float32", drift["mean_abs"], "nats")  # fmt: skip
        one_stream[name] = full["tpot"][0]["p50_ms"] / profile["tpot"][0]["p50_ms"]
        ratios = {
            "one stream": one_stream[name],
            "all streams": profile["decode_tokens_per_s"] / full["decode_tokens_per_s"],
            "prefill": profile["prefill_tokens_per_s"] / full["prefill_tokens_per_s"],
        }
        for speed, ratio in ratios.items():
            yield figure(f"{name}.{speed}", "gears", f"{of}: speed over full's, {speed}", ratio, "times")
    for floor, aim in ((0.97, 1.3), (0.9, 1.5)):
        fit = [name for name, card in cards.items() if card["quality"]["quality"] >= floor]
        best = max(fit, key=lambda name: one_stream[name])
        yield figure(f"fastest_at_{floor}", "gears", f"fastest technique with quality of at least {floor} ({best}): one stream, over full's", one_stream[best], "times", aim=f">= {aim}")  # fmt: skip


def compression_large(result: Result) -> Iterator[Figure]:
    """Speed of a larger model."""
    for name, row in result["variants"].items():
        of, profile = f"822M random weights, {name}", row["profile"]
        full = result["variants"]["full"]["profile"]
        yield figure(f"{name}.bytes", "gears", f"{of}: weights on disk", row["bytes"], "MB", scale=1e-6)
        yield figure(f"{name}.resident", "gears", f"{of}: resident memory", profile["resident_bytes"], "GB", scale=1e-9)
        for id, speeds in _speeds(profile).items():
            yield figure(f"{name}.{id}", "gears", f"{of}: {id}", speeds, "tokens/s", against=("full", _speeds(full)[id]))  # fmt: skip


def _speeds(profile: Mapping[str, Any]) -> dict[str, float]:
    return {
        "decode, one stream": 1000 / profile["tpot"][0]["p50_ms"],
        "decode, all streams": profile["decode_tokens_per_s"],
        "prefill": profile["prefill_tokens_per_s"],
    }


def distillation(result: Result) -> Iterator[Figure]:
    """The same student after the same training with each loss."""
    units = {"kl_to_full": "nats", "top1_agreement": "share", "perplexity": ""}
    for metric, unit in units.items():
        yield figure(f"before.{metric}", "gears", f"student before training: {metric}", result["before"][metric], unit)
    for name, row in result["settings"].items():
        of = f"student trained with {row['label']}"
        for metric, unit in units.items():
            against = ("before training", result["before"][metric])
            yield figure(f"{name}.{metric}", "gears", f"{of}: {metric}", row[metric], unit, against=against)
        if over := row.get("over_hard", {}).get("kl_to_full"):
            yield figure(f"{name}.over_hard", "gears", f"{of}: KL to full, less hard labels' of the same seed", over, "nats")  # fmt: skip
        yield figure(f"{name}.tokens_per_s", "gears", f"{of}: training speed", row["tokens_per_s"], "tokens/s")


def simulate(result: Result) -> Iterator[Figure]:
    """Budget attainment of every policy in the simulator, compared with an oracle."""
    yield figure("load_1", "routing", "simulated: requests that full everywhere sustains: load 1", result["requests_per_s_at_1"], "requests/s")  # fmt: skip
    for load, by_label in result["bursty"].items():
        for label, row in by_label.items():
            of, id = f"simulated, bursty, load {load}, {label}", f"bursty.load-{load}.{label}"
            yield figure(f"{id}.attainment", "routing", f"{of}: requests within budget", row["attainment"], "share")
            yield figure(f"{id}.late", "routing", f"{of}: requests answered late", row["late"], "share")
            yield figure(f"{id}.quality", "routing", f"{of}: mean quality of answers", row["quality"])
        routed, oracle = by_label["budget"], by_label["oracle"]
        id, of = f"bursty.load-{load}", f"simulated, bursty, load {load}, policy budget"
        yield figure(f"{id}.quality_of_oracle", "routing", f"{of}: mean quality, over the oracle's", _median(routed, "quality") / _median(oracle, "quality"), "times", aim=">= 0.97")  # fmt: skip
        for metric, words in (("attainment", "requests within budget"), ("delivered", "quality times share within budget")):  # fmt: skip
            best = max(STATIC, key=lambda label: _median(by_label[label], metric))
            more = _median(routed, metric) - _median(by_label[best], metric)
            yield figure(f"{id}.{metric}_over_static", "routing", f"{of}: {words}, less the best static policy's ({best})", more, "share", aim=">= 0")  # fmt: skip
        if float(load) >= SATURATED:
            yield _violations(id, of, routed, by_label["full everywhere"])
        yield from _predictions(f"{id}.predictions", f"simulated, bursty, load {load}", routed, 0.05)
        for metric, words in TIMES.items():
            yield figure(f"{id}.oracle.{metric}_error", "routing", f"simulated, bursty, load {load}: median error of the oracle's {words}", oracle[f"{metric}_error"], "share")  # fmt: skip
    for load, by_label in result["poisson"].items():
        yield from _predictions(f"poisson.load-{load}.predictions", f"simulated, Poisson, load {load}", by_label["budget"], 0.05)  # fmt: skip
    scale = result["scale"]
    yield figure("scale.seconds", "routing", f"CPU time to simulate {scale['requests']:,} requests to {scale['replicas']:,} replicas", scale["seconds"], "s")  # fmt: skip


def _median(row: Mapping[str, Any], what: str = "attainment") -> float:
    value: float = row[what]["median"]
    return value


def _violations(id: str, of: str, routed: Result, full: Result) -> Figure:
    """Requests late or rejected; the router's aim at saturation and above."""
    missed = 1 - _median(routed)
    times = (1 - _median(full)) / missed if missed else math.inf
    return figure(f"{id}.fewer_violations", "routing", f"{of}: budgets missed (late or refused), how many times fewer than full's", min(times, 1e6), "times", aim=">= 5")  # fmt: skip


def _predictions(id: str, of: str, row: Result, error: float) -> Iterator[Figure]:
    """Prediction error and coverage of the default policy."""
    for time, words in TIMES.items():
        yield figure(f"{id}.{time}_error", "routing", f"{of}: median error of predicted {words}", row[f"{time}_error"], "share", aim=f"<= {error}")  # fmt: skip
        yield figure(f"{id}.{time}_covered", "routing", f"{of}: {words} within its predicted 95% bound", row[f"{time}_covered"], "share", aim="0.93 to 0.98")  # fmt: skip
    yield figure(f"{id}.known_length_error", "routing", f"{of}: median error of predicted E2E, were the length known", row["e2e_known_length_error"], "share")  # fmt: skip


def decision(result: Result) -> Iterator[Figure]:
    """Time per routing decision."""
    words = {"decide_us": "a decision", "nothing_fits_us": "a decision when nothing fits", "observe_us": "learning from an answer"}  # fmt: skip
    for count, row in result["variants"].items():
        for case, of in words.items():
            aim = f"< {result['aims_us'][count]:g}" if case == "decide_us" and count in result["aims_us"] else None
            yield figure(f"{count}.{case}", "routing", f"{of} with {count} variants", row[case], "µs", aim=aim)
    for name, share in result["shares"].items():
        yield figure(f"share.{name}", "routing", f"share of a decision's time in {name}", share, "share")


def upgrades(result: Result) -> Iterator[Figure]:
    """Failed and slow requests during changes of a running cluster."""
    yield figure("requests", "resilience", "requests during all changes of a cluster", result["requests"])
    yield figure("failed", "resilience", "requests that failed during all changes of a cluster", len(result["failed"]), aim="== 0")  # fmt: skip
    for step in result["steps"]:
        id, of = step["step"], f"change '{step['step']}'"
        kinds = step["kinds"]
        yield figure(f"{id}.seconds", "resilience", f"{of}: took", step["seconds"], "s")
        for metric in ("requests", "failed"):
            yield figure(
                f"{id}.{metric}", "resilience", f"{of}: {metric}", sum(kind[metric] for kind in kinds.values())
            )
        for name, kind in kinds.items():
            yield figure(f"{id}.{name}.median", "resilience", f"{of}: median time of a request, {name}", kind["median_s"], "s")  # fmt: skip
            yield figure(f"{id}.{name}.longest", "resilience", f"{of}: longest time of a request, {name}", kind["longest_s"], "s")  # fmt: skip


def fuzz_api(result: Result) -> Iterator[Figure]:
    """Failures found by fuzzing the API from its description."""
    yield figure("requests", "contract", "generated requests", result["requests"], aim=">= 100000")
    yield figure("server_errors", "contract", "generated requests answered 5xx", result["server_errors"], aim="== 0")
    yield figure("failures", "contract", "kinds of failed checks of generated requests", len(result["failures"]), aim="== 0")  # fmt: skip
    if growth := result["memory"]["growth"]:
        low, high = growth["ci95"]
        value = {"mean": growth["mb_per_100k"], "ci95": (low, high)}
        yield figure("memory_growth", "contract", "growth of the gateway's memory in 100,000 requests", value, "MB")
        yield figure("memory_growth_low", "contract", "growth of the gateway's memory in 100,000 requests, lower end of its 95% interval", low, "MB", aim="< 1")  # fmt: skip


def startup(result: Result) -> Iterator[Figure]:
    """Start-up time of `gearbox up`."""
    for kind, words in (("built", "nothing in the cache"), ("cached", "variants in the cache")):
        of, row = f"gearbox up with {words}, {result['variants']} variants", result[kind]
        yield figure(f"{kind}.first_answer", "gears", f"{of}: until it can answer", row["first_answer_s"], "s")
        aim = f"<= {result['aims_s'][kind]:g}"
        yield figure(f"{kind}.all_ready", "gears", f"{of}: until all are ready", row["all_ready_s"], "s", aim=aim)


#: Function that extracts the figures of a result, by the result's name.
FIGURES: Mapping[str, Figures] = {
    "variants": variants,
    "overhead-engine": overhead_engine,
    "overhead-instant": overhead_instant,
    "observing": observing,
    "observing-engine": observing_engine,
    "compression": compression,
    "compression-large": compression_large,
    "distillation": distillation,
    "simulate": simulate,
    "decision": decision,
    "upgrades": upgrades,
    "fuzz-api": fuzz_api,
    "startup": startup,
}
