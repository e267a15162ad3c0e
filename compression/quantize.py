"""Quantization through llm-compressor (its own environment: its pins clash with the engine's)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from compression.progress import Report
from compression.prune import decoder_layers
from compression.recipe import Quantize

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def quantize(
    model: "PreTrainedModel", sequences: Sequence[Sequence[int]], settings: Quantize, report: Report
) -> "PreTrainedModel":
    """Quantize every linear layer but `lm_head`; the result saves as compressed-tensors, which vLLM loads.

    SmoothQuant (Xiao et al. 2022) moves the activations' outliers into the weights; GPTQ (Frantar et al. 2022) rounds
    the weights one column at a time and lets the later columns make up for the error.

    Args:
        sequences: token ids to calibrate on, all of one length.
    """
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    rounding = GPTQModifier if settings.method == "gptq" else QuantizationModifier
    recipe = [rounding(targets="Linear", scheme=settings.scheme, ignore=["lm_head"])]
    if settings.smoothquant is not None:
        recipe.insert(0, SmoothQuantModifier(smoothing_strength=settings.smoothquant))
    rows = [{"input_ids": list(row), "attention_mask": [1] * len(row)} for row in sequences]
    model.to(torch.bfloat16).eval()
    with _reported(decoder_layers(model), report):
        return oneshot(
            model=model,
            dataset=Dataset.from_list(rows),
            recipe=recipe,
            num_calibration_samples=len(rows),
            max_seq_length=len(rows[0]["input_ids"]),
            shuffle_calibration_samples=False,
        )


@contextmanager
def _reported(layers: nn.ModuleList, report: Report) -> Iterator[None]:
    """Report how many layers are done: they are calibrated one after the other."""
    furthest = -1

    def reach(index: int) -> None:
        nonlocal furthest
        if index > furthest:
            furthest = index
            report("quantize", index, len(layers), "layers")

    handles = [layer.register_forward_pre_hook(lambda *_, i=i: reach(i)) for i, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    report("quantize", len(layers), len(layers), "layers")
