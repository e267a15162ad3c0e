"""The tables of README and docs, made from the results: `python -m benchmarks.tables` writes them in place.

A page marks the place with `<!-- table:NAME -->` and `<!-- /table:NAME -->`. A test holds the pages against the results.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.compression import group
from benchmarks.plots import SYSTEM_NAMES
from benchmarks.report import load
from compression.report import quality_ci95

ROOT = Path(__file__).parent.parent
PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("performance", "compression", "quality", "routing", "grounding")),
)
Result = Mapping[str, Any]
TIMES = ("ttft_ms", "tpot_ms", "e2e_ms")  # what is predicted


def variants(result: Result) -> str:
    """What each variant costs and gives, for the README."""
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
    return _table([*head, "tok/s, 32 streams", "prefill tok/s"], rows) + "\n\n" + _machine(result)


def variants_details(result: Result) -> str:
    """The same with intervals, spread and cost."""
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
                *(_range(row[speed], 0) for speed in ("decode_1", "decode_32", "prefill")),
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
    return _table([*head, "USD per million tokens in / out"], rows) + f"\n\n{note}\n{_machine(result)}"


def overhead(engine: Result) -> str:
    """Throughput and first-token time beside the bare server's, for the README."""
    streams = [str(point["streams"]) for point in engine["shape"]]
    rows = []
    for name, points in engine["systems"].items():
        cells = [f"{points[at]['tokens_per_s']['median']:.0f} ({points[at]['ratio']['median']:.2f}x)" for at in streams]
        cells += ["" if name == "bare" else f"{points[at]['added_ttft_ms']['median']:+.1f}" for at in streams]
        rows.append([_name(name), *cells])
    head = ["streams at once:", *(f"tok/s, {at}" for at in streams), *(f"added TTFT ms, {at}" for at in streams)]
    return _table(head, rows)


def overhead_instant(instant: Result) -> str:
    """Requests per second and CPU time per request and token with an engine that takes no time."""
    rows = []
    for name, system in instant["systems"].items():
        points = system["points"]
        rows.append(
            [
                _name(name),
                f"{points['unary-32']['per_s']['median']:.0f}",
                f"{points['unary-32']['p50_ms']['median']:.1f}",
                _range(points["unary-32"]["on_the_way_us"], 0),
                _range(points["scatter"]["on_the_way_us"], 0),
                _range(points["step"]["on_the_way_us"], 0),
                _range(points["saturated"]["on_the_way_us"], 0),
            ]
        )
    head = [
        "",
        "requests/s",
        "p50 ms",
        "µs CPU a unary request",
        "µs CPU a streamed token",
        "all streams in step",
        "as fast as it goes",
    ]
    return _table(head, rows)


def overhead_details(engine: Result, instant: Result) -> str:
    """Both parts with their spread."""
    rows = []
    for name, points in engine["systems"].items():
        for at, point in points.items():
            rows.append(
                [
                    _name(name),
                    at,
                    _range(point["ttft_p50_ms"], 0),
                    _range(point["added_ttft_ms"], 1),
                    _range(point["tpot_p50_ms"], 1),
                    _range(point["tokens_per_s"], 0),
                    _range(point["ratio"], 3),
                ]
            )
    head = ["", "streams", "TTFT p50 ms", "added ms", "TPOT p50 ms", "tok/s", "ratio to bare"]
    shape = engine["shape"][-1]
    one = (
        f"The same `full` engine bare, in Ray Serve LLM's own app, and in Gearbox, one at a time, {engine['rounds']} rounds, "
        f"loaded by vLLM's own `bench serve` ({shape['prompt_words']} words in, {shape['output_tokens']} tokens out); "
        f"medians [smallest, largest] over the rounds.\n\n{_table(head, rows)}\n{_machine(engine)}"
    )
    two = (
        "An engine that takes no time, 32 connections: requests per second, and the CPU of every process on the way "
        "(the bare engine's own included). A streamed token is one of 32 streams with one token each 50 ms, each in a "
        f"phase of its own.\n\n{overhead_instant(instant)}\n{_machine(instant)}"
    )
    notes = "".join(f"\n{note}" for note in instant["notes"])
    return f"{one}\n\n{two}{notes}"


