"""Supervisor: the process behind `gearbox up`. Starts Ray, the gateway and the variants, builds missing weights meanwhile.

Runs until it receives a signal to stop, then stops everything it started. Run as `python -m deployments.supervisor`.
"""

import argparse
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

from compression.build.family import BuildError
from deployments.database import Database, DatabaseError
from deployments.drain import gateway_requests
from deployments.embedder import embedder_folder
from deployments.failure_log import FailureLog
from deployments.fetch import FetchError
from deployments.listener import listener, ray_host
from deployments.ray_internals import (
    ended_ray_process,
    exit_without_ray,
    metrics_port_argument,
    ray_environment,
    start_deleting_app,
)
from deployments.state import RUN_ID, STOPPING, PlatformState, VariantState, cache_folder, processes_of
from deployments.weights import Weights
from serve.card import Card, CardError, load_card
from serve.config.platform import RELOADED, ConfigError, PlatformConfig, load_config, reloaded_sections
from serve.config.sections import VariantConfig
from serve.errors import origin_of

if TYPE_CHECKING:
    from ray.serve import RunTarget

_LOG = logging.getLogger("gearbox.supervisor")
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SAVE_AGAIN_S = 5.0  # after the state could not be written


class Supervisor:
    """Starts a platform, maintains its state file, reloads its budget profiles."""

    def __init__(self, config: PlatformConfig, state: PlatformState, folder: Path) -> None:
        self._config = config
        self._state = state
        self._folder = folder
        self._token = secrets.token_urlsafe(24)
        self._catalog: dict[str, Card] = {}
        self._reloaded = config.model_dump(mode="json", include=RELOADED)
        self._lock = threading.Lock()
        self._serve_lock = threading.Lock()  # Serve's configuration classes cannot be created by two threads at once
        self._database: Database | None = None
        self._stopping = False
        self._interrupted = threading.Event()  # by `gearbox down --now` while it drains
        self._saving = FailureLog(_LOG, "writing the state failed")
        self.reload_requested = threading.Event()

    def run(self) -> None:
        """Start everything, build missing weights, then serve until a signal to stop. Errors are written to the state file."""
        try:
            self._set_message("starting Ray")
            weights = Weights(self._config, cache_folder())
            ready = {v.name: folder for v in self._config.variants if (folder := weights.ready(v))}
            self._start_ray()
            self._start_thread("Ray monitor", self._monitor_ray)
            self._deploy(ready)
            self._start_thread("application monitor", self._monitor_apps)
            self._start_thread("reload", self._reload_on_request)
            self._deploy_retrieval()
            for variant in self._config.variants:
                if variant.name not in ready:
                    self._build(weights, variant)
            while True:  # until a signal to stop
                time.sleep(_SAVE_AGAIN_S)
                if self._saving.failures:
                    self._save()
        except SystemExit as stop:  # raised by `_on_stop_signal`
            self._stopping = True  # before any call, in which the next signal could be handled
            if stop.code != signal.SIGINT:
                self._drain()
            self._set_message(STOPPING)
        except Exception as error:
            self._stopping = True
            _LOG.error("the platform failed: %s", origin_of(error))
            self._state.error = _one_line(error)
            self._save()
            self._drain()

    def handle_stop_signals(self) -> None:
        """Raise `SystemExit` with the signal's number in the main thread on a signal to stop."""
        for number in _STOP_SIGNALS:
            signal.signal(number, self._on_stop_signal)

    def _on_stop_signal(self, number: int, _: object) -> None:
        """A signal while the platform is being stopped must not end that: processes would stay."""
        if not self._stopping:
            sys.exit(number)
        if number == signal.SIGINT:
            self._interrupted.set()

    def _start_thread(self, name: str, work: Callable[[], None]) -> None:
        """Run `work` in a thread. If it fails, stop the platform with the reason in its state: nothing else would notice."""

        def run() -> None:
            try:
                work()
            except Exception as error:
                self._stop(f"the {name} failed: {_one_line(error)}", f"the {name} failed: {origin_of(error)}")

        threading.Thread(target=run, name=name, daemon=True).start()

    def _stop(self, reason: str, logged: str | None = None) -> None:
        """Stop the platform from a thread, with the reason in its state, which only its owner can read, and `logged` in the log."""
        if self._stopping:  # what the thread depends on is being stopped
            return
        _LOG.error("the platform stops: %s", logged or reason)
        self._state.error = reason
        self._save()
        os.kill(os.getpid(), signal.SIGTERM)  # ends the main thread, whatever it waits for

    def _monitor_ray(self) -> None:
        """Stop the platform when Ray has ended: it would serve for a minute, then leave engines and database behind."""
        while (ended := ended_ray_process()) is None:
            time.sleep(1)
        self._stop(f"Ray's {ended} has ended; see /tmp/ray/session_latest/logs")

    def _drain(self) -> None:
        """Refuse new requests, and wait for those under way for `drain_timeout_s` seconds; gateways end the others by then."""
        server = self._config.server
        if ended_ray_process() or not _listens(server.metrics_url):
            return
        self._set_message("draining: waiting for the answers under way")
        end = time.monotonic() + server.drain_timeout_s
        try:
            with self._serve_lock:
                start_deleting_app("gateway")
        except Exception as error:
            _LOG.error("the gateway cannot be drained: %s", origin_of(error))
            return
        while not self._interrupted.wait(1) and time.monotonic() < end:
            requests = gateway_requests(server.metrics_url)
            if requests == 0 or (requests is None and not _listens(server.metrics_url)):
                break
        self._interrupted.wait(1)  # the last bytes pass HAProxy

    def close(self) -> None:
        """Stop the database and all calls to Ray: after its shutdown, another call would start a new Ray."""
        self._serve_lock.acquire(timeout=5)  # never released
        if self._database is not None:
            try:
                self._database.stop()
            except Exception as error:  # its processes are stopped with all others
                _LOG.error("the database did not stop cleanly: %s", origin_of(error))

    def _deploy_retrieval(self) -> None:
        """Export the embedder unless cached, start the embedded database if configured, deploy retrieval."""
        config, state = self._config.retrieval, self._state.retrieval
        if config is None or state is None:
            return
        from ray import serve as ray_serve

        from deployments.retrieval import APP, retrieval_app

        start = time.monotonic()
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
                self._start_thread("database monitor", lambda: self._supervise(database))
            with self._serve_lock:
                app = retrieval_app(config, conninfo, folder, self._config.server.drain_timeout_s)
                run_apps([ray_serve.RunTarget(app, name=APP, route_prefix=None)])
        except (BuildError, DatabaseError, OSError) as error:
            _LOG.error("retrieval: %s", error)
            state.phase, state.error = "failed", str(error)
        else:
            state.phase, state.stage = "starting", ""
        state.seconds["building"] = round(time.monotonic() - start, 1)
        self._save()

    def _supervise(self, database: Database) -> None:
        while True:
            time.sleep(1)
            database.restart_if_dead()

    def _reload_on_request(self) -> None:
        while self.reload_requested.wait():
            self.reload_requested.clear()
            self._reload()

    def _reload(self) -> None:
        """Apply the sections of the configuration file that a running platform reloads; an invalid file changes nothing."""
        try:
            self._reloaded = reloaded_sections(self._config, Path(self._state.config))
            self._deploy({})
        except ConfigError as error:
            _LOG.error("profiles are unchanged, the configuration is invalid: %s", error)
        except Exception as error:  # of Ray Serve, whose controller may be restarting: the platform goes on
            _LOG.error("profiles are unchanged, reloading failed; run 'gearbox reload' to retry: %s", origin_of(error))

    def _build(self, weights: Weights, variant: VariantConfig) -> None:
        state = self._state.variants[variant.name]
        state.phase = "building"
        start = time.monotonic()

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
        state.seconds["building"] = round(time.monotonic() - start, 1)
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
            **metrics_port_argument(self._config.server.derived_ports["Ray's metrics"]),
        )
        self.handle_stop_signals()  # `ray.init` installs a handler of SIGTERM that aborts the process 3 s later
        self._set_message("starting HAProxy")
        server = self._config.server
        ray_serve.start(http_options={"host": ray_host(server.host), "port": server.port})

    def _deploy(self, folders: Mapping[str, Path]) -> None:
        """Deploy the variants in `folders` beside the running ones, and update the gateway's catalog."""
        from ray import serve as ray_serve

        from deployments.gateway import gateway_app

        for name, folder in folders.items():
            self._catalog[name] = load_card(folder)
            self._state.variants[name].phase = "starting"
            self._state.variants[name].stage = ""
        self._set_message("starting engines" if self._catalog else "building the first variant")
        order = [variant.name for variant in self._config.variants if variant.name in self._catalog]
        catalog = {name: self._catalog[name] for name in order}
        with self._serve_lock:
            gateway = gateway_app(self._config, catalog, self._reloaded, self._token, str(self._folder / "metrics"))
            targets = [ray_serve.RunTarget(gateway, name="gateway", route_prefix="/")]
            if folders:
                from deployments.replicas import app_name
                from deployments.variant import variant_app

                by_name = {variant.name: variant for variant in self._config.variants}
                for name, folder in folders.items():
                    app = variant_app(self._config, by_name[name], folder, self._token)
                    targets.append(ray_serve.RunTarget(app, name=app_name(name), route_prefix=None))
            run_apps(targets)

    def _monitor_apps(self) -> None:
        """Update the state from Serve's until all parts have settled: an engine is ready once the gateway routes to it."""
        from ray import serve as ray_serve

        from deployments.replicas import app_name
        from deployments.retrieval import APP

        start = time.monotonic()
        while True:
            time.sleep(0.5)
            starting = {name: state for name, state in self._state.parts.items() if state.phase == "starting"}
            with self._serve_lock:
                applications = ray_serve.status().applications if starting else {}  # a call costs a tenth of a core
            if "gateway" in applications and applications["gateway"].status == "DEPLOY_FAILED":
                self._state.error = "the gateway: " + " ".join(applications["gateway"].message.split())[-500:]
                return self._save()
            routable = self._routable_variants() if starting.keys() & self._state.variants.keys() else set()
            for name, state in starting.items():
                app = applications.get(APP if state is self._state.retrieval else app_name(name))
                if app is None:
                    continue
                if app.status == "RUNNING" and (state is self._state.retrieval or name in routable):
                    state.phase = "ready"
                    state.seconds["starting"] = round(time.monotonic() - start, 1)
                elif app.status == "DEPLOY_FAILED":
                    state.phase, state.error = "failed", " ".join(app.message.split())[-500:]
            if starting:
                self._save()
            if self._state.settled:
                self._set_message("up")
                return

    def _routable_variants(self) -> set[str]:
        """Variants that the gateway routes requests to; none while it does not answer."""
        try:
            answer = httpx.get(f"{self._state.url}/readyz", timeout=5, trust_env=False)  # not by the proxy of the shell
            return set(answer.json().get("variants", ()))
        except (httpx.HTTPError, ValueError):
            return set()

    def _set_message(self, message: str) -> None:
        self._state.message = message
        _LOG.info(message)
        self._save()

    def _save(self) -> None:
        """Write the state file. While its disk is full or read-only, the platform goes on, and commands read the old one."""
        with self._lock:
            try:
                self._state.save(self._folder)
            except OSError as error:
                self._saving.on_failure(error)
            else:
                self._saving.on_success()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:2000] or type(error).__name__


