"""Makes CPU engines start sooner. A vLLM plugin: vLLM calls `fork_workers` at the start of each of its processes.

An engine under Ray is three processes that each import vLLM: the replica, its engine core, the core's worker. Under a
Ray actor vLLM switches to `spawn` for both, because a process with Ray's threads must not be forked. The core has no
such threads, so its worker can be forked, as vLLM does outside Ray, and needs no import of its own.
"""

import multiprocessing
import os

FORK_WORKERS = "GEARBOX_FORK_WORKERS"  # set for engines that may: CPU only, a CUDA context can't be forked


def fork_workers() -> None:
    """In an engine core of an engine that may fork: let it fork its worker. Elsewhere nothing."""
    if os.environ.get(FORK_WORKERS) and multiprocessing.parent_process() is not None:
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