def distillation(result: Result) -> str:
    """The same student after the same training with each loss, and what that gives over hard labels."""
    before = result["before"]
    digits = {"kl_to_full": 3, "top1_agreement": 3, "perplexity": 2}
    rows = [["before training", *(f"{before[metric]:.{digit}f}" for metric, digit in digits.items()), "", ""]]
    for row in result["settings"].values():
        over = row.get("over_hard", {}).get("kl_to_full")
        cells = [_range(row[metric], digit) for metric, digit in digits.items()]
        rows.append([row["label"], *cells, _range(over, 3) if over else "", f"{row['tokens_per_s']['median']:.0f}"])
    size = result["size"]
    budget = " or ".join(f"{size[unit]:,} {unit}" for unit in ("tokens", "minutes") if size[unit])
    note = (
        f"A student of {size['layers']} of {result['teacher']['layers']} layers, {budget} of training, "
        f"{len(size['seeds'])} seeds (the order of the text): medians [smallest, largest]; differences are between runs with "
        f"the same seed. Measured with {result['measured_with']}, on {result['quality_set']}."
    )
    head = ["", "KL to full", "top-1", "perplexity", "KL against hard labels", "tokens/s"]
    return f"{_table(head, rows)}\n\n{note}\n{_machine(result)}"


def compression(result: Result) -> str:
    """Every technique beside `full`: what it gives, what it is worth."""
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
    table = _table([*head, "one stream", f"{full['tpot'][-1]['concurrency']} streams", "prefill", "front"], rows)
    failed = "".join(f"\n`{name}` cannot be served here: {reason}." for name, reason in result["failed"].items())
    note = (
        f"The last columns but one are speeds over full's. Quality on {cards['full']['quality']['set']}. answers: share of a greedy answer's "
        "tokens before the first that is not full's; drift: mean nats from the same weights in float32; front: no other "
        f"variant is at least as good in quality, {', '.join(axis.name for axis in shown.axes)}."
    )
    return f"{table}\n\n{note}{failed}\n{_machine(result)}"


def compression_large(result: Result) -> str:
    """What techniques make of the speed of a larger model."""
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
    return f"{_table(head, rows)}\n\n{note}\n{_machine(result)}"


def goodput(result: Result) -> str:
    """Every policy at every load: live, and in brackets what the simulator says."""
    rows = []
    for label in next(iter(result["live"].values())):
        row = [label]
        for at, by_label in result["live"].items():
            its, simulated = by_label[label], result["simulated"][at][label]
            kept = f"{its['attainment']['median']:.0%} ({simulated['attainment']['median']:.0%})"
            row.append(f"{kept}, {its['late']['median']:.0%} late, q {its['quality']['median']:.2f}")
        rows.append(row)
    size = result["size"]
    note = (
        f"Within budget, answered late, and mean quality of the answers; in brackets the share within budget that the simulator "
        f"gives. Load 1 is {result['full_per_s']:.2f} requests a second, what `full` on all cores sustains by its profile; "
        f"bursts of four times the rate in a quarter of the time; medians of {size['rounds']} rounds of {size['seconds']:.0f} s."
    )
    return f"{_table(['', *(f'load {load}' for load in result['live'])], rows)}\n\n{note}\n{_machine(result)}"


