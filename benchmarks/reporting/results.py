"""Progress with the time left, medians with their spread, and result files, shared by all benchmarks."""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.lib.machine import describe
from benchmarks.reporting import claims

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"


@dataclass(slots=True)
class Progress:
    """Print the current step and the time left, from estimates corrected by the steps so far."""

    remaining: list[tuple[str, float]]  # (step, estimated seconds), in order
    started: float = field(default_factory=time.monotonic)
    _first_step: float | None = None  # what comes before it, such as a platform's start, is no measure of the steps
    _passed_estimate: float = 0.0
    _done: int = 0

    def skip(self, name: str) -> None:
        """Skip the next step, done before: it takes no time and does not change the estimated pace."""
        self._done += 1
        self.remaining.pop(0)
        print(f"[{self._done}/{self._done + len(self.remaining)}] done before: {name}", flush=True)

    def step(self, name: str) -> None:
        """Start the next step."""
        now = time.monotonic()
        elapsed = now - self.started
        self._first_step = self._first_step or now
        pace = (now - self._first_step) / self._passed_estimate if self._passed_estimate else 1.0
        left = sum(seconds for _, seconds in self.remaining) * pace
        total = self._done + len(self.remaining)
        self._done += 1
        if self.remaining:
            self._passed_estimate += self.remaining.pop(0)[1]
        print(f"[{self._done}/{total}] {_clock(elapsed)}, about {_clock(left)} left: {name}", flush=True)


def spread(values: Sequence[float], digits: int = 2) -> dict[str, float | int]:
    """Median, smallest, largest and number of `values`."""
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
        "n": len(values),
    }


def save(name: str, result: dict[str, object]) -> Path:
    """Write `results/NAME.json` with its machine and command, and its rows of `results/claims.json`."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    module = ".".join(Path(sys.argv[0]).resolve().with_suffix("").relative_to(ROOT).parts)
    command = " ".join(["python -m", module, *sys.argv[1:]])
    document = {"machine": describe(), "command": command, **result}
    path.write_text(json.dumps(document, indent=1) + "\n")
    claims.record(name, document, RESULTS)
    print(
        f"wrote {path}; 'python -m benchmarks.reporting.claims --write' and '… benchmarks.reporting.tables' bring the pages up to date"
    )
    return path


def load(name: str) -> dict[str, object] | None:
    """The last result called `name`, None if it was never measured."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
