"""Lets a node of a cluster finish its answers before it goes: what a pod runs before it is stopped.

Ray Serve starts replacements elsewhere, sends nothing new here, and stops each replica here when its answers are done.
Where the whole cluster goes, nobody replaces anything: then its nodes wait until nothing is asked any more.
Run as `python -m deployments.drain --deadline-s 600`.
"""

import argparse
import csv
import re
import socket
import time
from collections.abc import Iterator
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
_LOAD = re.compile(
    r"^(?:vllm:num_requests_(?:running|waiting)|gearbox_requests_in_flight)\{[^}\n]*\} (\S+)$", re.MULTILINE
)
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
    processes = psutil.process_iter(["cmdline"])
    return [p for p in processes if (p.info["cmdline"] or [""])[0].startswith("ray::ServeReplica:")]


def requests(metrics_port: int) -> float:
    """Requests under way here: at the engines, at the gateways, and passing through HAProxy."""
    return sum(_told(metrics_port)) + _proxied()


def _told(metrics_port: int) -> Iterator[float]:
    """What engines and gateways on this node say of themselves."""
    listening = {c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    for port in sorted(listening & {*_PORTS, metrics_port}):
        with suppress(httpx.HTTPError):
            yield from map(float, _LOAD.findall(httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text))


def _proxied() -> int:
    """Requests that HAProxy passes on; one that was replaced, but still has some, counts as one."""
    processes = [p for p in psutil.process_iter(["name"]) if p.info["name"] == "haproxy"]
    active = 0
    for path in _SOCKETS.glob("*/admin.sock"):
        with suppress(OSError), socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(5)
            admin.connect(str(path))
            admin.sendall(b"show stat\n")
            text = b"".join(iter(lambda: admin.recv(65536), b"")).decode()
            rows = csv.DictReader(text.removeprefix("# ").splitlines())
            active += sum(int(row["scur"]) + int(row["qcur"]) for row in rows if row["svname"] == "BACKEND")
    return active + max(0, len(processes) - 1)


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
    """Return when nothing is left to be answered on this worker, at the latest after `deadline_s` seconds."""
    end = time.monotonic() + deadline_s
    settled = time.monotonic() + _SETTLE_S
    cluster.leave(node, deadline_s)
    quiet_since = time.monotonic()
    while (now := time.monotonic()) < end:
        if requests(metrics_port):
            quiet_since = now
        if now > settled:
            gone = not replicas() and quiet_since < now
            if gone or (now - quiet_since > _QUIET_S and not cluster.others_stay(node)):
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
