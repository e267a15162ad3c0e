"""Every measured figure and every aim, one row each, in `benchmarks/results/claims.json`.

`python -m benchmarks.reporting.claims` prints them, missed aims first. A benchmark that saves its result writes its rows
(`benchmarks.reporting.results.save`); `--from-results` derives all rows from the committed results and writes
docs/reference/claims.md. Rows are never written by hand: a test compares them with the results, and the pages with the rows.
"""

import argparse
import fcntl
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from benchmarks.reporting import (
    claim_rows,
    claim_rows_faults,
    claim_rows_goodput,
    claim_rows_grounding,
    replica_tables,
)
from benchmarks.reporting.cells import machine_words, table
from benchmarks.reporting.figures import Figure, Figures
from compression.files import write_atomically

RESULTS = Path(__file__).parents[1] / "results"
FILE = "claims.json"
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "claims.md"

Area = Literal["contract", "routing", "resilience", "grounding", "gears", "economics", "datapath", "tests"]
Number = Annotated[float, Field(allow_inf_nan=False)]

#: Function that extracts the figures of a result, by the result's name.
FIGURES: Mapping[str, Figures] = {
    **claim_rows.FIGURES,
    **claim_rows_faults.FIGURES,
    **claim_rows_goodput.FIGURES,
    **claim_rows_grounding.FIGURES,
    "replicas": replica_tables.figures,
    "replicas-live": replica_tables.live_figures,
}

_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
_LIMIT = re.compile(rf"(>=|<=|==|>|<) ({_NUMBER})")
_BETWEEN = re.compile(rf"({_NUMBER}) to ({_NUMBER})")


class ClaimsError(Exception):
    """The file of claims, or a result, cannot be used; the message says where and why."""


def meets(aim: str | None, measured: float) -> bool | None:
    """Whether `measured` meets `aim` (`>= 0.95`, `0.93 to 0.98`); None without an aim.

    Raises:
        ValueError: `aim` has another syntax.
    """
    if aim is None:
        return None
    if match := _BETWEEN.fullmatch(aim):
        low, high = float(match[1]), float(match[2])
        if low > high:
            raise ValueError(f"the aim {aim!r} has its larger end first")
        return low <= measured <= high
    if not (match := _LIMIT.fullmatch(aim)):
        raise ValueError(f"the aim {aim!r} is none of '>= 1', '<= 1', '> 1', '< 1', '== 1', '1 to 2'")
    limit = float(match[2])
    return {
        ">=": measured >= limit,
        "<=": measured <= limit,
        ">": measured > limit,
        "<": measured < limit,
        "==": measured == limit,
    }[match[1]]


def _is_aim(aim: str) -> str:
    meets(aim, 0.0)
    return aim


class Claim(BaseModel):
    """A measured figure with its command, machine and aim."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(pattern=r"^[a-z][a-z0-9-]*(\.[^.\s][^\s]*)+$", description="RESULT.NAME; stays the same for good")
    area: Area
    claim: str = Field(min_length=1, description="what was measured, in words")
    aim: Annotated[str, AfterValidator(_is_aim)] | None
    unit: str = Field(description="of `measured`, `low`, `high`, `baseline_measured` and the aim; empty: a number")
    measured: Number
    low: Number | None = Field(description="the smallest of the repeats, or the lower end of the 95% interval")
    high: Number | None
    baseline: str | None = Field(description="what `measured` is to be compared with")
    baseline_measured: Number | None
    met: bool | None = Field(default=None, description="computed from `aim` and `measured`; null without an aim")
    command: str
    machine: str
    measured_at: AwareDatetime
    commit: str | None = Field(description="that brought the result in; of one just measured, that was measured")

    @property
    def source(self) -> str:
        """Name of the result that the figure comes from."""
        return self.id.partition(".")[0]

    @model_validator(mode="after")
    def _consistent(self) -> "Claim":
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        right = meets(self.aim, self.measured)
        if "met" in self.model_fields_set and self.met != right:
            raise ValueError(f"met is {self.met}, which is not what the aim and the measured value say: {right}")
        self.met = right
        return self


def rows(name: str, result: Mapping[str, Any], commit: str | None) -> list[Claim]:
    """The claims of the result called `name`; none for a result that has no entry in `FIGURES`.

    Raises:
        ClaimsError: the result lacks a value, or two figures have the same id.
    """
    if name not in FIGURES:
        return []
    machine = result["machine"]
    try:
        claims = [
            Claim(
                **_fields(name, figure),
                command=result["command"],
                machine=machine_words(result),
                measured_at=machine["measured"],
                commit=commit,
            )
            for figure in FIGURES[name](result)
        ]
    except (KeyError, ValidationError) as error:
        raise ClaimsError(f"the result '{name}' cannot be made into claims: {error!r}") from error
    _unique(claims, f"the result '{name}'")
    return claims


def _fields(name: str, figure: Figure) -> dict[str, Any]:
    return {
        "id": f"{name}.{figure.id}", "area": figure.area, "claim": figure.claim, "aim": figure.aim, "unit": figure.unit,
        "measured": _rounded(figure.measured), "low": _rounded(figure.low), "high": _rounded(figure.high),
        "baseline": figure.baseline, "baseline_measured": _rounded(figure.baseline_measured),
    }  # fmt: skip


def _rounded(value: float | None) -> float | None:
    """Round to eight significant digits: beyond any measurement's precision, and enough for every later rounding."""
    return None if value is None else float(f"{value:.8g}")


