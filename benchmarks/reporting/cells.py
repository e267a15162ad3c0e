"""Formatting of result tables: Markdown tables, numbers with their spread, the machine."""

from collections.abc import Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def median_range(spread: Mapping[str, float], digits: int) -> str:
    """`median [smallest, largest]`; the median alone when it was measured once."""
    middle, low, high = (f"{spread[key]:.{digits}f}" for key in ("median", "min", "max"))
    return middle if spread["n"] == 1 else f"{middle} [{low}, {high}]"


def mean_interval(interval: Mapping[str, Any], digits: int) -> str:
    """`mean [interval]`."""
    return f"{interval['mean']:.{digits}f} [{', '.join(f'{end:.{digits}f}' for end in interval['ci95'])}]"


def policy_cell(row: Mapping[str, Any]) -> str:
    """Within budget, late, and quality, of a routing policy."""
    return f"{row['attainment']['median']:.0%} / {row['late']['median']:.0%} / {row['quality']['median']:.2f}"


def machine_words(result: Result) -> str:
    """Processor, cores, memory and accelerator it was measured on."""
    machine = result["machine"]
    words = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']:.0f} GB"
    return f"{words}, {machine['accelerator']}" if machine.get("accelerator") else words


def machine_line(result: Result) -> str:
    """When and on what it was measured."""
    return f"Measured {result['machine']['measured'][:10]} on {machine_words(result)}."
