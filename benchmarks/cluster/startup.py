"""Measure the start-up time of `gearbox up`, with an empty cache and with cached variants: `python -m benchmarks.cluster.startup`.

No other platform may run on this machine. The cache and state folders are temporary;
what `make up` installs before is not measured.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from benchmarks.lib.processes import NotStarted, System, command, python
from benchmarks.reporting.results import Progress, save, spread
from deployments.state import PlatformState, is_running, load_state, state_folder

PATIENCE_S = 5400.0
FIRST_S, CACHED_S = 1200.0, 90.0  # the aims


class Busy(Exception):
    """A platform runs already; the message says what to do."""


def measure(repeats: int, config: Path | None) -> dict[str, object]:
    """Measure one start that builds everything and `repeats` starts from the cache. Returns the result without the machine."""
    if is_running(load_state(state_folder())):
        raise Busy("a platform runs on this machine: 'gearbox down' first")
    progress = Progress([("nothing in the cache", FIRST_S), *[("variants in the cache", CACHED_S)] * repeats])
    with tempfile.TemporaryDirectory(prefix="gearbox-startup-") as folder:
        rounds = []
        for i in range(repeats + 1):
            progress.step("variants in the cache" if i else "nothing in the cache")
            rounds.append(start(Path(folder), config))
    first, *cached = rounds
    return {
        "aims_s": {"built": FIRST_S, "cached": CACHED_S},
        "variants": first["variants"],
        "built": {key: first[key] for key in ("first_answer_s", "all_ready_s")},
        "cached": {key: spread([one[key] for one in cached], 1) for key in ("first_answer_s", "all_ready_s")},
    }


def start(folder: Path, config: Path | None) -> dict[str, float]:
    """Seconds of one `gearbox up` until it can answer, and until every part is ready; the platform is stopped then.

    Raises `NotStarted` where a part failed: that is no start.
    """
    places = {"GEARBOX_CACHE_DIR": str(folder / "cache"), "GEARBOX_STATE_DIR": str(folder / "state")}
    arguments = ["--config", str(config)] if config else []
    started, answered = time.monotonic(), None
    try:
        with System("gearbox-up", python("-m", "deployments.cli", "up", *arguments), places) as system:

            def ready() -> bool:
                nonlocal answered
                state = load_state(folder / "state")
                if not is_running(state) or state is None:
                    return False
                if answered is None and httpx.get(f"{state.url}/readyz", timeout=5).status_code == 200:
                    answered = time.monotonic() - started
                return state.settled

            system.wait(ready, PATIENCE_S)
            took = time.monotonic() - started
            state = load_state(folder / "state")
            if state is None or (failed := failures(state)):
                raise NotStarted(f"not every part came up: {failed if state else system.last_words()}")
    finally:
        subprocess.run(python("-m", "deployments.cli", "down"), env={**os.environ, **places}, check=False)
    assert answered is not None
    return {"first_answer_s": round(answered, 1), "all_ready_s": round(took, 1), "variants": len(state.variants)}


def failures(state: PlatformState) -> dict[str, str]:
    """What failed, with why; empty where every part is ready."""
    errors = {name: part.error or "" for name, part in state.parts.items() if part.phase == "failed"}
    return {"platform": state.error, **errors} if state.error else errors


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="starts from the cache")
    parser.add_argument("--config", type=Path, help="another configuration than the demo's")
    options = parser.parse_args()
    with command((Busy, NotStarted, OSError), "nothing was saved; the platform is stopped"):
        result = measure(options.repeats, options.config)
    save("startup", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
