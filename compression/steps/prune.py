"""Structured pruning: take out the layers, attention heads, MLP neurons or tokens that matter least to the model's output."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compression.progress import Report
from compression.recipe.schema import Prune
from compression.steps.model_parts import Done, PruneError, check_finite, decoder_layers, run_with_hooks
from compression.steps.width_pruning import keep_heads, keep_neurons

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel


def prune(
    model: "PreTrainedModel", sequences: Sequence[Sequence[int]], step: Prune, report: Report
) -> dict[str, object]:
    """Cut layers, heads and MLP neurons of `model` in place; returns what was kept, for the card.

    Each part is measured on what the one before has left. The vocabulary is not cut here, see `compression.steps.vocabulary`.

    Args:
        sequences: token ids to measure influence on.

    Raises:
        PruneError: it is built from other parts, or its activations are not numbers.
    """
    parts = [part for part in (step.layers, step.heads, step.mlp_width) if part is not None]
    processed = 0

    def done() -> None:
        nonlocal processed
        processed += 1
        report("prune", processed, len(parts) * len(sequences), "sequences")

    result: dict[str, object] = {}
    model.eval()
    if step.layers is not None:
        kept = layers_to_keep(block_influence(model, sequences, done), step.layers)
        keep_layers(model, kept)
        result |= {"kept": kept, "criterion": "block influence"}
    if step.heads is not None:
        result["kept_heads"] = keep_heads(model, sequences, step.heads, done)
    if step.mlp_width is not None:
        result["kept_mlp_share"] = keep_neurons(model, sequences, step.mlp_width, done)
    return result


@torch.inference_mode()
def block_influence(model: "PreTrainedModel", sequences: Sequence[Sequence[int]], done: Done) -> list[float]:
    """Block influence of every layer, measured on `sequences` of token ids of equal length.

    BI_i = 1 - E[cos(x_i, x_{i+1})] with x_i the hidden state that enters layer i, over all tokens
    (Men et al. 2024, ShortGPT: Layers in Large Language Models are More Redundant Than You Expect).
    """
    layers = decoder_layers(model)
    total = torch.zeros(len(layers), dtype=torch.float64)

    def attach_hook(index: int) -> "RemovableHandle":
        def hook(
            _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor | tuple[Tensor]
        ) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output if isinstance(output, Tensor) else output[0]
            total[index] += 1 - torch.cosine_similarity(before.float(), after.float(), dim=-1).mean().double()

        return layers[index].register_forward_hook(hook, with_kwargs=True)

    run_with_hooks(model, sequences, [attach_hook(index) for index in range(len(layers))], done)
    check_finite(total)
    return (total / len(sequences)).tolist()


def layers_to_keep(influence: Sequence[float], keep: int) -> list[int]:
    """Indices of the `keep` layers that stay, in order: the first, the last, and the most influential between them.

    Raises:
        PruneError: fewer than two, or not fewer than there are.
    """
    if not 2 <= keep < len(influence):
        raise PruneError(f"cannot prune to {keep} layers: the model has {len(influence)}; keep fewer, and at least 2")
    ranked = sorted(range(1, len(influence) - 1), key=lambda index: -influence[index])
    return sorted([0, *ranked[: keep - 2], len(influence) - 1])


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
