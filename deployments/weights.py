"""Weights of each variant: find them in their folder or the cache, download or build missing ones, check them."""

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from compression.build.family import BuildError, Family, PlannedVariant, VariantSpec
from compression.build.kernels import target_hardware, unsupported_reason
from compression.build.source import SourceError, parse_source, pin_revision
from compression.build.subprocesses import compression_python
from compression.progress import Progress
from compression.recipe.schema import RecipeError
from deployments.fetch import FetchError, fetch, is_uri
from deployments.fetch import pinned as pinned_uri
from serve.card import CARD_FILE, CardError, Step, check_card, load_card
from serve.config.platform import ConfigError, PlatformConfig
from serve.config.sections import VariantConfig

RECIPES = Path(__file__).resolve().parent.parent / "compression" / "recipes"


class Weights:
    """The weights of a configuration's variants.

    Raises:
        ConfigError: from every method, when the configuration is invalid: a missing or invalid recipe, an invalid source,
            configured weights that are missing, unmeasured or do not match their card, or a variant for which the engine
            has no kernel on its hardware.
    """

    def __init__(self, config: PlatformConfig, cache: Path) -> None:
        self._config = config
        self._cache = cache
        self._uris: dict[str, str] = {}  # pinned URIs of downloaded variants, by name
        specs = [self._spec(variant, variant.recipe) for variant in config.variants if variant.recipe]
        try:
            source = parse_source(config.model.source)
            # where nothing is built, the hub is not queried
            self._source = pin_revision(source).text if specs else source.text
            self._planned = self._family(background=False).plan(specs) if specs else []
            for variant in config.variants:
                is_uri(variant.weights or "")
        except (RecipeError, SourceError, BuildError, FetchError) as error:
            raise ConfigError(str(error)) from error

    def ready(self, variant: VariantConfig) -> Path | None:
        """Folder with complete, measured weights that match their card; None if they must be downloaded or built first."""
        if variant.recipe:
            self._check_kernel(variant, self._find(variant).recipe.planned_steps())
            if self._find(variant).state != "ready":
                return None
        try:
            folder = self._folder(variant)
        except FetchError as error:
            raise ConfigError(f"variant '{variant.name}': {error}") from error
        if variant.weights and is_uri(variant.weights) and not (folder / CARD_FILE).is_file():
            return None
        try:
            card = load_card(folder)
            check_card(card, folder)
        except CardError as error:
            raise ConfigError(f"variant '{variant.name}': {error}") from error
        if variant.digest not in (None, card.weights_digest):
            raise ConfigError(f"variant '{variant.name}': {folder} has {card.weights_digest}, not {variant.digest}")
        self._check_kernel(variant, card.steps)
        if card.quality is None or card.profile is None:
            raise ConfigError(f"variant '{variant.name}': the card in {folder} has no measured quality or profile")
        return folder

    def make(
        self, variant: VariantConfig, on_progress: Callable[[str, float, float, float], None], background: bool
    ) -> Path:
        """Download `variant` from its store, or build and measure it, its parents first.

        Args:
            on_progress: called with (stage, done, total, seconds left).
            background: build at low priority, because the platform already serves requests.

        Raises:
            BuildError: the build failed; one line that names the log.
            FetchError: the download failed.
        """
        if variant.weights is not None:
            return self._copy(variant, _with_pace("copy", on_progress))
        family = self._family(background)
        planned_variant = self._find(variant)
        chain = [planned_variant]
        while parent := next((planned for planned in self._planned if planned.folder == chain[0].parent), None):
            chain.insert(0, parent)
        for planned in chain:
            if planned.state != "ready" or planned is planned_variant:
                family.make(planned, _with_eta(planned, on_progress))
        check_card(load_card(planned_variant.folder), planned_variant.folder)
        return planned_variant.folder

    def seconds(self, variant: VariantConfig) -> float:
        """Rough duration of `make` in seconds, as the first estimate."""
        return sum(self._find(variant).seconds.values()) if variant.recipe else 0.0

    def card(self, variant: VariantConfig) -> Path:
        """Folder with the card of `variant`, downloaded without the weights. Not for variants with a recipe."""
        return self._copy(variant, lambda done, total: None, cards_only=True)

    def _copy(
        self, variant: VariantConfig, on_progress: Callable[[float, float], None], cards_only: bool = False
    ) -> Path:
        folder = self._folder(variant)
        if variant.weights and is_uri(variant.weights):
            if cards_only:
                folder = folder.with_name(f"{folder.name}-card")
            fetch(self._uri(variant, variant.weights), variant.digest, folder, on_progress, cards_only)
        return folder

    def _folder(self, variant: VariantConfig) -> Path:
        if variant.weights is None:
            return self._find(variant).folder
        if not is_uri(variant.weights):
            return Path(variant.weights)
        key = hashlib.sha256(f"{self._uri(variant, variant.weights)} {variant.digest}".encode()).hexdigest()[:12]
        return self._cache / "copied" / f"{variant.name}-{key}"

    def _uri(self, variant: VariantConfig, weights: str) -> str:
        """The pinned URI, resolved once, so that a branch that moves meanwhile cannot mix two commits. Raises `FetchError`.

        With a digest no resolution is needed: it identifies the weights, wherever the branch is.
        """
        if variant.digest is not None:
            return weights
        if variant.name not in self._uris:
            self._uris[variant.name] = pinned_uri(weights)
        return self._uris[variant.name]

    def _check_kernel(self, variant: VariantConfig, steps: Sequence[Step]) -> None:
        if reason := unsupported_reason(steps, target_hardware(variant.resources.gpus)):
            raise ConfigError(f"variant '{variant.name}' cannot be served here: {reason}")

    def _find(self, variant: VariantConfig) -> PlannedVariant:
        return next(planned for planned in self._planned if planned.name == variant.name)

    def _family(self, background: bool) -> Family:
        model, python = self._config.model, Path(sys.executable)
        return Family(self._source, model.name, self._cache, compression_python(), python, background=background)

    def _spec(self, variant: VariantConfig, recipe: str) -> VariantSpec:
        path = Path(recipe)
        return VariantSpec(
            name=variant.name,
            recipe=path if path.suffix in (".yaml", ".yml") else RECIPES / f"{recipe}.yaml",
            engine_args=self._config.engine_args(variant),
            env={**self._config.env, **variant.env},
            price_usd_per_hour=variant.price_usd_per_hour,
        )


def _with_eta(
    planned: PlannedVariant, on_progress: Callable[[str, float, float, float], None]
) -> Callable[[Progress], None]:
    """Adds the seconds left: the rest of this stage at its pace so far, and the later stages as estimated."""
    stages = list(planned.seconds)
    started: dict[str, float] = {}

    def report(progress: Progress) -> None:
        now = time.monotonic()
        start = started.setdefault(progress.stage, now)
        share = progress.done / progress.total if progress.total else 0.0
        estimate_s = planned.seconds.get(progress.stage, 10.0)
        left = (now - start) / share * (1 - share) if share > 0.05 else estimate_s * (1 - share)
        later = stages[stages.index(progress.stage) + 1 :] if progress.stage in stages else []
        on_progress(progress.stage, progress.done, progress.total, left + sum(planned.seconds[name] for name in later))

    return report


def _with_pace(stage: str, on_progress: Callable[[str, float, float, float], None]) -> Callable[[float, float], None]:
    """Add the seconds left at the pace so far."""
    start = time.monotonic()

    def report(done: float, total: float) -> None:
        share = done / total if total else 1.0
        left = (time.monotonic() - start) / share * (1 - share) if share else 0.0
        on_progress(stage, done, total, left)

    return report
