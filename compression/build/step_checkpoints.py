"""What `OUT.part` holds while a variant is built: the result of the last finished step, to go on from.

    OUT.part/build.json          what is being built
    OUT.part/2-distill.kept/     weights, tokenizer and step.json after step 2
    OUT.part/3-prune/            what step 3 keeps for itself while it runs, such as checkpoints

Free of torch.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from compression.errors import KnownError
from compression.files import write_whole
from serve.card import CardError, Step, weights_digest

BUILD_FILE = "build.json"
STEP_FILE = "step.json"
_Document = TypeVar("_Document", bound=BaseModel)


class KeptError(KnownError):
    """What an interrupted build left is damaged, or belongs to another build."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The weights after the first `len(steps)` steps of a recipe, in `folder`; `dtype` is what they will be stored in."""

    folder: Path
    steps: tuple[Step, ...]
    dtype: str


class _Build(BaseModel):
    """build.json"""

    key: str


class _Finished(BaseModel):
    """step.json"""

    model_config = ConfigDict(extra="forbid")

    steps: tuple[Step, ...]
    dtype: str
    weights_digest: str


def claim(part: Path, key: str) -> None:
    """Make `part` the folder of the build `key`, see `recipe.recipe_key`.

    Raises:
        KeptError: it holds another build that has begun.
    """
    part.mkdir(parents=True, exist_ok=True)
    file = part / BUILD_FILE
    begun = any(folder.is_dir() and any(folder.iterdir()) for folder in part.iterdir())
    if not (begun and file.exists()):
        write_whole(file, _Build(key=key).model_dump_json())
    if _read(file, _Build).key != key:
        raise KeptError(
            f"{part} holds an unfinished build with another recipe, source, parent or text: remove it to start this one"
        )


def last_kept(part: Path) -> Kept | None:
    """What the last finished step left; None when none has finished.

    Raises:
        KeptError: its files are not what was written.
    """
    folders = sorted(part.glob("*.kept"), key=_number)
    if not folders:
        return None
    folder = folders[-1]
    finished = _read(folder / STEP_FILE, _Finished)
    try:
        intact = finished.weights_digest == weights_digest(folder)
    except CardError:
        intact = False
    if not intact:
        raise KeptError(f"the weights in {folder} are damaged: remove that folder and run it again")
    return Kept(folder, finished.steps, finished.dtype)


def keep(part: Path, steps: tuple[Step, ...], dtype: str, save: Callable[[Path], None]) -> Kept:
    """Keep what the last of `steps` has made, and drop what was kept before it.

    Args:
        save: writes weights, configuration and tokenizer into a folder.
    """
    name = f"{len(steps)}-{steps[-1].technique}"
    scratch, folder = part / f"{name}.tmp", part / f"{name}.kept"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    save(scratch)
    finished = _Finished(steps=steps, dtype=dtype, weights_digest=weights_digest(scratch))
    write_whole(scratch / STEP_FILE, finished.model_dump_json(indent=2))
    scratch.rename(folder)
    for older in part.iterdir():
        if older.is_dir() and older != folder:
            shutil.rmtree(older)
    return Kept(folder, steps, dtype)


def _read(file: Path, kind: type[_Document]) -> _Document:
    try:
        return kind.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise KeptError(f"{file} is damaged: remove {file.parent} and run it again") from error


def _number(folder: Path) -> int:
    return int(folder.name.split("-")[0])
