"""List numbers and bullets of Word documents, which are visible but not part of the paragraphs' text."""

import re
from collections import defaultdict
from typing import Any

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_MAX = 100_000  # limit on numbers written as letters or Roman numerals


class Numbering:
    """Counts the paragraphs of every list.

    Args:
        root: root of the document's numbering part; None: it has none.
    """

    def __init__(self, root: Any) -> None:
        self._levels: dict[str, dict[int, Any]] = {}  # levels by abstract numbering
        self._numbered: dict[
            str, tuple[str, dict[int, int]]
        ] = {}  # by numbering: its abstract numbering, and start values that it overrides
        self._counts: dict[str, dict[int, int]] = defaultdict(dict)  # current numbers by abstract numbering and level
        self._begun: set[str] = set()
        for element in root.iterfind(f"{_W}abstractNum") if root is not None else ():
            levels = {_number(level.get(f"{_W}ilvl")): level for level in element.iterfind(f"{_W}lvl")}
            self._levels[element.get(f"{_W}abstractNumId")] = levels
        for element in root.iterfind(f"{_W}num") if root is not None else ():
            starts = {
                _number(change.get(f"{_W}ilvl")): _number(_child_value(change, "startOverride"))
                for change in element.iterfind(f"{_W}lvlOverride")
                if _child_value(change, "startOverride") is not None
            }
            self._numbered[element.get(f"{_W}numId")] = _child_value(element, "abstractNumId") or "", starts

    def level_of(self, number: str, style: str | None) -> int:
        """The level of a numbering that belongs to a paragraph style."""
        levels = self._levels.get(self._numbered.get(number, ("", {}))[0], {})
        return next((at for at, level in levels.items() if style and _child_value(level, "pStyle") == style), 0)

    def next(self, number: str, at: int) -> str:
        """The label of the next paragraph with this numbering and level; empty if it has none."""
        name, starts = self._numbered.get(number, ("", {}))
        levels, counts = self._levels.get(name, {}), self._counts[name]
        if (level := levels.get(at)) is None:
            return ""
        if number not in self._begun:
            self._begun.add(number)
            for other in starts:
                counts.pop(other, None)

        def start(other: int) -> int:
            return starts.get(other, _number(_child_value(levels.get(other), "start") or "1"))

        counts[at] = counts[at] + 1 if at in counts else start(at)
        for below in [other for other in counts if other > at]:
            del counts[below]
        kind = _child_value(level, "numFmt") or "decimal"
        if kind == "bullet":
            return "-"
        only_digits = level.find(f"{_W}isLgl") is not None

        def written(mark: re.Match[str]) -> str:
            other = int(mark[1]) - 1
            form = "decimal" if only_digits else _child_value(levels.get(other), "numFmt") or "decimal"
            return _written(counts.setdefault(other, start(other)), form)

        return _PLACE.sub(written, _child_value(level, "lvlText") or "").strip()


def _written(number: int, kind: str) -> str:
    if kind in ("lowerLetter", "upperLetter") and 0 < number <= _MAX:
        text = chr(ord("a") + (number - 1) % 26) * min(1 + (number - 1) // 26, 20)
    elif kind in ("lowerRoman", "upperRoman") and 0 < number <= _MAX:
        text = ""
        for value, letters in _ROMAN:
            times, number = divmod(number, value)
            text += letters * times
    elif kind == "none":
        text = ""
    else:
        text = f"{number:02}" if kind == "decimalZero" else str(number)
    return text.upper() if kind.startswith("upper") else text


def _child_value(element: Any, name: str) -> str | None:
    child = None if element is None else element.find(f"{_W}{name}")
    return None if child is None else child.get(f"{_W}val")


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() and len(text) < 10 else 0


_PLACE = re.compile(r"%([1-9])")
_ROMAN = (
    (1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"), (10, "x"), (9, "ix"),
    (5, "v"), (4, "iv"), (1, "i"),
)  # fmt: skip
