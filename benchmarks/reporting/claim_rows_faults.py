"""Figures and aims of runs under faults: the schedule of faults, the soak, the overload."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.reporting.cells import Result
from benchmarks.reporting.fault_tables import offered_factor
from benchmarks.reporting.figures import Figure, Figures, figure

AREA = "resilience"
_RECOVERY = {"first_success_s": "until the first new request succeeds", "healthy_s": "until all is well"}


def faults(result: Result) -> Iterator[Figure]:
    """Every kind of fault, by system; the aims are those of the platform."""
    for system, row in result["systems"].items():
        yield from _numbers(f"{system}.undisturbed", f"{system} without faults", row["undisturbed"], None)
        yield from _numbers(f"{system}.all", f"{system}, all faults", row["all"], result["aims"] if system == "gearbox" else None)  # fmt: skip
        for name, own in row["faults"].items():
            yield from _numbers(f"{system}.{name}", f"{system}, fault '{name}'", own, None)


def _numbers(id: str, of: str, row: Mapping[str, Any], aims: Mapping[str, float] | None) -> Iterator[Figure]:
    def aim(name: str) -> str | None:
        return f"== {aims[name]:g}" if aims else None

    tokens = row["tokens"]
    yield figure(f"{id}.requests", AREA, f"{of}: requests", row["requests"])
    yield figure(f"{id}.lost", AREA, f"{of}: requests without a whole answer", row["lost"], aim=aim("lost"))
    for outcome in ("refused", "interrupted", "failed"):
        yield figure(f"{id}.{outcome}", AREA, f"{of}: requests {outcome}", row["outcomes"][outcome])
    yield figure(f"{id}.truncated", AREA, f"{of}: streams that ended early without an error event", row["silently_truncated"], aim=aim("silently_truncated"))  # fmt: skip
    for name in ("lost", "doubled"):
        yield figure(f"{id}.tokens.{name}", AREA, f"{of}: tokens {name} in {tokens['checked']} streams", tokens[name], aim=aim("tokens"))  # fmt: skip
    for name in ("migrated", "diverged"):
        yield figure(f"{id}.streams.{name}", AREA, f"{of}: streams that {name}", tokens[name])
    for share in ("p50", "p95"):
        if (gap := row["longest_gap_s"][share]) is not None:
            yield figure(f"{id}.gap_{share}", AREA, f"{of}: longest gap in a stream, {share}", gap, "s")
    if (seams := row.get("seams")) and seams["streams"]:
        of_streams = f"of {seams['streams']} streams that migrated"
        for share in ("p50", "p95"):
            yield figure(f"{id}.seam_{share}", AREA, f"{of}: gap {of_streams}, {share}", seams[share], "s")
        most = f"<= {aims['over_prefix_s']:g}" if aims and "over_prefix_s" in aims else None
        words = f"{of}: gap {of_streams}, less the time to the first token after the same prompt, p95"
        yield figure(f"{id}.seam_over_prefix_p95", AREA, words, seams["over_prefix_p95"], "s", aim=most)
    for name, words in _RECOVERY.items():
        times = row["recovery"].get(name, {})
        if never := times.get("never"):
            yield figure(f"{id}.{name}.never", AREA, f"{of}: faults without recovery in time, {words}", never)
        if "median" in times:
            yield figure(f"{id}.{name}", AREA, f"{of}: {words}", times, "s")
            yield figure(f"{id}.{name}.max", AREA, f"{of}: {words}, longest", times["max"], "s")


def soak(result: Result) -> Iterator[Figure]:
    """A long run at a constant load with a fault in each interval."""
    of = f"soak of {result['hours']:.1f} h at load {result['load']:g} with {result['faults']} faults"
    yield from _numbers("all", of, result, result["aims"])
    for name, row in result["by_fault"].items():
        yield from _numbers(name, f"{of}, fault '{name}'", row, None)
    for role, memory in result["memory"].items():
        if memory is not None:
            value = {"mean": memory["mb_per_h"], "ci95": memory["ci95"]}
            yield figure(f"memory.{role}", AREA, f"{of}: growth of the {role}'s memory", value, "MB/h")


def overload(result: Result) -> Iterator[Figure]:
    """Several times what saturates the platform."""
    of = f"{offered_factor(result):.1f} times saturation for {result['seconds']:.0f} s"
    requests = sum(result["requests"].values())
    yield figure("requests", AREA, f"{of}: requests", requests)
    for outcome, count in result["requests"].items():
        yield figure(f"requests.{outcome}", AREA, f"{of}: requests {outcome}", count)
    for name, bound in result["bounds"].items():
        yield figure(f"{name}.max", AREA, f"{of}: largest {name}", bound["max"])
        yield figure(f"{name}.growth", AREA, f"{of}: {name} in the last third over the second", bound["growth"], "times", aim=f"<= {result['bounded']:g}")  # fmt: skip
    yield figure("recovered", AREA, f"{of}: then until an answer is as fast as before", result["recovered_s"], "s", aim=f"<= {result['aims']['recovery_s']:g}")  # fmt: skip


FIGURES: Mapping[str, Figures] = {"faults": faults, "faults-soak": soak, "faults-overload": overload}
