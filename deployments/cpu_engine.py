"""How vLLM runs on few CPU cores: a vLLM platform plugin, which vLLM asks for in each of its processes.

What it saves is measured in docs/design/performance.md.
"""

import os
from typing import TYPE_CHECKING

from vllm.platforms.cpu import CpuPlatform

from compression.hardware import compute_dtype

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig


class FewCoresPlatform(CpuPlatform):
    """vLLM's CPU platform with the model in the engine core's own process, and numbers the processor is fast in."""

    @property
    def supported_dtypes(self) -> "list[torch.dtype]":
        """What `dtype: auto` may choose: float32 alone where there are no 16-bit matrix kernels."""
        import torch

        return [torch.float32] if compute_dtype() == "float32" else super().supported_dtypes

    @classmethod
    def check_and_update_config(cls, vllm_config: "VllmConfig") -> None:
        """Run a single worker inside the engine core.

        vLLM gives it a process of its own, for which it sets the OpenMP environment, and the two wait for each other by
        spinning: on two cores that takes a third of the decoding speed, and the process one more import of vLLM at the
        start. With `nobind` the environment is the one the replica was started with, so there is nothing to set.
        """
        super().check_and_update_config(vllm_config)
        parallel = vllm_config.parallel_config
        if parallel.world_size == 1 and os.environ.get("VLLM_CPU_OMP_THREADS_BIND") == "nobind":
            parallel.distributed_executor_backend = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
