"""Quantization: fewer bits for every linear layer but `lm_head`, through llm-compressor."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compression.progress import Report
from compression.recipe.schema import Quantize
from compression.steps import calibration

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationArgs
    from transformers import PreTrainedModel


def quantize(
    model: "PreTrainedModel", sequences: Sequence[Sequence[int]], settings: Quantize, report: Report
) -> "PreTrainedModel":
    """Quantize `model`; the result saves as compressed-tensors, which vLLM loads.

    SmoothQuant (Xiao et al. 2022) moves the activations' outliers into the weights. GPTQ (Frantar et al. 2022) rounds
    the weights one column at a time and lets the later columns make up for the error. AWQ (Lin et al. 2023) scales up
    the input channels that matter before it rounds to nearest.

    Args:
        model: in the format that calibration computes in, see `calibration.run`.
        sequences: token ids to calibrate on, all of one length; empty unless `settings.needs_calibration`.
    """
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    model.eval()
    if settings.smoothquant is not None:
        # one plain pass: smoothing changes no output, so it needs no layer-by-layer pass, which takes twice as long
        smoothing = SmoothQuantModifier(smoothing_strength=settings.smoothquant)
        model = calibration.run(model, [smoothing], sequences, "quantize", report, pipeline="basic")
    linear = {"ignore": ["lm_head"], **_scheme(settings)}
    if settings.kv_cache is not None:
        linear["kv_cache_scheme"] = _tensor(8, "float" if settings.kv_cache == "fp8" else "int", dynamic=False)
    match settings.method:
        case "gptq":
            modifiers = [GPTQModifier(**linear)]
        case "awq":
            modifiers = [AWQModifier(), QuantizationModifier(**linear)]
        case "rtn":
            modifiers = [QuantizationModifier(**linear)]
    needs_activations = settings.model_copy(update={"smoothquant": None}).needs_calibration
    return calibration.run(model, modifiers, sequences if needs_activations else [], "quantize", report)


def _scheme(settings: Quantize) -> dict[str, object]:
    """The scheme in llm-compressor's words: a name where it has one."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    if settings.scheme in ("W8A8", "FP8"):
        return {"targets": "Linear", "scheme": {"W8A8": "W8A8", "FP8": "FP8_DYNAMIC"}[settings.scheme]}
    parts: dict[str, object] = {"weights": QuantizationArgs(num_bits=8, type="int", strategy="channel", symmetric=True)}
    if settings.scheme == "W4A16":
        grouped = {"strategy": "group", "group_size": settings.group_size}
        parts = {"weights": QuantizationArgs(num_bits=4, type="int", symmetric=True, **grouped)}
    elif settings.scheme == "W8A8-static":
        parts["input_activations"] = _tensor(8, "int", dynamic=False)
    return {"config_groups": {"linear": QuantizationScheme(targets=["Linear"], **parts)}}


def _tensor(bits: int, kind: str, dynamic: bool) -> "QuantizationArgs":
    from compressed_tensors.quantization import QuantizationArgs

    return QuantizationArgs(num_bits=bits, type=kind, strategy="tensor", symmetric=True, dynamic=dynamic)
