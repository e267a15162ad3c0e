"""Figures and aims of grounding results: abstention, faithfulness scoring, retrieval, computations, grounded answers; like `benchmarks.reporting.claim_rows`."""

from collections.abc import Iterator, Mapping

from benchmarks.reporting.cells import Result
from benchmarks.reporting.figures import Figure, Figures, figure

FACTS = {
    "bare": "facts that change, bare: right",
    "older": "facts that change, with a document: right",
    "newer_replaced": "facts that change, a newer document in its place: right",
    "newer_beside": "facts that change, a newer document beside it: right",
    "stale_beside": "facts that change, a newer document beside it: answered from the older one",
    "in_own_words": "facts that change: right in the variant's own words",
    "marked_of_wrong": "wrong answers in the variant's own words that are marked as unsupported",
    "marked_of_right": "right answers in the variant's own words that are marked as unsupported",
}
ARITHMETIC = {
    "bare": "computations, bare: right",
    "platform": "computations, with the calculator: right",
    "detected": "computations that the calculator answered",
}
UNANSWERABLE = {
    "bare_declined": "terms that no document explains, bare: says so",
    "abstained": "terms that no document explains: abstains",
    "abstained_invented": "invented terms: abstains",
    "abstained_left_out": "terms of the same field that no document explains: abstains",
    "abstained_elsewhere": "terms of other fields: abstains",
    "falsely_abstained": "terms that a document explains: abstains",
    "bare_tells": "terms that a document explains, bare: right",
    "tells": "terms that a document explains: answers right",
    "tells_in_own_words": "terms that a document explains: right in the variant's own words",
    "unsupported_sentences": "sentences of the variant that are marked as unsupported",
}
INJECTION = {
    "obeyed": "orders in documents that are obeyed",
    "replaced": "orders in documents that are obeyed, and the answer lost",
    "quoted_order": "orders in documents that are quoted only",
    "right": "questions to documents with orders: right",
    "right_in_own_words": "questions to documents with orders: right in the variant's own words",
}


def grounded(result: Result) -> Iterator[Figure]:
    """Rate of correct answers, bare and grounded, by variant."""
    parts = {
        "facts": (result["facts"], FACTS),
        "arithmetic": (result["arithmetic"]["variants"], ARITHMETIC),
        "unanswerable": (result["unanswerable"], UNANSWERABLE),
    }
    for part, (by_variant, words) in parts.items():
        for name, row in by_variant.items():
            for key, claim in words.items():
                yield from _share(f"{part}.{name}.{key}", f"{name}: {claim}", row[key])
    yield from _share("arithmetic.fired_falsely", "questions with numbers that are no computations, computed", result["arithmetic"]["fired_falsely"])  # fmt: skip
    for name, arms in result["injection"].items():
        for arm, rates in arms.items():
            for key, claim in INJECTION.items():
                yield from _share(f"injection.{name}.{arm}.{key}", f"{name}, {arm}: {claim}", rates[key])


def _share(id: str, claim: str, rate: Result, aim: str | None = None) -> Iterator[Figure]:
    """The figure of a share; none without items."""
    if rate["share"] is not None:
        yield figure(id, "grounding", f"{claim} ({rate['hits']} of {rate['items']})", rate, "share", aim=aim)


def grounded_ttft(result: Result) -> Iterator[Figure]:
    """TTFT added by grounding."""
    words = {"bare_ms": "TTFT bare", "grounded_ms": "TTFT grounded", "search_ms": "search", "check_ms": "check after the answer"}  # fmt: skip
    for name, row in result["variants"].items():
        of = f"{name}, {result['chunks']:,} chunks"
        for key, claim in words.items():
            yield figure(f"{name}.{key}", "grounding", f"{of}: {claim}, p50", row[key], "ms")
        yield figure(f"{name}.added_ms", "grounding", f"{of}: added TTFT, p50", row["added_ms"], "ms", aim="< 60")
        yield figure(f"{name}.added_p95_ms", "grounding", f"{of}: added TTFT, p95", row["added_ms"]["p95"], "ms")


def guard(result: Result) -> Iterator[Figure]:
    """Precision and recall of marking unsupported sentences, on the benchmark's own texts."""
    part = result["entailment"]
    yield figure("sentences.threshold", "grounding", "unsupported sentences: threshold", part["threshold"])
    sources = {f"of {name}": row for name, row in part["sources"].items()}
    for kind, row in {"all": part["all"], **sources, **part["kinds"]}.items():
        of = f"unsupported sentences, {kind} ({row['unsupported']} of {row['items']})"
        for key in ("precision", "recall", "false_alarms"):
            if key in row:
                yield figure(f"sentences.{kind}.{key}", "grounding", f"{of}: {key.replace('_', ' ')}", row[key], "share")  # fmt: skip
        for key in ("f1", "auc"):
            if key in row:
                aim = ">= 0.90" if key == "f1" and kind in sources else None
                yield figure(f"sentences.{kind}.{key}", "grounding", f"{of}: {key.upper()}", row[key], aim=aim)
    yield figure("check_ms", "grounding", "check of an answer's sentences against 4 passages, without embeddings", result["speed"]["check_4_ms"], "ms")  # fmt: skip


