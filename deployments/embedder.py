"""Where the embedding model is: a folder in the cache, made once in the compression environment."""

import hashlib
import shutil
from pathlib import Path

from compression.child import ChildFailed, compression_python, run_child
from compression.family import BuildError
from compression.source import SourceError, identity, parse_source

READY_FILE = "pooling.json"  # written last


def embedder_folder(source: str, cache: Path, log: Path) -> tuple[Path, str]:
    """The folder with the embedder's ONNX file, and what identifies the model.

    Raises:
        BuildError: the source is none, or the model could not be had or exported; one line that names the log.
    """
    try:
        model = identity(parse_source(source))
    except SourceError as error:
        raise BuildError(f"retrieval.embedder: {error}") from error
    folder = cache / "embedders" / hashlib.sha256(model.encode()).hexdigest()[:16]
    if not (folder / READY_FILE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        command = [str(compression_python()), "-m", "compression.embedder", source, str(folder)]
        try:
            run_child(command, {}, log, lambda progress: None)
        except ChildFailed as error:
            raise BuildError(f"retrieval.embedder: {error} (log: {log})") from error
    return folder, model
