"""`gearbox evaluate`, `profile` and `report`: measure and compare variants. Does not import torch; the engine is a subprocess.

The caller of `add_commands` supplies the serving settings: of `serve`, this package knows the card only.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from compression.build.family import MEASURE_SECONDS, TASKS_SECONDS
from compression.build.subprocesses import SubprocessFailed, run_subprocess
from compression.progress import Progress as StageProgress
from compression.report.page import ReportError, load_cards, write_report
from compression.report.plots import PlotsMissing, plot
from serve.card import Card, CardError, load_card


@dataclass(frozen=True, slots=True)
class Serving:
    """Serving settings of a variant: vLLM engine arguments, environment, and the price of one replica if configured."""

    engine_args: dict[str, object]
    env: dict[str, str]
    price_usd_per_hour: float | None


def add_commands(app: typer.Typer, serving: Callable[[Path, str], Serving], config: Path, python: Path) -> None:
    """Add the commands to `app`.

    Args:
        serving: reads the settings from a configuration file for a variant name; exits the command on a wrong file.
        config: default configuration file.
        python: interpreter of the engine's environment.
    """
    Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the variant: weights and card.")]
    Config = Annotated[Path, typer.Option("--config", "-c", envvar="GEARBOX_CONFIG", help="How the variant is served.")]

    @app.command()
    def evaluate(
        folder: Folder,
        full: Annotated[Path, typer.Option(help="Folder of the variant to compare with; itself for full.")],
        config: Config = config,
        tasks: Annotated[
            list[Path], typer.Option(help='JSON lines {"prompt", "answer"[, "choices"]}; repeatable.')
        ] = [],  # noqa: B006
        text: Annotated[
            Path | None, typer.Option(help="Text file to measure on; default: Python's documentation.")
        ] = None,
        quality_from: Annotated[str, typer.Option(help="The one quality number: kl, agreement or task:NAME.")] = "kl",
        allow_code: Annotated[
            bool, typer.Option(help="Run programs the model writes (human-eval); no sandbox.")
        ] = False,
        max_drift: Annotated[
            float | None, typer.Option(help="Mean drift from float32, in nats, beyond which the variant is refused.")
        ] = None,
    ) -> None:
        """Measure a variant's quality through the serving engine and write it on its card."""
        serving_config = serving(config, _card(folder).name)
        _card(full)
        options = ["--full", str(full.resolve()), "--quality-from", quality_from]
        options += [word for task in tasks for word in ("--tasks", str(task.resolve()))]
        options += ["--text", str(text.resolve())] if text else []
        options += ["--allow-code"] if allow_code else []
        options += ["--max-drift", str(max_drift)] if max_drift is not None else []
        _show_quality(_measure(python, folder, "quality", serving_config, options))

    @app.command()
    def profile(
        folder: Folder,
        config: Config = config,
        price_usd_per_hour: Annotated[
            float | None,
            typer.Option(min=0, help="Price of one replica's resources; default: the configuration's or the card's."),
        ] = None,
    ) -> None:
        """Measure a variant's latency, throughput and memory in the serving engine and write them on its card."""
        card = _card(folder)
        serving_config = serving(config, card.name)
        known = card.profile.price_usd_per_hour if card.profile else 0.0
        price = next(
            value for value in (price_usd_per_hour, serving_config.price_usd_per_hour, known) if value is not None
        )
        _show_profile(_measure(python, folder, "profile", serving_config, ["--price-usd-per-hour", str(price)]))

    @app.command()
    def report(
        folders: Annotated[
            list[Path], typer.Argument(metavar="CACHE_OR_DIRS...", help="Caches or folders of variants.")
        ],
        out: Annotated[Path, typer.Option(help="Folder for report.html, report.md and the plots.")],
        plots: Annotated[bool, typer.Option(help="PNG plots; they need matplotlib.")] = True,
    ) -> None:
        """Put all cards on one HTML page with their Pareto fronts, and into a Markdown table."""
        try:
            cards = load_cards(folders)
            files = write_report(cards, out, plot if plots else None)
        except (ReportError, PlotsMissing, OSError) as error:
            raise _fail(str(error)) from error
        for line in cards.left_out:
            typer.echo(f"left out: {line}", err=True)
        for file in files:
            typer.echo(file)


def _measure(python: Path, folder: Path, part: str, serving_config: Serving, options: Sequence[str]) -> Card:
    """Measure one part of the card in a subprocess, with progress; returns the new card."""
    folder = folder.resolve()
    command = [str(python), "-m", "compression.measure.variant", "--variant", str(folder), "--only", part]
    command += ["--engine-args", json.dumps(serving_config.engine_args), *options]
    stages = ("start", "profile") if part == "profile" else ("start", "drift", "quality", "answers", "tasks")
    lock, log = FileLock(folder.with_name(folder.name + ".lock"), timeout=0), folder.with_name(folder.name + ".log")
    try:
        with lock, _ProgressBar(stages) as bar:
            run_subprocess(command, serving_config.env, log, bar.update)
    except Timeout as error:
        raise _fail(f"another process is building or measuring {folder}: wait until it has ended") from error
    except SubprocessFailed as error:
        raise _fail(f"{error} (log: {log})") from error
    return _card(folder)


