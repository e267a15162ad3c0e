"""Prometheus metrics of the gateway, see docs/reference/metrics.md. Label values come from bounded sets, never from client text.

With `PROMETHEUS_MULTIPROC_DIR` set before this process started, every gateway replica of a node writes to that folder
and each of them exposes the sum. Metrics of variants, which all replicas know, are not summed:
`serve.telemetry.metrics_server` adds them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from serve.routing.router import HARD_RULES

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 30, 60, 120)
TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.35, 0.5, 1)
SHORT_SECONDS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2, 0.25)
SEARCH_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 1, 2, 5)
ERROR_RATIOS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5)
QUALITY_RATIOS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 1)
PASSAGES = (0, 1, 2, 3, 4, 6, 8, 12, 20)

RequestOutcome = Literal[
    "answered", "rejected", "failed", "cancelled"
]  # final outcome of a request, independent of its attempts
TIMES = ("ttft", "tpot", "e2e")
EXCLUSIONS = (*HARD_RULES, "min_quality", "max_cost", *TIMES)
ALERTED_REJECTIONS = {  # rejections that operators alert on: status by code
    "overloaded": 429, "budget_under_load": 429, "impossible_budget": 422, "no_healthy_variant": 503,
    "engine_unavailable": 503, "retrieval_unavailable": 503, "store_unavailable": 503, "retrieval_timeout": 504,
    "limits_unavailable": 503, "idempotency_unavailable": 503, "stream_interrupted": 500, "gateway_stopped": 503,
    "retrieval_misconfigured": 500, "retrieval_failed": 500, "store_full": 507, "store_read_only": 503,
}  # fmt: skip
ENDPOINTS = ("generation", "other")  # chat completions and completions; the rest of the API
MIGRATIONS = ("connection", "stalled", "engine_error")  # why streams were continued elsewhere
HEDGES = ("won", "lost", "throttled")  # the second answer was used, or not; not sent, as the bound is reached
EJECTIONS = ("stalled", "unreachable")
VIOLATIONS = (*TIMES, "cost", "quality", "rejected", "failed")


class Metrics:
    """All metrics of one gateway process."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # creation timestamps of counters are not used
        self.registry = registry = registry or CollectorRegistry()
        self.exemplars: dict[tuple[str, frozenset[tuple[str, str]]], Exemplar] = {}  # the latest exemplar by series

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(f"gearbox_{name}_total", help_text, labels, registry=registry)

        def histogram(name: str, help_text: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"gearbox_{name}", help_text, labels, buckets=buckets, registry=registry)

        self.requests = counter("requests", "Requests by outcome", "variant", "profile", "outcome")
        self.attempts = counter(
            "attempts", "Attempts of requests at variants, by outcome", "variant", "profile", "reason", "outcome"
        )
        self.rejected = counter(
            "requests_rejected", "Requests that the gateway answered with an error", "status", "code", "endpoint"
        )
        self.in_flight = Gauge(
            "gearbox_requests_in_flight", "Requests in flight at a variant, as the gateway counts them", ("variant",),
            multiprocess_mode="livesum", registry=registry,
        )  # fmt: skip
        self.open = Gauge(
            "gearbox_requests_open", "HTTP requests of any kind that the gateways have not answered completely",
            multiprocess_mode="livesum", registry=registry,
        )  # fmt: skip
        self.gateway_starts = counter("gateway_starts", "Gateway processes that were started on this node")
        self.tenant_requests = counter("tenant_requests", "Requests by tenant and outcome", "tenant", "outcome")
        self.tokens = counter(
            "tokens", "Prompt tokens (kind=input) and generated tokens (kind=output)", "variant", "kind"
        )
        self.tenant_tokens = counter("tenant_tokens", "Prompt and generated tokens by tenant", "tenant", "kind")
        self.cost = counter("cost_usd", "Cost of answers at the configured prices", "tenant", "variant")
        self.rate_limit_utilization = Gauge(
            "gearbox_rate_limit_utilization_ratio", "Share of a tenant's rate limit that is used in the current minute", ("tenant", "limit"),
            multiprocess_mode="livemax", registry=registry,
        )  # fmt: skip

        self.rate_limit_store_failures = counter(
            "rate_limit_store_failures", "Failed operations of the rate-limit store", "operation"
        )

        self.idempotent = counter(
            "idempotent_requests",
            "Requests with an Idempotency-Key, by outcome: stored, replayed, too_large",
            "outcome",
        )

        self.budgets = counter("budget_requests", "Requests by whether their whole budget was met", "profile", "met")
        self.violations = counter("budget_violations", "Budget limits that were violated", "profile", "kind")
        self.quality = histogram(
            "answer_quality_ratio", "Quality of the variant that answered", QUALITY_RATIOS, "profile"
        )
        self.profile_cost = counter("profile_cost_usd", "Cost of answers by budget profile", "profile")
        self.ttft = histogram("ttft_seconds", "Time to first token", SECONDS, "variant", "profile")
        self.tpot = histogram(
            "tpot_seconds", "Time per output token after the first", TOKEN_SECONDS, "variant", "profile"
        )
        self.e2e = histogram("e2e_seconds", "End-to-end latency", SECONDS, "variant", "profile")
        self.queue = histogram("queue_seconds", "Queueing time in the engine", SECONDS, "variant")

        self.predicted = {
            "ttft": histogram("predicted_ttft_seconds", "Predicted time to first token", SECONDS, "variant"),
            "tpot": histogram("predicted_tpot_seconds", "Predicted time per output token", TOKEN_SECONDS, "variant"),
            "e2e": histogram("predicted_e2e_seconds", "Predicted end-to-end latency", SECONDS, "variant"),
        }
        self.prediction_error = histogram(
            "prediction_error_ratio",
            "Relative prediction error, |predicted / observed - 1|",
            ERROR_RATIOS,
            "variant",
            "metric",
        )
        self.prediction_coverage = counter(
            "prediction_coverage", "Answers by whether the observed time was within the predicted 95% bound",
            "variant", "metric", "covered",
        )  # fmt: skip
        self.excluded = counter(
            "candidates_excluded", "Variants that routing decisions excluded, by rule", "variant", "rule"
        )
        self.switches = counter(
            "route_switches",
            "Routing decisions for another variant than the previous decision of the profile",
            "profile",
        )
        self.failovers = counter(
            "failovers", "Requests moved away from a variant or its replica before the first token", "variant", "cause"
        )
        self.migrations = counter(
            "migrations",
            "Streams that were continued at another replica or variant, by the variant that they left",
            "variant",
            "cause",
        )
        self.hedges = counter(
            "hedges",
            "Requests also sent to a second replica because the first was late, by the variant of the first; throttled: not sent, "
            "as 2% of the requests were",
            "variant",
            "outcome",
        )
        self.ejections = counter(
            "replica_ejections", "Replicas that get no requests until a probe succeeds", "variant", "cause"
        )
        self.decision = histogram("decision_seconds", "Time of one routing decision", SHORT_SECONDS)
        self.waiting = Gauge(
            "gearbox_admission_requests_waiting", "Requests that wait in the gateway until an engine has room for them",
            multiprocess_mode="livesum", registry=registry,
        )  # fmt: skip
        self.admission_wait = histogram(
            "admission_wait_seconds", "Time that requests waited in the gateway for a place", SECONDS, "variant"
        )
        self.margin = Gauge(
            "gearbox_admission_margin_ratio",
            "Safety factor: predicted times multiplied by it must be within a request's limits; learned from outcomes", ("profile",),
            multiprocess_mode="livemax", registry=registry,
        )  # fmt: skip
        self.tenant_share = Gauge(
            "gearbox_admission_tenant_share_ratio",
            "Share of the engines' time that a tenant's admitted requests took in the last ten seconds", ("tenant",),
            multiprocess_mode="livesum", registry=registry,
        )  # fmt: skip
        self.overhead = histogram(
            "overhead_seconds", "Gateway overhead: from the last byte of a request to its dispatch, without waiting",
            SHORT_SECONDS,
        )  # fmt: skip
        self.cold_start = histogram(
            "cold_start_seconds", "Time that requests waited for a replica to scale up from zero", SECONDS, "variant"
        )

        self.grounded = counter("grounded_requests", "Requests with retrieval, by grounding outcome", "outcome")
        self.retrieval = histogram("retrieval_seconds", "Time of one request's document search", SECONDS)
        self.stage = histogram(
            "retrieval_stage_seconds", "Time of one pipeline component in a search", SEARCH_SECONDS, "stage"
        )
        self.passages = histogram("retrieval_passages", "Passages that a search returned", PASSAGES)
        self.check = histogram(
            "grounding_verification_seconds", "Time to verify one answer against its sources", SECONDS
        )
        self.sentences = counter(
            "grounding_sentences",
            "Verified sentences of grounded answers, by whether a source supports them",
            "supported",
        )

    def initialize_series(self, variants: Iterable[str], profiles: Iterable[str]) -> None:
        """Initialize series with zero: a counter that appears with its first event hides that event's rate."""
        for profile in profiles:
            for met in ("yes", "no"):
                self.budgets.labels(profile, met)
            for kind in VIOLATIONS:
                self.violations.labels(profile, kind)
            self.switches.labels(profile)
            self.profile_cost.labels(profile)
            self.margin.labels(profile).set(1.0)
        for variant in variants:
            for cause in ("engine", "replica", "context"):
                self.failovers.labels(variant, cause)
            for cause in MIGRATIONS:
                self.migrations.labels(variant, cause)
            for outcome in HEDGES:
                self.hedges.labels(variant, outcome)
            for cause in EJECTIONS:
                self.ejections.labels(variant, cause)
            for metric in TIMES:
                self.prediction_coverage.labels(variant, metric, "yes")
                self.prediction_coverage.labels(variant, metric, "no")
            for rule in EXCLUSIONS:
                self.excluded.labels(variant, rule)
            self.cold_start.labels(variant)
            self.admission_wait.labels(variant)
            self.in_flight.labels(variant)
        for code, status in ALERTED_REJECTIONS.items():
            for endpoint in ENDPOINTS:
                self.rejected.labels(str(status), code, endpoint)
        for operation in ("admit", "charge", "read", "idempotency"):
            self.rate_limit_store_failures.labels(operation)
        for outcome in ("stored", "replayed", "too_large"):
            self.idempotent.labels(outcome)
        for supported in ("yes", "no"):
            self.sentences.labels(supported)

    def initialize_tenant_series(self, tenants: Iterable[str]) -> None:
        """Initialize the series of tenants with zero."""
        for tenant in tenants:
            for kind in ("input", "output"):
                self.tenant_tokens.labels(tenant, kind)
            for ending in get_args(RequestOutcome):
                self.tenant_requests.labels(tenant, ending)
            self.tenant_share.labels(tenant)

    def observe(
        self, what: Literal["ttft", "e2e"], labels: tuple[str, str], seconds: float, trace_id: str | None
    ) -> None:
        """Observe a latency by (variant, profile), with its trace as the bucket's exemplar.

        Exemplars are stored here because prometheus_client does not support them in multiprocess mode.
        """
        getattr(self, what).labels(*labels).observe(seconds)
        if trace_id is not None:
            bound = next((bound for bound in SECONDS if seconds <= bound), float("inf"))
            of = {"variant": labels[0], "profile": labels[1], "le": floatToGoString(bound)}  # type: ignore[no-untyped-call]
            self.exemplars[series_of(f"gearbox_{what}_seconds_bucket", of)] = Exemplar({"trace_id": trace_id}, seconds)


def series_of(name: str, labels: Mapping[str, str]) -> tuple[str, frozenset[tuple[str, str]]]:
    """The identity of a series: name and labels."""
    return name, frozenset(labels.items())
