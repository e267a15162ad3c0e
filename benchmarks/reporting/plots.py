"""Plots of the results, one function per result; saved beside the pages that show them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.reporting.results import IMAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Result = Mapping[str, Any]
COLORS = {"full": "#4c72b0", "int8": "#dd8452", "distilled": "#55a868"}
SYSTEM_NAMES = {
    "bare": "bare server",
    "stock": "Ray Serve LLM",
    "gearbox": "Gearbox",
    "litellm": "LiteLLM",
    "stock-python-proxy": "Ray Serve LLM,\nPython proxy",
    "gearbox-python-proxy": "Gearbox,\nPython proxy",
    "gearbox-over-handle": "Gearbox,\nover a handle",
}

OBSERVING_NAMES = {
    "off": "nothing",
    "metrics": "metrics",
    "log": "metrics,\nlog line",
    "traces": "metrics, log line,\ntraces",
}


def variants(result: Result) -> Path:
    """Quality against speed and against cost, one point per variant, error bars over the repeats."""
    figure, axes = new_figure(1, 3)
    for ax, speed, title in (
        (axes[0], "decode_1", "one stream, tokens/s"),
        (axes[1], "decode_32", "32 streams together, tokens/s"),
    ):
        for name, row in result["variants"].items():
            middle, low, high = (row[speed][key] for key in ("median", "min", "max"))
            _point(ax, name, middle, row["quality"], xerr=[[middle - low], [high - middle]])
        ax.set_xlabel(title)
    for name, row in result["variants"].items():
        _point(axes[2], name, row["usd_per_million"]["output"], row["quality"])
    axes[2].set_xlabel("USD per million output tokens")
    axes[0].set_ylabel("quality (full = 1)")
    for ax in axes:
        ax.set_ylim(0, 1.08)
        ax.margins(x=0.2)
    return save_figure(figure, "variants")


def overhead_engine(result: Result) -> Path:
    """Throughput relative to the bare server, and added TTFT, by number of streams."""
    figure, (throughput, ttft) = new_figure(1, 2)
    systems = result["systems"]
    for i, (name, points) in enumerate(systems.items()):
        at = [position + i * 0.8 / len(systems) for position in range(len(points))]
        for ax, key in ((throughput, "ratio"), (ttft, "added_ttft_ms")):
            if name == "bare" and ax is ttft:
                continue
            middle = [point[key]["median"] for point in points.values()]
            low = [point[key]["median"] - point[key]["min"] for point in points.values()]
            high = [point[key]["max"] - point[key]["median"] for point in points.values()]
            label = SYSTEM_NAMES[name].replace("\n", " ")
            ax.bar(at, middle, 0.8 / len(systems), yerr=[low, high], capsize=2, label=label, color=f"C{i}")
    for ax, title in ((throughput, "tokens/s, bare server = 1"), (ttft, "added TTFT p50, ms")):
        ax.set_xticks([position + 0.3 for position in range(len(result["shape"]))])
        ax.set_xticklabels([f"{point['streams']} streams" for point in result["shape"]])
        ax.set_title(title, fontsize=10)
    throughput.axhline(result["aims"]["tokens_per_s_ratio_at_32"], color="grey", linewidth=0.8, linestyle="--")
    ttft.axhline(result["aims"]["added_ttft_ms"], color="grey", linewidth=0.8, linestyle="--")
    throughput.legend(fontsize=8, loc="lower right")
    return save_figure(figure, "overhead-engine")


def overhead_instant(result: Result) -> Path:
    """CPU time of every process on the request path, stacked, for a unary request and for one streamed token."""
    figure, axes = new_figure(1, 2)
    for ax, point, title, aim in (
        (axes[0], "unary-32", "CPU per unary request, µs", "unary"),
        (axes[1], "scatter", "CPU per streamed token (one each 50 ms), µs", "token"),
    ):
        names = list(result["systems"])
        roles = list(dict.fromkeys(role for name in names for role in _roles(result, name, point)))
        below = [0.0] * len(names)
        for role in roles:
            height = [_roles(result, name, point).get(role, 0.0) for name in names]
            ax.bar([SYSTEM_NAMES[name] for name in names], height, bottom=below, label=role)
            below = [low + more for low, more in zip(below, height, strict=True)]
        ax.axhline(result["aims_us"][aim], color="grey", linewidth=0.8, linestyle="--")
        ax.set_title(title, fontsize=10)
        ax.tick_params(axis="x", labelsize=7)
    axes[0].legend(fontsize=7)
    return save_figure(figure, "overhead-instant")


def observing(result: Result) -> Path:
    """Overhead of each kind of telemetry over a gateway with none: CPU per request and per token, TTFT."""
    figure, axes = new_figure(1, 3)
    systems = {name: system for name, system in result["systems"].items() if name != "off"}
    first = {name: system["points"]["first"]["added_p50_ms"] for name, system in systems.items()}
    for ax, title, rows, scale in (
        (axes[0], "CPU added to a request, µs", {name: system["request_us"] for name, system in systems.items()}, 1),
        (
            axes[1],
            "CPU added to a streamed token, µs",
            {name: system["token_us"] for name, system in systems.items()},
            1,
        ),
        (axes[2], "added to the first token's time, µs", first, 1000),
    ):
        for i, (name, row) in enumerate(rows.items()):
            middle, low, high = (row[key] * scale for key in ("median", "min", "max"))
            ax.bar([OBSERVING_NAMES[name]], [middle], yerr=[[middle - low], [high - middle]], capsize=3, color=f"C{i}")
        ax.axhline(0, color="grey", linewidth=0.8)
        ax.set_title(title, fontsize=10)
        ax.tick_params(axis="x", labelsize=8)
    return save_figure(figure, "observing")


def distillation(result: Result) -> Path:
    """Distance of the same student to `full` with each loss: a point for every seed, a bar at the median."""
    figure, axes = new_figure(1, 3)
    titles = {"kl_to_full": "KL to full, nats", "top1_agreement": "top-1 agreement", "perplexity": "perplexity"}
    names = list(result["settings"])
    for ax, (metric, title) in zip(axes, titles.items(), strict=True):
        for i, name in enumerate(names):
            row = result["settings"][name]
            ax.plot([i] * len(row["runs"]), [run[metric] for run in row["runs"]], "o", color=f"C{i}", alpha=0.7)
            ax.hlines(row[metric]["median"], i - 0.3, i + 0.3, color=f"C{i}", linewidth=2)
        ax.set_xticks(range(len(names)))
        ax.set_xticklabels(names, rotation=30, fontsize=8)
        ax.set_title(title, fontsize=10)
        ax.margins(x=0.1, y=0.2)
    return save_figure(figure, "distillation")


def goodput_shapes(result: Result, name: str) -> Path:
    """Requests within budget, late and refused over load, a line for each policy, a column for each shape of arrivals."""
    shapes = result["live"]
    figure, axes = new_figure(3, len(shapes), squeeze=False)
    titles = {"attainment": "within budget", "late": "answered too late", "refused": "refused"}
    policies = [policy for policy in _all_policies(shapes) if not policy.startswith("admission-")]
    for column, (shape, by_load) in enumerate(shapes.items()):
        for ax, (metric, title) in zip(axes[:, column], titles.items(), strict=True):
            for i, policy in enumerate(policies):
                at = [load for load, by_policy in by_load.items() if policy in by_policy]
                rows = [by_load[load][policy][metric] for load in at]
                color, width = ("black", 2) if policy == "budget" else (f"C{i}", 1)
                x = [float(load) for load in at]
                ax.plot(
                    x, [row["median"] for row in rows], "o-", color=color, label=policy, markersize=3, linewidth=width
                )
                ax.fill_between(x, [row["min"] for row in rows], [row["max"] for row in rows], color=color, alpha=0.1)
            ax.set_title(f"{shape}: {title}", fontsize=10)
            ax.set_ylim(0, 1.05)
            ax.set_xscale("log", base=2)
            ax.set_xticks([float(load) for load in by_load], list(by_load), fontsize=7)
            ax.set_xticks([], minor=True)
        axes[-1, column].set_xlabel(
            f"load, 1 = {result['full_per_s']:.2f}/s, what full does by its profile", fontsize=9
        )
    axes[0, 0].legend(fontsize=7)
    return save_figure(figure, name)


def _all_policies(shapes: Result) -> list[str]:
    return list(dict.fromkeys(policy for by_load in shapes.values() for row in by_load.values() for policy in row))


def policies(by_load: Result, name: str, label: str, simulated: Result | None = None) -> Path:
    """Requests within budget, late answers and mean answer quality, one line per policy."""
    figure, axes = new_figure(1, 3)
    titles = {"attainment": "within budget", "late": "answered too late", "quality": "mean quality of answers"}
    for ax, (metric, title) in zip(axes, titles.items(), strict=True):
        for i, policy in enumerate(next(iter(by_load.values()))):
            color = "black" if policy == "budget" else "grey" if policy == "oracle" else f"C{i}"
            for source, style in ((by_load, "o-"), (simulated, ":")):
                if source is None:
                    continue
                at = [float(load) for load, by_policy in source.items() if policy in by_policy]
                rows = [by_policy[policy][metric] for by_policy in source.values() if policy in by_policy]
                middle = [row["median"] for row in rows]
                legend = policy if source is by_load else None
                ax.plot(
                    at, middle, style, color=color, label=legend, markersize=4, linewidth=2 if policy == "budget" else 1
                )
                if source is by_load:
                    ax.fill_between(
                        at, [row["min"] for row in rows], [row["max"] for row in rows], color=color, alpha=0.15
                    )
        ax.set_title(title, fontsize=10)
        ax.set_xlabel(label, fontsize=9)
        ax.set_ylim(0, 1.05)
    axes[0].legend(fontsize=7)
    return save_figure(figure, name)


def replicas(result: Result) -> Path:
    """TTFT p95, cache hits and balance of each way to choose a replica, over the load; a column for each number of replicas."""
    figure, axes = new_figure(3, len(result["simulated"]))
    titles = {
        "ttft_p95_ms": "TTFT p95, ms",
        "hit_share": "found in a prefix cache",
        "busiest": "busiest over mean work",
    }
    for column, (count, by_load) in enumerate(result["simulated"].items()):
        for ax, (metric, title) in zip(axes[:, column], titles.items(), strict=True):
            for i, choice in enumerate(next(iter(by_load.values()))):
                rows = [by_choice[choice][metric] for by_choice in by_load.values()]
                color, width = ("black", 2) if choice == "prefix+load" else (f"C{i}", 1)
                x = [float(load) for load in by_load]
                ax.plot(x, [row["median"] for row in rows], "o-", color=color, label=choice, linewidth=width)
                ax.fill_between(x, [row["min"] for row in rows], [row["max"] for row in rows], color=color, alpha=0.1)
            ax.set_title(f"{count} replicas: {title}", fontsize=10)
        axes[0, column].set_yscale("log")
        axes[-1, column].set_xlabel("load, 1 = all busy if nothing is read twice", fontsize=9)
    axes[0, 0].legend(fontsize=7)
    return save_figure(figure, "replicas")


def upgrades(result: Result) -> Path:
    """Every request as a line over time, failed ones in red, below the changes made."""
    figure, ax = new_figure(1, 1)
    figure.set_size_inches(12, 4.2)
    kinds = [client["name"] for client in result["clients"]]
    for kind, started, ended, well in result["asked"]:
        color = "#55a868" if well else "#c44e52"
        y = kinds.index(kind)
        ax.plot([started, ended], [y, y], color=color, linewidth=6, solid_capstyle="butt", alpha=0.55)
        ax.plot([started, started], [y - 0.16, y + 0.16], color=color, linewidth=0.6)
    for at, step in enumerate(result["steps"]):
        ax.axvspan(step["began_s"], step["began_s"] + step["seconds"], color="#4c72b0", alpha=0.05 + 0.08 * (at % 2))
        ax.text(step["began_s"] + 2, len(kinds) - 0.4, step["step"], rotation=28, fontsize=7, ha="left", va="bottom")
    ax.set_yticks(range(len(kinds)), kinds)
    ax.set_ylim(-0.5, len(kinds) + 1.4)
    ax.set_xlabel(f"seconds; {result['requests']} requests, {len(result['failed'])} failed")
    return save_figure(figure, "upgrades")


def fuzz_api(result: Result) -> Path:
    """The gateway's memory by number of requests, and its response statuses."""
    figure, (memory, statuses) = new_figure(1, 2)
    samples = result["memory"]["samples"]
    memory.plot([requests for _, requests, _ in samples], [mb for *_, mb in samples], linewidth=1)
    memory.set_ylim(bottom=0)
    memory.set_xlabel("requests")
    memory.set_title("resident memory of the gateway, MB", fontsize=10)
    statuses.bar(list(result["statuses"]), list(result["statuses"].values()))
    statuses.set_title("responses by status", fontsize=10)
    return save_figure(figure, "fuzz-api")


def _roles(result: Result, system: str, point: str) -> dict[str, float]:
    """Microseconds by role on the request path, without background processes."""
    cpu_us = result["systems"][system]["points"][point]["cpu_us"]
    return {role: max(us["median"], 0.0) for role, us in cpu_us.items() if not role.startswith("background")}


def _point(ax: "Axes", name: str, x: float, quality: float, xerr: object = None) -> None:
    ax.errorbar([x], [quality], xerr=xerr, fmt="o", markersize=8, capsize=3, color=COLORS.get(name, "#8172b3"))
    ax.annotate(name, (x, quality), textcoords="offset points", xytext=(0, -16), ha="center", fontsize=9)


def new_figure(rows: int, columns: int, squeeze: bool = True) -> "tuple[Figure, Any]":
    """A figure with `rows` times `columns` panels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (4.2 * columns, 3.6 * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=squeeze)
    for ax in figure.axes:
        ax.grid(alpha=0.25)
        ax.set_axisbelow(True)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    return figure, axes


def save_figure(figure: "Figure", name: str) -> Path:
    """Write `docs/images/NAME.png`."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    path = IMAGES / f"{name}.png"
    figure.savefig(path, dpi=110, metadata={"Software": None})
    print(f"wrote {path}")
    return path
