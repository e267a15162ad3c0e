"""Fixtures of the unit tests: a gateway behind a real HTTP server, with engine stubs."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported; threads that share a tiny model wait for each other

import pytest

from tests.support.engine_stub import EngineStub
from tests.support.gateway_server import GatewayServer, Started


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without slow tests, do not import files that have no others: torch is among their imports."""
    if config.option.markexpr == "not slow" and collection_path.suffix == ".py":
        return "\npytestmark = pytest.mark.slow\n" in collection_path.read_text() or None
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests: at the end, one core would wait for the other."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer's shell has set must not decide a test, nor how long it takes.

    Each HTTP client would read all of SSL_CERT_FILE, for 20 ms; no test needs a certificate.
    """
    for name in list(os.environ):
        if name.startswith("GEARBOX_") or name in ("PROMETHEUS_MULTIPROC_DIR", "SSL_CERT_FILE"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def _server() -> Iterator[GatewayServer]:
    server = GatewayServer()
    yield server
    server.stop()


@pytest.fixture
def start_gateway(_server: GatewayServer) -> Iterator[Callable[..., Started]]:
    """Starts a gateway for this test; see `GatewayServer.start`. Whatever the test did, nothing stays in flight."""
    started: list[Started] = []

    def start(**options: object) -> Started:
        started.append(_server.start(**options))
        return started[-1]

    yield start
    for gateway in started:
        gateway.settle()
        _server.close(gateway)


@pytest.fixture
def gateway(start_gateway: Callable[..., Started]) -> Started:
    """Three gears, anonymous access, every engine answers."""
    return start_gateway()


@pytest.fixture
def full(gateway: Started) -> EngineStub:
    """The engine of the variant that an unbudgeted request goes to."""
    return gateway.engines["full"]
