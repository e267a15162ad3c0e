"""Atomic file writes, and validation of file names from untrusted sources."""

from pathlib import Path, PurePosixPath


def write_atomically(file: Path, content: str) -> None:
    """Write a text file atomically: to a temporary file that then replaces it."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(content)
    temporary.replace(file)


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
