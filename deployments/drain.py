"""Drain a Kubernetes node of the Ray cluster: a pod's preStop hook, which returns when no request is left on this node.

Ray Serve starts replacements on other nodes, sends nothing new here, and stops each replica here when its requests are complete.
When the whole cluster is shut down nothing is replaced: each node then waits until it has had no request for a while.
Run as `python -m deployments.drain --deadline-s 600`.
"""

import argparse
import csv
import logging
import socket
import time
from pathlib import Path

import httpx
import psutil
from ray.exceptions import RayError

from deployments.ray_internals import ControlStore, fallback_proxy_port, haproxy_sockets, raylet_node_id, replica_app
from serve.config.sections import REPLICA_PORTS
from serve.telemetry.prometheus_text import Samples, parse

_POLL_S = 1.0
_SETTLE_S = 10.0  # until load balancers have removed this node, and other nodes that stop have been marked as draining
_QUIET_S = 10.0  # without a request, after which none is expected
_BETWEEN_ATTEMPTS_S = (
    2.0  # in which nobody may have a request that goes on: HAProxy waits a second before it tries again
)
_ENGINE_LOAD = ("vllm:num_requests_running", "vllm:num_requests_waiting")
_GATEWAY_LOAD = "gearbox_requests_open"  # also those that no engine has: searches, embeddings, documents
_LOG = logging.getLogger("gearbox.drain")


def local_node_id() -> str:
    """Ray's id of this node, from the arguments of its raylet. Raises `LookupError` where none runs."""
    for process in psutil.process_iter(["cmdline"]):
        if (node := raylet_node_id(process.info["cmdline"] or ())) is not None:
            return node
    raise LookupError("no raylet runs on this machine")


def replicas() -> list[psutil.Process]:
    """The Serve replicas on this node."""
    return [process for process in psutil.process_iter(["cmdline"]) if _app(process)]


def _app(process: psutil.Process) -> str:
    return replica_app(process.info["cmdline"] or ()) or ""


def in_flight(metrics_port: int) -> float:
    """Requests in flight on this node: in engines, in gateways, and in HAProxy.

    A part whose load cannot be read counts as one request: it may be busy, and an interrupted response cannot be recovered.
    """
    local = replicas()
    engines = [process for process in local if _app(process).startswith("variant-")]
    gateway = any(_app(process).startswith("gateway") for process in local)
    total = sum(_engine_requests(process) for process in engines) + _haproxy_requests()
    if not gateway:
        return total
    under_way = gateway_requests(f"http://127.0.0.1:{metrics_port}")
    return total + (1 if under_way is None else under_way)


