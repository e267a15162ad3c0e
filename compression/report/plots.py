"""The report's plots: quality against one axis, the Pareto front drawn, dominated variants hollow."""

from pathlib import Path
from typing import Literal

from compression.report.page import Axis, Group, quality_ci95

GREY, COLOR = "#808890", "#3b82f6"  # both legible on white and on black: the background is transparent


class PlotsMissing(Exception):
    """matplotlib is not installed."""


def plot(group: Group, axis: Axis, file: Path) -> None:
    """Draw quality over `axis` into the PNG `file`.

    Raises:
        PlotsMissing: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotsMissing(
            "the plots need matplotlib, which this environment does not have: install it ('pip install matplotlib') or "
            "leave them out with --no-plots"
        ) from error
    figure = Figure(figsize=(5.2, 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    ax = figure.add_subplot()
    ax.patch.set_alpha(0)
    by = group.dominators([axis])
    points = [(axis.value(row), row.quality.quality) for row in group.rows]
    front = sorted(point for point, other in zip(points, by, strict=True) if other is None)
    # from one point of the front to the next, nothing between is had: a staircase, not a line
    where: Literal["post", "pre"] = "post" if axis.sign < 0 else "pre"
    ax.step([x for x, _ in front], [y for _, y in front], where=where, color=COLOR, linewidth=1.2, alpha=0.6, zorder=1)
    for row, (x, y), other in zip(group.rows, points, by, strict=True):
        color = COLOR if other is None else GREY
        if interval := quality_ci95(row.quality):
            ax.plot([x, x], interval, color=color, linewidth=1, zorder=2)
        face = color if other is None else "none"
        ax.scatter([x], [y], s=48, facecolors=face, edgecolors=color, linewidths=1.4, zorder=3)
        ax.annotate(
            row.label, (x, y), textcoords="offset points", xytext=(0, -15), ha="center", fontsize=8, color=color,
            parse_math=False,
        )  # fmt: skip
    ax.set_xlabel(f"{axis.title} ({'more' if axis.sign > 0 else 'less'} is better)", color=GREY)
    ax.set_ylabel("quality (full = 1)", color=GREY)
    ax.tick_params(colors=GREY)
    ax.grid(alpha=0.2, color=GREY)
    ax.margins(x=0.18, y=0.15)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(GREY)
    scratch = file.with_suffix(".tmp")
    figure.savefig(scratch, format="png", dpi=120, metadata={"Software": None})
    scratch.replace(file)
