"""Tables of grounding results: support scoring, abstention, retrieval, computations, grounded answers."""

from collections.abc import Callable, Mapping

from benchmarks.reporting.cells import Result, machine_line, mean_interval, median_range, table


def retrieval(result: Result) -> str:
    """Search quality and latency, and indexing speed."""
    parts = (retrieval_quality, retrieval_speed, retrieval_index, retrieval_indexing)
    notes = "".join(f"\n{note}" for note in result.get("notes", ()))
    return "\n\n".join(part(result) for part in parts) + f"\n\n{machine_line(result)}{notes}"


def retrieval_quality(result: Result) -> str:
    """Ranking quality of each search mode on each set of questions."""
    rows = []
    for subset, by_mode in result["quality"]["sets"].items():
        for mode, by_order in by_mode.items():
            scores = by_order["as found"]
            cells = [
                mean_interval(scores[measure], 2)
                for measure in ("recall_at_5", "recall_at_10", "mrr_at_10", "ndcg_at_10")
            ]
            rows.append(
                [
                    f"{subset} ({scores['ndcg_at_10']['n']})",
                    mode,
                    *cells,
                    mean_interval(by_order["after the guard"]["ndcg_at_10"], 2),
                ]
            )
    gains = "; ".join(
        f"{name} {mean_interval(gain['all'], 3)}" for name, gain in result["quality"]["ndcg_gain"].items()
    )
    note = (
        f"{result['chunks']:,} chunks: {result['documents']['python']} pages of Python's documentation and "
        f"{result['documents']['foldoc']:,} entries of FOLDOC, in one collection. Means [95%, bootstrap over questions]. "
        f"Differences in nDCG@10 on the same questions: {gains}."
    )
    head = ["questions", "mode", "recall@5", "recall@10", "MRR@10", "nDCG@10", "nDCG@10 reranked by support"]
    return f"{table(head, rows)}\n\n{note}"


def retrieval_speed(result: Result) -> str:
    """Query latency by mode, size and clients, and its parts."""
    rows = []
    for chunks, by_mode in result["latency"].items():
        for mode, by_clients in by_mode.items():
            for clients, timings in by_clients.items():
                parts = [name[:-3] for name in timings if name not in ("p50_ms", "p95_ms", "per_s", "cpu_ms")]
                shown = ", ".join(f"{name} {timings[f'{name}_ms']['median']:.1f}" for name in parts)
                cells = [
                    median_range(timings["p50_ms"], 0),
                    median_range(timings["p95_ms"], 0),
                    f"{timings['per_s']['median']:.0f}",
                    f"{timings['cpu_ms']['median']:.0f}",
                ]
                rows.append([f"{int(chunks):,}", mode, clients, *cells, shown])
    head = ["chunks", "mode", "concurrency", "p50 ms", "p95 ms", "queries/s", "CPU ms", "components, ms"]
    note = "Medians [smallest, largest] of rounds; one process with one embedding thread, without HTTP and Ray."
    return f"{table(head, rows)}\n\n{note}"


def retrieval_index(result: Result) -> str:
    """Recall of the vector index against exact search."""
    rows = [
        [
            f"{row['tenant']}, {row['chunks']:,}",
            f"{row['filter_keeps']:,}",
            str(row["ef_search"]),
            mean_interval(row["recall"], 3),
            f"{row['p50_ms']:.0f}",
            f"{row['p95_ms']:.0f}",
        ]
        for row in result["index"]
    ]
    head = ["tenant, chunks", "pass the filter", "`hnsw.ef_search`", "recall of the nearest 20", "p50 ms", "p95 ms"]
    return table(head, rows)


def retrieval_indexing(result: Result) -> str:
    """Indexing speed, and the time of each stage."""
    rows = []
    for workers, row in result["indexing"].items():
        shares = ", ".join(f"{name[6:]} {row[name]['median']:.0%}" for name in row if name.startswith("share_"))
        speeds = [
            median_range(row["documents_per_s"], 1),
            median_range(row["chunks_per_s"], 1),
            median_range(row["mb_per_s"], 3),
        ]
        rows.append([workers, *speeds, f"{row['cpu_ms_per_chunk']['median']:.0f}", shares])
    head = ["concurrency", "documents/s", "chunks/s", "MB/s", "CPU ms a chunk", "share of the time"]
    return table(head, rows)


