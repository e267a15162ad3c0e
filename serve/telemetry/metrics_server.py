"""The metrics port: `/metrics` for Prometheus, `/targets` for its HTTP service discovery of the other parts' metrics."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import orjson
import psutil
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from serve.config.addresses import host_allowed, is_loopback, socket_address
from serve.errors import origin_of
from serve.routing.catalog import Variant
from serve.telemetry.metrics import Metrics, series_of
from serve.telemetry.metrics_files import LIVE_GAUGES

_CREATED_S = 60.0  # after which a process has opened the file that it has created
_LOG = logging.getLogger("gearbox.metrics")

Targets = Callable[[], list[dict[str, object]]]
Variants = Callable[[], Iterable[Variant]]


class MetricsServer(ThreadingMixIn, WSGIServer):
    """Metrics server that shares its port (SO_REUSEPORT): all gateway replicas of a node bind it, and any answers a scrape."""

    daemon_threads = True
    allow_reuse_port = True
    thread: threading.Thread


class _Server6(MetricsServer):
    """Metrics server on an IPv6 address; `::` includes all IPv4 addresses."""

    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Do not log scrapes."""


class Exposition(Collector):
    """Collector of all metrics of this node's gateways, each series with the `model` label.

    Args:
        folder: multiprocess folder of the node's gateways; None: only this process.
    """

    def __init__(self, metrics: Metrics, model: str, variants: Variants, folder: str | None) -> None:
        self._metrics, self._model, self._variants, self._folder = metrics, model, variants, folder

    def collect(self) -> Iterator[Metric]:
        """Yield metrics summed over all processes, then those of the variants as known to this process."""
        exemplars = dict(self._metrics.exemplars)
        for metric in (*self._summed(), *_of_variants(self._variants())):
            metric.samples = [
                sample._replace(
                    labels={"model": self._model, **sample.labels},
                    exemplar=exemplars.get(series_of(sample.name, sample.labels)),
                )
                for sample in metric.samples
            ]
            yield metric

    def _summed(self) -> Iterable[Metric]:
        """Metrics summed over all processes. Live gauges of ended processes are dropped; their counters stay in the sums."""
        if self._folder is None or not Path(self._folder).is_dir():
            return self._metrics.registry.collect()
        for file in Path(self._folder).glob(LIVE_GAUGES):
            with suppress(OSError):  # on a read-only disk they stay
                if not _is_open(file, int(file.stem.rsplit("_", 1)[1])):
                    file.unlink()
        files = [file for file in Path(self._folder).glob("*.db") if _size(file)]  # an empty one is being created
        try:
            return _merge(files)
        except Exception:
            return _merge([file for file in files if _is_whole(file)])


def _merge(files: Iterable[Path]) -> Iterable[Metric]:
    return MultiProcessCollector.merge([str(file) for file in files])  # type: ignore[no-untyped-call, no-any-return]


def _size(file: Path) -> int:
    with suppress(OSError):
        return file.stat().st_size
    return 0


def _is_open(file: Path, pid: int) -> bool:
    """Whether the process `pid` has `file` open, or may be about to. Its pid may have been another's: in a container, whose
    processes begin with the same pids again after a restart, most are.
    """
    if not psutil.pid_exists(pid):
        return False
    path, descriptors = str(file.resolve()), f"/proc/{pid}/fd"
    with suppress(OSError):  # of another user
        # not by pathlib, which interns each name: every 500 scrapes the table of interned strings was made anew, of 4 MB
        for descriptor in os.listdir(descriptors):  # noqa: PTH208
            with suppress(FileNotFoundError):  # closed meanwhile
                if os.readlink(f"{descriptors}/{descriptor}") == path:  # noqa: PTH115
                    return True
    return time.time() - file.stat().st_mtime < _CREATED_S


def _is_whole(file: Path) -> bool:
    """Whether a file can be read; after a crash of the machine, parts of it may be missing."""
    try:
        _merge([file])
    except Exception as error:
        _LOG.error("%s is left out of the metrics: %s", file, origin_of(error))
        return False
    return True


def _of_variants(variants: Iterable[Variant]) -> Iterator[Metric]:
    yield _gauge("gearbox_build_info", "Version of the gateway", ["version"], [((version("gearbox"),), 1)])
    variants = list(variants)
    facts = ["technique", "parent", "weights"]
    info = [((v.name, v.technique, v.card.parent or "", v.card.weights_digest[7:19]), 1.0) for v in variants]
    yield _gauge(
        "gearbox_variant_info",
        "Technique, parent and weights digest of a variant, from its card",
        ["variant", *facts],
        info,
    )
    for name, help_text, value in _VARIANT_GAUGES:
        yield _gauge(f"gearbox_{name}", help_text, ["variant"], [((v.name,), float(value(v))) for v in variants])


_VARIANT_GAUGES: tuple[tuple[str, str, Callable[[Variant], float]], ...] = (
    ("variant_quality_ratio", "Quality relative to full, from the card", lambda v: v.quality.quality),
    ("variant_weights_bytes", "Size of the weights on disk, from the card", lambda v: v.card.bytes_on_disk),
    ("variant_resident_bytes", "Memory of one replica, from the card", lambda v: v.profile.resident_bytes),
    ("variant_price_usd_per_hour", "Price of one replica", lambda v: v.price_usd_per_hour),
    (
        "variant_up",
        "Whether the variant can answer, or would scale up from zero",
        lambda v: v.live.replicas > 0 or v.scales_to_zero,
    ),
    ("variant_replicas", "Healthy replicas", lambda v: v.live.replicas),
    (
        "variant_replicas_ejected",
        "Replicas that run and get no requests until a probe succeeds",
        lambda v: v.live.ejected,
    ),
    ("variant_replicas_max", "Most replicas that autoscaling allows", lambda v: v.max_replicas),
    ("requests_running", "Requests running in the engines", lambda v: v.live.running),
    ("requests_waiting", "Requests waiting in the engines", lambda v: v.live.waiting),
    ("variant_kv_cache_usage_ratio", "KV cache usage of the replica with the fullest cache", lambda v: v.live.kv_usage),
)


def _gauge(name: str, help_text: str, labels: list[str], values: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def expose(collector: Collector, accept: str = "") -> tuple[bytes, str]:
    """Render the metrics of `collector`, with the content type: OpenMetrics (with exemplars) if `accept` lists it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def serve_metrics(host: str, port: int, collector: Collector, targets: Targets) -> MetricsServer:
    """Serve the metrics of `collector` from a thread. On loopback, other `Host` names are rejected (DNS rebinding).

    One thread renders the pages of all scrapes: glibc keeps what a page takes for each of many threads anew.
    """
    renderer = ThreadPoolExecutor(1, "metrics-page")

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if is_loopback(host) and not host_allowed(environ.get("HTTP_HOST", host).lower(), {host}):
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"this host is not allowed\n"]
        path = environ["PATH_INFO"]
        if path == "/metrics":
            page, content_type = renderer.submit(expose, collector, environ.get("HTTP_ACCEPT", "")).result()
            start_response("200 OK", [("Content-Type", content_type)])
            return [page]
        if path == "/targets":
            start_response("200 OK", [("Content-Type", "application/json")])
            return [orjson.dumps(targets())]
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"there are /metrics and /targets\n"]

    family, _ = socket_address(host, port)
    server_class = _Server6 if family == socket.AF_INET6 else MetricsServer
    server = make_server(host, port, application, server_class=server_class, handler_class=_Silent)
    server.thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    server.thread.start()
    return server
