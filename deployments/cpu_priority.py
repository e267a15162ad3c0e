"""CPU priority of the platform's processes: gateways and proxies first, then the embedder, then engines.

Refusals and streams wait for the gateway's few milliseconds of CPU, for which engines would compete with it on equal terms.
Linux compares niceness inside a session and a control group only: all of Ray's processes on a machine are in one session
(tests/unit/deployments/test_ray_internals.py). Between the pods of a cluster their CPU requests decide.
"""

import logging
import os
from contextlib import suppress
from pathlib import Path

#: Added to the gateway's niceness. Measured beside four busy loops on two cores, 5 ms of work take 24 ms (p50; p99 53 ms) at
#: equal niceness, 12 (24) ms where the loops have 5 more, 5 (14) ms at 10, and little less at 15 and 19, with which engines
#: would starve beside any other program.
ENGINE = 10
EMBEDDER = 5  # a search is a part of the request, the indexing of documents is not
_LOG = logging.getLogger("ray.serve")


def lower_engine_priority() -> None:
    """Called when the process of a replica starts: the imports of a replica that is restarted take seconds from the others' cores."""
    lower_cpu_priority(ENGINE)


def lower_cpu_priority(niceness: int) -> None:
    """Add `niceness` to that of this process, and so of those it starts. A failure is logged: without it all still works.

    Linux has a niceness for each thread, of which `os.nice` changes only the caller's.
    """
    try:
        for thread in [int(path.name) for path in Path("/proc/self/task").iterdir()]:
            with suppress(ProcessLookupError):  # it has ended meanwhile
                lowered = min(os.getpriority(os.PRIO_PROCESS, thread) + niceness, 19)
                os.setpriority(os.PRIO_PROCESS, thread, lowered)
    except OSError as error:
        _LOG.warning("the CPU priority could not be lowered: %s", error)
