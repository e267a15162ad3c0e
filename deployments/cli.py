"""The `gearbox` command: start, stop, reload and show a platform on this machine. `serve.cli.client` has the client commands."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import httpx
import psutil
import typer
from filelock import FileLock
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from compression.cli import measure as cli_measure
from compression.cli.compress import compress
from compression.cli.measure import Serving
from deployments.cli_weights import weights
from deployments.listener import ray_host
from deployments.state import (
    RUN_ID,
    STATE_DIR,
    STOPPING,
    PlatformState,
    Run,
    VariantState,
    cache_folder,
    find_run,
    is_running,
    kill,
    load_state,
    private,
    processes_of,
    state_folder,
    wait_for_end,
)
from deployments.weights import Weights
from serve.cli import documents as indexing
from serve.cli.calibrate import calibrate
from serve.cli.client import app, fail
from serve.config.addresses import authority, socket_address
from serve.config.platform import ConfigError, PlatformConfig, load_config
from serve.config.sections import ServerConfig

DEFAULT_CONFIG = Path(__file__).with_name("local.yaml")
_LOCK_S = 10.0  # for another `gearbox up` to start its supervisor
Config = Annotated[Path, typer.Option("--config", "-c", envvar="GEARBOX_CONFIG", help="Deployment configuration.")]

app.command()(compress)
app.command()(weights)


@app.command()
def up(
    config: Config = DEFAULT_CONFIG,
    variants: Annotated[str, typer.Option(help="Serve only these variants, comma-separated.")] = "",
) -> None:
    """Start the platform: build missing weights, start all services, wait until every variant serves requests."""
    folder = state_folder()
    state = _state(folder)
    console = Console()
    if state is not None and is_running(state):
        console.print(f"already running at {state.url} (pid {state.pid}); 'gearbox down' stops it")
        return _summary(console, state)
    if run := find_run(folder):
        raise fail(_unknown(run))
    if state is not None and (leftovers := processes_of(state.run_id, state.pid)):  # the supervisor was killed
        kill(leftovers)
        console.print("stopped what was left of the last platform")
    try:
        settings = _validated(config, variants)
    except ConfigError as error:
        raise fail(str(error), 2) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "up.lock", timeout=_LOCK_S):
            if run := find_run(folder):  # of a second `gearbox up`
                raise fail(_unknown(run))
            supervisor, run = _start_supervisor(config, variants, folder.resolve())
    except OSError as error:  # also a timeout of the lock
        raise fail(f"the state cannot be written: {error}") from error
    try:
        state = _follow(console, supervisor, folder)
    except KeyboardInterrupt:
        console.print("interrupted: stopping the platform")
        _stop(run)
        raise typer.Exit(130) from None
    if state is None or state.error or not any(v.phase == "ready" for v in state.variants.values()):
        _stop(run)
        reasons = [f"{name}: {part.error}" for name, part in state.parts.items() if part.error] if state else []
        reason = (state.error if state else None) or "; ".join(reasons) or "the supervisor exited"
        raise fail(f"could not start: {reason} (log: {folder / 'platform.log'})")
    _summary(console, state)
    if failed := [name for name, part in state.parts.items() if part.phase == "failed"]:
        raise fail(f"running without {', '.join(failed)}: {state.parts[failed[0]].error}")
    _print_example(console, state, settings)


def _validated(path: Path, variants: str) -> PlatformConfig:
    """The configuration, with its weights and ports checked before anything starts. Raises `ConfigError`."""
    settings = load_config(path)
    if variants:
        settings = settings.only([name.strip() for name in variants.split(",")])
    weights = Weights(settings, cache_folder())
    for variant in settings.variants:
        weights.ready(variant)
    _check_ports(settings.server)
    return settings


def _check_ports(server: ServerConfig) -> None:
    """Check that all addresses on which the platform listens are free. Raises `ConfigError`."""
    addresses = [(server.host, server.port, "port"), (server.host, server.metrics_port, "metrics_port")]
    addresses += [(ray_host(server.host), server.port, "Ray's HAProxy")]
    addresses += [("0.0.0.0", port, name) for name, port in server.derived_ports.items()]
    for host, port, name in addresses:
        try:
            family, address = socket_address(host, port)
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            raise ConfigError(f"cannot listen on {authority(host, port)}: {error.strerror} ({name})") from error


def _start_supervisor(config: Path, variants: str, folder: Path) -> tuple["subprocess.Popen[bytes]", Run]:
    (folder / "state.json").unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "deployments.supervisor",
        "--config",
        str(config.resolve()),
        "--state",
        str(folder),
    ]
    command += ["--variants", variants] if variants else []
    run_id = secrets.token_hex(8)
    environment = {**os.environ, RUN_ID: run_id, STATE_DIR: str(folder)}
    # An engine is three processes that import vLLM: each takes 9 s with cached bytecode, 30 s without.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with open(folder / "platform.log", "w", opener=private) as log:  # it may quote the configuration
        supervisor = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    return supervisor, Run(run_id, supervisor.pid)


def _state(folder: Path) -> PlatformState | None:
    try:
        return load_state(folder)
    except OSError as error:
        raise fail(f"the state cannot be read: {error}") from error


def _unknown(run: Run) -> str:
    return (
        f"a platform is starting (pid {run.supervisor}), or its state cannot be read by this version; "
        "'gearbox down' stops it"
    )


def _follow(console: Console, supervisor: "subprocess.Popen[bytes]", folder: Path) -> PlatformState | None:
    """Show progress until the platform has settled or its supervisor has exited."""
    start = time.monotonic()
    printed = ""
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while True:
            state = load_state(folder)
            if supervisor.poll() is not None or (state is not None and state.settled):
                return load_state(folder)
            if state is not None:
                live.update(_progress(state, time.monotonic() - start))
                line = f"{state.message}: " + ", ".join(
                    f"{n} {v.phase} {v.stage}".strip() for n, v in state.parts.items()
                )
                if not console.is_terminal and line != printed:
                    console.print(f"[{time.monotonic() - start:5.0f} s] {line}", markup=False, soft_wrap=True)
                    printed = line
            time.sleep(0.25)


def _progress(state: PlatformState, elapsed_s: float) -> Group:
    table = Table.grid(padding=(0, 2))
    for name, variant in state.parts.items():
        bar: ProgressBar | str = ""
        if variant.phase == "building" and variant.total:
            bar = ProgressBar(total=variant.total, completed=variant.done, width=30)
        eta = f"about {variant.eta_s / 60:.1f} min left" if variant.phase == "building" and variant.eta_s else ""
        table.add_row(name, variant.phase, variant.stage, bar, eta)
    return Group(Text(f"{state.message} · {elapsed_s:.0f} s · {state.url}", style="bold"), table)


@app.command()
def down(
    now: Annotated[
        bool, typer.Option("--now", help="Interrupt answers in progress instead of waiting for them.")
    ] = False,
) -> None:
    """Stop the platform that `gearbox up` started, and nothing else, once its answers in progress are complete.

    They have `server.drain_timeout_s`; then they end with an error. New requests are refused meanwhile.
    """
    state = _state(state_folder())
    run = find_run(state_folder()) or (Run(state.run_id, state.pid) if state is not None else None)
    if run is None or not run.processes():
        typer.echo("nothing is running")
        return
    drain_timeout_s = ServerConfig().drain_timeout_s if state is None else state.drain_timeout_s
    _stop(run, signal.SIGINT if now else signal.SIGTERM, drain_timeout_s + 60)
    typer.echo(f"stopped {state.url}" if state is not None else "stopped")


@app.command()
def reload() -> None:
    """Apply the configuration's `profiles` to the running platform, without affecting requests in flight."""
    state = _state(state_folder())
    if state is None or not is_running(state):
        run = find_run(state_folder())
        raise fail(_unknown(run) if run else "nothing is running; 'gearbox up' starts it")
    try:
        profiles = load_config(Path(state.config)).profiles
    except ConfigError as error:
        raise fail(str(error), 2) from error
    os.kill(state.pid, signal.SIGHUP)
    typer.echo(f"reloading the budget profiles of {state.url} from {state.config}: {', '.join(profiles)}")