def _engine_requests(process: psutil.Process) -> float:
    """Running and waiting requests, from the engine's metrics."""
    try:
        ports = {c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    except psutil.NoSuchProcess:
        return 0
    except psutil.AccessDenied:
        return 1
    pages = [_metrics(f"http://127.0.0.1:{port}") for port in ports & {*REPLICA_PORTS}]
    loads = [load for page in pages for name in _ENGINE_LOAD for load in page.get(name, {}).values()]
    return sum(loads) if loads else 1


def gateway_requests(metrics_url: str) -> float | None:
    """Open requests in all gateways of this node, which share a metrics port; None where it cannot be read.

    A gateway has the series from its start; where it is missing, their metrics cannot be written.
    """
    series = _metrics(metrics_url).get(_GATEWAY_LOAD)
    return None if series is None else sum(series.values())


def _metrics(url: str) -> Samples:
    """The load metrics of this machine at `url`; empty when they cannot be read."""
    try:
        response = httpx.get(f"{url}/metrics", timeout=5, trust_env=False)  # not by the proxy of the environment
        return parse(response.raise_for_status().text, (*_ENGINE_LOAD, _GATEWAY_LOAD))
    except (httpx.HTTPError, ValueError):
        return {}


def _haproxy_requests() -> int:
    """Active and queued requests of HAProxy.

    A process without a working socket counts as one. One that was replaced listens no more and has no socket: its connections to
    replicas, or to Serve's own proxy, count. It closes those without a request within 15 s, while clients may keep theirs for 90 s.
    """
    processes = [p for p in psutil.process_iter(["name"]) if p.info["name"] == "haproxy"]
    replaced = [to_replicas for p in processes if (to_replicas := _connections_of_replaced(p)) is not None]
    counts = [_backend_requests(path) for path in haproxy_sockets()]
    known = [count for count in counts if count is not None]
    return sum(known) + sum(replaced) + max(0, len(processes) - len(replaced) - len(known))


def _connections_of_replaced(process: psutil.Process) -> int | None:
    """Connections to replicas of an HAProxy that does not listen; None if it does, or if that cannot be read."""
    try:
        connections = process.net_connections("tcp")
    except psutil.NoSuchProcess:
        return 0
    except psutil.AccessDenied:
        return None
    if any(c.status == psutil.CONN_LISTEN for c in connections):
        return None
    ports = {*REPLICA_PORTS, fallback_proxy_port()}
    return sum(bool(c.raddr) and c.raddr.port in ports for c in connections)


def _backend_requests(admin_socket: Path) -> int | None:
    """Active and queued requests of the HAProxy behind this socket; None when its statistics cannot be read."""
    try:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(5)
            admin.connect(str(admin_socket))
            admin.sendall(b"show stat\n")
            text = b"".join(iter(lambda: admin.recv(65536), b"")).decode()
        rows = list(csv.DictReader(text.removeprefix("# ").splitlines()))
        active = [int(row["scur"]) + int(row["qcur"]) for row in rows if row["svname"] == "BACKEND"]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return None
    return sum(active) if rows else None


def drain_worker(cluster: ControlStore | None, node: str, deadline_s: float, metrics_port: int) -> None:
    """Drain this worker node: return when no request is left, at the latest after `deadline_s` seconds.

    When Ray rejects the drain, and so starts no replacements, requests in flight are waited for all the same.

    Args:
        cluster: None where its control store cannot be reached.
    """
    end = time.monotonic() + deadline_s
    settled = time.monotonic() + _SETTLE_S
    try:
        if cluster is not None:
            cluster.drain_node(node, deadline_s)
    except (RuntimeError, RayError) as error:
        _LOG.error("the replicas on this node are not replaced: %s", error)
        cluster = None
    quiet_since = time.monotonic()
    while (now := time.monotonic()) < end:
        if in_flight(metrics_port):
            quiet_since = now
        if now > settled:
            drained = not replicas() and now - quiet_since > _BETWEEN_ATTEMPTS_S
            if drained or (now - quiet_since > _QUIET_S and not (cluster and cluster.other_workers_stay(node))):
                return
        time.sleep(_POLL_S)


def wait_for_workers(cluster: ControlStore, node: str, deadline_s: float) -> None:
    """Keep the head running until all workers have stopped, if all of them are being drained: they need its control store.

    Where workers stay, return at once: they lose their head in any case.
    """
    end = time.monotonic() + deadline_s
    time.sleep(_SETTLE_S)
    while time.monotonic() < end and cluster.workers() and not cluster.other_workers_stay(node):
        time.sleep(_POLL_S)


def main() -> None:
    """Entry point of a pod's preStop hook."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--deadline-s",
        type=float,
        required=True,
        help="start-up of a replacement plus the longest response, in seconds",
    )
    parser.add_argument("--metrics-port", type=int, default=9464, help="metrics port of the gateways")
    options = parser.parse_args()
    node = local_node_id()
    cluster, is_head = None, False
    try:
        cluster = ControlStore()
        is_head = cluster.is_head(node)
    except (ConnectionError, RuntimeError, RayError) as error:
        _LOG.error("Ray's control store is unreachable, no replicas are replaced: %s", error)
        cluster = None
    if cluster is not None and is_head:
        wait_for_workers(cluster, node, options.deadline_s)
    else:
        drain_worker(cluster, node, options.deadline_s, options.metrics_port)


if __name__ == "__main__":
    main()
