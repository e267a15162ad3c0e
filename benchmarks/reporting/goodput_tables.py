"""Tables of the routing benchmarks beside the simulator's policies: goodput, ablation, recovery, the simulator's error."""

from benchmarks.reporting.cells import Result, machine_line, policy_cell, table
from benchmarks.reporting.claim_rows_goodput import SECONDS


def goodput_shapes(result: Result) -> str:
    """Every policy at every load, a table for each shape of arrivals."""
    size, parts = result["size"], []
    for shape, by_load in result["live"].items():
        policies = dict.fromkeys(policy for row in by_load.values() for policy in row)
        rows = [
            [policy, *(policy_cell(row[policy]) if policy in row else "" for row in by_load.values())]
            for policy in policies
            if not policy.startswith("admission-")
        ]
        parts.append(table([shape, *(f"load {load}" for load in by_load)], rows))
    note = (
        f"Within budget / answered late / mean quality of the answers. Load 1 is {result['full_per_s']:.2f} requests a second, "
        "whose work `full` does alone at its best batch, by its profile. `admission` has the limit in flight with the most requests within budget at each load. "
        f"Medians of {size['rounds_measured']} rounds of {size['seconds']:.0f} s."
    )
    return "\n\n".join([*parts, f"{note}\n{machine_line(result)}"])


def ablation(result: Result) -> str:
    """What each part of the router adds to the requests within budget, of all and of the kind with the lowest share."""
    loads = [f"{load:g}" for load in result["loads"]]

    def points(row: Result) -> str:
        middle, low, high = (f"{round(100 * row[key]):+d}" for key in ("median", "min", "max"))
        return f"{middle} [{low}, {high}]"

    whole = result["routers"]["whole router"]
    shares = [
        f"{whole[load]['attainment']['median']:.0%} / {whole[load]['worst_kind']['median']:.0%}" for load in loads
    ]
    rows = [["whole router: within budget", *shares]]
    for part, by_load in result["gain"].items():
        rows.append([part, *(f"{points(by_load[load]['attainment'])} / {points(by_load[load]['worst_kind'])}" for load in loads)])  # fmt: skip
    note = (
        "Requests within budget with the whole router less those without the part, with the same seed, percentage points: of all / "
        f"of the kind with the lowest share. Means over {', '.join(result['shapes'])} arrivals of {result['seconds']:.0f} s; medians "
        f"[smallest, largest] of {result['seeds']} seeds."
    )
    return f"{table(['part', *(f'load {load}' for load in loads)], rows)}\n\n{note}\n{machine_line(result)}"


def recovery(result: Result, live: Result) -> str:
    """Coverage and error of the predicted times by the second since a jump of the load."""
    sources = {f"simulated, {result['low']:g} to {result['high']:g}": result["simulated"]}
    sources |= {f"live, square, load {load}": jumps for load, jumps in live.get("recovery", {}).items()}
    rows = []
    for name, by_time in sources.items():
        for time, after_jump in by_time.items():
            by_second = {row["second"]: row for row in after_jump["seconds"]}
            cells = [
                f"{row['covered']:.0%} / {row['error']:.0%}" if (row := by_second.get(second)) else ""
                for second in SECONDS
            ]
            back = "never" if after_jump["back_s"] is None else f"{after_jump['back_s']} s"
            rows.append([f"{name}: {time.upper()}", *cells, back])
    note = (
        "Requests that arrive in each second around the jump: share within the predicted 95% bound / median error. The last column "
        f"is the first second from which three together are covered 93 to 98%. {result['periods'] * result['seeds']} jumps."
    )
    return f"{table(['', *(f'{second} s' for second in SECONDS), 'back'], rows)}\n\n{note}\n{machine_line(result)}"


def simulator_error(result: Result) -> str:
    """The simulator against the live platform, by shape, policy and load."""
    words = {
        "attainment": "within budget", "late": "late", "refused": "refused", "ttft_p50_ms": "TTFT p50", "tpot_p50_ms": "TPOT p50"
    }  # fmt: skip
    parts = []
    for shape, by_load in result["errors"].items():
        rows = []
        for policy in dict.fromkeys(policy for by_policy in by_load.values() for policy in by_policy):
            for metric, word in words.items():
                found = [by_policy.get(policy, {}).get(metric) for by_policy in by_load.values()]
                if any(found):
                    rows.append(
                        [f"{policy}: {word}", *(_error(compared, metric.endswith("_ms")) for compared in found)]
                    )
        parts.append(table([shape, *(f"load {load}" for load in by_load)], rows))
    note = (
        "Live → simulated, medians, and in brackets the error: the difference in percentage points, of times the ratio less one. The "
        f"same profiles, traces and {result['rounds']} rounds; live of {result['live_measured'][:10]}."
    )
    return "\n\n".join([*parts, f"{note}\n{machine_line(result)}"])


def _error(compared: Result | None, is_time: bool) -> str:
    if compared is None:
        return ""
    if is_time:
        return f"{compared['live']:.0f} → {compared['simulated']:.0f} ms ({round(100 * compared['error']):+d}%)"
    return f"{compared['live']:.0%} → {compared['simulated']:.0%} ({round(100 * compared['error']):+d})"
