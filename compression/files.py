"""Atomic file writes, and validation of file names from untrusted sources."""

import os
from contextlib import suppress
from pathlib import Path, PurePosixPath


def write_atomically(file: Path, content: str | bytes) -> None:
    """Write a file atomically: to a temporary file of this process that then replaces it.

    Raises:
        OSError: it cannot be written; the file is as it was.
    """
    temporary = file.with_name(f".{file.name}-{os.getpid()}")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(file)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def safe_relative_path(name: str) -> PurePosixPath:
    """Validate the relative path `name` from an archive or a listing: it cannot leave the folder it is joined to.

    Raises:
        ValueError: it is absolute, has a `..`, or is ambiguous between tools (backslashes, control characters).
    """
    parts = name.split("/")
    ambiguous = "\\" in name or not name.isprintable()
    if ambiguous or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"the file name {name[:200]!r} is refused: it may lead out of its folder")
    return PurePosixPath(*parts)
