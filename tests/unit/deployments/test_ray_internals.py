"""Contract with Ray: the private APIs that Gearbox uses exist and behave as `deployments/ray_internals.py` expects.

A failure names the part of Ray that has changed and what in Gearbox depends on it.
"""

import importlib.metadata
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest
import ray
import yaml
from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle

from benchmarks.lib.sample_catalog import make_config
from deployments import cpu_priority, ray_internals
from deployments.ray_internals import ControlStore, ray_environment
from serve.config.sections import REPLICA_PORTS
from tests.unit.deployments.test_haproxy import written_by_ray

ROOT = Path(__file__).parents[3]
RAY = Path(ray.__file__).parent
VERSION = importlib.metadata.version("ray")


@contextmanager
def needed_for(consequence: str) -> Iterator[None]:
    """Turn any failure into one that says what in Gearbox depends on the part that is checked."""
    try:
        yield
    except Exception as error:
        what = f"{type(error).__name__}: {error}" if not isinstance(error, AssertionError) else str(error)
        raise AssertionError(
            f"A part of Ray that Gearbox needs has changed ({VERSION}; verified: {ray_internals.VERIFIED_RAY_VERSION}).\n"
            f"Depends on it: {consequence}.\nChanged: {what}\nAdapt deployments/ray_internals.py."
        ) from error


def test_the_installed_ray_is_the_verified_one():
    chart = yaml.safe_load((ROOT / "helm/gearbox/values.yaml").read_text())
    pinned = set(re.findall(r"ray\[\w+\]==([\d.]+)", (ROOT / "pyproject.toml").read_text()))
    assert {VERSION, chart["ray"]["version"], *pinned} == {ray_internals.VERIFIED_RAY_VERSION}, (
        "run this file and tests/cluster with the new Ray, then set VERIFIED_RAY_VERSION"
    )


