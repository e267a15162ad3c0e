"""Platform under measurement: one that runs already, or one started for the benchmark and stopped afterwards."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from benchmarks.lib.processes import System, python
from deployments.ray_internals import replica_app
from deployments.state import is_running, load_state, state_folder

PATIENCE_S = 1800.0  # the first start builds the variants


class NoPlatform(Exception):
    """No platform to measure; the message says what to do."""


@contextmanager
def platform(url: str | None, config: Path | None) -> Iterator[str]:
    """URL of the platform at `url`, of the one `gearbox up` has running, or of one started from `config`."""
    if url:
        yield url.rstrip("/")
        return
    state = load_state(state_folder())
    if state is not None and is_running(state):
        if not state.settled:
            raise NoPlatform("the platform is still starting or building; wait until 'gearbox status' shows it ready")
        yield state.url
        return
    arguments = ["--config", str(config)] if config else []
    print("starting the platform; building what is not in the cache", flush=True)
    command = python("-m", "deployments.cli", "up", *arguments)
    try:
        with System("gearbox-up", command) as system:
            system.wait(_settled, PATIENCE_S)
            started = load_state(state_folder())
            if started is None or started.error:
                raise NoPlatform(f"the platform did not start: {started.error if started else system.last_words()}")
            yield started.url
    finally:
        subprocess.run(python("-m", "deployments.cli", "down"), check=False)


def _settled() -> bool:
    state = load_state(state_folder())
    return state is not None and is_running(state) and state.settled  # not the state file of an earlier platform


def headers() -> dict[str, str]:
    """The API key from `GEARBOX_API_KEY`, if there is one."""
    key = os.environ.get("GEARBOX_API_KEY")
    return {"authorization": f"Bearer {key}"} if key else {}


def cards(url: str) -> tuple[str, dict[str, dict], dict[str, float]]:
    """The model's name, the card of every variant that answers, and each one's price in USD per hour.

    The price is the one the gateway charges at, computed from the published price per token.
    """
    with httpx.Client(base_url=url, headers=headers(), timeout=30) as client:
        served = client.get("/v1/variants").raise_for_status().json()["data"]
        models = client.get("/v1/models").raise_for_status().json()["data"]
    cards_by_name = {row["name"]: row["card"] for row in served if row["replicas"]}
    summaries = {model["id"].partition(":")[2]: model["gearbox"] for model in models if ":" in model["id"]}
    prices = {
        name: summaries[name]["usd_per_million_output_tokens"] / 1e6 * 3600 * card["profile"]["decode_tokens_per_s"]
        for name, card in cards_by_name.items()
    }
    return models[0]["id"], cards_by_name, prices


def resident_bytes(variant: str) -> int | None:
    """Memory of a variant's replicas, engine cores and workers on this machine, shared pages counted once (PSS).

    None when it runs on another machine.
    """
    total = 0
    for process in psutil.process_iter():
        try:
            if replica_app(process.cmdline()) != f"variant-{variant}":
                continue
            for one in [process, *process.children(recursive=True)]:
                memory = one.memory_full_info()
                total += getattr(memory, "pss", memory.rss)  # only Linux knows PSS
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total or None
