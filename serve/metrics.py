"""Prometheus metrics of the gateway. Label values come from bounded sets, never from client text.

With `PROMETHEUS_MULTIPROC_DIR` set before this process started, every gateway replica of a node writes to that folder
and any of them exposes the sum.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 30, 60, 120)
TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.35, 0.5, 1)
MICROSECONDS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2, 0.25)

RATIOS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5)

OUTCOMES = ("ok", "client_error", "engine_error", "cancelled", "interrupted")


class Metrics:
    """All metrics of one gateway process."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self.registry = registry
        self.requests = Counter(
            "gearbox_requests_total",
            "Requests that reached a variant",
            ("variant", "reason", "outcome"),
            registry=registry,
        )
        self.refused = Counter(
            "gearbox_requests_refused_total",
            "Requests answered without a variant, by HTTP status",
            ("status",),
            registry=registry,
        )
        self.failovers = Counter(
            "gearbox_failovers_total", "Requests moved away from a variant that failed before the first token", ("variant",),
            registry=registry,
        )  # fmt: skip
        self.ttft = Histogram(
            "gearbox_ttft_seconds", "Time to first token", ("variant",), buckets=SECONDS, registry=registry
        )
        self.tpot = Histogram(
            "gearbox_tpot_seconds",
            "Time per output token after the first",
            ("variant",),
            buckets=TOKEN_SECONDS,
            registry=registry,
        )
        self.e2e = Histogram("gearbox_e2e_seconds", "End to end time", ("variant",), buckets=SECONDS, registry=registry)
        self.queue = Histogram(
            "gearbox_queue_seconds",
            "Time a request waited in its engine",
            ("variant",),
            buckets=SECONDS,
            registry=registry,
        )
        self.tokens = Counter(
            "gearbox_tokens_total",
            "Tokens read (kind=input) and written (kind=output)",
            ("variant", "kind"),
            registry=registry,
        )
        self.cost = Counter(
            "gearbox_cost_usd_total",
            "Cost of answers at the configured prices",
            ("tenant", "variant"),
            registry=registry,
        )
        self.decision = Histogram(
            "gearbox_decision_seconds", "Time the router took for one decision", buckets=MICROSECONDS, registry=registry
        )
        self.overhead = Histogram(
            "gearbox_overhead_seconds",
            "Time from a request's last body byte to its dispatch",
            buckets=MICROSECONDS,
            registry=registry,
        )
        self.prediction_error = Histogram(
            "gearbox_prediction_error_ratio", "|predicted / observed - 1| of answers' times", ("variant", "what"),
            buckets=RATIOS, registry=registry,
        )  # fmt: skip
        self.predictions_held = Counter(
            "gearbox_predictions_total",
            "Answers whose time was at or below its predicted 95% bound, and those above",
            ("variant", "what", "held"),
            registry=registry,
        )
        self.grounded = Counter(
            "gearbox_grounded_requests_total", "Requests that asked for retrieval, by what came of it", ("outcome",),
            registry=registry,
        )  # fmt: skip
        self.retrieval = Histogram(
            "gearbox_retrieval_seconds", "Time of a search for one request", buckets=SECONDS, registry=registry
        )
        self.check = Histogram(
            "gearbox_grounding_check_seconds", "Time of one answer's check", buckets=SECONDS, registry=registry
        )
        self.sentences = Counter(
            "gearbox_sentences_total", "Checked sentences of grounded answers", ("supported",), registry=registry
        )
        self.in_flight = Gauge(
            "gearbox_requests_in_flight", "Requests at a variant, gateway's view", ("variant",),
            multiprocess_mode="livesum", registry=registry,
        )  # fmt: skip
        self.waiting = Gauge(
            "gearbox_requests_waiting", "Requests waiting in a variant's engines", ("variant",),
            multiprocess_mode="livemax", registry=registry,
        )  # fmt: skip
        self.running = Gauge(
            "gearbox_requests_running", "Requests running in a variant's engines", ("variant",),
            multiprocess_mode="livemax", registry=registry,
        )  # fmt: skip
        self.replicas = Gauge(
            "gearbox_variant_replicas", "Healthy replicas of a variant", ("variant",),
            multiprocess_mode="livemax", registry=registry,
        )  # fmt: skip
