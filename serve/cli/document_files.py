"""Find the documents that the arguments of `gearbox documents add` name: files, folders, URLs and lists of them."""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from serve.cli.client import fail
from serve.retrieval.ingest.convert import ConversionError, kind_of


@dataclass(slots=True, frozen=True)
class Item:
    """A document to index: a file, or, without a path, a URL."""

    source: str
    path: Path | None = None
    size: int = 0  # bytes


@dataclass(slots=True)
class Found:
    """The documents that the command's arguments name."""

    items: dict[str, Item] = field(default_factory=dict)  # by source
    folders: list[str] = field(default_factory=list)  # folders whose deleted documents can be removed from the index
    empty: list[str] = field(default_factory=list)  # folders without a document: empty or not mounted
    left_out: int = 0  # files of other types
    problems: list[str] = field(default_factory=list)

    def add(self, item: Item) -> None:
        """Add an item; the first of two with the same source name is used."""
        if self.items.setdefault(item.source, item) != item:
            self.problems.append(f"{item.path or item.source}: another file is named {item.source}")


def find(arguments: Iterable[str]) -> Found:
    """Find the documents that the arguments name. Ends the command if an argument names nothing."""
    found = Found()
    for argument in arguments:
        if argument == "-":
            _find_each(sys.stdin.read(), found)
        elif argument.startswith("@"):
            try:
                text = Path(argument[1:]).read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise fail(f"{argument[1:]}: {error}", 2) from error
            _find_each(text, found)
        else:
            _find(argument, found)
    return found


def _find_each(text: str, found: Found) -> None:
    for line in map(str.strip, text.splitlines()):
        if line and not line.startswith("#"):
            _find(line, found)


def _find(argument: str, found: Found) -> None:
    if argument.startswith(("http://", "https://")):
        found.add(Item(argument))
        return
    path = Path(argument)
    if path.is_dir():
        _find_in(path.resolve(), found)
    elif path.is_file():
        found.add(Item(path.name, path, path.stat().st_size))
    else:
        raise fail(f"there is no file or folder {argument}", 2)


def _find_in(folder: Path, found: Found) -> None:
    """Add the documents below `folder`, without hidden files and links that lead out of it."""
    before, unread = len(found.items), len(found.problems)

    def note(error: OSError) -> None:
        found.problems.append(f"{error.filename}: {error.strerror}")

    for at, folders, names in os.walk(folder, onerror=note):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(at, name)
            if name.startswith(".") or not path.is_file() or not path.resolve().is_relative_to(folder):
                continue
            try:
                kind_of(name)
                size = path.stat().st_size
            except ConversionError:
                found.left_out += 1
            except OSError as error:
                note(error)
            else:
                found.add(Item(f"{folder.name}/{path.relative_to(folder).as_posix()}", path, size))
    if len(found.problems) > unread:
        return  # the listing is incomplete, so missing files may still exist
    (found.folders if len(found.items) > before else found.empty).append(f"{folder.name}/")
