"""Quantization schemes that the engine has kernels for, and the reasons where it has none."""

import re

import pytest

from compression import hardware
from compression.build.kernels import SUPPORT, Target, target_hardware, unsupported_reason
from compression.recipe.schema import Quantize
from serve.card import Step

CPU, TURING, AMPERE, HOPPER = Target("cpu"), Target("cuda", (7, 5)), Target("cuda", (8, 0)), Target("cuda", (9, 0))
UNKNOWN = Target("cuda")


def quantized(scheme: str, **parameters: object) -> list[Step]:
    return [Step(technique="quantize", parameters={"scheme": scheme, **parameters}, tool="t")]


@pytest.mark.parametrize("scheme", ["W8A8", "W8A8-static", "W4A16"])
@pytest.mark.parametrize("on", [CPU, TURING, AMPERE, HOPPER, UNKNOWN])
def test_these_are_served_everywhere(scheme: str, on: Target) -> None:
    assert unsupported_reason(quantized(scheme), on) is None


@pytest.mark.parametrize(
    ("scheme", "reason"), [("W8A16", "no kernel for W8A16 on CPUs: .*4 bits"), ("FP8", "no kernel for FP8 .*40 times")]
)
def test_these_are_for_gpus_only(scheme: str, reason: str) -> None:
    assert unsupported_reason(quantized(scheme), HOPPER) is None
    assert re.search(reason, str(unsupported_reason(quantized(scheme), CPU)))


def test_a_gpu_that_is_too_old_is_named() -> None:
    found = unsupported_reason(quantized("W4A16"), Target("cuda", (7, 0)))
    assert found == "vLLM's kernel for W4A16 needs a GPU of compute capability 7.5 or higher, this one has 7.0"
    assert "8.9" in str(unsupported_reason(quantized("FP8", kv_cache="fp8"), AMPERE))


def test_a_processor_that_is_too_old_is_refused() -> None:
    old, new = (Target("cpu", extensions=frozenset(found)) for found in (("avx2",), ("avx2", "avx512f")))
    assert unsupported_reason(quantized("W4A16"), old) == (
        "vLLM's kernel for W4A16 needs a processor with avx512f, which this one lacks"
    )
    assert unsupported_reason(quantized("W4A16"), new) is None
    assert unsupported_reason(quantized("W8A8"), old) is None


def test_an_fp8_cache_is_served_on_cpus_and_an_int8_one_nowhere() -> None:
    assert unsupported_reason(quantized("W8A8", kv_cache="fp8"), CPU) is None
    for on in (CPU, HOPPER):
        assert "int8_per_token_head" in str(unsupported_reason(quantized("W8A8", kv_cache="int8"), on))


def test_masks_and_structure_need_no_kernel() -> None:
    assert (
        unsupported_reason([Step(technique=name, tool="t") for name in ("load", "prune", "sparsify", "lora")], CPU)
        is None
    )


def test_a_card_without_a_scheme_is_the_first_one_there_was() -> None:
    assert unsupported_reason([Step(technique="quantize", tool="t")], CPU) is None


def test_every_scheme_of_recipes_has_a_row_with_its_source() -> None:
    schemes = set(Quantize.model_fields["scheme"].annotation.__args__)
    assert schemes | {"kv cache fp8", "kv cache int8"} == set(SUPPORT)
    assert all(support.source for support in SUPPORT.values())


def test_the_target_is_this_machine_s_weakest_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_nvidia_smi", lambda field: {"compute_cap": ["9.0", "8.0"]}[field])
    hardware.compute_capability.cache_clear()
    assert (target_hardware(0.5), target_hardware(0).kind) == (AMPERE, "cpu")
    hardware.compute_capability.cache_clear()


def test_without_a_driver_the_capability_is_unknown() -> None:
    if not hardware.accelerators():
        assert target_hardware(1) == UNKNOWN
