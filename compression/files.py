"""Files that are written whole or not at all."""

from pathlib import Path


def write_whole(file: Path, content: str) -> None:
    """Write a text file so that it is never half there."""
    scratch = file.with_suffix(".tmp")
    scratch.write_text(content)
    scratch.replace(file)
