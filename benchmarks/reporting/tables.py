"""Tables of README and docs, generated from the results: `python -m benchmarks.reporting.tables` writes them in place.

A page marks the place with `<!-- table:NAME -->` and `<!-- /table:NAME -->`. A test compares the pages with the results.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.reporting import (
    claims,
    fault_tables,
    goodput_tables,
    grounding_tables,
    replica_tables,
    telemetry_tables,
)
from benchmarks.reporting.cells import Result, machine_line, median_range, policy_cell, table
from benchmarks.reporting.plots import SYSTEM_NAMES
from benchmarks.reporting.results import load
from benchmarks.reporting.variant_group import group
from compression.report.page import quality_ci95

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
TIMES = ("ttft_ms", "tpot_ms", "e2e_ms")  # predicted times


def variants(result: Result) -> str:
    """Quality, speed and cost of each variant, for the README."""
    rows = []
    for name, row in result["variants"].items():
        ratios = row["ratios"]
        rows.append(
            [
                f"`{name}`",
                f"{row['bytes'] / 1e6:.0f}",
                f"{row['resident_bytes'] / 1e9:.2f}",
                f"{row['quality']:.3f}",
                f"{row['perplexity']:.2f}",
                f"{row['kl_to_full']:.3f}",
                f"{row['top1_agreement']:.3f}",
                f"{row['decode_1']['median']:.0f} ({ratios['decode_1']:.2f}x)",
                f"{row['decode_32']['median']:.0f} ({ratios['decode_32']:.2f}x)",
                f"{row['prefill']['median']:.0f} ({ratios['prefill']:.2f}x)",
            ]
        )
    head = ["variant", "MB", "GB resident", "quality", "perplexity", "KL to full", "top-1", "tok/s, one stream"]
    return table([*head, "tok/s, 32 streams", "prefill tok/s"], rows) + "\n\n" + machine_line(result)


def variants_details(result: Result) -> str:
    """Quality and speed of each variant, with intervals, spread and cost."""
    rows = []
    for name, row in result["variants"].items():
        low, high = row["kl_ci95"]
        usd = row["usd_per_million"]
        rows.append(
            [
                f"`{name}`",
                row["technique"],
                f"{row['parameters'] / 1e6:.0f} M",
                f"{row['kl_to_full']:.4f} [{low:.4f}, {high:.4f}]",
                *(median_range(row[speed], 0) for speed in ("decode_1", "decode_32", "prefill")),
                f"{usd['input']:.4f} / {usd['output']:.4f}",
            ]
        )
    head = [
        "variant",
        "technique",
        "parameters",
        "KL to full [95%]",
        "tok/s, one stream",
        "tok/s, 32 streams",
        "prefill tok/s",
    ]
    note = (
        f"Quality on {result['quality_set']}. Speeds are medians [smallest, largest] of {result['size']['repeats']} repeats "
        "through the gateway, one variant at a time while all are loaded."
    )
    return table([*head, "USD per million tokens in / out"], rows) + f"\n\n{note}\n{machine_line(result)}"


def overhead(engine: Result) -> str:
    """Throughput and TTFT relative to the bare server, for the README."""
    streams = [str(point["streams"]) for point in engine["shape"]]
    rows = []
    for name, points in engine["systems"].items():
        cells = [f"{points[at]['tokens_per_s']['median']:.0f} ({points[at]['ratio']['median']:.2f}x)" for at in streams]
        cells += ["" if name == "bare" else f"{points[at]['added_ttft_ms']['median']:+.1f}" for at in streams]
        rows.append([_name(name), *cells])
    head = ["streams at once:", *(f"tok/s, {at}" for at in streams), *(f"added TTFT ms, {at}" for at in streams)]
    return f"{table(head, rows)}\n\n{_aims('overhead-engine', engine)}"


def _aims(name: str, result: Result) -> str:
    """The aims of a result, missed ones first."""
    rows = [claim for claim in claims.ordered(claims.rows(name, result, None)) if claim.aim]
    parts = []
    for heading, met in (("Missed aims", False), ("Met aims", True)):
        if aims := [f"{claim.claim} {claim.aim} {claim.unit}" for claim in rows if claim.met is met]:
            parts.append(f"{heading}: {'; '.join(aims)}.")
    return " ".join(parts)


def overhead_instant(instant: Result) -> str:
    """Requests per second and CPU time per request and token with a mock engine."""
    rows = []
    for name, system in instant["systems"].items():
        points = system["points"]
        rows.append(
            [
                _name(name),
                f"{points['unary-32']['per_s']['median']:.0f}",
                f"{points['unary-32']['p50_ms']['median']:.1f}",
                median_range(points["unary-32"]["on_the_way_us"], 0),
                median_range(points["scatter"]["on_the_way_us"], 0),
                median_range(points["step"]["on_the_way_us"], 0),
                median_range(points["saturated"]["on_the_way_us"], 0),
            ]
        )
    head = [
        "",
        "requests/s",
        "p50 ms",
        "µs CPU a unary request",
        "µs CPU a streamed token",
        "all streams in step",
        "at full speed",
    ]
    return table(head, rows)


def overhead_details(engine: Result, instant: Result) -> str:
    """Both parts of the overhead benchmark, with their spread."""
    rows = []
    for name, points in engine["systems"].items():
        for at, point in points.items():
            rows.append(
                [
                    _name(name),
                    at,
                    median_range(point["ttft_p50_ms"], 0),
                    median_range(point["added_ttft_ms"], 1),
                    median_range(point["tpot_p50_ms"], 1),
                    median_range(point["tokens_per_s"], 0),
                    median_range(point["ratio"], 3),
                ]
            )
    head = ["", "streams", "TTFT p50 ms", "added ms", "TPOT p50 ms", "tok/s", "ratio to bare"]
    shape = engine["shape"][-1]
    one = (
        f"The same `full` engine bare, in Ray Serve LLM's own app, and in Gearbox, one at a time, {engine['rounds']} rounds, "
        f"loaded by vLLM's own `bench serve` ({shape['prompt_words']} words in, {shape['output_tokens']} tokens out); "
        f"medians [smallest, largest] over the rounds.\n\n{table(head, rows)}\n{machine_line(engine)}"
    )
    two = (
        "A mock engine that answers at once, 32 connections: requests per second, and the CPU of every process on the path "
        "(the bare engine's own included). A streamed token is one of 32 streams with one token each 50 ms, each in a "
        f"phase of its own.\n\n{overhead_instant(instant)}\n{machine_line(instant)}"
    )
    notes = "".join(f"\n{note}" for note in instant["notes"])
    return f"{one}\n\n{two}{notes}"


def distillation(result: Result) -> str:
    """The same student after the same training with each loss, and the improvement over hard labels."""
    before = result["before"]
    digits = {"kl_to_full": 3, "top1_agreement": 3, "perplexity": 2}
    rows = [["before training", *(f"{before[metric]:.{digit}f}" for metric, digit in digits.items()), "", ""]]
    for row in result["settings"].values():
        over = row.get("over_hard", {}).get("kl_to_full")
        cells = [median_range(row[metric], digit) for metric, digit in digits.items()]
        rows.append(
            [row["label"], *cells, median_range(over, 3) if over else "", f"{row['tokens_per_s']['median']:.0f}"]
        )
    size = result["size"]
    budget = " or ".join(f"{size[unit]:,} {unit}" for unit in ("tokens", "minutes") if size[unit])
    note = (
        f"A student of {size['layers']} of {result['teacher']['layers']} layers, {budget} of training, "
        f"{len(size['seeds'])} seeds (the order of the text): medians [smallest, largest]; differences are between runs with "
        f"the same seed. Measured with {result['measured_with']}, on {result['quality_set']}."
    )
    head = ["", "KL to full", "top-1", "perplexity", "KL against hard labels", "tokens/s"]
    return f"{table(head, rows)}\n\n{note}\n{machine_line(result)}"


def compression(result: Result) -> str:
    """Every technique compared with `full`: quality, speed and size."""
    cards = result["variants"]
    full = cards["full"]["profile"]
    shown = group(dict(result))
    front = {row.label for row, by in zip(shown.rows, shown.dominators(shown.axes), strict=True) if by is None}
    rows = []
    for row in shown.rows:
        quality, profile = row.quality, row.profile
        low, high = quality_ci95(quality) or (quality.quality,) * 2
        ratios = (
            full["tpot"][0]["p50_ms"] / profile.tpot[0].p50_ms,
            profile.decode_tokens_per_s / full["decode_tokens_per_s"],
            profile.prefill_tokens_per_s / full["prefill_tokens_per_s"],
        )
        rows.append(
            [
                f"`{row.label}`",
                _technique(cards[row.label]["steps"]),
                f"{row.card.bytes_on_disk / 1e6:.0f}",
                f"{quality.quality:.3f} [{low:.3f}, {high:.3f}]",
                f"{quality.perplexity:.2f}",
                f"{quality.kl_to_full:.3f}",
                f"{quality.top1_agreement:.3f}",
                f"{quality.answers.equal_tokens:.2f}" if quality.answers else "",
                f"{quality.drift.mean_abs:.4f}" if quality.drift else "",
                *(f"{ratio:.2f}" for ratio in ratios),
                "yes" if row.label in front else "",
            ]
        )
    head = ["variant", "made by", "MB", "quality [95%]", "perplexity", "KL", "top-1", "answers", "drift"]
    rows_shown = table([*head, "one stream", f"{full['tpot'][-1]['concurrency']} streams", "prefill", "front"], rows)
    failed = "".join(f"\n`{name}` cannot be served here: {reason}." for name, reason in result["failed"].items())
    note = (
        f"The last columns but one are speeds over full's. Quality on {cards['full']['quality']['set']}. answers: share of a greedy answer's "
        "tokens before the first that is not full's; drift: mean nats from the same weights in float32; front: no other "
        f"variant is at least as good in quality, {', '.join(axis.name for axis in shown.axes)}."
    )
    return f"{rows_shown}\n\n{note}{failed}\n{machine_line(result)}"


def compression_large(result: Result) -> str:
    """Speed of each technique on a larger model."""
    full = result["variants"]["full"]
    rows = []
    for name, row in result["variants"].items():
        speeds = zip(_speeds(row["profile"]), _speeds(full["profile"]), strict=True)
        cells = [f"{speed:.1f} ({speed / one:.2f}x)" for speed, one in speeds]
        resident = f"{row['profile']['resident_bytes'] / 1e9:.1f}"
        rows.append([f"`{name}`", _technique(row["steps"]) or "none", f"{row['bytes'] / 1e6:.0f}", resident, *cells])
    streams = full["profile"]["tpot"][-1]["concurrency"]
    head = [
        "variant",
        "made by",
        "MB",
        "GB resident",
        "tok/s, one stream",
        f"tok/s, {streams} streams",
        "prefill tok/s",
    ]
    note = f"A Llama of {full['parameters'] / 1e6:.0f} million random weights: speed only."
    return f"{table(head, rows)}\n\n{note}\n{machine_line(result)}"


def predictions(live: Result, simulated: Result) -> str:
    """Prediction error and coverage of the default policy; in the simulator, compared with an oracle."""
    rows = []
    for where, by_load in (
        *((f"live, {shape}", by_load) for shape, by_load in live["live"].items()),
        ("simulated", simulated["poisson"]),
        ("simulated, bursty", simulated["bursty"]),
    ):
        for at, by_label in by_load.items():
            routed, oracle = by_label["budget"], by_label.get("oracle")
            cells = [
                f"{routed[f'{what}_error']['median']:.0%} ({routed[f'{what}_covered']['median']:.0%})" for what in TIMES
            ]
            known = f"{routed['e2e_known_length_error']['median']:.0%}"
            errors_of_oracle = (
                " / ".join(f"{oracle[f'{what}_error']['median']:.0%}" for what in TIMES) if oracle else ""
            )
            rows.append([f"{where}, load {at}", *cells, known, errors_of_oracle])
    note = (
        "Median absolute error of the predicted median, and in brackets the share of answers within the predicted 95% bound. "
        "The oracle knows the answer's length and all that is in the engines, and expects nothing to come after: its error in TPOT "
        "is what comes later, of which the predictions have learnt the usual share."
    )
    return f"{table(['', 'TTFT', 'TPOT', 'E2E', 'E2E were the length known', 'oracle: TTFT / TPOT / E2E'], rows)}\n\n{note}"


def simulate(result: Result) -> str:
    """Every policy in the simulator over the load."""
    loads = list(result["bursty"])
    rows = []
    for label in next(iter(result["bursty"].values())):
        rows.append([label, *(policy_cell(result["bursty"][load][label]) for load in loads)])
    scale = result["scale"]
    note = (
        f"Within budget / answered late / mean quality of answers; {len(result['gears'])} machines, one variant each or `everywhere` "
        f"the same; load 1 is what `full` everywhere sustains, {result['requests_per_s_at_1']:.1f} requests a second; medians of "
        f"{len(result['seeds'])} seeds of {result['seconds']:.0f} s. The oracle sees the engines and knows lengths, and leaves the "
        f"margin that is best at each load. {scale['requests']:,} requests to {scale['replicas']:,} replicas take "
        f"{scale['seconds']:.0f} s of CPU to simulate."
    )
    return f"{table(['', *(f'load {load}' for load in loads)], rows)}\n\n{note}\n{machine_line(result)}"


def decision(result: Result) -> str:
    """Time per routing decision by the number of variants."""
    rows = [
        [count, *(median_range(row[metric], 1) for metric in ("decide_us", "nothing_fits_us", "observe_us"))]
        for count, row in result["variants"].items()
    ]
    parts = ", ".join(f"`{name}` {share:.0%}" for name, share in result["shares"].items())
    return f"{table(['variants', 'decision, µs', 'when nothing fits, µs', 'learning from an answer, µs'], rows)}\n\nWhere it goes: {parts}.\n\n{_aims('decision', result)}\n{machine_line(result)}"


def _speeds(profile: Mapping[str, Any]) -> tuple[float, float, float]:
    """Tokens per second: decode of one stream, decode of all streams together, and prefill."""
    return 1000 / profile["tpot"][0]["p50_ms"], profile["decode_tokens_per_s"], profile["prefill_tokens_per_s"]


def _technique(steps: Sequence[Mapping[str, Any]]) -> str:
    """Compression steps with the settings that distinguish them."""
    names = []
    for step in steps:
        settings = [
            step["parameters"].get(key) for key in ("scheme", "method", "pattern", "layers", "mlp_width", "dtype")
        ]
        smooth = "SmoothQuant" if step["parameters"].get("smoothquant") is not None else None
        names.append(" ".join(str(part) for part in (step["technique"], *settings, smooth) if part is not None))
    return " → ".join(names)


def upgrades(result: Result) -> str:
    """Failed and slow requests during each change of a running cluster."""
    rows = []
    for step in result["steps"]:
        kinds = step["kinds"].values()
        longest = [f"{kind['median_s']:.1f} / {kind['longest_s']:.1f}" for kind in kinds]
        sent, failed = (sum(kind[metric] for kind in kinds) for metric in ("requests", "failed"))
        rows.append([step["step"], f"{step['seconds']:.0f}", str(sent), str(failed), *longest])
    clients = [f"{client['name']} ({client['tokens']} tokens), s" for client in result["clients"]]
    note = (
        f"{result['requests']} requests, {len(result['failed'])} failed. Times of a request: median / longest; one that lasts "
        "over the end of a step counts in both."
    )
    return table(["change", "took, s", "requests", "failed", *clients], rows) + f"\n\n{note}\n\n{machine_line(result)}"


TABLES: Mapping[str, tuple[Callable[..., str], tuple[str, ...]]] = {
    "variants": (variants, ("variants",)),
    "variants-details": (variants_details, ("variants",)),
    "overhead": (overhead, ("overhead-engine",)),
    "observing": (telemetry_tables.observing, ("observing",)),
    "observing-engine": (telemetry_tables.observing_engine, ("observing-engine",)),
    "compression": (compression, ("compression",)),
    "compression-large": (compression_large, ("compression-large",)),
    "distillation": (distillation, ("distillation",)),
    "goodput-default": (goodput_tables.goodput_shapes, ("goodput-default",)),
    "ablation": (goodput_tables.ablation, ("ablation",)),
    "ablation-drift": (goodput_tables.ablation, ("ablation-drift",)),
    "recovery": (goodput_tables.recovery, ("recovery", "goodput-default")),
    "simulator-error": (goodput_tables.simulator_error, ("simulator-error",)),
    "predictions": (predictions, ("goodput-default", "simulate")),
    "simulate": (simulate, ("simulate",)),
    "decision": (decision, ("decision",)),
    "replicas": (replica_tables.replicas, ("replicas",)),
    "upgrades": (upgrades, ("upgrades",)),
    "overhead-details": (overhead_details, ("overhead-engine", "overhead-instant")),
    **grounding_tables.TABLES,
    **{name: (make, (name,)) for name, make in fault_tables.TABLES.items()},
}


def filled(page: str) -> str:
    """The page with every marked table regenerated, but those that were never measured. Raises `KeyError` for an unknown table."""

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        make, results = TABLES[name]
        documents = [load(result) for result in results]
        if None in documents:
            return match[0]
        return f"<!-- table:{name} -->\n{make(*documents)}\n<!-- /table:{name} -->"

    return re.sub(r"<!-- table:(\S+) -->\n(?:.*?\n)?<!-- /table:\1 -->", fill, page, flags=re.DOTALL)


def _name(system: str) -> str:
    return SYSTEM_NAMES[system].replace("\n", " ")


def main() -> None:
    """Write the tables into the pages."""
    for path in PAGES:
        page = path.read_text()
        if (new := filled(page)) != page:
            path.write_text(new)
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
