"""Measure every compression technique on the demo model, as the engine serves it: `python -m benchmarks.compression.techniques`.

Builds and measures what is missing in the cache that `gearbox up` uses; a run after an interruption resumes.
A variant that cannot be built or served is a row with the reason.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.lib.processes import RESUMES, command
from benchmarks.reporting.results import IMAGES, Progress, save
from benchmarks.reporting.variant_group import group
from benchmarks.systems.full_weights import CONFIG
from compression.build.family import BuildError, Family, VariantSpec
from compression.build.kernels import target_hardware, unsupported_reason
from compression.build.source import SourceError
from compression.build.subprocesses import compression_python
from compression.progress import Progress as BuildProgress
from compression.recipe.schema import RecipeError, load_recipe
from compression.report.page import AXES
from compression.report.plots import plot
from deployments.state import cache_folder
from deployments.weights import RECIPES
from serve.card import Card, load_card
from serve.config.platform import ConfigError, load_config

OWN_RECIPES = Path(__file__).parent / "recipes"
NAMES = (
    *("full", "fp16", "int8", "int8-rtn", "int8-static", "int4", "pruned", "distilled", "lora-healed"),
    *("narrow-pruned", "narrow", "trimmed", "vocabulary", "slim", "two-four", "distilled-int8"),
)
PLOTTED = ("speed", "size", "cost")


def measure(names: Sequence[str]) -> dict[str, object]:
    """Measure the variants `names`. Returns the result document without the machine.

    Raises:
        ConfigError, RecipeError, SourceError, BuildError: nothing can be planned.
    """
    config = load_config(CONFIG)
    first = config.variants[0]
    specs = [
        VariantSpec(
            name=name,
            recipe=next(file for folder in (RECIPES, OWN_RECIPES) if (file := folder / f"{name}.yaml").exists()),
            engine_args=config.engine_args(first),
            env={**config.env, **first.env},
            price_usd_per_hour=first.price_usd_per_hour,
        )
        for name in names
    ]
    cards: dict[str, Card] = {}
    failed: dict[str, str] = {}
    for spec in list(specs):
        if reason := unsupported_reason(
            load_recipe(spec.recipe).planned_steps(), target_hardware(first.resources.gpus)
        ):
            failed[spec.name] = reason
            specs.remove(spec)
    family = Family(config.model.source, config.model.name, cache_folder(), compression_python(), Path(sys.executable))
    planned = family.plan(specs)
    progress = Progress([(one.name, sum(one.seconds.values())) for one in planned if one.state != "ready"])
    for one in planned:
        if one.state != "ready":
            progress.step(f"{one.name} ({one.state})")
        try:
            cards[one.name] = load_card(family.make(one, Stages()))
        except BuildError as error:
            failed[one.name] = str(error).split(" (log: ")[0]
            print(f"    {failed[one.name]}", file=sys.stderr)
    return {
        "model": config.model.name,
        "variants": {
            name: card.model_copy(update={"reproduce": "python -m benchmarks.compression.techniques"}).model_dump(
                mode="json"
            )
            for name, card in cards.items()
        },
        "failed": failed,
    }


@dataclass(slots=True)
class Stages:
    """Print each stage of a build, and its progress from time to time."""

    every_s: float = 30.0
    stage: str = ""
    said: float = field(default_factory=time.monotonic)

    def __call__(self, reached: BuildProgress) -> None:
        """Receive the subprocess's progress."""
        now = time.monotonic()
        if reached.stage != self.stage or now - self.said >= self.every_s:
            self.stage, self.said = reached.stage, now
            print(f"    {reached.stage} {reached.done:.0f}/{reached.total:.0f} {reached.unit}", flush=True)


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    args = parser.parse_args()
    with command((ConfigError, RecipeError, SourceError, BuildError), RESUMES):
        result = measure(args.variants)
    if not result["variants"]:
        return 1
    save("compression", result)
    drawn = group(result)
    for axis in AXES:
        if axis.name in PLOTTED:
            plot(drawn, axis, IMAGES / f"compression-{axis.name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
