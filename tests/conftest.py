"""Session fixtures: one platform for all integration and end-to-end tests, started by the real command on the real model."""

import gc
import os
import shutil
from collections.abc import Callable, Generator, Iterator

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when haystack is imported

import pytest
from hypothesis import settings as hypothesis_settings

from serve.gateway.auth import hash_key
from tests.support.platform import KEYS, Platform, local_settings, started
from tests.support.trace_collector import Collector

#: Reasons that CI accepts for a skipped test: its machine cannot run it. Anything else that is missing must not go unnoticed there.
MAY_SKIP = (
    "only root may mount a file system",
    "this machine allows no mounts",
    "only root runs the server as somebody else",
    "this machine has no IPv6",
    "pip is not installed",
    "uv is not installed",
)
#: Standard tests of other projects, which skip what neither the model nor the platform offers.
MAY_SKIP_IN = "tests/e2e/test_langchain_standard.py"

hypothesis_settings.load_profile("ci")  # the same examples in every run, without a limit to the time of one
gc.disable()  # while modules are imported, of which nothing is garbage


def pytest_collection_finish() -> None:
    """Freeze imported objects: otherwise each full garbage collection scans torch and all other modules, for 0.7 s."""
    gc.collect()
    gc.freeze()
    gc.enable()


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI, turn a skip into a failure unless its reason is in `MAY_SKIP`."""
    if not (os.environ.get("CI") and report.skipped) or hasattr(report, "wasxfail"):
        return
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    if not (reason.removeprefix("Skipped: ") in MAY_SKIP or report.nodeid.startswith(MAY_SKIP_IN)):
        report.outcome, report.longrepr = "failed", f"nothing but MAY_SKIP is skipped in CI. {reason}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail tests that are skipped in CI."""
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail files that are skipped in CI as a whole."""
    report = yield
    _fail_if_skipped(report)
    return report


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
    """Path of a system command; a missing one skips the test."""

    def find(name: str, package: str = "prometheus") -> str:
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"{name} is not installed (Debian package '{package}')")
        return path

    return find
