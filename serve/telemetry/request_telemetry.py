"""Record request telemetry: metrics, a log line and a trace for every request."""

import logging
from collections.abc import Iterable, Mapping
from time import perf_counter
from typing import Any

from serve.budget import Budget
from serve.config.sections import ObservabilityConfig
from serve.errors import RequestError
from serve.request.call import PATHS
from serve.request.grounding import Grounding
from serve.request.lifecycle import Attempt, Request
from serve.request.trace import Trace
from serve.routing.candidate import CONFIDENCE
from serve.routing.router import Decision
from serve.telemetry.metrics import Metrics, RequestOutcome
from serve.telemetry.tracing import Tracer

_LOG = logging.getLogger("gearbox.requests")
_SHED_CODES = {"overloaded", "budget_under_load", "impossible_budget"}  # rejections caused by the budget or by load
OTHER = "other"
NO_VARIANT = "none"  # `variant` label of requests that were rejected or answered without a variant


class RequestTelemetry:
    """Records requests in metrics, log and traces. `tenants` beyond the first `config.tenant_cardinality_limit` are labelled `other`."""

    def __init__(
        self, config: ObservabilityConfig, tenants: Iterable[str], metrics: Metrics, tracer: Tracer | None
    ) -> None:
        self._config, self._metrics, self._tracer = config, metrics, tracer
        self.tenants: dict[str, None] = {}  # tenants labelled by name, in the configuration's order
        self.reconfigure(tenants)
        self._last: dict[str, str] = {}  # last chosen variant by profile
        self._limited: dict[tuple[str, str], float] = {}  # (tenant, limit) whose utilization was exported

    def reconfigure(self, tenants: Iterable[str]) -> None:
        """Label these tenants too, up to the limit of tenants; those already labelled stay."""
        for tenant in tenants:
            if len(self.tenants) < self._config.tenant_cardinality_limit:
                self.tenants[tenant] = None
        self._metrics.initialize_tenant_series(self.tenants)

    @property
    def captures_content(self) -> bool:
        """Whether prompts and answers are logged."""
        return self._config.capture_content

    def trace(self, headers: Any, name: str, started: float) -> Trace | None:
        """Start the trace of a request with `headers`, if requests are traced."""
        return self._tracer.start_trace(name, headers, started) if self._tracer else None

    def record_decision(self, profile: str, decision: Decision) -> None:
        """Record a routing decision for a request of `profile`."""
        name = decision.variant.name
        for candidate in decision.candidates:
            if (rule := candidate.evaluated_rule) is not None:
                self._metrics.excluded.labels(candidate.variant.name, rule).inc()
        if (before := self._last.get(profile)) != name:
            self._last[profile] = name
            if before is not None:
                self._metrics.switches.labels(profile).inc()

    def record_attempt(self, attempt: Attempt) -> None:
        """Record a finished attempt."""
        metrics, report, request = self._metrics, attempt.report, attempt.request
        name, profile = attempt.variant.name, request.profile
        metrics.attempts.labels(name, profile, attempt.decision.reason, attempt.outcome).inc()
        if report.queue_s is not None:
            metrics.queue.labels(name).observe(report.queue_s)
        trace_id = request.trace.id if request.trace and request.trace.sampled else None
        if attempt.first_token_at and attempt.continues is None:
            metrics.observe("ttft", (name, profile), attempt.first_token_at - request.arrived, trace_id)
        if attempt.outcome == "ok":
            self._record_prediction_error(attempt)
            metrics.observe("e2e", (name, profile), attempt.last_token_at - request.arrived, trace_id)
            if (tpot_ms := attempt.tpot_ms) is not None:
                metrics.tpot.labels(name, profile).observe(tpot_ms / 1000)
        if report.total_tokens:
            tenant = self._tenant(request)
            for kind, tokens in (("input", report.prompt_tokens), ("output", report.completion_tokens)):
                metrics.tokens.labels(name, kind).inc(tokens)
                metrics.tenant_tokens.labels(tenant, kind).inc(tokens)
            metrics.cost.labels(tenant, name).inc(attempt.cost_usd)
            metrics.profile_cost.labels(profile).inc(attempt.cost_usd)

    def _record_prediction_error(self, attempt: Attempt) -> None:
        """Record predicted times, prediction errors and the coverage of the predicted bounds."""
        took = attempt.latency
        if took is None:
            return
        prediction, name = attempt.decision.chosen.prediction, attempt.variant.name
        expected, tail = prediction.expected, prediction.tail(CONFIDENCE)
        waited_ms = (attempt.dispatched - attempt.request.arrived) * 1000
        for metric, real, middle, bound, before_ms in (
            ("ttft", took.ttft_ms, expected.ttft_ms, tail.ttft_ms, waited_ms),
            ("tpot", took.tpot_ms, expected.tpot_ms, tail.tpot_ms, 0.0),
            ("e2e", took.e2e_ms, expected.e2e_ms, tail.e2e_ms, waited_ms),
        ):
            if real:
                self._metrics.predicted[metric].labels(name).observe((middle + before_ms) / 1000)
                self._metrics.prediction_error.labels(name, metric).observe(abs(middle / real - 1))
                self._metrics.prediction_coverage.labels(name, metric, "yes" if real <= bound else "no").inc()

    def record_completion(
        self, request: Request, error: RequestError | None = None, *, cancelled: bool = False
    ) -> None:
        """Record the end of a request: answered, failed or cancelled."""
        now = perf_counter()
        ending = _ending(request, error, cancelled)
        variant = request.attempts[-1].variant.name if request.attempts else NO_VARIANT
        self._metrics.requests.labels(variant, request.profile, ending).inc()
        self._metrics.tenant_requests.labels(self._tenant(request), ending).inc()
        if error is not None:
            self._metrics.rejected.labels(str(error.status), error.code, "generation").inc()
        missed = self._record_violations(request, error, ending)
        if request.attempts and ending == "answered":
            self._metrics.quality.labels(request.profile).observe(request.attempts[-1].quality)
        if self._config.log_requests:
            _LOG.info("request", extra={"request": self._line(request, error, ending, missed)})
        if request.trace is not None and request.trace.sampled:
            _record_spans(request.trace, request, error, ending, now)

    def record_rejection(self, error: RequestError, request_id: str, path: str) -> None:
        """Record a request that was rejected with `error` before its body was parsed."""
        endpoint = "generation" if path in PATHS else "other"
        self._metrics.rejected.labels(str(error.status), error.code, endpoint).inc()
        if self._config.log_requests:
            payload = {"id": request_id, "path": path, "status": error.status, "code": error.code}
            _LOG.info("rejected", extra={"request": payload})

    def export_quotas(self, quotas: Iterable[tuple[str, str, float]]) -> None:
        """Set the rate-limit utilization gauges from (tenant, limit, used share), limit being requests or tokens.

        Those of the call before that are not among them, whose key was withdrawn or has no limit any more, are 0.
        """
        now = {(tenant, limit): used for tenant, limit, used in quotas}
        for labels in self._limited.keys() | now.keys():
            self._metrics.rate_limit_utilization.labels(*labels).set(now.get(labels, 0.0))
        self._limited = now

    def export_shares(self, shares: Mapping[str, float]) -> None:
        """Set the gauge of each tenant's share of the engines' time, by tenant; those not in `shares` have none."""
        for tenant in self.tenants:
            self._metrics.tenant_share.labels(tenant).set(shares.get(tenant, 0.0))
        if len(self.tenants) >= self._config.tenant_cardinality_limit:
            others = sum(share for tenant, share in shares.items() if tenant not in self.tenants)
            self._metrics.tenant_share.labels(OTHER).set(others)

    def close(self) -> None:
        """Flush pending traces."""
        if self._tracer:
            self._tracer.close()

    def _tenant(self, request: Request) -> str:
        tenant = request.caller.tenant
        return tenant if tenant in self.tenants else OTHER

    def _record_violations(
        self, request: Request, error: RequestError | None, ending: RequestOutcome
    ) -> list[str] | None:
        """The violated limits; None for requests that do not count for budget compliance."""
        if ending == "answered":
            missed = request.violations
        elif ending == "failed":
            missed = ["failed"]
        elif error is not None and error.code in _SHED_CODES:
            missed = ["rejected"]
        else:
            return None
        self._metrics.budgets.labels(request.profile, "no" if missed else "yes").inc()
        for kind in missed:
            self._metrics.violations.labels(request.profile, kind).inc()
        return missed

    def _line(
        self, request: Request, error: RequestError | None, ending: RequestOutcome, missed: list[str] | None
    ) -> dict[str, Any]:
        """Log fields of the request; prompts and answers only where the operator enabled content capture."""
        call, last = request.call, request.attempts[-1] if request.attempts else None
        line: dict[str, Any] = {
            "id": request.id,
            "trace_id": request.trace.id if request.trace else None,
            "tenant": request.caller.tenant,
            "endpoint": call.endpoint,
            "stream": call.stream,
            "profile": request.profile,
            "budget": _limits(request.budget),
            "outcome": ending,
            "status": error.status if error else 200 if ending != "cancelled" else 499,
            "code": error.code if error else None,
            "violations": missed,
            "attempts": len(request.attempts),
            "migrations": request.migrations,
        }
        if last is not None:
            line |= {
                "variant": last.variant.name,
                "reason": last.decision.reason,
                "excluded": {c.variant.name: c.evaluated_rule for c in last.decision.candidates if c.evaluated_rule},
                "quality": last.quality,
                "predicted": last.decision.chosen.predictions(last.waited_s * 1000),
                "prompt_tokens": last.report.prompt_tokens,
                "completion_tokens": last.report.completion_tokens,
                "ttft_ms": _rounded(last.ttft_ms),
                "tpot_ms": _rounded(last.tpot_ms),
                "e2e_ms": _rounded(last.e2e_ms) if last.last_token_at else None,
                "waited_ms": _rounded(last.waited_s * 1000),
                "overhead_ms": _rounded(last.overhead_s * 1000),
                "cost_usd": last.cost_usd,
            }
        if request.grounding is not None:
            line["retrieval"] = _retrieval_fields(request.grounding)
        if self._config.capture_content:
            prompt = call.body.get("messages") if call.endpoint == "chat" else call.body.get("prompt")
            known = request.grounding.answer if request.grounding else None
            line |= {"prompt": prompt, "completion": last.text if last else known}
        return line


