"""Results of fault runs: requests lost, streams cut, tokens, gaps and recovery times, by kind of fault and in total."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.cluster.fault_load import LOST, OUTCOMES
from benchmarks.cluster.token_streams import percentile
from benchmarks.reporting.results import spread

Row = Mapping[str, Any]  # of the journal, see `fault_run.strike`
TIMES = ("first_success_s", "healthy_s")


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The result of one system: its load without faults, every kind of fault, and all faults together."""
    undisturbed = [row for row in rows if row["fault"] is None]
    faults = [row for row in rows if row["fault"] is not None and not row["skipped"]]
    names = list(dict.fromkeys(row["fault"]["name"] for row in faults))
    return {
        "undisturbed": numbers(undisturbed),
        "all": numbers(faults),
        "faults": {name: numbers([row for row in faults if row["fault"]["name"] == name]) for name in names},
        "skipped": {row["fault"]["name"]: row["skipped"] for row in rows if row["skipped"]},
    }


def numbers(rows: Sequence[Row]) -> dict[str, Any]:
    """The numbers of some rows together; times are in seconds. `recovered`: of how many faults the system recovered."""
    outcomes: Counter[str] = Counter()
    problems: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for row in rows:
        for counts in row["requests"].values():
            outcomes.update(counts)
        problems.update(row["problems"])
        tokens.update(row["tokens"])
    gaps = [gap for row in rows for gap in row["gaps_s"]]
    seams = [seam for row in rows for seam in row.get("seams", ())]
    moved = [gap for gap, _ in seams]
    recovery = {name: [row["recovery"].get(name) for row in rows if row["recovery"]] for name in TIMES}
    return {
        "faults": len(rows),
        "requests": outcomes.total(),
        "lost": sum(outcomes[name] for name in LOST),
        "outcomes": {name: outcomes[name] for name in OUTCOMES},
        "silently_truncated": sum(_truncated(row) for row in rows),
        "tokens": {name: tokens[name] for name in ("checked", "migrated", "diverged", "unchecked", "lost", "doubled")},
        "longest_gap_s": {"p50": percentile(gaps, 0.5), "p95": percentile(gaps, 0.95), "streams": len(gaps)},
        "seams": {
            "p50": percentile(moved, 0.5), "p95": percentile(moved, 0.95), "streams": len(moved),
            "over_prefix_p95": percentile([round(gap - prefix_s, 3) for gap, prefix_s in seams], 0.95),
        },
        "recovery": {
            name: {**(spread(known) if (known := [one for one in times if one is not None]) else {}), "never": times.count(None)}
            for name, times in recovery.items()
        },
        "problems": dict(problems.most_common(20)),
    }  # fmt: skip


def _truncated(row: Row) -> int:
    return int(row["requests"].get("stream", {}).get("truncated", 0))


def line(row: Row) -> str:
    """One row for the terminal."""
    found, recovery = numbers([row]), row["recovery"]
    if row["skipped"]:
        return f"skipped: {row['skipped']}"
    parts = [
        f"{found['requests']} requests, {found['lost']} lost",
        f"{found['silently_truncated']} streams silently truncated",
        f"tokens {found['tokens']['lost']} lost, {found['tokens']['doubled']} doubled",
        f"longest gap p95 {found['longest_gap_s']['p95']} s",
        f"{found['seams']['streams']} migrations, gap p95 {found['seams']['p95']} s",
    ]
    if recovery:
        parts.append(f"first answer after {recovery['first_success_s']} s, all well after {recovery['healthy_s']} s")
    return "; ".join(parts)
