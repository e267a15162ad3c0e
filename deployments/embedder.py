"""Embedding model on disk: exported to ONNX once, in the compression environment, and cached."""

import hashlib
import shutil
from pathlib import Path

from compression.build.family import BuildError
from compression.build.source import SourceError, parse_source, pin_revision, source_identity
from compression.build.subprocesses import SubprocessFailed, compression_python, run_subprocess
from compression.files import write_atomically

READY_FILE = "pooling.json"  # part of the model, written last
IDENTITY_FILE = "identity.txt"  # identifies the model to processes that have only the folder


def embedder_folder(source: str, cache: Path, log: Path) -> tuple[Path, str]:
    """Folder with the embedder's ONNX file, and the model's identity; exports the model if it is not cached.

    Raises:
        BuildError: the source is invalid, or the model could not be downloaded or exported; one line that names the log.
    """
    try:
        pinned_source = pin_revision(parse_source(source))
        model = source_identity(pinned_source)
    except SourceError as error:
        raise BuildError(f"retrieval.embedder: {error}") from error
    folder = cache / "embedders" / hashlib.sha256(model.encode()).hexdigest()[:16]
    if not (folder / READY_FILE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        command = [str(compression_python()), "-m", "compression.build.embedder", pinned_source.text, str(folder)]
        try:
            run_subprocess(command, {}, log, lambda progress: None)
        except SubprocessFailed as error:
            raise BuildError(f"retrieval.embedder: {error} (log: {log})") from error
    if not (folder / IDENTITY_FILE).exists():
        write_atomically(folder / IDENTITY_FILE, model)
    return folder, model
