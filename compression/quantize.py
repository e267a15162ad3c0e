"""Quantization through llm-compressor (its own environment: its pins clash with the engine's)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from compression.hardware import compute_dtype
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

    rows = Dataset.from_list([{"input_ids": list(row), "attention_mask": [1] * len(row)} for row in sequences])
    calibration = {
        "dataset": rows,
        "num_calibration_samples": len(rows),
        "max_seq_length": len(sequences[0]),
        "shuffle_calibration_samples": False,
    }
    model.to(getattr(torch, compute_dtype())).eval()
    if settings.smoothquant is not None:
        # one plain pass: smoothing changes no output, so it needs no layer-by-layer pass, which takes twice as long
        smoothing = SmoothQuantModifier(smoothing_strength=settings.smoothquant)
        model = oneshot(model=model, recipe=[smoothing], pipeline="basic", **calibration)
    linear = {"targets": "Linear", "scheme": settings.scheme, "ignore": ["lm_head"]}
    if settings.method == "rtn":
        return oneshot(model=model, recipe=[QuantizationModifier(**linear)])
    with _reported(decoder_layers(model), report):
        return oneshot(model=model, recipe=[GPTQModifier(**linear)], **calibration)


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
