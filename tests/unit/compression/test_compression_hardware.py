"""The machine's name on cards, and the number format that it computes in."""

import pytest

from compression import hardware


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch):
    """Pretend to be a processor with these flags and no GPU."""

    def pretend(flags: str, machine: str = "x86_64") -> None:
        fields = {"flags": flags, "model name": "Test CPU"}
        monkeypatch.setattr(hardware, "_cpu", lambda field: fields.get(field, ""))
        monkeypatch.setattr(hardware, "accelerators", list)
        monkeypatch.setattr(hardware.platform, "machine", lambda: machine)
        monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda _: {0, 1})

    return pretend


@pytest.mark.parametrize(
    ("flags", "machine", "dtype"),
    [
        ("fpu avx avx2 fma", "x86_64", "float32"),
        ("fpu avx2 avx512f avx512bw", "x86_64", "bfloat16"),
        ("", "aarch64", "bfloat16"),
    ],
)
def test_the_format_is_one_with_matrix_kernels(cpu, flags: str, machine: str, dtype: str) -> None:
    cpu(flags, machine)
    assert hardware.compute_dtype() == dtype


def test_two_kinds_of_one_processor_have_different_labels(cpu) -> None:
    """Clouds hide the model behind a family name; the extensions tell what was measured."""
    cpu("avx2")
    plain = hardware.label()
    cpu("avx2 avx512f amx_bf16")
    assert plain == "Test CPU, 2 cores, avx2" and hardware.label() == "Test CPU, 2 cores, amx_bf16, avx512f"


def test_a_gpu_is_what_counts(cpu, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu("avx2")
    monkeypatch.setattr(hardware, "accelerators", lambda: ["H100", "H100"])
    assert hardware.label() == "2 x H100"


def test_this_machine_has_a_label_without_torch() -> None:
    assert f"{len(hardware.os.sched_getaffinity(0))} cores" in hardware.label() or hardware.accelerators()
