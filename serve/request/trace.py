"""The OpenTelemetry spans of one request.

Spans are created when the request has ended, from times that were recorded anyway: the request path itself only creates the
ids that are propagated to the engines.
"""

import time
from collections.abc import Mapping
from time import perf_counter
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_W3C = TraceContextTextMapPropagator()
Attributes = Mapping[str, Any]  # None values are omitted


class Trace:
    """The trace of one request: the root span and its child spans. Times are perf_counter seconds."""

    __slots__ = ("_offset_ns", "_root", "_tracer", "id")

    def __init__(self, tracer: trace.Tracer, name: str, parent: Mapping[str, str], started: float) -> None:
        self._tracer = tracer
        self._offset_ns = time.time_ns() - round(perf_counter() * 1e9)
        context = _W3C.extract(parent)
        self._root = tracer.start_span(name, context, SpanKind.SERVER, start_time=self._ns(started))
        self.id = format(self._root.get_span_context().trace_id, "032x")  # hexadecimal, as logs and exemplars show it

    @property
    def sampled(self) -> bool:
        """Whether the trace is sampled."""
        return self._root.is_recording()

    def span(self, name: str, started: float, ended: float, attributes: Attributes, parent: Span | None = None) -> Span:
        """Record an ended span below `parent` or the root."""
        span = self.open(name, started, parent)
        self.close(span, ended, attributes)
        return span

    def open(self, name: str, started: float, parent: Span | None = None, kind: SpanKind = SpanKind.INTERNAL) -> Span:
        """Start a span; `close` ends it."""
        context = trace.set_span_in_context(parent or self._root)
        return self._tracer.start_span(name, context, kind, start_time=self._ns(started))

    def close(self, span: Span | None, ended: float, attributes: Attributes, error: str | None = None) -> None:
        """End a span, or the root."""
        span = span or self._root
        span.set_attributes({name: value for name, value in attributes.items() if value is not None})
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(self._ns(ended))

    @staticmethod
    def headers(span: Span) -> dict[str, str]:
        """Headers that propagate `span` to the next service (W3C trace context)."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, trace.set_span_in_context(span))
        return carrier

    def _ns(self, moment: float) -> int:
        return self._offset_ns + round(moment * 1e9)
