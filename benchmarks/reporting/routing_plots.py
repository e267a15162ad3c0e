"""Plots of the routing benchmarks beside goodput's: ablation, recovery after a jump, goodput as vLLM's own client counts it."""

from pathlib import Path

from benchmarks.reporting.cells import Result
from benchmarks.reporting.plots import new_figure, save_figure

COVERED = (0.93, 0.98)  # aim of the share within the predicted bounds


def ablation(result: Result, name: str) -> Path:
    """What each part of the router adds to the share of requests within budget, by load; a bar is the median of the seeds, a line all of them."""
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
        ax.set_title(f"load {load}: share within budget gained by it", fontsize=10)
        if ax is not axes[0]:
            ax.set_yticklabels([])
    return save_figure(figure, name)


def recovery(result: Result, live: Result | None) -> Path:
    """Coverage and error of the predicted TTFT and TPOT by the second since a jump of the load; live ones of all loads together."""
    sources = {f"simulated, load {result['low']:g} to {result['high']:g}": result["simulated"]}
    if live and "recovery" in live:
        sources["live, all square waves"] = live["recovery"]["all"]
    figure, axes = new_figure(2, 2)
    for column, time in enumerate(("ttft", "tpot")):
        for ax, metric in zip(axes[:, column], ("covered", "error"), strict=True):
            for name, by_time in sources.items():
                rows = by_time[time]["seconds"]
                ax.plot([row["second"] for row in rows], [row[metric] for row in rows], "o-", markersize=3, label=name)
            ax.axvline(0, color="grey", linewidth=0.8)
        axes[0, column].axhspan(*COVERED, color="grey", alpha=0.2)
        axes[0, column].set_title(f"{time.upper()}: share within the 95% bound", fontsize=10)
        axes[1, column].set_title(f"{time.upper()}: median error", fontsize=10)
        axes[1, column].set_ylim(bottom=0)
        axes[1, column].set_xlabel("seconds since the jump", fontsize=9)
    axes[0, 0].legend(fontsize=7)
    return save_figure(figure, "recovery")


def bench_serve(result: Result, name: str) -> Path:
    """Share within the limits and goodput over load, of the gateway and of the bare engine."""
    figure, axes = new_figure(1, 2)
    titles = {"kept": "share of the requests within the limits", "goodput_per_s": "goodput, requests/s"}
    for ax, (metric, title) in zip(axes, titles.items(), strict=True):
        for system, by_load in result["systems"].items():
            rows = [row[metric] for row in by_load.values()]
            at = [float(load) for load in by_load]
            ax.plot(at, [row["median"] for row in rows], "o-", markersize=4, label=system)
            ax.fill_between(at, [row["min"] for row in rows], [row["max"] for row in rows], alpha=0.15)
        ax.set_title(title, fontsize=10)
        ax.set_ylim(bottom=0)
        ax.set_xlabel(f"load, 1 = {result['full_per_s']:.2f} requests a second", fontsize=9)
    axes[0].legend(fontsize=8)
    return save_figure(figure, name)
