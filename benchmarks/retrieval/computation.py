"""Measure the detection of computations: right, falsely computed and time, by kind and language: `python -m benchmarks.retrieval.computation`.

The questions are those of `computation_sources`, which nobody here wrote. The result of the half that detection was developed with is
`computation`, that of the other half is `computation-untouched`. No platform is needed; takes a minute.
"""

import argparse
import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from fractions import Fraction
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.lib.processes import command
from benchmarks.reporting.results import save
from benchmarks.retrieval.answer_grading import share
from benchmarks.retrieval.computation_sources import TODAY, Item, items
from benchmarks.retrieval.packages import NoPackage
from serve.tools.intent import ToolResult, detect

NOW = datetime.combine(TODAY, time_of_day(12), UTC)
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:E[+-]?\d+)?")


def ask(item: Item) -> tuple[ToolResult | None, float]:
    """What detection makes of a question, and its CPU time in milliseconds."""
    started = time.process_time()
    result = detect(item.text, ("calculator", "clock"), NOW, UTC)
    return result, (time.process_time() - started) * 1000


def is_right(item: Item, result: ToolResult) -> bool:
    """Whether a tool's result is the expected one; numbers to two in ten thousand, as sources round."""
    expected = item.result or ""
    if expected.startswith("time"):
        return result.input.get("what") == "time" and result.input.get("timezone", "") in _same_zones(expected[5:])
    if expected.startswith("+"):
        return result.input.get("date") == (TODAY + timedelta(int(expected))).isoformat()
    if result.name == "clock":
        until = date.fromisoformat(result.input.get("until", "0001-01-01"))
        return expected == f"{abs((until - date.fromisoformat(result.input['date'])).days)} days"
    found = NUMBER.search(result.output)
    if found is None or expected.endswith(" days"):
        return False
    number, wanted = Fraction(found[0].replace(",", "")), Fraction(expected)
    return abs(number - wanted) <= max(abs(wanted), abs(number)) * Fraction(2, 10**4) or round(number, 2) == wanted


def _same_zones(name: str) -> set[str]:
    return {name, *(("UTC",) if not name else ())}


def summary(asked: Sequence[tuple[Item, ToolResult | None]]) -> dict[str, Any]:
    """Shares of computations that are right, wrong and left to the model, and of other questions that are computed."""
    computations = [(item, result) for item, result in asked if item.result is not None]
    groups: dict[str, dict[str, list[bool]]] = {
        "kind": defaultdict(list),
        "language": defaultdict(list),
        "source": defaultdict(list),
    }
    for item, result in computations:
        right = result is not None and is_right(item, result)
        groups["kind"][item.kind].append(right)
        if item.kind != "word problem":
            groups["language"][item.language].append(right)
            groups["source"][item.source].append(right)
    counted = [(item, result) for item, result in computations if item.kind != "word problem"]
    others: dict[str, list[bool]] = defaultdict(list)
    for item, result in asked:
        if item.result is None:
            others[item.source].append(result is not None)
    return {
        "right": share(result is not None and is_right(item, result) for item, result in counted),
        "wrong": share(result is not None and not is_right(item, result) for item, result in computations),
        **{
            f"by_{name}": {key: share(group) for key, group in sorted(values.items())}
            for name, values in groups.items()
        },
        "falsely_computed": share(computed for group in others.values() for computed in group),
        "falsely_computed_by_source": {name: share(group) for name, group in sorted(others.items())},
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "repositories", type=Path, help="folder with clones of humanizer, oos-eval and zeroclickinfo-goodies"
    )
    parser.add_argument("--untouched", action="store_true", help="ask the untouched half instead")
    parser.add_argument("--show", action="store_true", help="print every question that is not answered rightly")
    arguments = parser.parse_args()
    every = list(dict.fromkeys(items(arguments.repositories)))
    detect("1 + 1", ("calculator", "clock"), NOW, UTC)  # loads the vocabularies
    part = "untouched" if arguments.untouched else "development"
    asked = [(item, *ask(item)) for item in every if item.is_untouched == arguments.untouched]
    answered = [(item, used) for item, used, _ in asked]
    times = [ms for _, _, ms in asked]
    cpu_ms = {"p50": round(median(times), 3), "p95": round(quantiles(times, n=20)[-1], 3)}
    result = {"part": part, **summary(answered), "cpu_ms": cpu_ms}
    if arguments.show:
        _show(answered)
    _print(result)
    save("computation-untouched" if arguments.untouched else "computation", result)


def _show(asked: Sequence[tuple[Item, ToolResult | None]]) -> None:
    for item, used in asked:
        if used is None if item.result is None else used is not None and is_right(item, used):
            continue
        print(f"{item.source:12} {item.language} {item.kind:15} {item.text!r}: {item.result} / {used and used.answer}")


def _print(part: dict[str, Any]) -> None:
    table = Table(title=f"{part['part']} half")
    for column in ("", "hits", "of", "share", "95% interval"):
        table.add_column(column)
    rows = {
        "right": part["right"],
        "wrong": part["wrong"],
        **{
            f"  {key}": value for group in ("by_kind", "by_language", "by_source") for key, value in part[group].items()
        },
    }
    rows |= {
        "falsely computed": part["falsely_computed"],
        **{f"  {key} ": value for key, value in part["falsely_computed_by_source"].items()},
    }
    for key, value in rows.items():
        table.add_row(key, *map(str, value.values()))
    Console().print(table, part["cpu_ms"])


if __name__ == "__main__":
    with command((NoPackage, subprocess.CalledProcessError), "nothing is saved"):
        main()