def grounded_facts(result: Result) -> str:
    """Changing facts: answers without a document, with one, and with a newer one."""
    columns = {
        "bare": "bare", "older": "with a document", "newer_replaced": "replaced by a newer one",
        "newer_beside": "newer one beside it", "stale_beside": "of these stale", "in_own_words": "in the variant's own words",
        "marked_of_wrong": "wrong ones marked", "marked_of_right": "right ones marked",
    }  # fmt: skip
    note = (
        "Share [95%, Wilson] of questions whose answer names what the newest document says. An answer that the sources do not "
        "support is followed by a quotation of the best one: without that the column `in the variant's own words` is what is right. "
        "Marked: a sentence of the variant's own is reported as unsupported."
    )
    return f"{_rates(result['facts'], columns)}\n\n{note}\n{machine_line(result)}"


def grounded_arithmetic(result: Result) -> str:
    """Computations by the bare model and by the platform."""
    arithmetic = result["arithmetic"]
    columns = {"bare": "bare, right", "platform": "with the calculator, right", "detected": "computed"}
    note = f"Of questions with numbers that are not computations, computed: {_share(arithmetic['fired_falsely'])}."
    return f"{_rates(arithmetic['variants'], columns)}\n\n{note}\n{machine_line(result)}"


def grounded_unanswerable(result: Result) -> str:
    """Answers about terms that a collection lacks, and terms that it has."""
    columns = {
        "bare_declined": "missing term: bare declines", "abstained": "missing term: abstains", "abstained_invented": "invented",
        "abstained_left_out": "of the same field", "abstained_elsewhere": "of other fields",
        "falsely_abstained": "explained term: abstains", "bare_tells": "explained term: bare right", "tells": "explained term: right",
        "tells_in_own_words": "in own words", "unsupported_sentences": "sentences marked",
    }  # fmt: skip
    note = (
        f"{result['collection']['documents']} entries of {result['collection']['from']}, none of which calibrated the "
        "support score. Right: at least two fifths of the definition's words are in the answer."
    )
    return f"{_rates(result['unanswerable'], columns)}\n\n{note}\n{machine_line(result)}"


def grounded_injection(result: Result) -> str:
    """Prompt injections in documents: how often they are obeyed, and whether the question is still answered."""
    rows = []
    for name, arms in result["injection"].items():
        for arm, rates in arms.items():
            shown = ("obeyed", "replaced", "quoted_order", "right", "right_in_own_words")
            rows.append([f"`{name}`", _ARMS[arm], *(_share(rates[key]) for key in shown)])
    head = ["variant", "", "obeyed", "and the answer lost", "instruction only quoted", "right", "right in own words"]
    note = "Share [95%, Wilson] of documents. Obeyed: the instruction's word is in the variant's own text."
    return f"{table(head, rows)}\n\n{note}\n{machine_line(result)}"


_ARMS = {"clean": "no injection", "defended": "shipped prompt", "naive": "plain insertion"}


def _rates(by_variant: Result, columns: Mapping[str, str]) -> str:
    rows = [[f"`{name}`", *(_share(row[key]) for key in columns)] for name, row in by_variant.items()]
    return table(["variant", *columns.values()], rows)


def _share(rate: Result, digits: int = 0) -> str:
    """`hits of items, share [interval]`; none without items. `digits`: decimals of a percentage."""
    if rate["share"] is None:
        return "none"
    low, high = rate["ci95"]
    return f"{rate['hits']} of {rate['items']}, {rate['share']:.{digits}%} [{low:.{digits}%}, {high:.{digits}%}]"


