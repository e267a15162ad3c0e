"""Tables of runs under faults."""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.reporting.cells import Result, machine_line, table

_HEAD = (
    "requests", "lost", "of them refused / interrupted / truncated / failed", "tokens lost / doubled", "migrated", "other text",
    "longest gap p50 / p95, s", "at a migration p50 / p95 (over prefix), s", "first answer, s", "all well, s",
)  # fmt: skip
_NOTE = (
    "Lost: without a whole answer. Refused: a documented error before the answer started; interrupted: a stream that ended in an "
    "error event; truncated: one that ended without it. Tokens of greedy streams are compared with undisturbed answers; other text: "
    "nearly equal tokens swapped, which batching alone does, too. Gaps are of streams under way between fault and recovery; at a migration: from the last token before it to the first one after "
    "it, and how much longer that is, p95, than the first token takes after the same prompt on the undisturbed system. Times: "
    "median, largest; `never` counts faults without recovery in time."
)


def faults(result: Result) -> str:
    """Every kind of fault in every system."""
    rows = []
    for system, found in result["systems"].items():
        rows.append([system, "none", *_cells(found["undisturbed"])])
        rows += [[system, name, *_cells(row)] for name, row in found["faults"].items()]
        rows.append([system, "all", *_cells(found["all"])])
    skipped = [
        f"\n`{system}` without '{name}': {why}."
        for system, found in result["systems"].items()
        for name, why in found["skipped"].items()
    ]
    engines = [
        f"\n`{system}` with {found['engines']} engines instead of {result['engines']}."
        for system, found in result["systems"].items()
        if found.get("engines", result["engines"]) != result["engines"]
    ]
    slow = f"Slow network: {result['slow_network']}."
    notes = "".join([*engines, *skipped])
    return f"{table(['system', 'fault', *_HEAD], rows)}\n\n{_NOTE} {slow}{notes}{_machine(result)}"


def _cells(row: Mapping[str, Any]) -> list[str]:
    tokens, outcomes, gap = row["tokens"], row["outcomes"], row["longest_gap_s"]
    return [
        str(row["requests"]),
        str(row["lost"]),
        " / ".join(str(outcomes[name]) for name in ("refused", "interrupted", "truncated", "failed")),
        f"{tokens['lost']} / {tokens['doubled']}",
        str(tokens["migrated"]),
        f"{tokens['diverged']} of {tokens['checked']}",
        "" if gap["p50"] is None else f"{gap['p50']:.1f} / {gap['p95']:.1f}",
        _seams(row.get("seams", {})),
        *(_times(row["recovery"].get(name, {})) for name in ("first_success_s", "healthy_s")),
    ]


def _seams(seams: Mapping[str, Any]) -> str:
    return f"{seams['p50']:.1f} / {seams['p95']:.1f} ({seams['over_prefix_p95']:.1f})" if seams.get("streams") else ""


def _times(times: Mapping[str, Any]) -> str:
    known = [f"{times['median']:.1f}, {times['max']:.1f}"] if "median" in times else []
    return "; ".join([*known, *([f"never: {times['never']}"] if times.get("never") else [])])


def soak(result: Result) -> str:
    """Requests of all intervals by fault, and the slope of the memory."""
    rows = [[name, *_cells(row)] for name, row in result["by_fault"].items()]
    rows.append(["all, and between faults", *_cells(result)])
    memory = [
        f"The {role}'s memory grows by {one['mb_per_h']:.2f} MB/h [{one['ci95'][0]:.2f}, {one['ci95'][1]:.2f}]."
        if one
        else f"Too few samples for the slope of the {role}'s memory."
        for role, one in result["memory"].items()
    ]
    head = f"{result['hours']:.1f} h at load {result['load']:g}, {result['faults']} faults. {' '.join(memory)}"
    return f"{head}\n\n{table(['fault', *_HEAD], rows)}\n\n{_NOTE}{_machine(result)}"


def overload(result: Result) -> str:
    """What the platform used under overload, and the recovery."""
    rows = [[name, f"{bound['max']:g}", f"{bound['growth']:.2f}"] for name, bound in result["bounds"].items()]
    outcomes = ", ".join(f"{count} {name}" for name, count in result["requests"].items())
    end = f"as fast as before after {result['recovered_s']:.1f} s"
    head = (
        f"{offered_factor(result):.1f} times saturation for {result['seconds']:.0f} s, of {result['factor']:g} times that were aimed at "
        f"({result['per_s']:.1f} requests/s): {outcomes}; {end}."
    )
    return f"{head}\n\n{table(['measure', 'largest', 'last third over the second'], rows)}{_machine(result)}"


def offered_factor(result: Result) -> float:
    """Requests that were sent, in multiples of what saturates: the load's generator shares the cores, and may fall behind."""
    offered: float = sum(result["requests"].values()) / result["seconds"]
    return offered / result["per_s"] * float(result["factor"])


def _machine(result: Result) -> str:
    return f"\n\n{machine_line(result)}" if "machine" in result else ""


TABLES: Mapping[str, Callable[..., str]] = {"faults": faults, "faults-soak": soak, "faults-overload": overload}
