"""Weights of `full` built by `gearbox up`, for benchmarks of one engine."""

from pathlib import Path

from deployments.state import cache_folder
from deployments.weights import Weights
from serve.config.platform import ConfigError, PlatformConfig, load_config

CONFIG = Path(__file__).parents[2] / "deployments" / "local.yaml"


class NoWeights(Exception):
    """`full` has not been built yet."""


def full_weights(config_file: Path, weights: Path | None) -> tuple[PlatformConfig, Path]:
    """The configuration with one variant, and the folder of its weights."""
    try:
        config = load_config(config_file)
        config = config.only([config.variants[0].name])
        folder = weights or Weights(config, cache_folder()).ready(config.variants[0])
    except ConfigError as error:
        raise NoWeights(str(error)) from error
    if folder is None:
        raise NoWeights(f"variant '{config.variants[0].name}' is not built; 'gearbox up' builds it, or give --weights")
    return config, folder
