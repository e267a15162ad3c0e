"""Recipe validation against the parent's card and configuration, before any weights are loaded.

Does not import torch.
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

from compression.errors import UserError
from compression.recipe.schema import Lora, Prune, Quantize, Recipe, check_parent_steps
from serve.card import load_card


class BuildRefused(UserError):
    """A build that cannot work, for a reason that the user can fix."""


def check_installed(recipe: Recipe) -> None:
    """Refuse a recipe whose steps need a package that is not installed."""
    if any(isinstance(step, Lora) for step in recipe.steps) and importlib.util.find_spec("peft") is None:
        raise BuildRefused(
            "the step 'lora' needs the package peft: run 'make install', which adds it to .venv-compression"
        )


def check_parent(recipe: Recipe, parent: Path) -> None:
    """Refuse a recipe that the parent's card or configuration rules out.

    Raises:
        BuildRefused, RecipeError, CardError: with one clear line.
    """
    check_parent_steps(recipe, load_card(parent).steps)
    config = model_config(parent)
    for step in recipe.steps:
        if isinstance(step, Prune):
            check_prunable(config, step)
            config |= {"intermediate_size": step.mlp_width} if step.mlp_width else {}
        elif isinstance(step, Quantize):
            check_group_size(config, step)


def check_prunable(config: Mapping[str, object], step: Prune) -> None:
    """Raise `BuildRefused` unless a model with this `config.json` can be cut as `step` says."""
    limits = {
        "layers": (step.layers, config.get("num_hidden_layers")),
        "MLP neurons": (step.mlp_width, config.get("intermediate_size")),
        "heads": (step.heads, config.get("num_attention_heads")),
        "tokens": (step.vocabulary, config.get("vocab_size")),
    }
    for part, (keep, available) in limits.items():
        if keep is not None and isinstance(available, int) and keep >= available:
            raise BuildRefused(f"cannot prune to {keep} {part}: the model has {available}; keep fewer")
    heads, shared = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if step.heads and isinstance(heads, int) and isinstance(shared, int) and step.heads % (heads // shared):
        raise BuildRefused(
            f"cannot prune to {step.heads} heads: {heads // shared} of them share a key-value head; keep a multiple of that"
        )


def check_group_size(config: Mapping[str, object], step: Quantize) -> None:
    """Raise `BuildRefused` when groups do not divide the rows of the model's matrices."""
    for name in ("hidden_size", "intermediate_size"):
        size = config.get(name)
        if step.group_size and isinstance(size, int) and size % step.group_size:
            divisors = [str(group) for group in (128, 64, 32) if size % group == 0]
            advice = f"use {' or '.join(divisors)}" if divisors else "use a scheme without groups, such as W8A8"
            raise BuildRefused(f"group_size {step.group_size} does not divide the model's {name} of {size}: {advice}")


def model_config(folder: Path) -> dict[str, object]:
    """The `config.json` of a model. Raises `BuildRefused` where there is none."""
    try:
        config: dict[str, object] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise BuildRefused(f"{folder} holds no model: its config.json cannot be read") from error
    return config
