"""The default platform and its request mix in the simulator, for benchmarks that compare routers without a live platform."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.routing.goodput_cells import Bench, Journal, Setting, Size, make_trace
from benchmarks.routing.live_platform import Machine, Setup, machine
from benchmarks.routing.workloads import full_load
from benchmarks.systems.full_weights import CONFIG
from serve.config.platform import load_config


def default_setup() -> Setup:
    """The variants of deployments/local.yaml on shared cores."""
    return Setup(tuple(variant.name for variant in load_config(CONFIG).variants))


def bench(size: Size, hardware: Machine | None = None) -> Bench:
    """The benchmark of `python -m benchmarks.routing.goodput` of this `size`, without a journal. Raises `NoVariant`, `ConfigError`."""
    hardware = hardware or machine("default", [default_setup()])
    profile = hardware.profile("full", default_setup())
    return Bench(hardware, profile, size, Journal(Path()), full_load(profile, make_trace("poisson", 1.0, 2000.0, 0)))


def settings_of(policies: Sequence[str]) -> list[Setting]:
    """Policies on the default setup; `budget-full` on `full` alone."""
    return [Setting(one, Setup(("full",)) if one == "budget-full" else default_setup()) for one in policies]
