"""`gearbox weights`: download or build the weights of all variants into one folder, without serving.

In a cluster this is the step before the engines, and the only one that needs the stores' credentials and the network.
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
from serve.config.platform import ConfigError, PlatformConfig, load_config
from serve.config.sections import VariantConfig

EMBEDDER = "embedder"

OnProgress = Callable[[str, float, float, float], None]  # stage, done, total, seconds left


def weights(
    config: Annotated[Path, typer.Option("--config", "-c", envvar="GEARBOX_CONFIG", help="Deployment configuration.")],
    into: Annotated[Path, typer.Option(help="Folder in which to create a link to each variant's weights.")],
    name: Annotated[
        list[str] | None, typer.Option("--as", help="VARIANT=LINK: name of its link, by default the variant's.")
    ] = None,
    only: Annotated[str, typer.Option(help="Only these, comma-separated; 'embedder' is the model of retrieval.")] = "",
    cards: Annotated[bool, typer.Option(help="Download only the cards, for gateways.")] = False,
) -> None:
    """Download or build the weights of every variant, verify them, and link them in a folder."""
    try:
        settings = load_config(config)
        targets = _targets(settings, [target.strip() for target in only.split(",") if target.strip()])
        links = _links(name or [])
        store = Weights(settings, cache_folder())
    except ConfigError as error:
        raise fail(str(error), 2) from error
    console = Console(stderr=True)
    for target in targets:
        label = target if isinstance(target, str) else target.name
        try:
            with _ProgressBar(console, label) as on_progress:
                folder = _prepare(settings, store, target, cards, on_progress)
            link = into / links.get(label, label)
            _link(link, folder)
        except (ConfigError, BuildError, FetchError, CardError, OSError) as error:
            raise fail(f"{label}: {error}", 1) from error
        console.print(f"{label}: {link}", highlight=False, soft_wrap=True)


def _prepare(
    settings: PlatformConfig, store: Weights, target: VariantConfig | str, cards: bool, on_progress: OnProgress
) -> Path:
    """Folder with the weights, or the card, of a variant or of the embedder."""
    if isinstance(target, str):
        if settings.retrieval is None:
            raise ConfigError(f"the configuration has no retrieval, so there is no '{EMBEDDER}'")
        cache = cache_folder()
        cache.mkdir(parents=True, exist_ok=True)
        return embedder_folder(settings.retrieval.embedder, cache, cache / "embedder.log")[0]
    if cards and is_uri(target.weights or ""):
        return store.card(target)
    return store.ready(target) or store.make(target, on_progress, background=False)


def _targets(settings: PlatformConfig, only: list[str]) -> list[VariantConfig | str]:
    targets: dict[str, VariantConfig | str] = {variant.name: variant for variant in settings.variants}
    if settings.retrieval is not None:
        targets[EMBEDDER] = EMBEDDER
    if unknown := [name for name in only if name not in targets]:
        raise ConfigError(f"'{unknown[0]}' does not exist; choose from {', '.join(targets)}")
    return [target for name, target in targets.items() if not only or name in only]


def _links(options: list[str]) -> Mapping[str, str]:
    links = {}
    for option in options:
        variant, _, link = option.partition("=")
        if link in ("", ".", "..") or "/" in link:
            raise ConfigError(f"--as {option}: expected VARIANT=LINK")
        links[variant] = link
    return links


def _link(link: Path, folder: Path) -> None:
    """Point `link` at `folder` atomically; relative where possible, as other pods mount the volume elsewhere."""
    link.parent.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    inside = folder.is_relative_to(link.parent.parent.resolve())
    scratch = link.with_name(f".{link.name}-link")
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(os.path.relpath(folder, link.parent.resolve()) if inside else folder)
    scratch.replace(link)


class _ProgressBar:
    """A progress bar on a terminal; otherwise, e.g. in a pod's log, a line for each stage and every ten percent."""

    def __init__(self, console: Console, label: str) -> None:
        self._console, self._label, self._printed = console, label, ""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[left]}"),
            TimeElapsedColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True)

    def __enter__(self) -> OnProgress:
        if self._console.is_terminal:
            self._bar.start()
        self._task = self._bar.add_task(self._label, total=None, left="")
        return self._on_progress

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _on_progress(self, stage: str, done: float, total: float, left_s: float) -> None:
        left = f"about {left_s / 60:.1f} min left" if left_s else ""
        self._bar.update(
            self._task, description=f"{self._label} {stage}", completed=done, total=total or None, left=left
        )
        line = f"{self._label}: {stage} {10 * int(10 * done / total) if total else 0}%"
        if not self._console.is_terminal and line != self._printed:
            self._console.print(f"{line} {left}", highlight=False, soft_wrap=True)
            self._printed = line
