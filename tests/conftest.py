"""One platform for all integration and end-to-end tests: started by the real command, on the real model."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from deployments.state import load_state, processes_of
from serve.auth import hash_key
from tests.started import KEYS, ROOT, Platform, gearbox


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The demo platform with keys, on ports of its own. Builds what is not cached yet (about 15 minutes)."""
    folder = tmp_path_factory.mktemp("platform")
    settings = yaml.safe_load((ROOT / "deployments/local.yaml").read_text())
    settings["server"] |= {"port": 18000, "metrics_port": 19464, "max_waiting_per_replica": 8}
    settings["access"] = {
        "open": False,
        "keys": [
            {"sha256": hash_key(entry["key"]), "tenant": tenant, **{k: v for k, v in entry.items() if k != "key"}}
            for tenant, entry in KEYS.items()
        ],
    }
    config = folder / "platform.yaml"
    config.write_text(yaml.safe_dump(settings))
    state_dir = folder / "state"
    started = gearbox("up", "--config", str(config), state_dir=state_dir, timeout=1800)
    try:
        assert started.returncode == 0, f"{started.stdout}\n{started.stderr}\n{_log_tail(state_dir)}"
        yield Platform(
            "http://127.0.0.1:18000",
            "http://127.0.0.1:19464",
            state_dir,
            config,
            settings["model"]["name"],
            started.stdout,
        )
    finally:
        state = load_state(state_dir)
        gearbox("down", state_dir=state_dir)
        if state is not None:
            assert not processes_of(state.run_id), "gearbox down left processes behind"


def _log_tail(state_dir: Path) -> str:
    log = state_dir / "platform.log"
    return "\n".join(log.read_text().splitlines()[-30:]) if log.exists() else ""


@pytest.fixture(scope="session")
def system_command() -> Callable[[str], str]:
    """Path of a system command; a missing one skips the test, except in CI, where it fails it."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            message = f"{name} is not installed (Debian package 'prometheus')"
            pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
        return path

    return find