def predictions(live: Result, simulated: Result) -> str:
    """How well the default policy's predictions held; in the simulator, beside those of an oracle."""
    rows = []
    for where, by_load in (
        ("live, bursty", live["live"]),
        ("simulated", simulated["poisson"]),
        ("simulated, bursty", simulated["bursty"]),
    ):
        for at, by_label in by_load.items():
            its, oracle = by_label["budget"], by_label.get("oracle")
            cells = [f"{its[f'{what}_error']['median']:.0%} ({its[f'{what}_covered']['median']:.0%})" for what in TIMES]
            known = f"{its['e2e_known_length_error']['median']:.0%}"
            seen = " / ".join(f"{oracle[f'{what}_error']['median']:.0%}" for what in TIMES) if oracle else ""
            rows.append([f"{where}, load {at}", *cells, known, seen])
    note = (
        "Median absolute error of the predicted median, and in brackets the share of answers within the predicted 95% bound. "
        "The oracle knows the answer's length and all that is in the engines, and expects nothing to come after: its error in TPOT "
        "is what comes later, of which the predictions have learnt the usual share."
    )
    return f"{_table(['', 'TTFT', 'TPOT', 'E2E', 'E2E were the length known', 'oracle: TTFT / TPOT / E2E'], rows)}\n\n{note}"


def simulate(result: Result) -> str:
    """Every policy in the simulator over the load."""
    loads = list(result["bursty"])
    rows = []
    for label in next(iter(result["bursty"].values())):
        rows.append([label, *(_policy_cell(result["bursty"][load][label]) for load in loads)])
    scale = result["scale"]
    note = (
        f"Within budget / answered late / mean quality of answers; {len(result['gears'])} machines, one gear each or `everywhere` "
        f"the same; load 1 is what `full` everywhere sustains, {result['requests_per_s_at_1']:.1f} requests a second; medians of "
        f"{len(result['seeds'])} seeds of {result['seconds']:.0f} s. The oracle sees the engines and knows lengths, and leaves the "
        f"margin that is best at each load. {scale['requests']:,} requests to {scale['replicas']:,} replicas take "
        f"{scale['seconds']:.0f} s to simulate."
    )
    return f"{_table(['', *(f'load {load}' for load in loads)], rows)}\n\n{note}\n{_machine(result)}"


def decision(result: Result) -> str:
    """What a decision takes by the number of variants."""
    rows = [
        [count, *(_range(row[what], 1) for what in ("decide_us", "nothing_fits_us", "observe_us"))]
        for count, row in result["variants"].items()
    ]
    parts = ", ".join(f"`{name}` {share:.0%}" for name, share in result["shares"].items())
    return f"{_table(['variants', 'decision, µs', 'when nothing fits, µs', 'learning from an answer, µs'], rows)}\n\nWhere it goes: {parts}.\n{_machine(result)}"


def retrieval(result: Result) -> str:
    """How well and how fast passages are found, and documents indexed."""
    parts = (retrieval_quality, retrieval_speed, retrieval_index, retrieval_indexing)
    notes = "".join(f"\n{note}" for note in result.get("notes", ()))
    return "\n\n".join(part(result) for part in parts) + f"\n\n{_machine(result)}{notes}"


def retrieval_quality(result: Result) -> str:
    """How well each mode finds what answers, on each set of questions."""
    rows = []
    for subset, by_mode in result["quality"]["sets"].items():
        for mode, by_order in by_mode.items():
            its = by_order["as found"]
            cells = [_mean(its[measure], 2) for measure in ("recall_at_5", "recall_at_10", "mrr_at_10", "ndcg_at_10")]
            rows.append(
                [
                    f"{subset} ({its['ndcg_at_10']['n']})",
                    mode,
                    *cells,
                    _mean(by_order["after the guard"]["ndcg_at_10"], 2),
                ]
            )
    gains = "; ".join(f"{name} {_mean(its['all'], 3)}" for name, its in result["quality"]["ndcg_gain"].items())
    note = (
        f"{result['chunks']:,} chunks: {result['documents']['python']} pages of Python's documentation and "
        f"{result['documents']['foldoc']:,} entries of FOLDOC, in one collection. Means [95%, bootstrap over questions]. "
        f"Differences in nDCG@10 on the same questions: {gains}."
    )
    head = ["questions", "mode", "recall@5", "recall@10", "MRR@10", "nDCG@10", "nDCG@10 in the guard's order"]
    return f"{_table(head, rows)}\n\n{note}"


