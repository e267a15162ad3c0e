"""Parse the chart's values.yaml: each value with its default and the comment above it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).with_name("gearbox")
Place = tuple[str, ...]

_LINE = re.compile(r"^(?P<indent> *+)(?:# ?(?P<comment>.*)|(?P<key>[A-Za-z0-9_.-]+):(?: .*)?|.*)$")


@dataclass(frozen=True, slots=True)
class Value:
    """One value: its path, default and comment."""

    place: Place
    default: object
    text: str


def defaults() -> dict[str, Any]:
    """The default values."""
    values: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return values


def documented() -> list[Value]:
    """The values with a comment that begins with `# -- `, in the order of the file."""
    values = defaults()
    return [Value(place, at(values, place), text[3:]) for place, text in _commented() if text.startswith("-- ")]


def sections() -> dict[str, str]:
    """Descriptions of groups of values, from comments without `--`, by the group's name."""
    return {place[0]: text for place, text in _commented() if len(place) == 1 and not text.startswith("-- ")}


def at(values: Any, place: Place) -> Any:
    """The value at a path."""
    for key in place:
        values = values[key]
    return values


def _commented() -> Iterator[tuple[Place, str]]:
    """Each key that has a comment directly above it, with that comment as one line."""
    above: list[tuple[int, str]] = []  # indentation and name of the enclosing keys
    comment: list[str] = []
    for line in (CHART / "values.yaml").read_text().splitlines():
        match = _LINE.match(line)
        assert match is not None
        if match["comment"] is not None:
            comment.append(match["comment"].strip())
            continue
        if match["key"] is not None:
            indent = len(match["indent"])
            above = [*(entry for entry in above if entry[0] < indent), (indent, match["key"])]
            if comment:
                yield tuple(name for _, name in above), " ".join(comment)
        comment = []
