"""`gearbox compress`: build a variant from a recipe into a folder. `deployments.cli` registers the command.

Does not import torch: `compression.build.variant` does the work in the compression environment.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from filelock import FileLock, Timeout
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
from compression.build.source import Source, SourceError, parse_source, pin_revision
from compression.build.subprocesses import MALLOC_ENV, SubprocessFailed, compression_python, run_subprocess
from compression.progress import Progress as StageProgress
from compression.recipe.schema import Recipe, RecipeError, check_parent_steps, load_recipe
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
    out: Annotated[Path, typer.Option(help="Output folder.")],
    model: Annotated[
        str | None,
        typer.Option(help="pypi:NAME==VERSION, ORG/NAME, a folder or a .gguf file. Not needed with --parent."),
    ] = None,
    parent: Annotated[
        Path | None,
        typer.Option(help="Folder of the variant to start from; else it is built beside the output folder."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Text to calibrate and train on; else Python's documentation.")
    ] = None,
) -> None:
    """Build a variant from a recipe: prune, distill, quantize, … Run it again to resume after an interruption."""
    try:
        source = pin_revision(parse_source(model)) if model else None
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
            with _locked(job.out):
                if job is not jobs[-1] and job.out.exists():  # another process built this parent meanwhile
                    _check_same_source(job.out, job.out.name, source)
                    continue
                with _progress_bars(console, job) as on_progress:
                    if job.parent and job.recipe.completions:
                        completions = completions_command(Path(sys.executable), job.file, job.parent, text, {})
                        run_subprocess(completions, {}, log, on_progress)
                    run_subprocess(_command(job, name, source, text), MALLOC_ENV, log, on_progress)
        except (BuildRefused, CardError) as error:
            raise _fail(str(error), 2) from error
        except SubprocessFailed as error:
            raise _fail(f"{job.out.name}: {error} (log: {log})", 2 if error.known_cause else 1) from error
        except KeyboardInterrupt:
            typer.echo("interrupted: run the same command again to resume after the last finished step", err=True)
            raise typer.Exit(130) from None
        typer.echo(_summary(load_card(job.out), job.out))


def plan(recipe: str, out: Path, source: Source | None, parent: Path | None) -> list[Job]:
    """List the builds that are needed, parents first. The default parent is the folder with its name beside `out`.

    Raises:
        RecipeError, BuildRefused, CardError: the build cannot work; raised before anything is loaded.
    """
    file = Path(recipe) if Path(recipe).suffix in (".yaml", ".yml") else RECIPES / f"{recipe}.yaml"
    if not file.is_file():
        names = ", ".join(sorted(recipe_file.stem for recipe_file in RECIPES.glob("*.yaml")))
        raise RecipeError(f"there is no recipe '{recipe}': name a YAML file or one of {names}")
    target = load_recipe(file)
    if out.exists():
        raise BuildRefused(f"{out} exists already: remove it to make it again")
    if target.parent is None:
        if parent is not None:
            raise BuildRefused(f"the recipe '{target.name}' starts from a source: leave --parent out")
        if source is None:
            raise BuildRefused(f"the recipe '{target.name}' starts from a source: give --model")
        return [Job(target, file, out, None)]
    parent_jobs: list[Job] = []
    if parent is None:
        parent = out.with_name(target.parent)
        if parent == out:
            raise BuildRefused(f"{out} is where the parent '{target.parent}' goes: name another folder to make")
        if not parent.exists():
            sibling = file.with_name(f"{target.parent}.yaml")
            parent_recipe = sibling if sibling.is_file() else RECIPES / sibling.name
            parent_jobs = plan(str(parent_recipe), parent, source, None)
        else:
            _check_same_source(parent, target.parent, source)
    if parent_jobs:
        start = parent_jobs[0].parent
        planned_steps = (step for job in parent_jobs for step in job.recipe.planned_steps())
        check_parent_steps(target, [*(load_card(start).steps if start else ()), *planned_steps])
    else:
        check_parent(target, parent)
    return [*parent_jobs, Job(target, file, out, parent)]


def _check_same_source(folder: Path, name: str, source: Source | None) -> None:
    """Check a parent folder found by default: it must hold the expected variant, made from the same source."""
    card = load_card(folder)
    if card.name != name:
        raise BuildRefused(f"{folder} holds the variant '{card.name}', not the parent '{name}': give --parent")
    load = next((step.parameters for step in card.steps if step.technique == "load"), {})
    loaded, revision = load.get("source"), load.get("revision")
    if source is None or (loaded in (None, f"{source.kind}:{source.location}") and revision in (None, source.revision)):
        return
    made_from = f"{loaded}@{revision}" if revision else loaded
    raise BuildRefused(f"{folder} was made from {made_from}, not from {source.text}: use another folder or --parent")


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the lock of the variant in `out`, which building and measuring take; says when it waits for another process."""
    lock = FileLock(out.with_name(out.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        typer.echo(f"waiting for another process that builds or measures {out}", err=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _command(job: Job, name: str, source: Source | None, text: Path | None) -> list[str]:
    start = ["--parent", str(job.parent.resolve())] if job.parent else ["--source", source.text if source else ""]
    return [
        *(str(compression_python()), "-m", "compression.build.variant", "--recipe", str(job.file.resolve())),
        *("--model", name, "--out", str(job.out.resolve()), *start),
        *(("--text", str(text.resolve())) if text else ()),
    ]


def _model_name(source: Source | None) -> str:
    """Model name of a source: the last part of its location, without version."""
    if source is None:
        return "model"
    return Path(source.location.split("==")[0]).name.removesuffix(".gguf")


@contextmanager
def _progress_bars(console: Console, job: Job) -> "Iterator[_ProgressBars]":
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[unit]}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        yield _ProgressBars(progress, job)


class _ProgressBars:
    """A progress bar per started stage, and one for the whole build, weighted by typical stage durations."""

    def __init__(self, progress: Progress, job: Job) -> None:
        self._progress = progress
        self._expected = build_seconds(job.recipe)
        self._started_at = time.monotonic()
        self._stages: dict[str, TaskID] = {}
        total_seconds = sum(self._expected.values())
        progress.console.print(
            f"{job.out.name}: {' → '.join(self._expected)}, about {total_seconds / 60:.0f} min on two cores"
        )
        self._total_task = progress.add_task(job.out.name, total=round(total_seconds), unit="s")

    def __call__(self, current: StageProgress) -> None:
        progress = self._progress
        if current.stage not in self._stages:
            if not progress.console.is_terminal:
                progress.console.print(f"[{time.monotonic() - self._started_at:5.0f} s] {current.stage}", markup=False)
            self._stages[current.stage] = progress.add_task(current.stage, total=None, unit=current.unit)
        progress.update(
            self._stages[current.stage], completed=current.done, total=current.total or None, unit=current.unit
        )
        stages = list(self._expected)
        if current.stage in stages:
            share = current.done / current.total if current.total else 0.0
            completed_seconds = sum(self._expected[stage] for stage in stages[: stages.index(current.stage)])
            progress.update(
                self._total_task, completed=round(completed_seconds + share * self._expected[current.stage])
            )


def _summary(card: Card, folder: Path) -> str:
    size = f"{card.parameters / 1e6:.1f} M parameters, {card.bytes_on_disk / 1e6:.0f} MB"
    return f"{card.name}: {size} in {folder}; its card has no quality or profile until `gearbox evaluate` and `gearbox profile` have run"


def _fail(message: str, code: int) -> typer.Exit:
    typer.echo(f"gearbox: {message}", err=True)
    return typer.Exit(code)