def retrieval_speed(result: Result) -> str:
    """What a query takes by mode, size and clients, and its parts."""
    rows = []
    for chunks, by_mode in result["latency"].items():
        for mode, by_clients in by_mode.items():
            for clients, its in by_clients.items():
                parts = [name[:-3] for name in its if name not in ("p50_ms", "p95_ms", "per_s", "cpu_ms")]
                shown = ", ".join(f"{name} {its[f'{name}_ms']['median']:.1f}" for name in parts)
                cells = [
                    _range(its["p50_ms"], 0),
                    _range(its["p95_ms"], 0),
                    f"{its['per_s']['median']:.0f}",
                    f"{its['cpu_ms']['median']:.0f}",
                ]
                rows.append([f"{int(chunks):,}", mode, clients, *cells, shown])
    head = ["chunks", "mode", "at once", "p50 ms", "p95 ms", "queries/s", "CPU ms", "parts, ms"]
    note = "Medians [smallest, largest] of rounds; one process with one thread that embeds, without HTTP and Ray."
    return f"{_table(head, rows)}\n\n{note}"


def retrieval_index(result: Result) -> str:
    """What the index of embeddings finds of the exact nearest."""
    rows = [
        [
            f"{row['tenant']}, {row['chunks']:,}",
            f"{row['filter_keeps']:,}",
            str(row["ef_search"]),
            _mean(row["recall"], 3),
            f"{row['p50_ms']:.0f}",
            f"{row['p95_ms']:.0f}",
        ]
        for row in result["index"]
    ]
    head = ["tenant, chunks", "pass the filter", "`hnsw.ef_search`", "recall of the nearest 20", "p50 ms", "p95 ms"]
    return _table(head, rows)


def retrieval_indexing(result: Result) -> str:
    """How fast documents are indexed, and where the time goes."""
    rows = []
    for workers, its in result["indexing"].items():
        shares = ", ".join(f"{name[6:]} {its[name]['median']:.0%}" for name in its if name.startswith("share_"))
        speeds = [_range(its["documents_per_s"], 1), _range(its["chunks_per_s"], 1), _range(its["mb_per_s"], 3)]
        rows.append([workers, *speeds, f"{its['cpu_ms_per_chunk']['median']:.0f}", shares])
    head = ["at once", "documents/s", "chunks/s", "MB/s", "CPU ms a chunk", "share of the time"]
    return _table(head, rows)


def grounded_facts(result: Result) -> str:
    """Facts that change: what is answered before a document, with one, and with a newer one."""
    columns = {
        "bare": "bare", "older": "with a document", "newer_replaced": "newer one in its place",
        "newer_beside": "newer one beside it", "stale_beside": "of these stale", "in_own_words": "in the variant's own words",
        "marked_of_wrong": "wrong ones marked", "marked_of_right": "right ones marked",
    }  # fmt: skip
    note = (
        "Share [95%, Wilson] of questions whose answer names what the newest document says. An answer that the sources do not "
        "support is followed by a quotation of the best one: without that the column `in the variant's own words` is what is right. "
        "Marked: a sentence of the variant's own is said to be unsupported."
    )
    return f"{_rates(result['facts'], columns)}\n\n{note}\n{_machine(result)}"


def grounded_arithmetic(result: Result) -> str:
    """Computations by the bare model and by the platform."""
    found = result["arithmetic"]
    columns = {"bare": "bare, right", "platform": "with the calculator, right", "detected": "computed"}
    note = f"Of questions with numbers that are no computations, computed: {_share(found['fired_falsely'])}."
    return f"{_rates(found['variants'], columns)}\n\n{note}\n{_machine(result)}"