class _ProgressBar:
    """Progress over all stages with the remaining time: a bar in a terminal, else a line per stage."""

    def __init__(self, stages: Iterable[str]) -> None:
        self._seconds = {stage: (MEASURE_SECONDS | TASKS_SECONDS)[stage] for stage in stages}
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=self._console, disable=not self._console.is_terminal, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("starting", total=sum(self._seconds.values()))
        self._stage = ""

    def __enter__(self) -> "_ProgressBar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, progress: StageProgress) -> None:
        stages = list(self._seconds)
        before = sum(self._seconds[stage] for stage in stages[: stages.index(progress.stage)])
        share = progress.done / progress.total if progress.total else 0.0
        completed = before + share * self._seconds[progress.stage]
        text = f"{progress.stage} {progress.done}/{progress.total} {progress.unit}"
        self._bar.update(self._task, completed=completed, description=text)
        if progress.stage != self._stage and not self._console.is_terminal:
            left = sum(self._seconds.values()) - completed
            self._console.print(f"{progress.stage}, roughly {left:.0f} s left", highlight=False)
        self._stage = progress.stage


def _show_quality(card: Card) -> None:
    quality = card.quality
    if quality is None:
        raise _fail(f"the card of variant '{card.name}' has no quality after it was measured")
    table = Table("measured", "value", "95% interval", "on", title=f"{card.name}: quality {quality.quality:.4f}")
    low, high = quality.kl_ci95
    table.add_row("perplexity", f"{quality.perplexity:.3f}", "", f"{quality.tokens} tokens")
    table.add_row("KL to full", f"{quality.kl_to_full:.4f}", f"{low:.4f} to {high:.4f}", f"{quality.tokens} tokens")
    table.add_row("top-1 agreement", f"{quality.top1_agreement:.4f}", "", f"{quality.tokens} tokens")
    if answers := quality.answers:
        on = f"{answers.prompts} answers of {answers.tokens} tokens"
        low, high = answers.equal_tokens_ci95
        table.add_row("answers, equal tokens", f"{answers.equal_tokens:.3f}", f"{low:.3f} to {high:.3f}", on)
        low, high = answers.exact_ci95
        table.add_row("answers, exact", f"{answers.exact:.3f}", f"{low:.3f} to {high:.3f}", on)
    for name, score in quality.task_scores.items():
        low, high = score.ci95
        table.add_row(name, f"{score.score:.3f}", f"{low:.3f} to {high:.3f}", f"{score.items} items")
    if drift := quality.drift:
        flips = f"{drift.top1_flips} top-1 flips ({drift.near_tie_flips} near ties) in {drift.tokens} tokens"
        table.add_row("drift from float32", f"{drift.mean_abs:.5f}", f"largest {drift.max_abs:.4f}", flips)
    else:
        table.add_row("drift from float32", "not measured", "", "the float32 weights do not fit into free memory")
    Console().print(table)
    typer.echo(f"quality from {quality.quality_from}: {quality.derivation}")


def _show_profile(card: Card) -> None:
    profile = card.profile
    if profile is None:
        raise _fail(f"the card of variant '{card.name}' has no profile after it was measured")
    table = Table("measured", "value", title=f"{card.name} on {profile.hardware}")
    for ttft in profile.ttft:
        at = f"TTFT, {ttft.prompt_tokens} tokens, {ttft.concurrency} at once"
        table.add_row(at, f"{ttft.p50_ms:.0f} ms (p95 {ttft.p95_ms:.0f})")
    for tpot in profile.tpot:
        table.add_row(f"TPOT, {tpot.concurrency} at once", f"{tpot.p50_ms:.1f} ms (p95 {tpot.p95_ms:.1f})")
    if peak := profile.peak:
        peak_row = f"{peak.output_tokens_per_s:.0f} tokens/s, {peak.requests_per_s:.2f} requests/s"
        table.add_row(f"peak, {peak.concurrency} at once", peak_row)
        table.add_row("key-value cache", f"{peak.kv_cache_tokens} tokens")
    table.add_row("memory", f"{profile.resident_bytes / 1e9:.2f} GB")
    for direction, cost in (("input", profile.cost_usd(1_000_000, 0)), ("output", profile.cost_usd(0, 1_000_000))):
        table.add_row(f"million {direction} tokens", f"{cost:.4f} USD at {profile.price_usd_per_hour:g} USD an hour")
    Console().print(table)


def _card(folder: Path) -> Card:
    try:
        return load_card(folder)
    except CardError as error:
        raise _fail(str(error)) from error


def _fail(message: str) -> typer.Exit:
    typer.echo(f"gearbox: {message}", err=True)
    return typer.Exit(2)
