"""The table of the live routing benchmark."""

from benchmarks.reporting.cells import Result, machine_line, policy_cell, table


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
        "whose work `full` does alone at its best batch, by its profile. `admission` is the limit in flight that keeps most at each load. "
        f"Medians of {size['rounds_measured']} rounds of {size['seconds']:.0f} s."
    )
    return "\n\n".join([*parts, f"{note}\n{machine_line(result)}"])
