"""Numerical drift: distance of the engine's log-probabilities from a float32 reference by transformers.

A kernel that is wrong, or a compiled graph that rounds too much, changes answers without an error anywhere; this number
shows it. The reference runs on the CPU whatever the engine runs on.

Quantized weights (compressed-tensors) are loaded by transformers' own integration, which the engine's environment has
because vLLM needs the library: it decompresses them to float32 by their scales. Where the checkpoint quantizes activations
too, a correct engine differs from that by their rounding, so the reference is computed once more with activations quantized
and dequantized in float32: what that changes is what an engine may differ by as well. Comparing the engine with this second
reference directly would show nothing: through tens of layers two correct roundings drift as far from each other as each is
from no rounding.
"""

import importlib.metadata
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
from numpy.typing import NDArray

from compression.errors import UserError
from compression.measure.divergence import TopK
from compression.progress import Report
from serve.card import Drift, weight_files

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SEQUENCES, LENGTH = 4, 128  # the start of the first held-out sequences; a few seconds of a slow processor
NEAR_TIE = 0.1  # nats; log-probabilities of -1.86 and -1.96 were seen to tie in compiled bfloat16
# nats beyond the activations' rounding; chosen: float32 measured 0.00001, int8 0.03, bfloat16 not yet
MAX_MEAN_DRIFT = 0.1


class DriftError(UserError):
    """The reference cannot be computed, or the engine is too far from it."""


@dataclass(frozen=True, slots=True)
class Float32Reference:
    """The float32 model at each position, nats; every array is (positions,).

    `targets` is the log-probability of the token that followed, `top2_gaps` how far the second most likely token is below the
    first, `choice_gaps` how far the engine's most likely token is below the first: 0 where both agree. `rounded_targets` is
    `targets` with activations quantized as the checkpoint says, the same where it says nothing.
    """

    targets: NDArray[np.float64]
    top2_gaps: NDArray[np.float64]
    choice_gaps: NDArray[np.float64]
    rounded_targets: NDArray[np.float64]


def measure_drift(served: TopK, reference: Float32Reference, limit: float, label: str) -> Drift:
    """The card's record of how far `served` is from `reference`.

    Raises:
        DriftError: the mean is more than `limit` (nats) beyond what quantizing activations does by itself, or no number.
    """
    differences = np.abs(served.targets.astype(np.float64) - reference.targets)
    flips = reference.choice_gaps > 0
    mean, rounding = float(differences.mean()), float(np.abs(reference.rounded_targets - reference.targets).mean())
    if not mean - rounding <= limit:
        limit_text = f"the limit is {limit:g}" + (
            f" beyond the {rounding:.3f} of quantized activations" if rounding else ""
        )
        raise DriftError(
            f"the engine's log-probabilities are {mean:.3f} nats from the float32 reference on average, {limit_text}: "
            "other engine arguments (dtype, enforce_eager) or another quantization scheme may help"
        )
    return Drift(
        mean_abs=mean,
        max_abs=float(differences.max()),
        activation_rounding=rounding,
        top1_flips=int(flips.sum()),
        near_tie_flips=int((flips & (reference.choice_gaps < NEAR_TIE)).sum()),
        near_ties=int((reference.top2_gaps < NEAR_TIE).sum()),
        tokens=len(differences),
        limit=limit,
        reference=label,
    )


def compute_reference(
    folder: Path, sequences: Sequence[Sequence[int]], served: TopK, report: Report
) -> tuple[Float32Reference, str] | None:
    """The float32 model in `folder` on `sequences` of one length, and what it is for the card.

    None where the float32 weights do not fit into the free memory: that is no fault of the variant.

    Args:
        served: the engine's answer to the same sequences, from `ServedModel.top_logprobs`.

    Raises:
        DriftError: transformers cannot load these weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if psutil.virtual_memory().available < 1.2 * float32_bytes(folder):
        return None
    report("drift", 0, len(sequences) + 1, "sequences")
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # vLLM leaves one to the process of its front end
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DriftError(f"transformers cannot compute the float32 reference of {folder.name}: {reason}") from error
    report("drift", 1, len(sequences) + 1, "sequences")
    quantized = getattr(model.config, "quantization_config", None) is not None
    engine_choices = torch.from_numpy(served.ids[:, 0].astype(np.int64)).reshape(len(sequences), -1)
    rows = []
    for i, sequence in enumerate(sequences):
        with torch.inference_mode():
            tokens = torch.tensor([list(sequence)])
            following = tokens[0, 1:, None]
            rounded = _logprobs(model, tokens, True).gather(-1, following)[:, 0] if quantized else None
            logprobs = _logprobs(model, tokens, False)
            first, second = logprobs.topk(2, dim=-1).values.unbind(-1)
            target, choice = (logprobs.gather(-1, at)[:, 0] for at in (following, engine_choices[i, :, None]))
        row = [target, first - second, first - choice, target if rounded is None else rounded]
        rows.append(torch.stack(row).double().numpy())
        report("drift", i + 2, len(sequences) + 1, "sequences")
    return Float32Reference(*np.concatenate(rows, axis=1)), _label(folder)


def _logprobs(model: "PreTrainedModel", tokens: "torch.Tensor", rounding: bool) -> "torch.Tensor":
    """Of every token at every position but the last, (positions, vocabulary), with or without quantized activations."""
    for module in model.modules():
        module.quantization_enabled = rounding  # what compressed-tensors asks for; nothing to other modules
    return model(tokens).logits[0, :-1].float().log_softmax(-1)


def float32_bytes(folder: Path) -> int:
    """Memory of the weights in `folder` in float32, at most: of 4-bit weights, two or more are packed into each byte."""
    config = json.loads((folder / "config.json").read_text())
    on_disk = sum(file.stat().st_size for file in weight_files(folder))
    return on_disk * (8 if "quantization_config" in config else 2)


def _label(folder: Path) -> str:
    quantization = json.loads((folder / "config.json").read_text()).get("quantization_config")
    label = f"transformers {importlib.metadata.version('transformers')}, float32, CPU"
    if quantization is None:
        return label
    method = str(quantization.get("quant_method", "quantized"))
    version = f" {importlib.metadata.version(method)}" if method == "compressed-tensors" else ""
    return f"{label}, {method}{version}: weights decompressed"
