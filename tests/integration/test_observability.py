"""Observability of the platform: metrics, scrape targets, health, and the commands that show them."""

import os
import re
import subprocess
from collections.abc import Callable

import httpx
import pytest

from compression.hardware import compute_dtype
from deployments.cpu_priority import ENGINE
from tests.support.platform import KEYS, Platform, engine_processes, gateway_processes

pytestmark = pytest.mark.platform


def test_metrics_follow_the_conventions_and_hold_no_secret(
    platform: Platform, system_command: Callable[[str], str]
) -> None:
    secret = "a very private question about zebras"
    platform.client().completions.create(model=platform.model, prompt=secret, max_tokens=2)
    text = httpx.get(f"{platform.metrics_url}/metrics").text
    assert "zebras" not in text and KEYS["alice"]["key"] not in text
    for name in ("requests_total", "ttft_seconds_bucket", "tpot_seconds_bucket", "e2e_seconds_bucket", "queue_seconds_bucket",
                 "tokens_total", "cost_usd_total", "decision_seconds_bucket", "overhead_seconds_bucket", "variant_replicas"):  # fmt: skip
        assert f"gearbox_{name}{{" in text or f"gearbox_{name} " in text, name
    checked = subprocess.run(
        [system_command("promtool"), "check", "metrics"], input=text, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    log = (platform.state_dir / "platform.log").read_text()
    assert "zebras" not in log and KEYS["alice"]["key"] not in log


def test_health_and_readiness(platform: Platform) -> None:
    assert httpx.get(f"{platform.url}/healthz").json() == {"status": "ok"}
    assert set(httpx.get(f"{platform.url}/readyz").json()["variants"]) == {"full", "int8", "distilled"}


def test_variants_show_card_and_live_state(platform: Platform) -> None:
    with platform.http() as http:
        rows = {row["name"]: row for row in http.get("/v1/variants").json()["data"]}
    assert all(row["health"] == "healthy" and row["replicas"] == 1 for row in rows.values())
    quality = {name: row["card"]["quality"]["quality"] for name, row in rows.items()}
    assert quality["full"] == 1.0 > quality["int8"] > quality["distilled"] > 0
    assert rows["int8"]["card"]["bytes_on_disk"] < rows["full"]["card"]["bytes_on_disk"]


def test_an_engine_is_two_processes_and_computes_in_what_the_processor_is_fast_in(platform: Platform) -> None:
    """`deployments/cpu_engine.py` is in force where it serves and where it was measured."""
    titles = [" ".join(process.cmdline()) for process in engine_processes(platform, "int8")]
    assert sum("VLLM::EngineCore" in title for title in titles) == 1
    assert not [title for title in titles if "VLLM::Worker" in title]
    with platform.http() as http:
        cards = [row["card"] for row in http.get("/v1/variants").json()["data"]]
    assert all(f", {compute_dtype()}, " in card["profile"]["engine"] for card in cards)


def test_gateways_get_the_cpu_before_engines(platform: Platform) -> None:
    """Linux compares priorities inside a session only, where it shares the CPU between sessions first (autogroup)."""
    (gateway, *_) = gateway_processes(platform)
    engines = [process for name in ("full", "int8", "distilled") for process in engine_processes(platform, name)]
    assert engines and {process.nice() for process in engines} == {gateway.nice() + ENGINE}
    assert {os.getsid(process.pid) for process in engines} == {os.getsid(gateway.pid)}


def test_up_printed_how_to_use_it(platform: Platform) -> None:
    assert platform.url in platform.up_output and "curl -i" in platform.up_output
    for name in ("full", "int8", "distilled"):  # it ends when the gateway has found every engine, not before
        assert re.search(rf"^ *{name} +healthy ", platform.up_output, re.MULTILINE), platform.up_output


def test_status_and_a_second_up_show_the_running_platform(platform: Platform) -> None:
    shown = platform.gearbox("status", GEARBOX_API_KEY=KEYS["alice"]["key"])
    assert shown.returncode == 0 and "healthy" in shown.stdout
    again = platform.gearbox("up", "--config", str(platform.config))
    assert again.returncode == 0 and "already running" in again.stdout


def test_only_the_public_port_is_served_without_a_token(platform: Platform) -> None:
    """A replica's own port refuses whoever does not have the gateway's token."""
    target = platform.targets()["full"][0]
    assert target.startswith("127.0.0.1:")
    body = {"model": platform.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    assert httpx.post(f"http://{target}/v1/chat/completions", json=body).status_code == 401