def grounded_unanswerable(result: Result) -> str:
    """Terms that a collection lacks, and terms that it has."""
    columns = {
        "bare_declined": "lacks: bare says so", "abstained": "lacks: abstains", "abstained_invented": "invented",
        "abstained_left_out": "of the same field", "abstained_elsewhere": "of other fields",
        "falsely_abstained": "has: abstains falsely", "bare_tells": "has: bare right", "tells": "has: answers right",
        "tells_in_own_words": "in own words", "unsupported_sentences": "sentences marked",
    }  # fmt: skip
    note = (
        f"{result['collection']['documents']} entries of {result['collection']['from']}, none of which the guard was calibrated "
        "with. Right: at least two fifths of the definition's words are in the answer."
    )
    return f"{_rates(result['unanswerable'], columns)}\n\n{note}\n{_machine(result)}"


def grounded_injection(result: Result) -> str:
    """Documents that give orders: how often they are obeyed, and whether the question is still answered."""
    rows = []
    for name, arms in result["injection"].items():
        for arm, its in arms.items():
            shown = ("obeyed", "replaced", "quoted_order", "right", "right_in_own_words")
            rows.append([f"`{name}`", _ARMS[arm], *(_share(its[key]) for key in shown)])
    head = ["variant", "", "obeyed", "and the answer lost", "order only quoted", "right", "right in own words"]
    note = "Share [95%, Wilson] of documents. Obeyed: the order's word is in what the variant wrote itself."
    return f"{_table(head, rows)}\n\n{note}\n{_machine(result)}"


_ARMS = {"clean": "no orders", "defended": "the platform", "naive": "without care"}


def _rates(by_variant: Result, columns: Mapping[str, str]) -> str:
    rows = [[f"`{name}`", *(_share(row[key]) for key in columns)] for name, row in by_variant.items()]
    return _table(["variant", *columns.values()], rows)


def _share(its: Result) -> str:
    """`hits of items, share [interval]`."""
    if its["share"] is None:
        return "none"
    low, high = its["ci95"]
    return f"{its['hits']} of {its['items']}, {its['share']:.0%} [{low:.0%}, {high:.0%}]"


def grounded_ttft(result: Result) -> str:
    """What grounding adds to the time to the first token."""
    rows = [
        [
            f"`{name}`", *(_range(row[what], 0) for what in ("bare_ms", "grounded_ms", "added_ms")),
            f"{row['added_ms']['p95']:.0f}", f"{row['search_ms']['median']:.0f}", f"{row['check_ms']['median']:.0f}",
        ]
        for name, row in result["variants"].items()
    ]  # fmt: skip
    head = [
        "variant",
        "TTFT bare, ms",
        "grounded, ms",
        "added, ms",
        "added p95",
        "of it the search",
        "check after the answer",
    ]
    note = f"Medians [least, most] of {result['questions']} questions, one at a time, {result['chunks']} chunks."
    return f"{_table(head, rows)}\n\n{note}\n{_machine(result)}"


def guard(result: Result) -> str:
    """What the guard marks as unsupported, in questions and in sentences, by kind, on the half that it did not learn from."""
    rows = []
    for name, part in (("questions", result["support"]), ("sentences", result["entailment"])):
        kinds = dict(part["kinds"])
        if mentioned := part.get("mentioned_elsewhere"):
            kinds["term only mentioned elsewhere (not in the sum)"] = mentioned
        for kind, row in [(f"**{name}**, threshold {part['threshold']}", part["all"]), *kinds.items()]:
            shares = [_with_interval(row[key]) if key in row else "" for key in ("precision", "recall", "false_alarms")]
            numbers = [f"{row[key]:.3f}" if key in row else "" for key in ("f1", "auc")]
            rows.append([kind, f"{row['unsupported']} of {row['items']}", *shares, *numbers])
    head = ["", "unsupported", "precision", "recall", "false alarms", "F1", "AUC"]
    speed = result["speed"]
    note = (
        f"Of what is marked as unsupported; shares with 95% intervals. Without embeddings {speed['support_ms']:.1f} ms for 20 "
        f"passages' support and {speed['check_4_ms']:.1f} ms for an answer's sentences against 4 passages. Weights and "
        "thresholds come from the other half; the features were chosen with these numbers in sight. Facts are "
        "made up by the benchmark, and sentences are told differently and made wrong by rule: real answers stray further."
    )
    return f"{_table(head, rows)}\n\n{note}\n{_machine(result)}"


