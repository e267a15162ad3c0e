"""OpenTelemetry traces of requests, sent by OTLP; off unless an endpoint is configured.

Spans are created when the request has ended, from times that are recorded anyway: the request path itself only creates the
IDs that are propagated to the engines.
"""

from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from serve.request.trace import Trace

_SEND_S = 3  # export timeout of a batch, retries included; then it is dropped


class Tracer:
    """Creates traces and exports them in the background to `endpoint`, an OTLP/HTTP collector's base URL.

    Args:
        sample_ratio: share of the requests that are traced, 0 to 1; a client's trace context overrides it.
        instance_id: of this gateway, the resource attribute `service.instance.id`.
    """

    def __init__(self, endpoint: str, sample_ratio: float, instance_id: str) -> None:
        resource = Resource.create({"service.name": "gearbox", "service.instance.id": instance_id})
        self._provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(sample_ratio)), resource=resource)
        exporter = OTLPSpanExporter(endpoint.rstrip("/") + "/v1/traces", timeout=_SEND_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("gearbox.gateway")

    def start_trace(self, name: str, headers: Mapping[str, str], started: float) -> Trace:
        """Start the trace of a request with `headers`."""
        return Trace(self._tracer, name, headers, started)

    def close(self) -> None:
        """Flush pending spans."""
        self._provider.shutdown()
