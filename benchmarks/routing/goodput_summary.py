"""Summary of the live routing benchmark's cells: medians over the rounds, the best admission, comparisons, fairness. Pure."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.reporting.results import spread
from benchmarks.routing.recovery_windows import since_jump
from benchmarks.routing.workloads import max_min

Row = dict[str, float]
Rounds = dict[int, Row]  # by round
ADMISSION = "admission"
SQUARE_S = 10.0  # period of square waves
OURS = ("budget", "budget-full")  # the platform's router; `budget-full` has no variant to shift to
CAPACITY = ("full", "admission-")  # settings whose work within budget is what the machine can do with `full` alone


@dataclass(slots=True, frozen=True)
class Cell:
    """One measurement: a policy under a load in a round; `where` is `live` or `simulated`."""

    where: str
    number: int  # of the round
    shape: str
    load: float
    policy: str
    row: Row = field(compare=False, hash=False)
    requests: Sequence[Sequence[float]] = field(default=(), compare=False, hash=False)  # see `workloads.predicted`


def grouped(cells: Sequence[Cell]) -> Iterator[tuple[str, str, str, dict[str, Rounds]]]:
    """`where`, shape, load, and the rounds of each policy, in the order of the cells."""
    found: dict[tuple[str, str, float], dict[str, Rounds]] = {}
    for cell in cells:
        by_policy = found.setdefault((cell.where, cell.shape, cell.load), {})
        by_policy.setdefault(cell.policy, {})[cell.number] = dict(cell.row)
    for (where, shape, load), by_policy in sorted(found.items(), key=lambda one: one[0][2]):
        yield where, shape, f"{load:g}", by_policy


def summarise(cells: Sequence[Cell]) -> dict[str, Any]:
    """`live` and `simulated` numbers by shape, load and policy, and `compared` ones of the live cells."""
    found: dict[str, Any] = {"live": {}, "simulated": {}, "compared": {}}
    for where, shape, load, by_policy in grouped(cells):
        add_fairness(by_policy)
        limit = best_admission(by_policy)
        if limit is not None:
            by_policy[ADMISSION] = by_policy[f"{ADMISSION}-{limit}"]
        rows = {policy: _spreads(rounds) for policy, rounds in by_policy.items()}
        if limit is not None:
            rows[ADMISSION]["limit"] = limit
        found[where].setdefault(shape, {})[load] = rows
        if where == "live" and "budget" in by_policy:
            found["compared"].setdefault(shape, {})[load] = compared(by_policy)
    if jumps := after_jumps(cells):
        found["recovery"] = jumps
    return found


def after_jumps(cells: Sequence[Cell]) -> dict[str, Any]:
    """Predictions of the live router by the seconds since a jump of the load, all rounds together, by load and `all`."""
    by_load: dict[str, list[Sequence[float]]] = {}
    for cell in cells:
        if cell.where == "live" and cell.policy == "budget" and cell.requests:
            for load in (f"{cell.load:g}", "all"):
                by_load.setdefault(load, []).extend(cell.requests)
    return {load: since_jump(requests, SQUARE_S) for load, requests in by_load.items()}


def best_admission(by_policy: Mapping[str, Rounds]) -> int | None:
    """The limit of requests in flight with which the admission met most budgets, in hindsight; None if there was no admission."""
    attainment = {
        int(policy.rpartition("-")[2]): _middle(rounds)
        for policy, rounds in by_policy.items()
        if policy.startswith(f"{ADMISSION}-")
    }
    return max(attainment, key=lambda limit: (attainment[limit], -limit)) if attainment else None


def add_fairness(by_policy: Mapping[str, Rounds]) -> None:
    """Add `KIND.of_fair` to every row: work within budget, over the kind's max-min fair share of what the machine can do.

    The capacity of a round is the most work within budget of plain `full` or an admission before it. Rows without kinds, and
    rounds without a capacity, get none.
    """
    for number in {number for rounds in by_policy.values() for number in rounds}:
        rows = {policy: rounds[number] for policy, rounds in by_policy.items() if number in rounds}
        capacity = max((_work_s(row) for policy, row in rows.items() if policy.startswith(CAPACITY)), default=0.0)
        for row in rows.values():
            offered = {key.removesuffix(".offered_s"): row[key] for key in row if key.endswith(".offered_s")}
            fair = {kind: share for kind, share in max_min(offered, capacity).items() if share > 0}
            row |= {f"{kind}.of_fair": row[f"{kind}.kept_s"] / share for kind, share in fair.items()}


def compared(by_policy: Mapping[str, Rounds]) -> dict[str, Any]:
    """How `budget` compares, by the difference or ratio of the requests within budget in the same round.

    `over_best`: less the best baseline, `best`; `over_full`, `over_admission`: ratios; `scheduling`: what the router gains over
    `full` with `full` alone; `shifting`: what it gains by the other variants.
    """
    ours: Rounds = by_policy["budget"]
    found: dict[str, Any] = {}
    baselines = [policy for policy in by_policy if policy not in OURS]
    if baselines:
        best = max(baselines, key=lambda policy: _middle(by_policy[policy]))
        found["best"] = best.partition("-")[0] if best.startswith(f"{ADMISSION}-") else best
        found["over_best"] = _differences(ours, by_policy[best])
    for baseline in ("full", ADMISSION):
        if baseline in by_policy:
            found[f"over_{baseline}"] = _ratios(ours, by_policy[baseline])
    if "budget-full" in by_policy:
        found["shifting"] = _differences(ours, by_policy["budget-full"])
        if "full" in by_policy:
            found["scheduling"] = _differences(by_policy["budget-full"], by_policy["full"])
    return {name: value for name, value in found.items() if value is not None}


def _differences(ours: Rounds, others: Rounds) -> dict[str, float | int] | None:
    pairs = [(ours[number]["attainment"], others[number]["attainment"]) for number in ours if number in others]
    return spread([own - other for own, other in pairs], 4) if pairs else None


def _ratios(ours: Rounds, others: Rounds) -> dict[str, float | int] | None:
    """Ratios of requests within budget; a baseline with none counts as one with one."""
    pairs = [
        (ours[number]["attainment"], max(others[number]["attainment"], 1 / others[number]["requests"]))
        for number in ours
        if number in others and others[number]["requests"]
    ]
    return spread([own / other for own, other in pairs], 4) if pairs else None


def _work_s(row: Row) -> float:
    return sum(value for key, value in row.items() if key.endswith(".kept_s"))


def _middle(rounds: Rounds) -> float:
    return statistics.median(row["attainment"] for row in rounds.values())


def _spreads(rounds: Rounds) -> dict[str, Any]:
    rows = list(rounds.values())
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: spread([row[name] for row in rows if name in row], 4) for name in names}
