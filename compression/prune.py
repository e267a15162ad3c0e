"""Depth pruning: drop the layers that change the hidden state least."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compression.progress import Report

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PruneError(Exception):
    """A model that cannot lose that many layers."""


def check_prunable(layers: int, keep: int) -> None:
    """Raise `PruneError` unless a model of `layers` layers can be cut to `keep`."""
    if keep >= layers:
        raise PruneError(f"cannot prune to {keep} layers: the model has {layers}; keep fewer")


@torch.inference_mode()
def block_influence(model: "PreTrainedModel", sequences: Sequence[Sequence[int]], report: Report) -> list[float]:
    """Block influence of every layer, measured on `sequences` of token ids of equal length.

    BI_i = 1 - E[cos(x_i, x_{i+1})] with x_i the hidden state that enters layer i, over all tokens
    (Men et al. 2024, ShortGPT: Layers in Large Language Models are More Redundant Than You Expect).
    """
    layers = decoder_layers(model)
    total = torch.zeros(len(layers), dtype=torch.float64)

    def watch(index: int) -> object:
        def hook(
            _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor | tuple[Tensor]
        ) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output if isinstance(output, Tensor) else output[0]
            total[index] += 1 - torch.cosine_similarity(before.float(), after.float(), dim=-1).mean().double()

        return layers[index].register_forward_hook(hook, with_kwargs=True)

    handles = [watch(index) for index in range(len(layers))]
    try:
        for done, sequence in enumerate(sequences, 1):
            model(torch.tensor([sequence]), use_cache=False)
            report("prune", done, len(sequences), "sequences")
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]
    return (total / len(sequences)).tolist()


def layers_to_keep(influence: Sequence[float], keep: int) -> list[int]:
    """Indices of the `keep` layers that stay, in order: the first, the last, and the most influential between them.

    Raises:
        PruneError: fewer than two, or not fewer than there are.
    """
    check_prunable(len(influence), keep)
    between = sorted(range(1, len(influence) - 1), key=lambda index: influence[index], reverse=True)
    return sorted([0, *between[: keep - 2], len(influence) - 1])


def keep_layers(model: "PreTrainedModel", kept: Sequence[int]) -> None:
    """Leave only the layers `kept` in `model`, and its configuration consistent with that."""
    layers = decoder_layers(model)
    remaining = nn.ModuleList(layers[index] for index in kept)
    for position, layer in enumerate(remaining):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = position  # where its part of the key-value cache is
    model.get_decoder().layers = remaining
    model.config.num_hidden_layers = len(kept)
    if types := getattr(model.config, "layer_types", None):
        model.config.layer_types = [types[index] for index in kept]


def decoder_layers(model: "PreTrainedModel") -> nn.ModuleList:
    """The transformer layers of a causal language model, in order. Raises `PruneError` when it keeps them elsewhere."""
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise PruneError(f"cannot prune a {type(model).__name__}: its decoder has no list of layers")
    return layers