def read(folder: Path = RESULTS) -> list[Claim]:
    """All claims in `folder`, none if there is no file. Raises `ClaimsError` where the file is malformed."""
    path = folder / FILE
    if not path.exists():
        return []
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        raise ClaimsError(f"{path} is no JSON: {error}") from error
    if not isinstance(document, list):
        raise ClaimsError(f"{path} is no list of claims")
    claims = []
    for place, row in enumerate(document):
        try:
            claims.append(Claim.model_validate(row))
        except ValidationError as error:
            name = row.get("id") if isinstance(row, dict) else None
            raise ClaimsError(f"{path}: row {place} ({name}): {error}") from error
    _unique(claims, str(path))
    return claims


def upsert(new: Iterable[Claim], folder: Path = RESULTS, replaced: Iterable[str] = ()) -> list[Claim]:
    """Insert `new` into the file in `folder`, replacing rows with the same id; return all rows in their order.

    Rows of the results called `replaced` that are not in `new` are removed: their figure no longer exists. The file is
    written atomically, and two benchmarks that end together do not lose each other's rows.
    """
    with _locked(folder):
        outdated = set(replaced)
        rows = {claim.id: claim for claim in read(folder) if claim.source not in outdated}
        rows |= {claim.id: claim for claim in new}
        ordered_claims = [rows[key] for key in sorted(rows)]
        lines = ",\n".join(json.dumps(claim.model_dump(mode="json"), ensure_ascii=False) for claim in ordered_claims)
        write_atomically(folder / FILE, f"[\n{lines}\n]\n")
    return ordered_claims


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _unique(found: Sequence[Claim], where: str) -> None:
    seen: set[str] = set()
    for claim in found:
        if claim.id in seen:
            raise ClaimsError(f"{where}: the id '{claim.id}' is there twice")
        seen.add(claim.id)


def record(name: str, result: Mapping[str, Any], folder: Path = RESULTS) -> None:
    """Write the claims of a new result. A quick run makes no claims."""
    if name in FIGURES and not _quick(result):
        upsert(rows(name, result, result["machine"]["commit"]), folder, replaced=[name])


def from_results(folder: Path = RESULTS) -> list[Claim]:
    """All claims, derived from the results that are in `folder`. Raises `ClaimsError` for a result that is broken."""
    claims = []
    for name in FIGURES:
        path = folder / f"{name}.json"
        if not path.exists():  # never measured; a test checks that results shown on pages exist
            continue
        try:
            result = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ClaimsError(f"{path} cannot be read: {error}") from error
        if _quick(result):
            raise ClaimsError(f"{path} is of a quick run, which proves nothing: restore it, or measure it whole")
        claims += rows(name, result, _brought_in(path) or result["machine"]["commit"])
    return claims


def _quick(result: Mapping[str, Any]) -> bool:
    return "--quick" in result["command"].split()


def _brought_in(path: Path) -> str | None:
    """The commit that changed the file last; None for uncommitted changes, or outside a repository."""
    git = ["git", "-C", str(path.parent)]
    changed = subprocess.run([*git, "status", "--porcelain", "--", path.name], capture_output=True, text=True)
    if changed.returncode or changed.stdout:
        return None
    log = subprocess.run([*git, "log", "-1", "--format=%h", "--", path.name], capture_output=True, text=True)
    return log.stdout.strip() or None


