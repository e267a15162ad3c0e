"""Render a Grafana dashboard as one image from Prometheus queries, without Grafana."""

import argparse
import json
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from PIL import Image

from helm.dashboards.queries import EVERYTHING, Query, Variables, queries

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CAPTION = "queries of the dashboard's panels, plotted with matplotlib from a Prometheus; not a Grafana screenshot"
POINTS = 240  # per line
_COLOURS = 64  # of the image: more make a larger file, not a clearer plot
FINE = 10  # subdivisions of a grid row of the dashboard: room below a panel for its axis and the next panel's title
UNITS = {
    "s": "s",
    "percentunit": "share",
    "currencyUSD": "USD",
    "reqps": "1/s",
    "bytes": "bytes",
    "short": "",
    "none": "",
}
Series = Mapping[str, Any]  # as in Prometheus' HTTP API: metric, and values or value


def plot_dashboard(
    dashboard_json_path: Path,
    prometheus_url: str,
    out_png: Path,
    variables: Variables = EVERYTHING,
    minutes: float = 15,
    *,
    rate_interval: str = "1m",
    end: float | None = None,
) -> list[str]:
    """Run every panel's queries over the last `minutes`, and draw the results into `out_png`.

    Args:
        variables: values of the dashboard's variables, by name.
        rate_interval: for `$__rate_interval`; at least four scrape intervals.
        end: seconds since the epoch; now if None.

    Returns:
        the titles of panels that have no data.

    Raises:
        httpx.HTTPStatusError: Prometheus rejects a query.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    seconds = minutes * 60
    until = time.time() if end is None else end
    all_queries = list(queries(dashboard_json_path, variables, rate_interval=rate_interval, shown=f"{round(seconds)}s"))
    empty = []
    with httpx.Client(base_url=prometheus_url, timeout=30) as client:
        answers = [(query, answer(client, query, until - seconds, until)) for query in all_queries]
    by_panel = {title: list(of) for title, of in groupby(answers, key=lambda pair: pair[0].panel)}
    document = json.loads(dashboard_json_path.read_text())
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in document["panels"])
    figure = plt.figure(figsize=(20, 0.42 * height + 1))
    cells = figure.add_gridspec(
        height * FINE, 24, hspace=0, wspace=3, left=0.04, right=0.98, bottom=0.02, top=1 - 1.1 / (0.42 * height + 1)
    )
    for panel in document["panels"]:
        x, y, w, h = (panel["gridPos"][key] for key in "xywh")
        ax = figure.add_subplot(cells[y * FINE + FINE // 2 : (y + h) * FINE - (FINE if h > 1 else 0), x : x + w])
        if panel["type"] == "row":
            _note(ax, panel["title"], size=13, x=0)
            continue
        of = by_panel[panel["title"]]
        ax.set_title(panel["title"], fontsize=10, loc="left")
        if any(series for _, series in of):
            _DRAWN[panel["type"]](ax, of)
        else:
            empty.append(panel["title"])
            _note(ax, "no data")
    title = f"{document['title']}, {minutes:g} minutes\n{CAPTION}"
    figure.suptitle(title, fontsize=13, y=1 - 0.2 / (0.42 * height + 1), va="top")
    figure.savefig(out_png, dpi=80)
    Image.open(out_png).convert("RGB").quantize(_COLOURS).save(out_png, optimize=True)
    plt.close(figure)
    return empty


def answer(client: httpx.Client, query: Query, start: float, end: float) -> list[Series]:
    """Prometheus' result of one query: an instant query, or a range query from `start`."""
    if query.instant:
        reply = client.get("/api/v1/query", params={"query": query.expr, "time": end})
    else:
        step = max((end - start) / POINTS, 1)
        params: dict[str, str | float] = {"query": query.expr, "start": start, "end": end, "step": step}
        reply = client.get("/api/v1/query_range", params=params)
    reply.raise_for_status()
    series: list[Series] = reply.json()["data"]["result"]
    return series


def _lines(ax: "Axes", of: Sequence[tuple[Query, list[Series]]]) -> None:
    drawn = 0
    for query, series in of:
        for one in series:
            at, values = zip(*((float(t), float(v)) for t, v in one["values"]), strict=True)
            ax.plot([(t - at[-1]) / 60 for t in at], values, linewidth=1.2, label=_legend(query, one["metric"]))
            drawn += 1
    if (low := ax.dataLim.ymin) >= 0:
        ax.set_ylim(0, max(ax.dataLim.ymax, low) * 1.08 or 1)
    ax.set_ylabel(UNITS[of[0][0].unit], fontsize=8)
    ax.set_xlabel("minutes", fontsize=8)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=6, ncols=1 + drawn // 7, loc="best")


def _number(ax: "Axes", of: Sequence[tuple[Query, list[Series]]]) -> None:
    [(query, series)] = of
    _note(ax, " ".join(_written(float(one["value"][1]), query.unit) for one in series), size=28)


def _table(ax: "Axes", of: Sequence[tuple[Query, list[Series]]]) -> None:
    """Table rows by the labels common to all queries, as Grafana merges them."""
    key = _shared_labels(of)
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for query, series in of:
        for one in series:
            row = rows.setdefault(tuple(one["metric"].get(label, "") for label in key), {})
            if query.column:
                row[query.column] = _written(float(one["value"][1]), query.unit)
            else:  # queried for its labels
                row |= {label: text for label, text in one["metric"].items() if label not in key}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = [[*labels, *(row.get(column, "-") for column in columns)] for labels, row in sorted(rows.items())]
    turned = list(zip([*key, *columns], *cells, strict=True))  # a panel is narrow: variants side by side
    ax.axis("off")
    drawn = ax.table(turned, loc="upper center", cellLoc="left")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(8)


def _scatter(ax: "Axes", of: Sequence[tuple[Query, list[Series]]]) -> None:
    key = _shared_labels(of)
    points: dict[tuple[str, ...], dict[str, float]] = {}
    for query, series in of:
        for one in series:
            points.setdefault(tuple(one["metric"][label] for label in key), {})[query.column] = float(one["value"][1])
    x, y = (query.column for query, _ in of)
    for labels, point in sorted(points.items()):
        if x in point and y in point:
            ax.scatter(point[x], point[y], s=60, label=":".join(labels))
    ax.set_xlabel(x, fontsize=8)
    ax.set_ylabel(y, fontsize=8)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7)


_DRAWN = {"timeseries": _lines, "stat": _number, "table": _table, "xychart": _scatter}


def _shared_labels(of: Iterable[tuple[Query, list[Series]]]) -> list[str]:
    keys = [set(one["metric"]) for _, series in of for one in series]
    return sorted(set.intersection(*keys))


def _legend(query: Query, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), query.legend)


def _written(value: float, unit: str) -> str:
    if not math.isfinite(value):
        return "-"
    if unit == "percentunit":
        return f"{value:.1%}"
    return f"{value:.4g} {UNITS[unit]}".strip()


def _note(ax: "Axes", text: str, size: int = 12, x: float = 0.5) -> None:
    ax.axis("off")
    where = "center" if x else "left"
    ax.text(x, 0.5, text, ha=where, va="center", fontsize=size, color="#555", transform=ax.transAxes)


def main() -> None:
    """Draw a dashboard from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dashboard", type=Path)
    parser.add_argument("prometheus", help="its URL")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--rate-interval", default="1m")
    args = parser.parse_args()
    empty = plot_dashboard(
        args.dashboard, args.prometheus, args.picture, minutes=args.minutes, rate_interval=args.rate_interval
    )
    print(*(f"no data: {title}" for title in empty), sep="\n")


if __name__ == "__main__":
    main()