class TestEnvironment:
    def test_ray_reads_every_variable_that_gearbox_sets(self):
        files = [
            ROOT / "helm/gearbox/templates/_ray.tpl",
            ROOT / "docker/Dockerfile",
            *(ROOT / "benchmarks").rglob("*.py"),
        ]
        names = {name for file in files for name in re.findall(r"\bRAY_[A-Za-z_]+\b", file.read_text())}
        names |= {name for name in ray_environment(make_config(), Path("/h")) if name.startswith("RAY_")}
        sources = "".join(
            file.read_text()
            for folder in ("_private", "_common", "serve/_private")
            for file in (RAY / folder).rglob("*.py")
        )
        with needed_for("the environment in ray_internals.ray_environment, the chart, the images and the benchmarks"):
            unread = sorted(name for name in names if not re.search(rf"""["']{name}["']""", sources))
            assert not unread, f"not read by Ray any more: {', '.join(unread)}"

    @pytest.fixture(scope="class")
    def process(self, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
        """Settings and log of a process that runs in the platform's environment."""
        folder = tmp_path_factory.mktemp("haproxy")
        environment = {**os.environ, **ray_environment(make_config(), folder), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", PROCESS, str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
        with needed_for("the environment and the log of every gateway replica"):
            assert done.returncode == 0, done.stderr[-2000:]
        return {**json.loads(done.stdout.splitlines()[-1]), "folder": str(folder)}

    def test_haproxy_gets_its_own_paths_and_ports(self, process: dict[str, Any]):
        ports = make_config().server.derived_ports
        with needed_for("two platforms on one machine, and the HAProxy wrapper deployments/haproxy"):
            assert process["constants"] == {
                "RAY_SERVE_ENABLE_HA_PROXY": True,
                "PROXY_READY_CHECK_TIMEOUT_S": 60.0,
                "PROXY_HEALTH_CHECK_PERIOD_S": 2.0,
                "RAY_SERVE_HAPROXY_BINARY_PATH": str(ROOT / "deployments/haproxy"),
                "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{process['folder']}/haproxy.cfg",
                "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{process['folder']}/admin.sock",
                "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": process["folder"],
                "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{process['folder']}/server-state",
                "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{process['folder']}/metrics.sock",
                "RAY_SERVE_HAPROXY_METRICS_PORT": ports["HAProxy's metrics"],
                "RAY_SERVE_HAPROXY_STATS_PORT": ports["HAProxy's statistics"],
                "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": ports["Serve's own proxy"],
                "RAY_SERVE_ENABLE_DIRECT_INGRESS": True,
                "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": False,
                "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": REPLICA_PORTS[0],
                "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": REPLICA_PORTS[-1],
            }

    def test_gearbox_logs_to_the_file_of_the_replica_without_serves_buffer(self, process: dict[str, Any]):
        with needed_for("gateway_log, through ray_internals.replica_log_handlers"):
            assert process["handlers"] == ["RotatingFileHandler"], process["handlers"]
            assert process["formatter"] == "JSONFormatter", process["formatter"]
            lines = [json.loads(line) for line in process["log"].splitlines()]
            assert [line["message"] for line in lines] == ["gearbox"], "Serve buffers its own line, but not Gearbox's"


PROCESS = """
import json, logging, sys, time
from pathlib import Path
from ray.serve._private import constants
from ray.serve._private.common import ServeComponentType
from ray.serve._private.logging_utils import configure_component_logger
from ray.serve.schema import LoggingConfig
from deployments.gateway_log import log_with_serve
from deployments.ray_internals import replica_log_handlers

logs, stdout = Path(sys.argv[1], "logs"), sys.stdout
configure_component_logger(
    component_name="gateway", component_id="1", component_type=ServeComponentType.REPLICA, max_bytes=1 << 20, backup_count=1,
    logging_config=LoggingConfig(encoding="JSON", logs_dir=str(logs), enable_access_log=False),
    buffer_size=constants.RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE,
)
handlers = replica_log_handlers()
facts = {"handlers": [type(h).__name__ for h in handlers], "formatter": type(handlers[0].formatter).__name__}
log_with_serve()
logging.getLogger("ray.serve").info("serve")
logging.getLogger("gearbox.gateway").info("gearbox")
(file,) = logs.iterdir()
end = time.monotonic() + 10
while not (facts.update(log=file.read_text()) or facts["log"]) and time.monotonic() < end:
    time.sleep(0.01)
names = ["RAY_SERVE_ENABLE_HA_PROXY", "PROXY_READY_CHECK_TIMEOUT_S", "PROXY_HEALTH_CHECK_PERIOD_S",
         "RAY_SERVE_HAPROXY_BINARY_PATH",
         "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC", "RAY_SERVE_HAPROXY_SOCKET_PATH", "RAY_SERVE_HAPROXY_SERVER_STATE_BASE",
         "RAY_SERVE_HAPROXY_SERVER_STATE_FILE", "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH", "RAY_SERVE_HAPROXY_METRICS_PORT",
         "RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", "RAY_SERVE_ENABLE_DIRECT_INGRESS",
         "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP", "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT",
         "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"]
facts["constants"] = {name: getattr(constants, name) for name in names}
stdout.write(json.dumps(facts) + "\\n")
"""


class TestProcesses:
    @pytest.mark.parametrize("app", ["gateway", "variant-full", "variant-int8.v2", "retrieval"])
    def test_titles_of_replicas_name_their_application(self, app: str):
        from ray.serve._private.common import DeploymentID

        with needed_for("drain, the state's list of processes, and benchmarks that attribute CPU time and memory"):
            title = f"ray::{DeploymentID('engine:x', app).to_replica_actor_class_name()}"
            for command in ([title], [f"{title}.handle_request"], [title, "", ""]):
                assert ray_internals.replica_app(command) == app, title
                assert ray_internals.actor_class(command) == "ServeReplica", title

    def test_titles_of_other_processes_name_their_class(self):
        from ray._private import ray_constants
        from ray.serve._private import haproxy, proxy

        with needed_for("state.processes_of, which must find Ray's agents, and benchmarks that attribute CPU time"):
            titles = [ray_constants.WORKER_PROCESS_TYPE_IDLE_WORKER, ray_constants.AGENT_PROCESS_TYPE_DASHBOARD_AGENT]
            assert [ray_internals.actor_class([title]) for title in titles] == ["IDLE", "DashboardAgent"]
            assert hasattr(haproxy, "HAProxyManager") and hasattr(proxy, "ProxyActor"), "classes of Serve's proxies"
        assert ray_internals.actor_class(["python", "ray::x"]) is ray_internals.actor_class([]) is None
        assert ray_internals.replica_app(["ray::ProxyActor"]) is ray_internals.replica_app([]) is None

    def test_the_raylet_has_its_nodes_id_among_its_arguments(self):
        from ray._private import services

        with needed_for("drain.local_node_id"):
            assert 'f"--node_id={node_id}"' in inspect.getsource(services.start_raylet), "services.start_raylet"
        assert ray_internals.raylet_node_id(["raylet", "--node_id=abc", "--x"]) == "abc"
        assert ray_internals.raylet_node_id(["python"]) is None

    def test_workers_stay_in_the_session_of_their_raylet(self):
        with needed_for("cpu_priority: Linux compares priorities inside a session only, where autogroup is on"):
            assert b"setsid" not in (RAY / "core/src/ray/raylet/raylet").read_bytes(), "the raylet calls setsid"
            started = "".join(file.read_text() for file in (RAY / "_private").rglob("*.py"))
            assert "os.setsid" not in started and "start_new_session=True" not in started, "Ray starts new sessions"

    def test_haproxy_has_its_admin_socket_in_a_folder_for_each_node(self, monkeypatch: pytest.MonkeyPatch):
        from ray.serve._private import haproxy

        constants = (RAY / "serve/_private/constants.py").read_text()
        with needed_for("drain, which asks HAProxy for its requests in flight"):
            assert '"RAY_SERVE_HAPROXY_SOCKET_PATH", "/tmp/haproxy-serve/admin.sock"' in constants, "the default path"
            source = inspect.getsource(haproxy)
            assert "_per_node(RAY_SERVE_HAPROXY_SOCKET_PATH)" in source, "HAProxyManager's path"
            assert "os.path.join(d, self._node_id, f)" in source, "HAProxyManager's folder for each node"
        patterns: list[str] = []
        monkeypatch.setattr(Path, "glob", lambda self, pattern: patterns.append(f"{self}/{pattern}") or [])
        ray_internals.haproxy_sockets()
        assert patterns == ["/tmp/haproxy-serve/*/admin.sock"]

    def test_port_of_serves_own_proxy(self):
        from ray.serve._private.constants import RAY_SERVE_FALLBACK_PROXY_HTTP_PORT

        assert ray_internals.fallback_proxy_port() == RAY_SERVE_FALLBACK_PROXY_HTTP_PORT


ANCHORS = {
    "^defaults$": "HAProxy's errors as JSON",
    "^ *errorfile 50[234] ": "statuses 502, 503 and 504 instead of Ray's 500",
    "^frontend http_frontend$": "rejecting unknown methods and malformed request ids",
    '^ *http-request return status 404 content-type text/plain lf-string "Path .*': "503 until the gateway is deployed",
    "^ *option splice-request$": "the flag -dS, without which there would be nothing to amend",
}


@pytest.mark.parametrize("anchor", ANCHORS)
def test_the_haproxy_configuration_has_the_lines_that_the_wrapper_amends(tmp_path: Path, anchor: str):
    with needed_for(f"deployments/haproxy: {ANCHORS[anchor]}"):
        text = written_by_ray(tmp_path, 1, [2]).read_text()
        assert re.search(anchor, text, re.MULTILINE), f"no line of HAProxy's configuration matches {anchor}"


@pytest.mark.parametrize(
    ("ended", "says"),
    [
        ("gcs_server", "gcs_server (exit code -9)"),
        ("raylet", "raylet (exit code -9)"),
        ("log_monitor", None),
        ("", None),
    ],
)
def test_the_end_of_rays_own_processes_is_seen(monkeypatch: pytest.MonkeyPatch, ended: str, says: str | None):
    from ray._private import ray_constants, worker
    from ray._private.node import Node

    with needed_for("the supervisor, which stops the platform when Ray has ended (ray_internals.ended_ray_process)"):
        assert worker._global_node is None and ray_internals.ended_ray_process() is None, "where Ray was not started"
        node = Node.__new__(Node)
        names = (ray_constants.PROCESS_TYPE_GCS_SERVER, ray_constants.PROCESS_TYPE_RAYLET, "log_monitor")
        codes = {name: -9 if name == ended else None for name in names}
        node.all_processes = {
            name: [SimpleNamespace(process=SimpleNamespace(returncode=code, poll=lambda code=code: code))]
            for name, code in codes.items()
        }
        monkeypatch.setattr(worker, "_global_node", node)
        assert ray_internals.ended_ray_process() == says


class TestNodes:
    def test_ray_init_takes_the_port_of_its_metrics(self):
        (name,) = ray_internals.metrics_port_argument(7004)
        with needed_for("the port of Ray's metrics, in supervisor and in the configuration's derived ports"):
            assert f'kwargs.pop("{name}"' in inspect.getsource(ray.init), f"ray.init does not take {name}"

    def test_nodes_have_the_keys_that_name_their_metrics(self, monkeypatch: pytest.MonkeyPatch):
        library = (RAY / "_raylet.so").read_bytes()
        with needed_for("Prometheus' service discovery of Ray's own metrics"):
            for key in ("Alive", "MetricsExportPort", "NodeManagerAddress"):
                assert key.encode() in library, f"ray.nodes() has no {key}"
        node = {"Alive": True, "MetricsExportPort": 7004, "NodeManagerAddress": "10.0.0.1"}
        nodes = [node, {**node, "Alive": False}, {**node, "MetricsExportPort": 0}]
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        assert ray_internals.node_metrics_endpoints() == [("10.0.0.1", 7004)]


@pytest.fixture
async def handle(monkeypatch: pytest.MonkeyPatch) -> DeploymentHandle:
    """A handle with Serve's own router, whose controller has announced two replicas, one without an HTTP port."""
    with needed_for("replica selection in the gateway"):
        from ray.serve._private import router as module
        from ray.serve._private.common import (
            DeploymentHandleSource,
            DeploymentID,
            DeploymentTargetInfo,
            ReplicaID,
            RunningReplicaInfo,
        )
        from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter

        monkeypatch.setattr(module, "LongPollClient", MagicMock())
        monkeypatch.setattr(module, "SharedRouterLongPollClient", MagicMock())
        context = SimpleNamespace(get_actor_id=lambda: None)  # the real one would start Ray
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
        monkeypatch.setattr(RunningReplicaInfo, "get_actor_handle", lambda self: MagicMock())
        deployment = DeploymentID("engine:full", "variant-full")

        def create_router(**options: Any) -> module.Router:
            return module.CurrentLoopRouter(
                controller_handle=MagicMock(),
                deployment_id=deployment,
                handle_id="handle",
                self_actor_id="actor",
                handle_source=DeploymentHandleSource.REPLICA,
                request_router_class=PowerOfTwoChoicesRequestRouter,
                enable_strict_max_ongoing_requests=True,
                node_id="node",
                availability_zone=None,
                prefer_local_node_routing=False,
            )

        lookup = DeploymentHandle("engine:full", "variant-full", _create_router=create_router)
        assert not lookup.is_initialized
        initialized = lookup.options()
        replicas = [
            RunningReplicaInfo(
                ReplicaID(name, deployment), "node", "10.0.0.1", None, name, 10, port=40000, backend_http_port=port
            )
            for name, port in (("a", 30000), ("b", None))
        ]
        assert initialized._router is not None, "DeploymentHandle.options() does not initialize the handle"
        assert ray_internals.replica_endpoints(initialized) == []
        targets = DeploymentTargetInfo(is_available=True, running_replicas=replicas)
        initialized._router._asyncio_router.update_deployment_targets(targets)
    return initialized


class TestHandles:
    def test_one_that_is_not_initialized_has_no_replicas(self):
        assert ray_internals.replica_endpoints(DeploymentHandle("engine:full", "variant-full")) == []

    async def test_all_replicas_with_an_http_port_are_listed(self, handle: DeploymentHandle):
        with needed_for("ray_internals.replica_endpoints: engine metrics, and leaving a broken replica for another"):
            assert ray_internals.replica_endpoints(handle) == [("10.0.0.1", 30000)]

    async def test_replicas_tell_their_node(self, handle: DeploymentHandle):
        with needed_for("ray_internals.replica_nodes: the router's knowledge of variants that share hardware"):
            assert ray_internals.replica_nodes(handle) == {"node"}
            assert ray_internals.replica_nodes(DeploymentHandle("engine:full", "variant-full")) == set()

    @pytest.mark.parametrize("reserve", [True, False])
    async def test_a_slot_is_reserved_only_on_demand(self, handle: DeploymentHandle, monkeypatch, reserve: bool):
        with needed_for("ray_internals.choose_endpoint: every request to an engine, and starting from zero replicas"):
            router = handle._router._asyncio_router
            chosen, *_ = router.request_router.curr_replicas.values()
            pick = AsyncMock(return_value=(chosen, None))
            monkeypatch.setattr(router, "_pick_and_reserve_replica", pick)
            endpoint = await ray_internals.choose_endpoint(handle, reserve)
            assert endpoint in (("10.0.0.1", 30000), None)
            assert pick.await_count == reserve, "choose_replica(_reserve=) does not decide whether a slot is reserved"

    async def test_requests_that_wait_for_a_slot_count_as_queued(self):
        from ray.serve._private.router import AsyncioRouter

        with needed_for("starting a variant from zero replicas"):
            source = inspect.getsource(AsyncioRouter._pick_and_reserve_replica)
            assert "_choose_replica_for_request" in source, "AsyncioRouter._pick_and_reserve_replica does not queue"


def test_an_application_is_deleted_without_waiting_for_it(monkeypatch: pytest.MonkeyPatch):
    with needed_for("draining by gearbox down (ray_internals.start_deleting_app)"):
        assert inspect.signature(ray_serve.delete).parameters["_blocking"].default is True
    delete = MagicMock()
    monkeypatch.setattr(ray_serve, "delete", delete)
    ray_internals.start_deleting_app("gateway")
    delete.assert_called_once_with("gateway", _blocking=False)


def test_a_replica_knows_that_serve_stops_it(monkeypatch: pytest.MonkeyPatch):
    from ray._private.worker import global_worker
    from ray.serve._private.replica import Replica, ReplicaActor

    with needed_for("the end of streams in a gateway that is stopped (ray_internals.replica_is_stopping)"):
        assert "self._replica_impl: Replica = " in inspect.getsource(ReplicaActor)
        assert "self._shutting_down = True" in inspect.getsource(Replica._perform_graceful_shutdown)
        other = SimpleNamespace()
        replica = SimpleNamespace(_replica_impl=SimpleNamespace(_shutting_down=False))
        monkeypatch.setattr(global_worker, "actors", {"a": other, "b": replica})
        assert not ray_internals.replica_is_stopping()
        replica._replica_impl._shutting_down = True
        assert ray_internals.replica_is_stopping()


class TestDeployments:
    def test_a_deployment_can_have_a_fixed_version(self):
        @ray_serve.deployment
        class Some:
            pass

        with needed_for("gearbox reload: a change of user_config must not replace the gateway's replicas"):
            assert ray_internals.with_version(Some, "gateway")._version == "gateway"
            from ray.serve._private.client import ServeControllerClient

            source = inspect.getsource(ServeControllerClient)
            assert "version=deployment._version or get_random_string()" in source, "the version is not used as it was"

    def test_the_process_of_an_actor_calls_a_function_before_it_imports_its_class(
        self, monkeypatch: pytest.MonkeyPatch
    ):
        lowered: list[int] = []
        monkeypatch.setattr("deployments.cpu_priority.lower_cpu_priority", lowered.append)
        with needed_for("variant: a replica that starts leaves the CPU to the others while it imports vLLM"):
            from ray._private.runtime_env.setup_hook import load_and_execute_setup_hook
            from ray.runtime_env import RuntimeEnv

            ((name, function),) = ray_internals.at_process_start(cpu_priority.lower_engine_priority).items()
            assert load_and_execute_setup_hook(function) is None
            assert lowered == [cpu_priority.ENGINE]
            assert RuntimeEnv(env_vars={name: function})["env_vars"] == {name: function}
            worker = (RAY / "_private/workers/default_worker.py").read_text()
            assert re.search(
                r"os.getenv\(\s*ray_constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR\s*\)(?s:.*)"
                r"load_and_execute_setup_hook\((?s:.*)worker.main_loop\(\)",
                worker,
            ), "workers do not call it before their first task"

    async def test_the_engine_awaits_the_weights_instead_of_the_download(self):
        waited: list[Path] = []

        async def wait(folder: Path) -> None:
            waited.append(folder)

        with needed_for("variant: engines wait for their weights, and do not import vLLM once more to download them"):
            from ray import cloudpickle

            made = cloudpickle.loads(cloudpickle.dumps(ray_internals.before_engine_start(json.dumps)))
            assert made.__name__ == "BeforeEngineStart", "Serve sends the class to the replicas"
            config = SimpleNamespace(model_loading_config=SimpleNamespace(model_source="/models/full"))
            callback = ray_internals.before_engine_start(wait)(llm_config=config)
            assert callback.ctx.run_init_node is True
            await callback.run_callback("on_before_node_init")
            assert (waited, callback.ctx.run_init_node) == ([Path("/models/full")], False)
            engine = (RAY / "llm/_internal/serve/engines/vllm/vllm_engine.py").read_text()
            assert re.search(
                r'run_callback\("on_before_node_init"\)\s+if callback\.ctx\.run_init_node:\s+await initialize_node',
                engine,
            ), "VLLMEngine.start does not call it before the download"


class TestControlStore:
    def test_the_first_value_of_a_key_stays(self, monkeypatch: pytest.MonkeyPatch):
        stored: dict[bytes, bytes] = {}

        class Client:
            def internal_kv_put(self, key: bytes, value: bytes, overwrite: bool, namespace: Any) -> int:
                return int(key not in stored and not stored.update({key: value}) and not overwrite)

            def internal_kv_get(self, key: bytes, namespace: Any) -> bytes | None:
                return stored.get(key)

        with needed_for("apps.engine_token: gateway and engines of a cluster must agree on the engines' key"):
            from ray._raylet import InnerGcsClient
            from ray.experimental import internal_kv

            assert hasattr(InnerGcsClient, "internal_kv_put") and hasattr(InnerGcsClient, "internal_kv_get")
            monkeypatch.setattr(internal_kv, "global_gcs_client", Client())
            assert ray_internals.shared_value(b"key", b"first") == b"first"
            assert ray_internals.shared_value(b"key", b"second") == b"first"

    def test_values_are_found_by_the_beginning_of_their_keys(self, monkeypatch: pytest.MonkeyPatch):
        stored = {b"a-1": b"one", b"a-2": b"two", b"b": b"three"}

        class Client:
            def internal_kv_keys(self, prefix: bytes, namespace: Any) -> list[bytes]:
                return [*(key for key in stored if key.startswith(prefix)), b"a-that-was-deleted-meanwhile"]

            def internal_kv_get(self, key: bytes, namespace: Any) -> bytes | None:
                return stored.get(key)

            def internal_kv_del(self, key: bytes, by_prefix: bool, namespace: Any) -> int:
                return int(not by_prefix and stored.pop(key) is not None)

        with needed_for("gateways that tell each other which prompts were read where"):
            from ray._raylet import InnerGcsClient
            from ray.experimental import internal_kv

            assert hasattr(InnerGcsClient, "internal_kv_keys") and hasattr(InnerGcsClient, "internal_kv_del")
            monkeypatch.setattr(internal_kv, "global_gcs_client", Client())
            assert ray_internals.shared_values(b"a-") == {b"a-1": b"one", b"a-2": b"two"}
            ray_internals.delete_shared_value(b"a-1")
            assert list(stored) == [b"a-2", b"b"]

    def test_nodes_are_read_and_drained(self):
        with needed_for("drain, the preStop hook of every pod"):
            from ray import NodeID
            from ray._private import services
            from ray._raylet import GcsClient, InnerGcsClient
            from ray.core.generated.gcs_pb2 import GcsNodeInfo

            assert hasattr(GcsClient, "__getattr__"), "GcsClient does not delegate to InnerGcsClient"
            drain = inspect.signature(InnerGcsClient.drain_node)
            assert list(drain.parameters)[1:5] == ["node_id", "reason", "reason_message", "deadline_timestamp_ms"], (
                drain
            )
            assert inspect.signature(InnerGcsClient.get_draining_nodes).return_annotation == "Dict[str, int]"
            nodes = inspect.signature(InnerGcsClient.get_all_node_info).return_annotation
            assert nodes == "Dict[NodeID, gcs_pb2.GcsNodeInfo]", nodes
            assert "addr" in inspect.signature(services.canonicalize_bootstrap_address_or_die).parameters
            head, first, second, dead = (NodeID.from_random() for _ in range(4))
            client = MagicMock(spec=["drain_node", "get_all_node_info", "get_draining_nodes"])
            client.get_all_node_info.return_value = {
                head: GcsNodeInfo(is_head_node=True, state=GcsNodeInfo.ALIVE),
                first: GcsNodeInfo(state=GcsNodeInfo.ALIVE),
                second: GcsNodeInfo(state=GcsNodeInfo.ALIVE),
                dead: GcsNodeInfo(state=GcsNodeInfo.DEAD),
            }
            store = ControlStore.__new__(ControlStore)
            store._client = client
            assert store.is_head(head.hex()) and not store.is_head(first.hex())
            assert store.workers() == {first.hex(), second.hex()}
            client.get_draining_nodes.return_value = {first.hex(): 0}
            assert store.other_workers_stay(first.hex()) and not store.other_workers_stay(second.hex())
            client.drain_node.return_value = (False, "it is gone")
            with pytest.raises(RuntimeError, match="it is gone"):
                store.drain_node(first.hex(), 60)

    def test_one_that_cannot_be_reached_has_no_workers(self):
        from ray.exceptions import RpcError

        store = ControlStore.__new__(ControlStore)
        store._client = MagicMock()
        store._client.get_all_node_info.side_effect = store._client.get_draining_nodes.side_effect = RpcError(
            "gone", 14
        )
        assert store.workers() == set() and not store.other_workers_stay("a")