def _stop(run: Run, by: signal.Signals = signal.SIGTERM, timeout_s: float = 60) -> None:
    """Stop a supervisor and wait for it; kill what is left of the platform then, and after `timeout_s` seconds."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        supervisor = psutil.Process(run.supervisor)
        if supervisor.environ().get(RUN_ID) == run.run_id:  # and not another process, or user's, with its pid
            supervisor.send_signal(by)
            wait_for_end(supervisor, timeout_s)
    kill(run.processes())


@app.command()
def status() -> None:
    """Show the running platform: health, quality, speed and load of each variant. Exit code 1 when nothing runs."""
    state = _state(state_folder())
    if state is None or not is_running(state):
        if run := find_run(state_folder()):
            raise fail(_unknown(run))
        reason = ""
        if state is not None and state.error:
            reason = f" (the last platform stopped: {state.error})"
        elif state is not None and state.message != STOPPING:
            reason = f" (the last platform ended by itself: {state_folder() / 'platform.log'})"
        raise fail(f"nothing is running{reason}; 'gearbox up' starts it")
    console = Console()
    if not state.settled:
        console.print(_progress(state, time.time() - state.started))
    _summary(console, state)
    for name, part in state.parts.items():
        if part.error:
            console.print(f"{name}: {part.error}", style="red", highlight=False, markup=False, soft_wrap=True)


def _summary(console: Console, state: PlatformState) -> None:
    """Print the table of variants, with data from the gateway."""
    try:
        key = os.environ.get("GEARBOX_API_KEY", "")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        response = httpx.get(f"{state.url}/v1/variants", headers=headers, timeout=10, trust_env=False)
        served = {row["name"]: row for row in response.json().get("data", [])} if response.status_code == 200 else {}
    except httpx.HTTPError:
        served = {}
    if not served:
        console.print(
            "the gateway does not answer yet" if not state.settled else "set GEARBOX_API_KEY to see the cards"
        )
    headings = ("variant", "state", "MB", "quality", "ppl", "tok/s", "prefill/s", "replicas", "busy")
    table = Table(*headings, title=state.url, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))  # fits 80 columns
    for name, variant in state.variants.items():
        table.add_row(name, *_row(variant, served.get(name)))
    console.print(table)
    if state.retrieval is not None:
        database = f'psql "{state.database}"' if state.database else "the configured database"
        console.print(f"retrieval {state.retrieval.phase}; documents: {database}", highlight=False, soft_wrap=True)


def _row(state: VariantState, served: dict[str, object] | None) -> list[str]:
    if served is None:
        return [state.phase, *[""] * 7]
    card: Any = served["card"]  # JSON of a `serve.card.Card`
    quality, profile = card["quality"], card["profile"]
    return [
        str(served["health"]).replace("scaled_to_zero", "at zero") if state.phase == "ready" else state.phase,
        f"{card['bytes_on_disk'] / 1e6:.0f}",
        f"{quality['quality']:.3f}",
        f"{quality['perplexity']:.2f}",
        f"{1000 / profile['tpot'][0]['p50_ms']:.0f}",
        f"{profile['prefill_tokens_per_s']:.0f}",
        f"{served['replicas']}/{served['max_replicas']}",
        f"{served['in_flight']}",
    ]


def _print_example(console: Console, state: PlatformState, settings: PlatformConfig) -> None:
    key = "" if settings.access.allow_anonymous else " -H 'authorization: Bearer $GEARBOX_API_KEY'"
    body = f'{{"model": "{state.model}", "messages": [{{"role": "user", "content": "What is a gearbox?"}}]}}'
    console.print(
        f"\ncurl -i {state.url}/v1/chat/completions{key} -H 'content-type: application/json' \\\n  -d '{body}'",
        markup=False,
        highlight=False,
        soft_wrap=True,  # for copying
    )
    console.print(
        "\nnext: 'gearbox chat' to talk to it, 'gearbox status' to see it, 'gearbox down' to stop it", highlight=False
    )


def _serving(config: Path, name: str) -> Serving:
    """Engine settings with which `config` serves the variant `name`; the defaults for a variant that is not in it."""
    try:
        settings = load_config(config)
    except ConfigError as error:
        raise fail(str(error), 2) from error
    variant = next((variant for variant in settings.variants if variant.name == name), None)
    if variant is None:
        return Serving(settings.engine, settings.env, None)
    return Serving(settings.engine_args(variant), {**settings.env, **variant.env}, variant.price_usd_per_hour)


indexing.add_commands(app)
app.command()(calibrate)
cli_measure.add_commands(app, _serving, DEFAULT_CONFIG, Path(sys.executable))


def main() -> None:
    """Entry point of the `gearbox` command."""
    app()


if __name__ == "__main__":
    main()
