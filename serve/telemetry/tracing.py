"""OpenTelemetry traces of requests, sent by OTLP; off unless an endpoint is configured.

A request's spans are made when it has ended, from times that are known anyway: the request path itself only makes the ids
that the engines are told.
"""

from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from serve.request.trace import Trace

_SEND_S = 3  # for a batch, repetitions included; what can't be sent by then is dropped


class Tracer:
    """Makes traces and sends them to `endpoint`, an OTLP/HTTP collector's base URL, in the background.

    Args:
        share: of requests that are traced, 0 to 1; what a client's own trace context says counts more.
    """

    def __init__(self, endpoint: str, share: float, service: str) -> None:
        resource = Resource.create({"service.name": "gearbox", "service.instance.id": service})
        self._provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(share)), resource=resource)
        exporter = OTLPSpanExporter(endpoint.rstrip("/") + "/v1/traces", timeout=_SEND_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("gearbox.gateway")

    def begin(self, name: str, headers: Mapping[str, str], began: float) -> Trace:
        """The trace of a request that came with `headers`."""
        return Trace(self._tracer, name, headers, began)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
