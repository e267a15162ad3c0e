"""A started platform for tests: its clients, its command, its engines."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import yaml

from deployments.ray_internals import replica_app
from deployments.state import load_state, processes_of
from serve.telemetry.prometheus_text import parse

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "alice": {"key": "gbx-test-alice", "budget": "balanced"},
    "bob": {"key": "gbx-test-bob", "budget": "cheap"},
    "limited": {"key": "gbx-test-limited", "budget": "cheap", "requests_per_minute": 3},
    "thrifty": {"key": "gbx-test-thrifty", "budget": "cheap", "tokens_per_minute": 40},
}


@dataclass(frozen=True)
class Platform:
    """A running platform and how to reach it."""

    url: str
    metrics_url: str
    state_dir: Path
    config: Path
    model: str
    up_output: str

    def gearbox(self, *arguments: str, **options: object) -> "subprocess.CompletedProcess[str]":
        """Run the real command against this platform's state."""
        return gearbox(*arguments, state_dir=self.state_dir, **options)

    def client(self, tenant: str = "alice", **options: object) -> openai.OpenAI:
        """The real SDK with only address and key. Does not retry, so that errors are visible."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEYS[tenant]["key"], max_retries=0, **options)

    def async_client(self, tenant: str = "alice") -> openai.AsyncOpenAI:
        """The asynchronous SDK client."""
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=KEYS[tenant]["key"], max_retries=0)

    def http(self, tenant: str = "alice") -> httpx.Client:
        """Plain HTTP with a key."""
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {KEYS[tenant]['key']}"}, timeout=60)

    def targets(self) -> dict[str, list[str]]:
        """Addresses of each variant's engines, as Prometheus discovers them."""
        addresses: dict[str, list[str]] = {}
        for group in httpx.get(f"{self.metrics_url}/targets", timeout=10).json():
            if group["labels"]["component"] == "engine":
                addresses.setdefault(group["labels"]["variant"], []).extend(group["targets"])
        return addresses

    def running_in_engine(self, variant: str) -> float:
        """The engine's own count of requests it is generating for."""
        return sum(self.engine_metric(variant, f"vllm:num_requests_{state}") for state in ("running", "waiting"))

    def engine_metric(self, variant: str, name: str) -> float:
        """The sum of a metric over a variant's engines."""
        pages = (parse(httpx.get(f"http://{target}/metrics", timeout=10).text) for target in self.targets()[variant])
        return sum(sum(page.get(name, {}).values()) for page in pages)


@contextmanager
def started(settings: dict[str, Any], folder: Path) -> Iterator[Platform]:
    """Start a platform with these settings by the real command, and stop it; its files are in `folder`."""
    config, state_dir = folder / "platform.yaml", folder / "state"
    config.write_text(yaml.safe_dump(settings))
    server = settings["server"]
    up = gearbox("up", "--config", str(config), state_dir=state_dir, timeout=1800, GEARBOX_API_KEY=KEYS["alice"]["key"])
    try:
        assert up.returncode == 0, f"{up.stdout}\n{up.stderr}\n{_log_tail(state_dir)}"
        urls = (f"http://127.0.0.1:{server[port]}" for port in ("port", "metrics_port"))
        yield Platform(*urls, state_dir, config, settings["model"]["name"], up.stdout)
    finally:
        state = load_state(state_dir)
        gearbox("down", state_dir=state_dir)
        if state is not None:
            assert not processes_of(state.run_id, state.pid), "gearbox down left processes behind"
            sockets = re.search(r"host=(/\S+)", state.database or "")
            assert sockets is None or not Path(sockets[1]).exists(), "the documents' database was killed, not stopped"


def local_settings() -> dict[str, Any]:
    """Settings of `make up`, but with a student that was trained for a minute."""
    settings: dict[str, Any] = yaml.safe_load((ROOT / "deployments/local.yaml").read_text())
    for variant in settings["variants"]:
        if variant["name"] == "distilled":
            variant["recipe"] = str(ROOT / "tests/recipes/distilled.yaml")
    return settings


def gearbox(*arguments: str, state_dir: Path, timeout: float = 120, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run the `gearbox` command with a separate state folder."""
    environment = {**os.environ, "GEARBOX_STATE_DIR": str(state_dir), "COLUMNS": "160", **env}
    command = [str(Path(sys.executable).with_name("gearbox")), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)


def _log_tail(state_dir: Path) -> str:
    log = state_dir / "platform.log"
    return "\n".join(log.read_text().splitlines()[-30:]) if log.exists() else ""


def gateway_processes(platform: Platform) -> list[psutil.Process]:
    """The gateway's replicas."""
    state = load_state(platform.state_dir)
    assert state is not None
    return [p for p in processes_of(state.run_id) if replica_app(p.cmdline()) == "gateway"]


def engine_processes(platform: Platform, variant: str) -> list[psutil.Process]:
    """The processes of a variant's replica: the Serve replica and its child processes."""
    state = load_state(platform.state_dir)
    assert state is not None
    replicas = [p for p in processes_of(state.run_id) if f"engine:{variant}" in " ".join(p.cmdline())]
    return [*replicas, *(child for replica in replicas for child in replica.children(recursive=True))]
