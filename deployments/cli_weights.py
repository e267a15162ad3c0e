"""`gearbox weights`: has every variant's weights ready in one folder, without serving. `deployments.cli` adds it to the command.

In a cluster this is the step before the engines: it alone needs the stores' credentials and the network.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from compression.build.family import BuildError
from deployments.embedder import embedder_folder
from deployments.fetch import FetchError, is_uri
from deployments.state import cache_folder
from deployments.weights import Weights
from serve.card import CardError
from serve.cli.client import fail
from serve.config.platform import ConfigError, PlatformConfig, VariantConfig, load_config

EMBEDDER = "embedder"

Report = Callable[[str, float, float, float], None]


def weights(
    config: Annotated[Path, typer.Option("--config", "-c", envvar="GEARBOX_CONFIG", help="Deployment configuration.")],
    into: Annotated[Path, typer.Option(help="Folder that gets a link for each of them.")],
    name: Annotated[
        list[str] | None, typer.Option("--as", help="VARIANT=LINK: how its link is called, if not as the variant.")
    ] = None,
    only: Annotated[str, typer.Option(help="Only these, comma-separated; 'embedder' is the retrieval's model.")] = "",
    cards: Annotated[bool, typer.Option(help="Only the cards of what is copied: for gateways.")] = False,
) -> None:
    """Fetch or build every variant's weights, check them, and link them in a folder. What is there already is only checked."""
    try:
        settings = load_config(config)
        wanted = _wanted(settings, [one.strip() for one in only.split(",") if one.strip()])
        links = _links(settings, name or [])
        made = Weights(settings, cache_folder())
    except ConfigError as error:
        raise fail(str(error), 2) from error
    into.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    for one in wanted:
        label = one if isinstance(one, str) else one.name
        try:
            with _progress(console, label) as report:
                folder = _have(settings, made, one, cards, report)
        except (ConfigError, BuildError, FetchError, CardError, OSError) as error:
            raise fail(f"{label}: {error}", 1) from error
        link = into / links.get(label, label)
        _link(link, folder)
        console.print(f"{label}: {link}", highlight=False, soft_wrap=True)


def _have(settings: PlatformConfig, made: Weights, one: VariantConfig | str, cards: bool, report: Report) -> Path:
    if isinstance(one, str):
        if settings.retrieval is None:
            raise ConfigError(f"the configuration has no retrieval, so there is no '{EMBEDDER}'")
        cache = cache_folder()
        cache.mkdir(parents=True, exist_ok=True)
        return embedder_folder(settings.retrieval.embedder, cache, cache / "embedder.log")[0]
    if cards and is_uri(one.weights or ""):
        return made.card(one)
    return made.ready(one) or made.make(one, report, background=False)


def _wanted(settings: PlatformConfig, only: list[str]) -> list[VariantConfig | str]:
    every: dict[str, VariantConfig | str] = {variant.name: variant for variant in settings.variants}
    if settings.retrieval is not None:
        every[EMBEDDER] = EMBEDDER
    if unknown := [name for name in only if name not in every]:
        raise ConfigError(f"there is no '{unknown[0]}'; there are {', '.join(every)}")
    return [one for name, one in every.items() if not only or name in only]


def _links(settings: PlatformConfig, given: list[str]) -> Mapping[str, str]:
    links = {}
    for one in given:
        variant, _, link = one.partition("=")
        if link in ("", ".", "..") or "/" in link:
            raise ConfigError(f"--as {one}: write VARIANT=NAME")
        links[variant] = link
    return links


def _link(link: Path, folder: Path) -> None:
    """Make `link` lead to `folder`, at once; relative, as volumes are mounted elsewhere in other pods."""
    folder = folder.resolve()
    inside = folder.is_relative_to(link.parent.parent.resolve())
    scratch = link.with_name(f".{link.name}-link")
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(os.path.relpath(folder, link.parent.resolve()) if inside else folder)
    scratch.replace(link)


class _progress:
    """A bar on a terminal; elsewhere, as in a pod's log, a line each time a stage or ten percent are done."""

    def __init__(self, console: Console, label: str) -> None:
        self._console, self._label, self._shown = console, label, ""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[left]}"),
            TimeElapsedColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True)

    def __enter__(self) -> Report:
        if self._console.is_terminal:
            self._bar.start()
        self._task = self._bar.add_task(self._label, total=None, left="")
        return self._report

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _report(self, stage: str, done: float, total: float, left_s: float) -> None:
        left = f"about {left_s / 60:.1f} min left" if left_s else ""
        self._bar.update(
            self._task, description=f"{self._label} {stage}", completed=done, total=total or None, left=left
        )
        line = f"{self._label}: {stage} {10 * int(10 * done / total) if total else 0}%"
        if not self._console.is_terminal and line != self._shown:
            self._console.print(f"{line} {left}", highlight=False, soft_wrap=True)
            self._shown = line
