"""Ray cluster of several nodes on one machine, each isolated like a pod: its own address, processes and scratch folders.

Needs root and `ip` (Debian's iproute2): every node is a network namespace on one bridge, with its own mounts and pids.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]
_BRIDGE = "gbx0"
_NET = "10.213.77"
_OWN = ("/tmp/ray", "/tmp/haproxy-serve", "/tmp/gearbox-metrics")  # private to every node
_RESTARTS = 3  # of a node whose `ray start` failed, as the kubelet restarts a container
BIN = Path(sys.executable).parent


class ClusterError(Exception):
    """A node or an application did not start; the message names it and quotes its output."""


def possible() -> str | None:
    """Why such a cluster can't be created on this machine; None if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "ip is not installed (Debian package 'iproute2')"
    result = subprocess.run(["ip", "netns", "add", "gbx-probe"], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", "gbx-probe"], capture_output=True, check=False)
    return f"no network namespaces: {result.stderr.strip()}" if result.returncode else None


@dataclass
class Node:
    """A running node."""

    name: str
    address: str
    process: "subprocess.Popen[bytes]"  # unshare, whose child is the first process of the node
    env: Mapping[str, str]

    def inside(self, *command: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run `command` in the node, as `kubectl exec` would."""
        return subprocess.run(
            self.enter(*command), env=self.env, capture_output=True, text=True, check=False, **options
        )

    def enter(self, *command: str) -> list[str]:
        """Command line that runs `command` in the node."""
        (first,) = psutil.Process(self.process.pid).children()
        return ["nsenter", "-t", str(first.pid), "-n", "-m", "-p", *command]

    def end(self, patience_s: float = 60) -> None:
        """SIGTERM to `ray start`, as the kubelet sends it; SIGKILL to the remaining processes.

        A node with replicas takes half a minute. One that is killed first leaves the head waiting for it for longer.
        """
        with suppress(psutil.NoSuchProcess, ValueError):
            (first,) = psutil.Process(self.process.pid).children()
            first.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience_s)
        self.kill()

    def kill(self) -> None:
        """Simulate a power cut: the first process of a pid namespace takes all others with it."""
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children():
                child.kill()
        self.process.kill()
        self.process.wait()


@dataclass
class Network:
    """The nodes' network: a bridge and the addresses assigned so far."""

    folder: Path
    _numbers: Iterator[int] = field(default_factory=lambda: count(2))

    def connect(self, name: str) -> str:
        """Make the network namespace of a node; returns its address."""
        address, space, outer = f"{_NET}.{next(self._numbers)}", _netns(name), f"gbx-{name}"[:15]
        _run("ip", "netns", "add", space)
        _run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
        _run("ip", "link", "set", outer, "master", _BRIDGE, "up")
        for command in (
            ("addr", "add", f"{address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
            ("route", "add", "default", "via", f"{_NET}.1"),
        ):
            _run("ip", "-n", space, *command)
        return address

    def disconnect(self, name: str) -> None:
        """Remove the node's network namespace. The link disappears by itself only when the last process in it has ended."""
        _run("ip", "link", "del", f"gbx-{name}"[:15])
        _run("ip", "netns", "del", _netns(name))


@contextmanager
def network() -> Iterator[Network]:
    """Create a bridge without nodes; remove it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="gbx-nodes-", dir="/var/tmp"))
    _run("ip", "link", "add", _BRIDGE, "type", "bridge")
    try:
        _run("ip", "addr", "add", f"{_NET}.1/24", "dev", _BRIDGE)
        _run("ip", "link", "set", _BRIDGE, "up")
        yield Network(folder)
    finally:
        _run("ip", "link", "del", _BRIDGE)
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Cluster:
    """Nodes of one Ray head. A context manager: leaving it ends all nodes.

    Args:
        env: environment of every process of every node, like that of the pods' containers.
        prefix: prefix of the nodes' names, for a second cluster beside the first.
    """

    network: Network
    env: Mapping[str, str]
    prefix: str = ""
    nodes: dict[str, Node] = field(default_factory=dict)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self.nodes)):
            self.remove(name, kill=True)

    @property
    def head(self) -> Node:
        """The head node, with Ray's GCS; no replica runs on it."""
        return self.nodes["head"]

    def log(self, name: str) -> Path:
        """Output of a node's first process."""
        return self.network.folder / f"{self.prefix}{name}.log"

    def add(self, name: str, *, cpus: float = 0, pool: str | None = None, env: Mapping[str, str] | None = None) -> Node:
        """Start a node with additional environment `env`, and wait until it has joined. The first one must be the head."""
        assert bool(self.nodes) == (name != "head")
        full = self.prefix + name
        address = self.network.connect(full)
        own = self.network.folder / full
        mounts = []
        for place in _OWN:
            private = own / Path(place).name
            private.mkdir(parents=True)
            Path(place).mkdir(exist_ok=True)
            mounts.append(f"mount --bind {private} {place}")
        start = [str(BIN / "ray"), "start", "--block", f"--node-ip-address={address}", f"--num-cpus={cpus}"]
        start += ["--num-gpus=0", "--metrics-export-port=8080", "--disable-usage-stats"]
        if name == "head":
            start += ["--head", "--port=6379", "--dashboard-host=0.0.0.0"]
        else:
            start += [f"--address={self.head.address}:6379"]
        if pool:
            start += [f"--labels=gearbox.io/pool={pool}"]
        script = "; ".join([*mounts, f"exec {' '.join(start)}"])
        unshare = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", script]
        command = ["ip", "netns", "exec", _netns(full), *unshare]
        for _ in range(_RESTARTS):
            node = self.nodes[name] = self._launch(name, address, command, env or {})
            if self._joined(node):
                return node
            node.kill()
        raise ClusterError(f"node {name} did not join:\n{self.log(name).read_text()[-3000:]}")

    def _launch(self, name: str, address: str, command: Sequence[str], own: Mapping[str, str]) -> Node:
        env = {**os.environ, **self.env, **own}
        with self.log(name).open("w") as log:
            process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        return Node(name, address, process, env)

    def remove(self, name: str, *, kill: bool = False) -> None:
        """End a node, gracefully or by SIGKILL."""
        node = self.nodes.pop(name)
        node.kill() if kill else node.end()
        self.network.disconnect(self.prefix + name)

    def _joined(self, node: Node, patience_s: float = 120) -> bool:
        end = time.monotonic() + patience_s
        while time.monotonic() < end and node.process.poll() is None:
            with suppress(httpx.HTTPError, KeyError):
                nodes = self.api("GET", "/nodes?view=summary").json()["data"]["summary"]
                states = {row["ip"]: row["raylet"].get("state") for row in nodes}
                if states.get(node.address) == "ALIVE":
                    return True
            time.sleep(0.5)
        return False

    def api(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request to the head's REST API."""
        token = self.env.get("RAY_AUTH_TOKEN")
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.request(method, f"http://{self.head.address}:8265{path}", headers=headers, timeout=60, **options)

    def deploy(self, config: Mapping[str, object], patience_s: float = 300) -> None:
        """Submit the Serve config, as KubeRay does when `serveConfigV2` changes: retry until Serve accepts it."""
        end = time.monotonic() + patience_s
        while True:
            try:
                answer = self.api("PUT", "/api/serve/applications/", json=config)
            except httpx.HTTPError as error:
                said, final = f"{type(error).__name__} {error}", False
            else:
                if answer.status_code == 200:
                    return
                said, final = answer.text, answer.status_code < 500
            if final or time.monotonic() > end:
                raise ClusterError(said)
            time.sleep(2)

    def applications(self) -> dict[str, Any]:
        """Serve applications with their status."""
        answer = self.api("GET", "/api/serve/applications/")
        return answer.json().get("applications", {}) if answer.status_code == 200 else {}

    def wait_running(self, names: Sequence[str], patience_s: float = 600) -> None:
        """Wait until these applications are RUNNING."""
        end = time.monotonic() + patience_s
        states: dict[str, Any] = {}
        while time.monotonic() < end:
            with suppress(httpx.HTTPError):
                states = {name: (app["status"], app["message"]) for name, app in self.applications().items()}
            if all(states.get(name, ("",))[0] == "RUNNING" for name in names):
                return
            if failed := {name: state for name, state in states.items() if state[0] == "DEPLOY_FAILED"}:
                raise ClusterError(f"deployment failed: {failed}")
            time.sleep(1)
        raise ClusterError(f"not running after {patience_s:.0f} s: {states}")


def _netns(name: str) -> str:
    return f"gbx-{name}"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
