"""Session fixtures: one platform for all integration and end-to-end tests, started by the real command on the real model."""

import gc
import os
import shutil
from collections.abc import Callable, Iterator

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when haystack is imported

import pytest

from serve.gateway.auth import hash_key
from tests.support.platform import KEYS, Platform, local_settings, started
from tests.support.trace_collector import Collector

gc.disable()  # while modules are imported, of which nothing is garbage


def pytest_collection_finish() -> None:
    """Freeze imported objects: otherwise each full garbage collection scans torch and all other modules, for 0.7 s."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Trace collector of the platform."""
    collector = Collector()
    yield collector
    collector.stop()


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Platform]:
    """The demo platform with keys and traces, on separate ports. Builds what is not cached yet (9 minutes)."""
    settings = local_settings()
    settings["server"] |= {"port": 18000, "metrics_port": 19464, "max_waiting_per_replica": 8}
    settings["access"] = {
        "allow_anonymous": False,
        "keys": [
            {"sha256": hash_key(entry["key"]), "tenant": tenant, **{k: v for k, v in entry.items() if k != "key"}}
            for tenant, entry in KEYS.items()
        ],
    }
    settings["observability"] = {"otlp_endpoint": collector.url}
    with started(settings, tmp_path_factory.mktemp("platform")) as platform:
        yield platform


@pytest.fixture(scope="session")
def system_command() -> Callable[..., str]:
    """Path of a system command; a missing one skips the test, except in CI, where it fails it."""

    def find(name: str, package: str = "prometheus") -> str:
        path = shutil.which(name)
        if path is None:
            message = f"{name} is not installed (Debian package '{package}')"
            pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
        return path

    return find
