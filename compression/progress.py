"""Progress of a build or a measurement, one JSON line each, from the subprocess that works to the one that shows it."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Report = Callable[[str, int, int, str], None]  # stage, done, total, unit


class Progress(BaseModel):
    """How far a stage is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    done: int = Field(ge=0)
    total: int = Field(ge=0)
    unit: str


def report_on_stdout() -> Report:
    """Take standard output for progress lines alone: from now on every other print goes to standard error."""
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    def report(stage: str, done: int, total: int, unit: str) -> None:
        lines.write(Progress(stage=stage, done=done, total=total, unit=unit).model_dump_json() + "\n")

    return report


def read_reports(lines: Iterable[str]) -> Iterator[Progress]:
    """The progress in what a subprocess prints."""
    for line in lines:
        with contextlib.suppress(ValidationError):  # a print of some library before standard output was taken over
            yield Progress.model_validate_json(line)