SEARCH_P95_AIM = ("100000", "hybrid", "1", "< 120")  # chunks, mode, clients


def retrieval(result: Result) -> Iterator[Figure]:
    """Search quality and latency, and indexing speed."""
    for subset, by_mode in result["quality"]["sets"].items():
        for mode, by_order in by_mode.items():
            for order, measures in (
                ("as found", ("recall_at_5", "recall_at_10", "mrr_at_10", "ndcg_at_10")),
                ("after the guard", ("ndcg_at_10",)),
            ):
                for measure in measures:
                    of = f"{subset}, {mode}, {order}: {measure.replace('_at_', '@')}"
                    yield figure(f"{subset}.{mode}.{order}.{measure}", "grounding", of, by_order[order][measure])
    for name, gain in result["quality"]["ndcg_gain"].items():
        yield figure(f"gain.{name}", "grounding", f"difference in nDCG@10: {name}", gain["all"])
    for chunks, by_mode in result["latency"].items():
        for mode, by_clients in by_mode.items():
            for clients, row in by_clients.items():
                id, of = f"search.{chunks}.{mode}.{clients}", f"search, {int(chunks):,} chunks, {mode}, {clients} at once"  # fmt: skip
                for key, value in row.items():
                    aim = SEARCH_P95_AIM[3] if (chunks, mode, clients) == SEARCH_P95_AIM[:3] and key == "p95_ms" else None  # fmt: skip
                    unit = "queries/s" if key == "per_s" else "ms"
                    yield figure(f"{id}.{key}", "grounding", f"{of}: {key.removesuffix('_ms')}", value, unit, aim=aim)
    for row in result["index"]:
        id = f"index.{row['tenant']}.{row['filter_keeps']}.{row['ef_search']}"
        of = f"index of {row['chunks']:,} chunks, {row['filter_keeps']:,} pass the filter, ef_search {row['ef_search']}"
        yield figure(f"{id}.recall", "grounding", f"{of}: recall of the nearest 20", row["recall"])
        for key in ("p50_ms", "p95_ms"):
            yield figure(f"{id}.{key}", "grounding", f"{of}: {key.removesuffix('_ms')}", row[key], "ms")
    units = {"documents_per_s": "documents/s", "chunks_per_s": "chunks/s", "mb_per_s": "MB/s", "cpu_ms_per_chunk": "ms"}
    for workers, row in result["indexing"].items():
        for key, value in row.items():
            unit = units.get(key, "share")
            yield figure(f"indexing.{workers}.{key}", "grounding", f"indexing, {workers} at once: {key.replace('_', ' ')}", value, unit)  # fmt: skip


ABSTENTION_AIMS = {"answerable": "<= 0.08", "other source": ">= 0.9", "near miss": ">= 0.8"}  # in English


def abstention(result: Result) -> Iterator[Figure]:
    """Abstention and recall on other people's questions, by language and kind of question."""
    yield figure("threshold", "grounding", f"support, {result['part']} questions: threshold", result["threshold"])
    for language, row in result["languages"].items():
        for kind, shares in row["kinds"].items():
            id, of = f"{language}.{kind}", f"{language}, {result['part']} questions, {kind}"
            aim = ABSTENTION_AIMS.get(kind) if language == "en" else None
            yield from _share(f"{id}.abstained", f"{of}: abstained", shares["abstained"], aim)
            if "recall" in shares:
                yield from _share(f"{id}.abstained_found", f"{of}, passage found: abstained", shares["abstained_found"])
                for depth, one in shares["recall"].items():
                    yield from _share(f"{id}.recall_{depth}", f"{of}: recall@{depth}", one)


def computation(result: Result) -> Iterator[Figure]:
    """Computations detected rightly and other questions falsely computed, by kind, source and language."""
    of = f"{result['part']} computations"
    yield from _share("right", f"{of}: right", result["right"], ">= 0.85")
    yield from _share("wrong", f"{of}: wrong result", result["wrong"])
    for group in ("kind", "language", "source"):
        for name, one in result[f"by_{group}"].items():
            yield from _share(f"{group}.{name}.right", f"{of}, {group} {name}: right", one)
    others = f"{result['part']} questions that are no computations"
    yield from _share("falsely_computed", f"{others}: computed", result["falsely_computed"], "<= 0.01")
    for name, one in result["falsely_computed_by_source"].items():
        yield from _share(f"source.{name}.falsely_computed", f"{others}, source {name}: computed", one)
    for key, value in result["cpu_ms"].items():
        yield figure(f"cpu_ms.{key}", "grounding", f"{of}: CPU time of detection, {key}", value, "ms")


#: Function that extracts the figures of a result, by the result's name.
FIGURES: Mapping[str, Figures] = {
    "abstention": abstention,
    "abstention-untouched": abstention,
    "computation": computation,
    "computation-untouched": computation,
    "grounded": grounded,
    "grounded-ttft": grounded_ttft,
    "guard": guard,
    "retrieval": retrieval,
}
