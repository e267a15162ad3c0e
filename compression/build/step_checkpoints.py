"""Step checkpoints: `OUT.part` holds the result of the last finished step, from which an interrupted build resumes.

    OUT.part/build.json          key of the build
    OUT.part/2-distill.step/     weights, tokenizer and step.json after step 2
    OUT.part/3-prune/            scratch folder of the running step 3, such as training checkpoints

Does not import torch.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from compression.errors import UserError
from compression.files import write_atomically
from serve.card import CardError, Step, weights_digest

BUILD_FILE = "build.json"
STEP_FILE = "step.json"
_Document = TypeVar("_Document", bound=BaseModel)


class CheckpointError(UserError):
    """The files of an interrupted build are damaged, or belong to another build."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights in `folder` after the first `len(steps)` steps of a recipe; `dtype` is their final storage format."""

    folder: Path
    steps: tuple[Step, ...]
    dtype: str


class _BuildRecord(BaseModel):
    """Content of build.json."""

    key: str


class _CheckpointRecord(BaseModel):
    """Content of step.json."""

    model_config = ConfigDict(extra="forbid")

    steps: tuple[Step, ...]
    dtype: str
    weights_digest: str


def open_build_folder(part: Path, key: str) -> None:
    """Create or reopen the folder `part` for the build `key`, see `recipe.schema.recipe_key`.

    Raises:
        CheckpointError: it holds another unfinished build.
    """
    part.mkdir(parents=True, exist_ok=True)
    file = part / BUILD_FILE
    has_progress = any(folder.is_dir() and any(folder.iterdir()) for folder in part.iterdir())
    if not (has_progress and file.exists()):
        write_atomically(file, _BuildRecord(key=key).model_dump_json())
    if _read(file, _BuildRecord).key != key:
        raise CheckpointError(
            f"{part} holds an unfinished build with another recipe, source, parent or text: remove it to start this one"
        )


def load_last_checkpoint(part: Path) -> Checkpoint | None:
    """Checkpoint of the last finished step; None when no step has finished.

    Raises:
        CheckpointError: its files are damaged.
    """
    folders = sorted(part.glob("*.step"), key=_number)
    if not folders:
        return None
    folder = folders[-1]
    finished = _read(folder / STEP_FILE, _CheckpointRecord)
    try:
        intact = finished.weights_digest == weights_digest(folder)
    except CardError:
        intact = False
    if not intact:
        raise CheckpointError(f"the weights in {folder} are damaged: remove that folder and run the build again")
    return Checkpoint(folder, finished.steps, finished.dtype)


def save_checkpoint(part: Path, steps: tuple[Step, ...], dtype: str, save: Callable[[Path], None]) -> Checkpoint:
    """Save the result of the last of `steps`, and delete earlier checkpoints.

    Args:
        save: writes weights, configuration and tokenizer into a folder.
    """
    name = f"{len(steps)}-{steps[-1].technique}"
    scratch, folder = part / f"{name}.tmp", part / f"{name}.step"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    save(scratch)
    finished = _CheckpointRecord(steps=steps, dtype=dtype, weights_digest=weights_digest(scratch))
    write_atomically(scratch / STEP_FILE, finished.model_dump_json(indent=2))
    scratch.rename(folder)
    for older in part.iterdir():
        if older.is_dir() and older != folder:
            shutil.rmtree(older)
    return Checkpoint(folder, steps, dtype)


def _read(file: Path, kind: type[_Document]) -> _Document:
    try:
        return kind.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise CheckpointError(f"{file} is damaged: remove {file.parent} and run the build again") from error


def _number(folder: Path) -> int:
    return int(folder.name.split("-")[0])
