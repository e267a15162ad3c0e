"""Sparsity: zeros instead of the least important weights of every linear layer but `lm_head`. Shapes stay as they are."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from compression.progress import Report
from compression.recipe.schema import Sparsify
from compression.steps.model_parts import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def sparsify(
    model: "PreTrainedModel", sequences: Sequence[Sequence[int]], settings: Sparsify, report: Report
) -> "PreTrainedModel":
    """Set `settings.sparsity` of the weights to zero.

    Magnitude takes the smallest weights; Wanda (Sun et al. 2023) the smallest products of weight and input norm;
    SparseGPT (Frantar and Alistarh 2023) goes column by column and lets the later columns make up for each zero.

    Args:
        model: in the format that calibration computes in, see `calibration.run`.
        sequences: token ids to calibrate on, all of one length; magnitude needs none.
    """
    model.eval()
    if settings.method == "magnitude":
        return _prune_by_magnitude(model, settings.sparsity, report)
    from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
    from llmcompressor.modifiers.pruning.wanda import WandaPruningModifier

    from compression.steps import calibration

    modifier = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[settings.method]
    structure = settings.pattern if settings.pattern == "2:4" else "0:0"
    zeros = modifier(sparsity=settings.sparsity, mask_structure=structure, ignore=["re:.*lm_head"])
    return calibration.run(model, [zeros], sequences, "sparsify", report)


def sparsity(model: "PreTrainedModel") -> float:
    """Share of exact zeros among the weights of the linear layers of the decoder's blocks."""
    weights = [module.weight for module in decoder_layers(model).modules() if isinstance(module, nn.Linear)]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


@torch.no_grad()
def _prune_by_magnitude(model: "PreTrainedModel", share: float, report: Report) -> "PreTrainedModel":
    """torch's own magnitude pruning, layer by layer: llm-compressor's follows a training schedule and does nothing here."""
    from torch.nn.utils import prune

    layers = decoder_layers(model)
    for done, layer in enumerate(layers, 1):
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                prune.l1_unstructured(module, "weight", share)
                prune.remove(module, "weight")
        report("sparsify", done, len(layers), "layers")
    return model
