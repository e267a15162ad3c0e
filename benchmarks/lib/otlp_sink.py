"""OpenTelemetry collector that receives traces and drops them: `python -m benchmarks.lib.otlp_sink --port N`.

`GET /` returns the number of requests whose traces arrived since the last call; only then are they decoded.
"""

import argparse
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson


class Sink(ThreadingHTTPServer):
    """Listens on loopback."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self._lock = threading.Lock()
        self._bodies: list[bytes] = []

    def keep(self, body: bytes) -> None:
        """Keep one export, undecoded."""
        with self._lock:
            self._bodies.append(body)

    def count(self) -> dict[str, int]:
        """Number of requests whose traces arrived since the last call."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        with self._lock:
            bodies, self._bodies = self._bodies, []
        spans = [
            span
            for body in bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        roots = sum(not span.parent_span_id for span in spans)
        return {"exports": len(bodies), "bytes": sum(map(len, bodies)), "spans": len(spans), "traces": roots}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Sink

    def do_POST(self) -> None:
        self.server.keep(self.rfile.read(int(self.headers["content-length"])))
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(orjson.dumps(self.server.count()))

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Do not log exports."""


def main() -> None:
    """Serve it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    Sink(parser.parse_args().port).serve_forever()


if __name__ == "__main__":
    main()
