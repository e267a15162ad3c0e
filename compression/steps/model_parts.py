"""The parts of a transformer that steps change: its decoder layers, run under hooks that measure them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compression.errors import UserError

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

Done = Callable[[], None]  # called after each sequence


class PruneError(UserError):
    """A model that cannot be pruned this far, or that lacks the parts to prune."""


def run_with_hooks(
    model: "PreTrainedModel", sequences: Sequence[Sequence[int]], hooks: "Sequence[RemovableHandle]", done: Done
) -> None:
    """Run every sequence through `model` with `hooks` attached, then remove them."""
    try:
        for sequence in sequences:
            model(torch.tensor([sequence]), use_cache=False)
            done()
    finally:
        for hook in hooks:
            hook.remove()


def decoder_layers(model: "PreTrainedModel") -> nn.ModuleList:
    """The transformer layers of a causal language model, in order. Raises `PruneError` when it keeps them elsewhere."""
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise PruneError(f"cannot prune a {type(model).__name__}: its decoder has no list of layers")
    return layers


def check_finite(measured: Tensor) -> None:
    """Raise `PruneError` when an influence is not finite: it cannot be ranked."""
    if not torch.isfinite(measured).all():
        raise PruneError(
            "the model's activations are not finite numbers on the calibration text: its weights are broken"
        )