def _ending(request: Request, error: RequestError | None, cancelled: bool) -> RequestOutcome:
    if cancelled or (error is not None and error.status == 499):
        return "cancelled"
    if error is not None:
        return "failed" if error.status >= 500 else "rejected"
    if request.attempts and request.attempts[-1].outcome != "ok":
        return "cancelled" if request.attempts[-1].outcome == "cancelled" else "failed"
    return "answered"


def _limits(budget: Budget) -> dict[str, float]:
    return budget.model_dump(exclude_none=True, exclude={"objective", "on_no_candidate"})


def _retrieval_fields(grounding: Grounding) -> dict[str, Any]:
    return {
        "outcome": grounding.outcome, "passages": len(grounding.passages), "support": grounding.support,
        "ms": grounding.ms, "check_ms": grounding.check_ms,
    }  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _record_spans(
    trace: Trace, request: Request, error: RequestError | None, ending: RequestOutcome, now: float
) -> None:
    """Add the request's spans to its trace and end the trace."""
    trace.span(
        "authenticate",
        request.arrival.received_at,
        request.arrival.authenticated,
        {"gearbox.tenant": request.caller.tenant},
    )
    if (grounding := request.grounding) is not None and grounding.started:
        retrieved = {
            "gearbox.retrieval.outcome": grounding.outcome,
            "gearbox.retrieval.passages": len(grounding.passages),
        }
        parent = trace.span("retrieve", grounding.started, grounding.started + grounding.ms / 1000, retrieved)
        for stage, took_ms in grounding.timings_ms.items():
            started = grounding.started + grounding.starts_ms.get(stage, 0.0) / 1000
            trace.span(stage, started, started + took_ms / 1000, {}, parent)
    for attempt in request.attempts:
        chosen = attempt.decision.chosen
        routed = {
            "gearbox.variant": attempt.variant.name,
            "gearbox.reason": attempt.decision.reason,
            "gearbox.predicted.ttft_ms": chosen.prediction.expected.ttft_ms,
            "gearbox.predicted.e2e_ms": chosen.prediction.expected.e2e_ms,
        }
        excluded = {
            f"gearbox.excluded.{c.variant.name}": c.evaluated_rule
            for c in attempt.decision.candidates
            if c.evaluated_rule
        }
        trace.span(
            "route", attempt.decided - attempt.decision_s - attempt.waited_s, attempt.decided, {**routed, **excluded}
        )
        _record_engine_spans(trace, attempt, now)
    last = request.attempts[-1] if request.attempts else None
    attributes = {
        "gen_ai.operation.name": "chat" if request.call.endpoint == "chat" else "text_completion",
        "gen_ai.request.model": request.call.ref.model,
        "gen_ai.usage.input_tokens": last.report.prompt_tokens if last else None,
        "gen_ai.usage.output_tokens": last.report.completion_tokens if last else None,
        "gearbox.request_id": request.id,
        "gearbox.profile": request.profile,
        "gearbox.variant": last.variant.name if last else None,
        "gearbox.outcome": ending,
        "http.response.status_code": error.status if error else 200,
    }
    trace.close(None, now, attributes, (error.code if error else None) or (None if ending == "answered" else ending))


def _record_engine_spans(trace: Trace, attempt: Attempt, now: float) -> None:
    """Record the engine's queue, prefill and decode spans; prefill lies between the reported queue and decode times."""
    span, report = attempt.span, attempt.report
    if span is None:
        return
    ended = attempt.last_token_at or now
    if attempt.first_token_at:
        first = max(attempt.first_token_at, attempt.dispatched)
        queued = min(attempt.dispatched + (report.queue_s or 0.0), first)
        trace.span("queue", attempt.dispatched, queued, {}, span)
        trace.span("prefill", queued, first, {"gen_ai.usage.input_tokens": report.prompt_tokens}, span)
        trace.span("decode", first, ended, {"gen_ai.usage.output_tokens": report.completion_tokens}, span)
    attributes = {"gearbox.variant": attempt.variant.name, "gearbox.outcome": attempt.outcome}
    trace.close(span, ended, attributes, None if attempt.outcome == "ok" else attempt.outcome)
