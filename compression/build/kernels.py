"""Kernel support of the engine (vLLM 0.32): the hardware on which a card's quantization can be served. No torch import.

Read from vllm/model_executor/kernels/linear and layers/quantization/compressed_tensors, which say more than the table in
https://docs.vllm.ai/en/latest/features/quantization/; what it says of CPUs was also run, see docs/how-to/compress-a-model.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from compression import hardware
from serve.card import Step


@dataclass(frozen=True, slots=True)
class Target:
    """Where a variant is to be served. `capability` is CUDA's compute capability, `extensions` are the processor's; None when
    they are not known."""

    kind: Literal["cpu", "cuda"]
    capability: tuple[int, int] | None = None
    extensions: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Support:
    """Where one scheme has a kernel: on CPUs, unless `no_cpu` says why not, if they have `cpu_needs`; on GPUs from `cuda` on.

    `cuda` is the lowest compute capability (7.5 Turing, 8.0 Ampere, 8.9 Ada, 9.0 Hopper), None for no GPU at all.
    """

    cuda: tuple[int, int] | None
    no_cpu: str | None
    source: str
    cpu_needs: str | None = None


SUPPORT = {
    "W8A8": Support((7, 5), None, "CPUInt8ScaledMMLinearKernel; CompressedTensorsW8A8Int8.get_min_capability"),
    "W8A8-static": Support((7, 5), None, "CPUInt8ScaledMMLinearKernel; CompressedTensorsW8A8Int8.get_min_capability"),
    "W8A16": Support(
        (7, 5), "its CPU kernel for weights alone takes 4 bits only", "CPUWNA16LinearKernel; MarlinLinearKernel"
    ),
    "W4A16": Support(
        (7, 5), None, "CPUWNA16LinearKernel (slower than bfloat16 there, not in _C_AVX2); MarlinLinearKernel", "avx512f"
    ),
    "FP8": Support(
        (7, 5),
        "it falls back to torch there, 40 times slower than bfloat16",
        "CPUFP8W8A8ScaledMMLinearKernel wants AMX-FP8; below 8.9 CompressedTensorsW8A16Fp8 reads FP8 weights alone",
    ),
    "kv cache fp8": Support((8, 9), None, "CPUAttentionBackend.supported_kv_cache_dtypes; e4m3 conversion from Ada on"),
    "kv cache int8": Support(
        None,
        "it reads key-value scales of FP8 only; the engine argument kv_cache_dtype: int8_per_token_head needs no step",
        "CompressedTensorsKVCacheMethod.validate_kv_cache_scheme",
    ),
}


def target_hardware(gpus: float) -> Target:
    """Hardware of a replica that reserves `gpus` GPUs, detected on this machine."""
    if gpus:
        return Target("cuda", hardware.compute_capability())
    return Target("cpu", extensions=hardware.cpu_extensions() or None)


def unsupported_reason(steps: Iterable[Step], target: Target) -> str | None:
    """Reason why the engine cannot serve the result of `steps` on this hardware, or None when it can.

    Masks ('sparsify') and structure ('prune') need no kernel of their own.
    """
    for step in steps:
        if step.technique != "quantize":
            continue
        schemes = [str(step.parameters.get("scheme", "W8A8"))]
        if cache := step.parameters.get("kv_cache"):
            schemes.append(f"kv cache {cache}")
        for scheme in schemes:
            if scheme in SUPPORT and (reason := _missing_kernel_reason(scheme, SUPPORT[scheme], target)):
                return reason
    return None


def _missing_kernel_reason(scheme: str, support: Support, target: Target) -> str | None:
    if target.kind == "cpu":
        if support.no_cpu:
            return f"vLLM has no kernel for {scheme} on CPUs: {support.no_cpu}"
        if support.cpu_needs and target.extensions is not None and support.cpu_needs not in target.extensions:
            return f"vLLM's kernel for {scheme} needs a processor with {support.cpu_needs}, which this one lacks"
        return None
    if support.cuda is None:
        return f"vLLM cannot serve {scheme}: {support.no_cpu}"
    if target.capability is not None and target.capability < support.cuda:
        required, actual = (".".join(map(str, pair)) for pair in (support.cuda, target.capability))
        return (
            f"vLLM's kernel for {scheme} needs a GPU of compute capability {required} or higher, this one has {actual}"
        )
    return None
