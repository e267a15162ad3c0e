"""Hardware detection: the label on cards, and the number format with fast matrix kernels. Does not import torch."""

import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Literal

#: CPU extensions that decide which kernels an engine can use, strongest first.
_EXTENSIONS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx512f", "avx_vnni", "avx2")


def label() -> str:
    """Hardware label for cards: the GPUs, else the processor, its usable cores and its strongest vector extensions."""
    if gpus := accelerators():
        return f"{len(gpus)} x {gpus[0]}"
    extensions = [name for name in _EXTENSIONS if name in cpu_extensions()][:2]
    return ", ".join([_cpu("model name") or platform.machine(), f"{len(os.sched_getaffinity(0))} cores", *extensions])


@cache
def accelerators() -> tuple[str, ...]:
    """Names of the NVIDIA GPUs of this machine."""
    return tuple(_nvidia_smi("name"))


@cache
def compute_capability() -> tuple[int, int] | None:
    """Lowest CUDA compute capability among the GPUs of this machine; None without a GPU."""
    versions = [line.split(".") for line in _nvidia_smi("compute_cap")]
    return min(((int(major), int(minor)) for major, minor in versions), default=None)


def accelerator_bytes() -> int | None:
    """Memory in use on all NVIDIA GPUs of this machine, by any process; None without a GPU."""
    return sum(int(mebibytes) << 20 for mebibytes in _nvidia_smi("memory.used")) or None


def _nvidia_smi(field: str) -> list[str]:
    """One line per GPU; empty without a driver."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        completed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in completed.stdout.splitlines() if line.strip()]


def compute_dtype() -> Literal["bfloat16", "float32"]:
    """Number format to compute in on the CPU.

    oneDNN has bfloat16 matrix products on x86 from AVX-512 on; below that torch falls back to loops that are several
    times slower than float32.
    """
    x86 = platform.machine() in ("x86_64", "AMD64")
    return "float32" if x86 and "avx512f" not in cpu_extensions() else "bfloat16"


def cpu_extensions() -> frozenset[str]:
    """CPU extensions as named in /proc/cpuinfo; empty where that file is missing."""
    return frozenset(_cpu("flags").split())


@cache
def _cpu(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == field), "")
