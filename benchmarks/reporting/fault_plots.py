"""Plots of runs under faults."""

from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.reporting.plots import SYSTEM_NAMES, Result, new_figure, save_figure

_OUTCOMES = {"refused": "#8172b3", "interrupted": "#dd8452", "truncated": "#c44e52", "failed": "#937860"}


def faults(result: Result) -> Path:
    """Requests lost, longest gap and recovery time, by kind of fault and system."""
    figure, axes = new_figure(1, 3)
    figure.set_size_inches(15, 5)
    systems = result["systems"]
    names = list(dict.fromkeys(name for row in systems.values() for name in row["faults"]))
    height = 0.8 / len(systems)
    for i, (system, row) in enumerate(systems.items()):
        at = [position + i * height for position, name in enumerate(names) if name in row["faults"]]
        own = [row["faults"][name] for name in names if name in row["faults"]]
        left = [0.0] * len(own)
        for outcome, color in _OUTCOMES.items():
            shares = [one["outcomes"][outcome] / max(one["requests"], 1) for one in own]
            axes[0].barh(at, shares, height, left=left, color=color, label=outcome if i == 0 else None)
            left = [before + share for before, share in zip(left, shares, strict=True)]
        label = SYSTEM_NAMES[system].replace("\n", " ")
        axes[1].barh(at, [one["longest_gap_s"]["p95"] or 0.0 for one in own], height, color=f"C{i}", label=label)
        times = [one["recovery"].get("healthy_s", {}).get("median", 0.0) for one in own]
        first = [one["recovery"].get("first_success_s", {}).get("median", 0.0) for one in own]
        axes[2].barh(at, times, height, color=f"C{i}", alpha=0.4)
        axes[2].barh(at, first, height, color=f"C{i}", label=label)
    titles = (
        "share of requests lost",
        "longest gap in a stream, p95, s",
        "recovery, s: first answer, and (pale) all well",
    )
    for ax, title in zip(axes, titles, strict=True):
        ax.set_yticks([position + 0.4 - height / 2 for position in range(len(names))], names)
        ax.invert_yaxis()
        ax.set_title(title, fontsize=10)
    axes[0].legend(fontsize=7)
    axes[1].legend(fontsize=7)
    return save_figure(figure, "faults")


def soak(result: Result) -> Path:
    """Memory of gateway and supervisor over time."""
    figure, ax = new_figure(1, 1)
    for i, role in enumerate(("gateway", "supervisor")):
        points = [(sample[0], sample[1 + i]) for sample in result["samples"] if sample[1 + i] is not None]
        ax.plot([at for at, _ in points], [mb for _, mb in points], linewidth=1, label=role)
    ax.set_ylim(bottom=0)
    ax.set_xlabel(f"hours; {result['requests']} requests, {result['lost']} lost, {result['faults']} faults")
    ax.set_title("resident memory, MB", fontsize=10)
    ax.legend(fontsize=8)
    return save_figure(figure, "faults-soak")


def overload(result: Result) -> Path:
    """Every measure over time; the overload is shaded."""
    names = list(result["bounds"])
    figure, axes = new_figure(1, len(names))
    started = result["began_s"]
    for ax, name in zip([axes] if len(names) == 1 else axes, names, strict=True):
        points = [(one["at_s"] - started, one[name]) for one in result["samples"] if name in one]
        values = [sum(value.values()) if isinstance(value, Mapping) else value for _, value in points]
        ax.plot([at for at, _ in points], values, linewidth=1)
        ax.axvspan(0, result["ended_s"] - started, color="#4c72b0", alpha=0.1)
        ax.set_ylim(bottom=0)
        ax.set_title(name.replace("_", " "), fontsize=10)
        ax.set_xlabel("seconds")
    return save_figure(figure, "faults-overload")


PLOTS: Mapping[str, Callable[[Result], Path]] = {"faults": faults, "faults-soak": soak, "faults-overload": overload}
