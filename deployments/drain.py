"""Lets a node of a cluster finish its answers before it goes: what a pod runs before it is stopped.

Ray Serve starts replacements elsewhere, sends nothing new here, and stops each replica here when its answers are done.
Where the whole cluster goes, nobody replaces anything: then its nodes wait until nothing is asked any more.
Run as `python -m deployments.drain --deadline-s 600`.
"""

import argparse
import csv
import logging
import re
import socket
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
from ray._private import services
from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2
from ray.exceptions import RayError

_POLL_S = 1.0
_SETTLE_S = 10.0  # until whoever balances load has taken this node out, and other nodes that leave have said so
_QUIET_S = 10.0  # without a request, after which none is expected
_ALIVE = 0  # GcsNodeInfo.state
_PORTS = range(30000, 31000)  # of replicas
_REPLICA = "ray::ServeReplica:"  # how Ray titles their processes; the application's name follows
_ENGINE_LOAD = re.compile(r"^vllm:num_requests_(?:running|waiting)\{[^}\n]*\} (\S+)$", re.MULTILINE)
_GATEWAY_LOAD = re.compile(r"^gearbox_requests_in_flight\{[^}\n]*\} (\S+)$", re.MULTILINE)
_LOG = logging.getLogger("gearbox.drain")
_SOCKETS = Path("/tmp/haproxy-serve")  # Ray puts each node's under its id


def node_here() -> str:
    """Ray's id of this node, from the arguments of its raylet. Raises `LookupError` where none runs."""
    for process in psutil.process_iter(["cmdline"]):
        for argument in process.info["cmdline"] or ():
            if argument.startswith("--node_id="):
                return str(argument.removeprefix("--node_id="))
    raise LookupError("no raylet runs here")


def replicas() -> list[psutil.Process]:
    """The Serve replicas on this node."""
    return [p for p in psutil.process_iter(["cmdline"]) if _title(p).startswith(_REPLICA)]


def _title(process: psutil.Process) -> str:
    return str((process.info["cmdline"] or [""])[0])


def requests(metrics_port: int) -> float:
    """Requests under way here: at the engines, at the gateways, and passing through HAProxy.

    Whose load can't be read counts as one: it may be busy, and what is cut off cannot be had back.
    """
    here = replicas()
    engines = [process for process in here if _title(process).startswith(f"{_REPLICA}variant-")]
    gateway = any(_title(process).startswith(f"{_REPLICA}gateway") for process in here)
    total = sum(_at_engine(process) for process in engines) + _proxied()
    return total + (_at_gateways(metrics_port) if gateway else 0)


def _at_engine(process: psutil.Process) -> float:
    """What an engine says of itself."""
    try:
        ports = {c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    except psutil.NoSuchProcess:
        return 0
    except psutil.AccessDenied:
        return 1
    told = [float(load) for port in ports & {*_PORTS} for load in _ENGINE_LOAD.findall(_page(port))]
    return sum(told) if told else 1


def _at_gateways(port: int) -> float:
    """What the gateways of this node say, each for all of them. One that was asked nothing yet has no number."""
    page = _page(port)
    return sum(map(float, _GATEWAY_LOAD.findall(page))) if "gearbox_" in page else 1


def _page(port: int) -> str:
    """The metrics at `port`; empty when they can't be had."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5).raise_for_status().text
    except httpx.HTTPError:
        return ""


def _proxied() -> int:
    """Requests that HAProxy passes on; one that can't be asked, as when it was replaced but still has some, counts as one."""
    processes = [p for p in psutil.process_iter(["name"]) if p.info["name"] == "haproxy"]
    answers = [_backends(path) for path in _SOCKETS.glob("*/admin.sock")]
    known = [active for active in answers if active is not None]
    return sum(known) + max(0, len(processes) - len(known))


def _backends(path: Path) -> int | None:
    """Requests that the HAProxy behind this socket passes on or holds; None when it does not say."""
    try:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(5)
            admin.connect(str(path))
            admin.sendall(b"show stat\n")
            text = b"".join(iter(lambda: admin.recv(65536), b"")).decode()
        rows = list(csv.DictReader(text.removeprefix("# ").splitlines()))
        active = [int(row["scur"]) + int(row["qcur"]) for row in rows if row["svname"] == "BACKEND"]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return None
    return sum(active) if rows else None


class Cluster:
    """What Ray's control store knows of the nodes."""

    def __init__(self, address: str) -> None:
        self._client = GcsClient(address=address)

    def leave(self, node: str, deadline_s: float) -> None:
        """Say that `node` goes in `deadline_s` seconds. Raises `RuntimeError` when that is refused."""
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        until_ms = int((time.time() + deadline_s) * 1000)
        accepted, why = self._client.drain_node(node, reason, "the pod is stopped", until_ms)
        if not accepted:
            raise RuntimeError(f"the node can't be drained: {why}")

    def heads(self) -> set[str]:
        """The node with this store."""
        return {key.hex() for key, info in self._client.get_all_node_info().items() if info.is_head_node}

    def workers(self) -> set[str]:
        """The other nodes that live; none where the store itself is gone."""
        with suppress(RayError):
            nodes = self._client.get_all_node_info().items()
            return {key.hex() for key, info in nodes if info.state == _ALIVE and not info.is_head_node}
        return set()

    def others_stay(self, node: str) -> bool:
        """Whether any other worker lives that does not leave as well."""
        leaving: set[str] = set()
        with suppress(RayError):
            leaving = {key if isinstance(key, str) else key.hex() for key in self._client.get_draining_nodes()}
        return bool(self.workers() - leaving - {node})


def drain(cluster: Cluster, node: str, deadline_s: float, metrics_port: int) -> None:
    """Return when nothing is left to be answered on this worker, at the latest after `deadline_s` seconds.

    Where Ray refuses to replace what runs here, its answers are waited for all the same.
    """
    end = time.monotonic() + deadline_s
    settled = time.monotonic() + _SETTLE_S
    try:
        cluster.leave(node, deadline_s)
        replaced = True
    except (RuntimeError, RayError) as error:
        _LOG.error("nothing replaces what runs here: %s", error)
        replaced = False
    quiet_since = time.monotonic()
    while (now := time.monotonic()) < end:
        if requests(metrics_port):
            quiet_since = now
        if now > settled:
            gone = not replicas() and quiet_since < now
            if gone or (now - quiet_since > _QUIET_S and not (replaced and cluster.others_stay(node))):
                return
        time.sleep(_POLL_S)


def outlast(cluster: Cluster, node: str, deadline_s: float) -> None:
    """Return when the workers are gone, if all of them go: without this head they would not last long.

    Where they stay there is nothing to wait for: they are without a head either way.
    """
    end = time.monotonic() + deadline_s
    time.sleep(_SETTLE_S)
    while time.monotonic() < end and cluster.workers() and not cluster.others_stay(node):
        time.sleep(_POLL_S)


def main() -> None:
    """Entry point of a pod's preStop hook. What can't be drained is stopped as it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--deadline-s", type=float, required=True, help="the start of a replacement and the longest answer"
    )
    parser.add_argument("--metrics-port", type=int, default=9464, help="of the gateways")
    given = parser.parse_args()
    cluster, node = Cluster(services.canonicalize_bootstrap_address_or_die("auto")), node_here()
    if node in cluster.heads():
        outlast(cluster, node, given.deadline_s)
    else:
        drain(cluster, node, given.deadline_s, given.metrics_port)


if __name__ == "__main__":
    main()
