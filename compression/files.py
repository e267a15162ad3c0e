"""Files that are written whole or not at all, and names of files that others chose."""

from pathlib import Path, PurePosixPath


def write_whole(file: Path, content: str) -> None:
    """Write a text file so that it is never half there."""
    scratch = file.with_suffix(".tmp")
    scratch.write_text(content)
    scratch.replace(file)


def relative_name(name: str) -> PurePosixPath:
    """`name`, from an archive or a listing, as a path that stays below whatever folder it is put in.

    Raises:
        ValueError: it is absolute, leads upwards, or is written so that tools disagree about where it leads.
    """
    parts = name.split("/")
    strange = "\\" in name or not name.isprintable()
    if strange or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"the file name {name[:200]!r} is refused: it may lead out of its folder")
    return PurePosixPath(*parts)