def grounded_ttft(result: Result) -> str:
    """TTFT added by grounding."""
    rows = [
        [
            f"`{name}`", *(median_range(row[metric], 0) for metric in ("bare_ms", "grounded_ms", "added_ms")),
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
        "of which search",
        "verification after the answer",
    ]
    note = f"Medians [smallest, largest] of {result['questions']} questions, one at a time, {result['chunks']} chunks."
    return f"{table(head, rows)}\n\n{note}\n{machine_line(result)}"


def guard(result: Result) -> str:
    """Precision and recall of faithfulness scoring for sentences, by kind, on the held-out half."""
    part, rows = result["entailment"], []
    sources = [(f"**of {name}**", row) for name, row in part["sources"].items()]
    for kind, row in [(f"**all**, threshold {part['threshold']}", part["all"]), *sources, *part["kinds"].items()]:
        shares = [_with_interval(row[key]) if key in row else "" for key in ("precision", "recall", "false_alarms")]
        numbers = [f"{row[key]:.3f}" if key in row else "" for key in ("f1", "auc")]
        rows.append([kind, f"{row['unsupported']} of {row['items']}", *shares, *numbers])
    head = ["", "unsupported", "precision", "recall", "false alarms", "F1", "AUC"]
    note = (
        f"Positive class: marked as unsupported; shares with 95% intervals. Without embeddings {result['speed']['check_4_ms']:.1f} ms "
        "for an answer's sentences against 4 passages. Weights and the threshold come from the other half of the texts, and from other "
        "tables and FAQs; the features were chosen with these results known. The benchmark invents the facts, and paraphrases and "
        "corrupts the sentences by rule: real answers vary more."
    )
    return f"{table(head, rows)}\n\n{note}\n{machine_line(result)}"


def _with_interval(rate: Result) -> str:
    low, high = rate["ci95"]
    return f"{rate['share']:.3f} [{low:.3f}, {high:.3f}]"


KINDS = {
    "answerable": "with an answer",
    "answered": "of these, in an FAQ",
    "row": "of these, in a row of a table",
    "other source": "of another FAQ",
    "near miss": "about a row that the table lacks",
    "left out": "with the answer left out, which another may contain",
}


def abstention(result: Result) -> str:
    """Abstention and recall by language and kind of question."""
    rows = []
    for language, row in result["languages"].items():
        for kind, words in KINDS.items():
            if shares := row["kinds"].get(kind):
                recall = [_share(one) for one in shares["recall"].values()] if "recall" in shares else [""] * 3
                rows.append([language, words, _share(shares["abstained"]), *recall])
    head = ["language", "questions", "abstained", "right passage first", "among 4", "among 20"]
    note = f"Part `{result['part']}`; threshold {result['threshold']}. Shares with 95% intervals (Wilson)."
    return f"{table(head, rows)}\n\n{note}\n{machine_line(result)}"


def computation(result: Result) -> str:
    """Computations detected rightly and other questions falsely computed, by kind, source and language."""
    groups = [("**all**", result["right"], result["falsely_computed"])]
    groups += [(kind, one, None) for kind, one in result["by_kind"].items()]
    sources, others = result["by_source"], result["falsely_computed_by_source"]
    groups += [(f"source: {name}", sources.get(name), others.get(name)) for name in sorted({*sources, *others})]
    groups += [(f"language: {name}", one, None) for name, one in result["by_language"].items()]
    rows = [[name, _share(right) if right else "", _share(false, 1) if false else ""] for name, right, false in groups]
    note = (
        f"The {result['part']} half. All, sources and languages are without word problems, which take several steps and are for a "
        f"model. Computations with a wrong result: {_share(result['wrong'])}. CPU time {result['cpu_ms']['p50']:.1f} ms (p50), "
        f"{result['cpu_ms']['p95']:.1f} ms (p95) a question."
    )
    head = ["questions", "computed rightly", "others falsely computed"]
    return f"{table(head, rows)}\n\n{note}\n{machine_line(result)}"


#: Function that makes a table, and the result it is of, by the table's name.
TABLES: Mapping[str, tuple[Callable[[Result], str], tuple[str]]] = {
    "abstention": (abstention, ("abstention",)),
    "abstention-untouched": (abstention, ("abstention-untouched",)),
    "computation": (computation, ("computation",)),
    "computation-untouched": (computation, ("computation-untouched",)),
    "guard": (guard, ("guard",)),
    "grounded-facts": (grounded_facts, ("grounded",)),
    "grounded-arithmetic": (grounded_arithmetic, ("grounded",)),
    "grounded-unanswerable": (grounded_unanswerable, ("grounded",)),
    "grounded-injection": (grounded_injection, ("grounded",)),
    "grounded-ttft": (grounded_ttft, ("grounded-ttft",)),
    "retrieval": (retrieval, ("retrieval",)),
}
