"""Progress of a build or a measurement as JSON lines, from the subprocess that works to the process that displays it."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Report = Callable[[str, int, int, str], None]  # stage, done, total, unit


class Progress(BaseModel):
    """Progress of one stage: `done` of `total` units."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    done: int = Field(ge=0)
    total: int = Field(ge=0)
    unit: str


def progress_on_stdout() -> Report:
    """Reserve standard output for progress lines; all other output goes to standard error from now on."""
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    def report(stage: str, done: int, total: int, unit: str) -> None:
        lines.write(Progress(stage=stage, done=done, total=total, unit=unit).model_dump_json() + "\n")

    return report


def read_progress(lines: Iterable[str]) -> Iterator[Progress]:
    """Parse the progress lines in the output of a subprocess."""
    for line in lines:
        with contextlib.suppress(ValidationError):  # printed by a library before standard output was reserved
            yield Progress.model_validate_json(line)
