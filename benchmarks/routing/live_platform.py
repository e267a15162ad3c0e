"""The platform under test in the live routing benchmark: which variants, on which cores, and what they need to start."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
import yaml

from benchmarks.lib.processes import System, free_ports, python
from benchmarks.systems.full_weights import CONFIG
from compression.build.subprocesses import run_subprocess
from deployments.state import cache_folder, load_state
from deployments.weights import Weights
from serve.card import Profile, load_card
from serve.config.platform import PlatformConfig, load_config

SPLIT = ("full", "lora-healed")  # variants of the split machine
WORK = cache_folder() / "benchmarks" / "goodput"
PATIENCE_S = 600.0


class NoVariant(Exception):
    """A variant is not in the cache; the message says how to build it."""


@dataclass(slots=True, frozen=True)
class Setup:
    """Variants that are deployed together, each on `cores` cores; 0: they share all, as `gearbox up` starts them."""

    variants: tuple[str, ...]
    cores: int = 0


@dataclass(slots=True)
class Machine:
    """The configuration, and the weights of every variant and number of cores with a profile for them."""

    config: PlatformConfig
    folders: Mapping[tuple[str, int], Path]

    def folder(self, name: str, setup: Setup) -> Path:
        """The weights of variant `name` in `setup`."""
        return self.folders[name, setup.cores]

    def profile(self, name: str, setup: Setup) -> Profile:
        """The latency profile of variant `name` in `setup`. Raises `NoVariant`."""
        profile = load_card(self.folder(name, setup)).profile
        if profile is None:
            raise NoVariant(f"{self.folder(name, setup)} has no profile")
        return profile

    def quality(self, name: str) -> float:
        """The quality of variant `name`. Raises `NoVariant`."""
        folder = next(folder for (one, _), folder in self.folders.items() if one == name)
        quality = load_card(folder).quality
        if quality is None:
            raise NoVariant(f"{folder} has no quality")
        return quality.quality


def machine(platform: str, setups: Sequence[Setup]) -> Machine:
    """All that `setups` need: cached variants; for `split`, profiled on their cores. Raises `NoVariant`, `SubprocessFailed`."""
    config = load_config(CONFIG)
    needed = sorted({(name, setup.cores) for setup in setups for name in setup.variants})
    folders = {}
    if platform == "split":
        for name, cores in needed:
            print(f"profile of {name} on {cores} cores", flush=True)
            folders[name, cores] = profiled(name, config, cores)
        return Machine(config, folders)
    weights = Weights(config, cache_folder())
    for variant in config.variants:
        if (variant.name, 0) in needed:
            folder = weights.ready(variant)
            if folder is None:
                raise NoVariant(f"variant '{variant.name}' is not built: run 'gearbox up' first")
            folders[variant.name, 0] = folder
    return Machine(config, folders)


def profiled(name: str, config: PlatformConfig, cores: int) -> Path:
    """The weights of variant `name` with a card profiled on `cores` cores. Raises `NoVariant`, `SubprocessFailed`."""
    folders = sorted(
        (cache_folder() / config.model.name).glob(f"{name}-????????????"), key=lambda one: one.stat().st_mtime
    )
    measured = [folder for folder in folders if (card := load_card(folder)).quality and card.name == name]
    if not measured:
        raise NoVariant(
            f"no variant '{name}' has been made and measured: run 'python -m benchmarks.compression.techniques' first"
        )
    folder = WORK / f"{measured[-1].name}-{cores}"
    if not folder.exists():
        scratch = folder.with_suffix(".part")
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(measured[-1], scratch, copy_function=_link_weights)
        engine = ["--engine-args", orjson.dumps(config.engine_args(config.variants[0])).decode()]
        module = [sys.executable, "-m", "compression.measure.variant"]
        command = [*module, "--variant", str(scratch), "--only", "profile", *engine]
        run_subprocess(
            command, {**config.env, "OMP_NUM_THREADS": str(cores)}, folder.with_suffix(".log"), lambda _: None
        )
        scratch.rename(folder)
    return folder


def _link_weights(source: str, target: str) -> None:
    if source.endswith(".safetensors"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def document(machine: Machine, setup: Setup, port: int) -> dict[str, object]:
    """The configuration of a platform of `setup`, without retrieval; metrics are at the next port."""
    config = machine.config
    prices = {variant.name: variant.price_usd_per_hour for variant in config.variants}
    return {
        "model": {"name": config.model.name, "source": config.model.source},
        "server": {"port": port, "metrics_port": port + 1},
        "access": {"allow_anonymous": True},
        "engine": config.engine,
        "frontend": config.frontend,
        "env": {**config.env, **({"OMP_NUM_THREADS": str(setup.cores)} if setup.cores else {})},
        "variants": [
            {"name": name, "weights": str(machine.folder(name, setup)), "price_usd_per_hour": prices.get(name)}
            for name in setup.variants
        ],
    }


@contextmanager
def serving(machine: Machine, setup: Setup) -> Iterator[str]:
    """The URL of a platform of `setup`, stopped after the block. Retrieval is left out. Raises `NotStarted`."""
    port, folder = free_ports(10)[0], Path(tempfile.mkdtemp(prefix="gb-"))
    file = folder / "gearbox.yaml"
    file.write_text(yaml.safe_dump(document(machine, setup, port)))
    command = python("-m", "deployments.supervisor", "--config", str(file), "--state", str(folder))
    with System("gearbox", command, {"GEARBOX_RUN_ID": folder.name}) as system:

        def up() -> bool:
            state = load_state(folder)
            return state is not None and all(one.phase == "ready" for one in state.variants.values())

        system.wait(up, PATIENCE_S)
        yield f"http://127.0.0.1:{port}"
