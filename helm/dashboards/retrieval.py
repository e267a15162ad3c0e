"""Retrieval dashboard: outcomes of grounding requests, retrieval latency by stage, and support of answers."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from helm.dashboards.panels import GREEN, RED, YELLOW, Line, chart, dashboard, stat
from helm.dashboards.promql import MODEL, RANGE, count, mean, quantile, rate, share

JUDGED = (
    f'{MODEL}, outcome=~"used|shrunk|abstained|unsupported"'  # requests that searched in order to answer from sources
)
UNAVAILABLE = f'{MODEL}, code=~"store_.*|retrieval_.*"'
# an error code has no series before its first rejection
NONE_REJECTED = f'label_replace(0 * {rate("gearbox_retrieval_seconds_count", "", MODEL)}, "code", "none", "", "")'
FOUND_NONE = 'le=~"0|0.0"'
WORSE_ABOVE_HALF = ((None, GREEN), (0.25, YELLOW), (0.5, RED))


def build() -> Dashboard:
    """The dashboard."""
    grounded, sentences = "gearbox_grounded_requests_total", "gearbox_grounding_sentences_total"
    now = [
        stat(
            "Requests for grounding",
            "Requests for retrieval in the shown time. None where there should be some: look at the key's "
            "and the request's retrieval settings.",
            "short", count(grounded, "", MODEL), decimals=0,
        ),
        stat(
            "Abstained",
            "Share of searches for which the platform found no supported answer in the documents. When it rises, documents are"
            " missing or questions are about something else: see the GearboxUngroundedAnswersHigh runbook.",
            "percentunit", share(grounded, "", JUDGED, 'outcome="abstained"', RANGE), levels=WORSE_ABOVE_HALF,
            decimals=1,
        ),
        stat(
            "Unsupported sentences",
            "Share of verified sentences that no source supports. When it rises, a weaker variant answers or passages "
            "are too long to be used: raise the quality floor of grounded requests.",
            "percentunit", share(sentences, "", MODEL, 'supported="no"', RANGE), levels=WORSE_ABOVE_HALF, decimals=1,
        ),
        stat(
            "p95 of a search",
            "Time within which 95% of the searches were done; it is taken from the request's budget. When it grows, see"
            " which stage in 'Stages'.",
            "s", quantile(0.95, "gearbox_retrieval_seconds", "", MODEL, RANGE), decimals=3,
        ),
    ]  # fmt: skip
    outcomes = [
        chart(
            "Outcomes",
            "Requests for retrieval, by outcome. shrunk and skipped mean that budgets leave too "
            "little time for a whole search; rejected that the store is unavailable: see the GearboxRetrievalUnavailable "
            "runbook.",
            "reqps", Line(rate(grounded, "outcome", MODEL), "{{outcome}}"), stacked=True, span=12,
        ),
        chart(
            "Not answered from the documents",
            "Share of searches that ended without a supported answer. A step up after an import of documents points at "
            "the import; a slow rise at questions that moved away from them.",
            "percentunit",
            Line(share(grounded, "model", JUDGED, 'outcome="abstained"'), "{{model}} abstained"),
            Line(share(grounded, "model", JUDGED, 'outcome="unsupported"'), "{{model}} unsupported"),
            span=12, top=1, levels=((None, GREEN), (0.5, RED)),
        ),
    ]  # fmt: skip
    times = [
        chart(
            "Time of a search",
            "Middle and slow searches. p99 alone growing is a busy database; all growing is more documents or a busy "
            "machine.",
            "s",
            *(Line(quantile(q, "gearbox_retrieval_seconds", "", MODEL), f"p{q * 100:.0f}") for q in (0.5, 0.95, 0.99)),
        ),
        chart(
            "Stages",
            "Time within which 95% of each component's runs were done. The embedder is CPU, dense and keyword are the "
            "database: give it memory or an index.",
            "s", Line(quantile(0.95, "gearbox_retrieval_stage_seconds", "stage", MODEL), "{{stage}}"),
        ),
        chart(
            "Mean time by stage",
            "Mean time of each component, stacked. Components that run side by side add up to more than the search "
            "takes; the thickest band is where to begin.",
            "s", Line(mean("gearbox_retrieval_stage_seconds", "stage", MODEL), "{{stage}}"), stacked=True,
        ),
    ]  # fmt: skip
    passages = rate("gearbox_retrieval_passages_count", "model", MODEL)
    content = [
        chart(
            "Searches that found something",
            "Share of searches with at least one source. When it falls, filters are too narrow, a collection is empty "
            "or the guard turns sources away.",
            "percentunit",
            Line(f"1 - {rate('gearbox_retrieval_passages_bucket', 'model', f'{MODEL}, {FOUND_NONE}')} / {passages}",
                 "{{model}}"),
            top=1,
        ),
        chart(
            "Sources per search",
            "Sources that a search gave: the mean and the middle. Fewer than top_k all the time means that the "
            "documents are few or that the passages are cut to the budget.",
            "short",
            Line(mean("gearbox_retrieval_passages", "model", MODEL), "{{model}} mean"),
            Line(quantile(0.5, "gearbox_retrieval_passages", "model", MODEL), "{{model}} p50"),
        ),
        chart(
            "Verified sentences",
            "Sentences of grounded answers that were verified against their sources. Many unsupported ones: raise "
            "min_quality for grounded requests, or have such answers refused.",
            "short", Line(rate(sentences, "supported", MODEL), "supported: {{supported}}"), stacked=True,
        ),
        chart(
            "Verification time",
            "Time within which 95% of the answers were verified. It comes after the answer, so it delays its end; when "
            "it grows, answers are longer or the gateways lack CPU.",
            "s", Line(quantile(0.95, "gearbox_grounding_verification_seconds", "model", MODEL), "{{model}}"),
        ),
        chart(
            "Rejected for retrieval",
            "Requests rejected because documents could not be searched. Any of them: see the GearboxRetrievalUnavailable"
            " runbook.",
            "reqps",
            Line(
                f"{rate('gearbox_requests_rejected_total', 'code', UNAVAILABLE)} or on () {NONE_REJECTED}",
                "{{code}}",
            ),
        ),
        chart(
            "Searches",
            "Searches per second. Compare with the requests for grounding: agents search several times for one request.",
            "reqps", Line(rate("gearbox_retrieval_seconds_count", "model", MODEL), "{{model}}"),
        ),
    ]  # fmt: skip
    return dashboard(
        "gearbox-retrieval",
        "Gearbox: retrieval",
        "What came of requests for grounding, where the time of a search goes, and whether answers are supported.",
        ("model",),
        (("Now", now), ("Outcomes", outcomes), ("Times", times), ("Sources and answers", content)),
    )