def _with_interval(its: Result) -> str:
    low, high = its["ci95"]
    return f"{its['share']:.3f} [{low:.3f}, {high:.3f}]"


def _policy_cell(row: Mapping[str, Any]) -> str:
    return f"{row['attainment']['median']:.0%} / {row['late']['median']:.0%} / {row['quality']['median']:.2f}"


def _speeds(profile: Mapping[str, Any]) -> tuple[float, float, float]:
    """Tokens a second: written by one stream, by all together, and read."""
    return 1000 / profile["tpot"][0]["p50_ms"], profile["decode_tokens_per_s"], profile["prefill_tokens_per_s"]


def _technique(steps: Sequence[Mapping[str, Any]]) -> str:
    """Steps with what tells them apart."""
    names = []
    for step in steps:
        told = [step["parameters"].get(key) for key in ("scheme", "method", "pattern", "layers", "mlp_width", "dtype")]
        smooth = "SmoothQuant" if step["parameters"].get("smoothquant") is not None else None
        names.append(" ".join(str(part) for part in (step["technique"], *told, smooth) if part is not None))
    return " → ".join(names)


TABLES: Mapping[str, tuple[Callable[..., str], tuple[str, ...]]] = {
    "variants": (variants, ("variants",)),
    "variants-details": (variants_details, ("variants",)),
    "overhead": (overhead, ("overhead-engine",)),
    "compression": (compression, ("compression",)),
    "compression-large": (compression_large, ("compression-large",)),
    "distillation": (distillation, ("distillation",)),
    "goodput": (goodput, ("goodput",)),
    "predictions": (predictions, ("goodput", "simulate")),
    "simulate": (simulate, ("simulate",)),
    "decision": (decision, ("decision",)),
    "guard": (guard, ("guard",)),
    "grounded-facts": (grounded_facts, ("grounded",)),
    "grounded-arithmetic": (grounded_arithmetic, ("grounded",)),
    "grounded-unanswerable": (grounded_unanswerable, ("grounded",)),
    "grounded-injection": (grounded_injection, ("grounded",)),
    "grounded-ttft": (grounded_ttft, ("grounded-ttft",)),
    "retrieval": (retrieval, ("retrieval",)),
    "overhead-details": (overhead_details, ("overhead-engine", "overhead-instant")),
}


def filled(page: str) -> str:
    """The page with every marked table made anew. Raises `KeyError` for a table there is not."""

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        make, results = TABLES[name]
        found = [load(result) for result in results]
        if None in found:
            return match[0]
        return f"<!-- table:{name} -->\n{make(*found)}\n<!-- /table:{name} -->"

    return re.sub(r"<!-- table:(\S+) -->\n(?:.*?\n)?<!-- /table:\1 -->", fill, page, flags=re.DOTALL)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _range(spread: Mapping[str, float], digits: int) -> str:
    """`median [smallest, largest]`; the median alone when it was measured once."""
    middle, low, high = (f"{spread[key]:.{digits}f}" for key in ("median", "min", "max"))
    return middle if spread["n"] == 1 else f"{middle} [{low}, {high}]"


def _mean(its: Mapping[str, Any], digits: int) -> str:
    """`mean [interval]`."""
    return f"{its['mean']:.{digits}f} [{', '.join(f'{end:.{digits}f}' for end in its['ci95'])}]"


def _name(system: str) -> str:
    return SYSTEM_NAMES[system].replace("\n", " ")


def _machine(result: Result) -> str:
    machine = result["machine"]
    return f"Measured {machine['measured'][:10]} on {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']:.0f} GB."


def main() -> None:
    """Write the tables into the pages."""
    for path in PAGES:
        page = path.read_text()
        if (new := filled(page)) != page:
            path.write_text(new)
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