def ordered(found: Iterable[Claim]) -> list[Claim]:
    """Missed aims first, then met ones, then figures without an aim; each by area and id."""
    areas = get_args(Area)
    rank = {False: 0, True: 1, None: 2}
    return sorted(found, key=lambda claim: (rank[claim.met], areas.index(claim.area), _natural(claim.id)))


def _natural(text: str) -> list[tuple[float, str]]:
    """Natural sort key: load 1 comes before 1.5, and 2 before 10."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(float(part), "") if place % 2 else (-1.0, part) for place, part in enumerate(parts)]


def said(value: float | None) -> str:
    """Format a number with four significant digits and thousands separators: 0.5534, 69.6, 12,265."""
    if value is None:
        return ""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{min(digits, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def cells(claim: Claim) -> list[str]:
    """Area, claim, aim, measured with its interval, baseline, when: the cells of a row on the page or in the terminal."""
    interval = "" if claim.low is None else f" [{said(claim.low)}, {said(claim.high)}]"
    baseline = "" if claim.baseline is None else f"{claim.baseline}: {said(claim.baseline_measured)}"
    return [
        claim.area,
        claim.claim,
        claim.aim or "",
        f"{said(claim.measured)}{interval} {claim.unit}".rstrip(),
        baseline,
        f"{claim.measured_at:%Y-%m-%d}",
    ]


HEAD = ("area", "what was measured", "aim", "measured", "compared with", "on")


def page(found: Sequence[Claim]) -> str:
    """Content of docs/reference/claims.md."""
    missed, met, plain = ([c for c in ordered(found) if c.met is state] for state in (False, True, None))
    counts: dict[tuple[str, str, str], int] = {}
    for claim in found:
        key = (claim.source, claim.command, claim.machine)
        counts[key] = counts.get(key, 0) + 1
    sources = [
        [f"[`{name}.json`](../../benchmarks/results/{name}.json)", str(count), f"`{command}`", machine]
        for (name, command, machine), count in sorted(counts.items())
    ]
    return f"""# Claims

Look up what was measured, with which command, and which aims were missed. Every figure that the tables of the README and
of these pages show is a row of `benchmarks/results/claims.json`: {len(missed)} missed aims, {len(met)} met ones and
{len(plain)} figures without an aim. `python -m benchmarks.reporting.claims` prints them all; `--area routing` those of one area.

The benchmark that measures a figure writes its row; this page is made from the rows by
`python -m benchmarks.reporting.claims --from-results`, and a test holds the results, the rows, the tables and this page against
each other. In brackets: the smallest and the largest of the repeats, or a 95% interval. A figure holds for the machine
it was measured on.

## Missed aims

{table(HEAD, [cells(claim) for claim in missed])}

## Met aims

{table(HEAD, [cells(claim) for claim in met])}

## Sources

{table(["result", "rows", "command", "machine"], sources)}
"""


def show(found: Sequence[Claim]) -> None:
    """Print a table, missed aims first."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table("", *HEAD, box=None, header_style="bold", pad_edge=False)
    marks = {False: Text("missed", "bold red"), True: Text("met", "green"), None: Text("")}
    for claim in ordered(found):
        shown.add_row(marks[claim.met], *(Text(cell) for cell in cells(claim)))
    console = Console()
    if not console.is_terminal:
        console.width = 240  # for a file or a pipe: one line per row
    console.print(shown)
    missed, met = (sum(claim.met is state for claim in found) for state in (False, True))
    print(f"{missed} aims missed, {met} met, {len(found) - missed - met} figures without an aim")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--area", choices=get_args(Area), help="only these")
    parser.add_argument("--from-results", action="store_true", help="derive all rows from the results; implies --write")
    parser.add_argument("--write", action="store_true", help="write docs/reference/claims.md from the rows")
    options = parser.parse_args(arguments)
    try:
        if options.from_results:
            upsert(from_results(), replaced=FIGURES)
        claims = read()
    except ClaimsError as error:
        print(error, file=sys.stderr)
        return 1
    if options.write or options.from_results:
        write_atomically(PAGE, page(claims))
        print(f"wrote {PAGE}")
        return 0
    show([claim for claim in claims if options.area in (None, claim.area)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
