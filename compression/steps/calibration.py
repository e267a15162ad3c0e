"""Running llm-compressor's modifiers over calibration text, with progress (its own environment: its pins clash with the engine's)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from compression.progress import Report
from compression.steps.model_parts import decoder_layers

if TYPE_CHECKING:
    from llmcompressor.modifiers import Modifier
    from torch import nn
    from transformers import PreTrainedModel


def run(
    model: "PreTrainedModel",
    modifiers: "Sequence[Modifier]",
    sequences: Sequence[Sequence[int]],
    stage: str,
    report: Report,
    pipeline: str = "independent",
) -> "PreTrainedModel":
    """Apply `modifiers`, in order, and return the changed model.

    Args:
        model: its `name_or_path` must be a folder with its config and tokenizer: llm-compressor reads both from there.
        sequences: token ids to calibrate on, all of one length; empty for modifiers that need no activations.
        pipeline: 'independent' calibrates layer by layer where a modifier needs it; 'basic' is one plain pass, which is
            not reported.
    """
    from llmcompressor import oneshot

    if not sequences:
        return oneshot(model=model, recipe=list(modifiers))
    from datasets import Dataset

    rows = Dataset.from_list([{"input_ids": list(row), "attention_mask": [1] * len(row)} for row in sequences])
    layers = decoder_layers(model) if pipeline == "independent" else []
    with _layer_progress(layers, stage, report), _without_pinned_memory():
        return oneshot(
            model=model,
            recipe=list(modifiers),
            pipeline=pipeline,
            dataset=rows,
            num_calibration_samples=len(rows),
            max_seq_length=len(sequences[0]),
            shuffle_calibration_samples=False,
        )


@contextmanager
def _layer_progress(layers: "Sequence[nn.Module]", stage: str, report: Report) -> Iterator[None]:
    """Report how many layers are done: they are calibrated one after the other."""
    last_layer = -1

    def on_layer(index: int) -> None:
        nonlocal last_layer
        if index > last_layer:
            last_layer = index
            report(stage, index, len(layers), "layers")

    handles = [layer.register_forward_pre_hook(lambda *_, i=i: on_layer(i)) for i, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if layers:
        report(stage, len(layers), len(layers), "layers")


@contextmanager
def _without_pinned_memory() -> Iterator[None]:
    """Let AWQ run without an accelerator: it pins its cached activations, which only a machine with one can."""
    from llmcompressor.pipelines.cache import IntermediatesCache

    if torch.accelerator.is_available():
        yield
        return
    pin = IntermediatesCache.pin_memory
    IntermediatesCache.pin_memory = lambda *_, **__: None
    try:
        yield
    finally:
        IntermediatesCache.pin_memory = pin
