"""Plots of the routing benchmarks beside goodput's: ablation, recovery after a jump, goodput as vLLM's own client counts it."""

from pathlib import Path

from benchmarks.reporting.cells import Result
from benchmarks.reporting.plots import new_figure, save_figure


def ablation(result: Result) -> Path:
    """What each part of the router adds to the share kept, by load; a bar is the median of the seeds, a line all of them."""
    loads = [f"{load:g}" for load in result["loads"]]
    figure, axes = new_figure(1, len(loads))
    parts = list(result["gain"])
    for ax, load in zip(axes, loads, strict=True):
        rows = [result["gain"][part][load]["attainment"] for part in parts]
        middle = [row["median"] for row in rows]
        errors = [[row["median"] - row["min"] for row in rows], [row["max"] - row["median"] for row in rows]]
        ax.barh(parts, middle, xerr=errors, capsize=2, color="#4c72b0")
        ax.axvline(0, color="grey", linewidth=0.8)
        ax.invert_yaxis()
        ax.set_title(f"load {load}: share kept more with it", fontsize=10)
        if ax is not axes[0]:
            ax.set_yticklabels([])
    return save_figure(figure, "ablation")
