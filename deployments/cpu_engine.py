"""CPU platform for vLLM: the model in the engine core's own process, in a data type that the processor computes fast.

vLLM loads it as a platform plugin in each of its processes, see `engine_platform`; docs/design/performance.md has the measured gain.
vLLM documents platform plugins, but not subclasses of its own platforms: these two files are all of the product that depends
on undocumented modules of vLLM. Verified with vLLM 0.32.0; tests/unit/deployments/test_vllm_internals.py checks it.
"""

import os
from typing import TYPE_CHECKING

from vllm.platforms.cpu import CpuPlatform

from compression.hardware import compute_dtype

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig


class FewCoresPlatform(CpuPlatform):
    """vLLM's CPU platform for machines with few cores."""

    @property
    def supported_dtypes(self) -> "list[torch.dtype]":
        """Data types for `dtype: auto`: only float32 on processors without 16-bit matrix kernels."""
        import torch

        return [torch.float32] if compute_dtype() == "float32" else super().supported_dtypes

    @classmethod
    def check_and_update_config(cls, vllm_config: "VllmConfig") -> None:
        """Run a single worker inside the engine core.

        vLLM starts it as a process of its own, for which it sets the OpenMP environment, and the two wait for each other by
        spinning. On two cores that costs a third of the decoding speed, and one more import of vLLM at start-up. With
        `nobind` the worker keeps the environment of the replica, so there is nothing to set.
        """
        super().check_and_update_config(vllm_config)
        parallel = vllm_config.parallel_config
        if parallel.world_size == 1 and os.environ.get("VLLM_CPU_OMP_THREADS_BIND") == "nobind":
            parallel.distributed_executor_backend = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
