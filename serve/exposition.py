"""The metrics port: `/metrics` for Prometheus, `/targets` for its HTTP service discovery of the engines' own metrics."""

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import orjson
import psutil
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

Targets = Callable[[], list[dict[str, object]]]


class _Server(ThreadingMixIn, WSGIServer):
    """Every gateway replica of a node binds the same port; the kernel hands each scrape to one, and any can answer."""

    daemon_threads = True
    allow_reuse_port = True


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not worth a line each."""


def serve_metrics(host: str, port: int, registry: CollectorRegistry, targets: Targets) -> _Server:
    """Serve `registry`, or the sum over all processes where `PROMETHEUS_MULTIPROC_DIR` is set, from a thread."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            start_response("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
            return [exposition(registry, folder)]
        if path == "/targets":
            start_response("200 OK", [("Content-Type", "application/json")])
            return [orjson.dumps(targets())]
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"there are /metrics and /targets\n"]

    server = make_server(host, port, application, server_class=_Server, handler_class=_Silent)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


def exposition(registry: CollectorRegistry, folder: str | None) -> bytes:
    """Prometheus text. Live gauges of processes that are gone are dropped first; their counters stay."""
    if folder is None:
        return generate_latest(registry)
    for file in Path(folder).glob("gauge_live*.db"):
        pid = int(file.stem.rsplit("_", 1)[1])
        if not psutil.pid_exists(pid):
            mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]
    summed = CollectorRegistry()
    MultiProcessCollector(summed, folder)  # type: ignore[no-untyped-call]
    return generate_latest(summed)