def _listens(url: str) -> bool:
    """Whether a process listens at `url`, even one that does not answer."""
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=1).close()
    except TimeoutError:
        return True
    except OSError:
        return False
    return True


def run_apps(targets: Sequence["RunTarget"]) -> None:
    """Deploy Serve applications without waiting for them."""
    from ray import serve as ray_serve

    ray_serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def main() -> None:
    """Entry point of the supervisor process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, help="deployment configuration")
    parser.add_argument("--variants", default="", help="serve only these variants, comma-separated")
    parser.add_argument("--state", type=Path, required=True, help="folder for state, logs and metrics")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request
    config = load_config(options.config)
    if options.variants:
        config = config.only([name.strip() for name in options.variants.split(",")])
    folder: Path = options.state
    shutil.rmtree(folder / "metrics", ignore_errors=True)
    (folder / "metrics").mkdir(parents=True)
    haproxy = Path(tempfile.mkdtemp(prefix="gbx-"))  # Unix socket paths must be short
    os.environ.update({**ray_environment(config, haproxy), **os.environ})
    if (section := listener(config.server.host, config.server.port)) is not None:
        (haproxy / "listener.cfg").write_text(section)
        os.environ["GEARBOX_HAPROXY_LISTENER"] = str(haproxy / "listener.cfg")
    state = PlatformState(
        run_id=os.environ[RUN_ID],
        pid=os.getpid(),
        url=config.server.url,
        metrics_url=config.server.metrics_url,
        config=str(options.config),
        drain_timeout_s=config.server.drain_timeout_s,
        model=config.model.name,
        variants={variant.name: VariantState() for variant in config.variants},
        retrieval=VariantState() if config.retrieval else None,
    )
    supervisor = Supervisor(config, state, folder)
    supervisor.handle_stop_signals()
    signal.signal(signal.SIGHUP, lambda *_: supervisor.reload_requested.set())
    try:
        supervisor.run()
    finally:
        supervisor.close()
        ray_ended = ended_ray_process() is not None
        _stop_processes(state.run_id, ray_ended)
        shutil.rmtree(haproxy, ignore_errors=True)
    if ray_ended:
        exit_without_ray(1)
    sys.exit(1 if state.error else 0)


def _stop_processes(run_id: str, ray_ended: bool) -> None:
    """Stop Ray and all remaining processes of this run; Ray's own shutdown leaves engine processes behind.

    Ray is not shut down where it has ended: that would wait a minute for its control store, and abort this process.
    """
    import psutil
    import ray

    if ray.is_initialized() and not ray_ended:
        ray.shutdown()
    others = [process for process in processes_of(run_id, os.getpid()) if process.pid != os.getpid()]
    for process in others:
        with suppress(psutil.NoSuchProcess):  # Ray's processes are ending
            process.terminate()
    _, remaining = psutil.wait_procs(others, timeout=5)
    for process in remaining:
        with suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    main()
