"""A figure of a result: a number with its spread, its statement and its aim."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.reporting.cells import Result


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number of a result."""

    id: str  # within the result: parts joined by dots
    area: str
    claim: str
    measured: float
    unit: str = ""
    low: float | None = None
    high: float | None = None
    aim: str | None = None
    baseline: str | None = None
    baseline_measured: float | None = None


Figures = Callable[[Result], Iterator[Figure]]


def figure(
    id: str,
    area: str,
    claim: str,
    value: float | Mapping[str, Any],
    unit: str = "",
    *,
    aim: str | None = None,
    scale: float = 1.0,
    against: tuple[str, float | Mapping[str, Any]] | None = None,
) -> Figure:
    """`value`, a number or one of the results' forms of a number with its spread, times `scale`.

    The forms: median with min and max of n repeats; mean or share with ci95. `against` is a baseline's name and value.
    """
    middle, low, high = (None if one is None else one * scale for one in _spread(value))
    assert middle is not None
    baseline, base = (against[0], _spread(against[1])[0] * scale) if against else (None, None)
    return Figure(_slug(id), area, claim, middle, unit, low, high, aim, baseline, base)


def _spread(value: float | Mapping[str, Any]) -> tuple[float, float | None, float | None]:
    if not isinstance(value, Mapping):
        return value, None, None
    if "median" in value:
        return value["median"], *((value["min"], value["max"]) if value.get("n", 2) > 1 else (None, None))
    return value["mean" if "mean" in value else "share"], *value["ci95"]


def _slug(text: str) -> str:
    """Text as an id: lower case, hyphens for spaces, no characters special to a shell."""
    return re.sub(r"[^a-z0-9._%+-]+", "-", text.lower()).strip("-")
