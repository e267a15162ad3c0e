"""Where the embedding model is: a folder in the cache, made once in the compression environment."""

import hashlib
import shutil
from pathlib import Path

from compression.build.family import BuildError
from compression.build.source import SourceError, parse_source, pin_revision, source_identity
from compression.build.subprocesses import SubprocessFailed, compression_python, run_subprocess
from compression.files import write_atomically

READY_FILE = "pooling.json"  # of the model, written last
IDENTITY_FILE = "identity.txt"  # what identifies the model, for who has only the folder


def embedder_folder(source: str, cache: Path, log: Path) -> tuple[Path, str]:
    """The folder with the embedder's ONNX file, and what identifies the model.

    Raises:
        BuildError: the source is none, or the model could not be had or exported; one line that names the log.
    """
    try:
        start = pin_revision(parse_source(source))
        model = source_identity(start)
    except SourceError as error:
        raise BuildError(f"retrieval.embedder: {error}") from error
    folder = cache / "embedders" / hashlib.sha256(model.encode()).hexdigest()[:16]
    if not (folder / READY_FILE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        command = [str(compression_python()), "-m", "compression.build.embedder", start.text, str(folder)]
        try:
            run_subprocess(command, {}, log, lambda progress: None)
        except SubprocessFailed as error:
            raise BuildError(f"retrieval.embedder: {error} (log: {log})") from error
    if not (folder / IDENTITY_FILE).exists():
        write_atomically(folder / IDENTITY_FILE, model)
    return folder, model
