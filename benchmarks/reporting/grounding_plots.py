"""Plots of grounding results: support and faithfulness scoring, retrieval, grounded answers."""

from pathlib import Path

from benchmarks.reporting.cells import Result
from benchmarks.reporting.plots import COLORS, new_figure, save_figure


def abstention(result: Result, name: str) -> Path:
    """ROC curves by language: abstention from each kind of unanswerable question, and the points at the threshold."""
    figure, axes = new_figure(1, 2)
    titles = {"other source": "another FAQ's questions", "near miss": "rows that the table lacks"}
    for ax, (kind, title) in zip(axes, titles.items(), strict=True):
        for i, (language, row) in enumerate(result["languages"].items()):
            if kind not in row["roc"]:
                continue
            shares = {key: row["kinds"][key]["abstained"] for key in ("answerable", kind)}
            items = " / ".join(str(one["items"]) for one in shares.values())
            ax.plot(*zip(*row["roc"][kind], strict=True), color=f"C{i}", linewidth=1.2, label=f"{language} ({items})")
            ax.plot(*([one["share"]] for one in shares.values()), "o", color=f"C{i}")
        ax.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--")
        ax.set_title(f"{title}: abstained", fontsize=10)
        ax.set_xlabel(f"answerable: abstained; point: threshold {result['threshold']}", fontsize=9)
        ax.legend(fontsize=8, loc="lower right", title="questions with / without an answer", title_fontsize=7)
    return save_figure(figure, name)


def guard(result: Result) -> Path:
    """Precision-recall curve of marking unsupported text, the chosen threshold on it, and probability calibration."""
    figure, (curves, held) = new_figure(1, 2)
    row = result["entailment"]
    curves.plot([point[2] for point in row["curve"]], [point[1] for point in row["curve"]], label="sentences")
    at = row["all"]
    curves.plot([at["recall"]["share"]], [at["precision"]["share"]], "o", label=f"threshold {row['threshold']}")
    held.plot([one[0] for one in row["calibration"]], [one[1] for one in row["calibration"]], "o-")
    curves.set_xlabel("recall of what is unsupported")
    curves.set_ylabel("precision")
    curves.set_ylim(0.5, 1.02)
    held.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--")
    held.set_xlabel("predicted probability of support")
    held.set_ylabel("share that is supported")
    curves.legend(fontsize=8, loc="lower left")
    return save_figure(figure, "guard")


def retrieval(result: Result) -> Path:
    """Ranking quality of each mode before and after the guard, and query latency with its spread."""
    figure, (gain, times) = new_figure(1, 2)
    sets = result["quality"]["sets"]
    for i, mode in enumerate(next(iter(sets.values()))):
        for order, shift, alpha in (("as found", 0.0, 1.0), ("after the guard", 0.12, 0.45)):
            rows = [by_mode[mode][order]["ndcg_at_10"] for by_mode in sets.values()]
            at = [position + 0.27 * i + shift for position in range(len(rows))]
            below = [row["mean"] - row["ci95"][0] for row in rows]
            above = [row["ci95"][1] - row["mean"] for row in rows]
            label = mode if order == "as found" else f"{mode}, after the guard"
            gain.bar(
                at, [row["mean"] for row in rows], 0.12, yerr=[below, above], color=f"C{i}", alpha=alpha, label=label
            )
    gain.set_xticks([position + 0.33 for position in range(len(sets))])
    gain.set_xticklabels([name.replace(" ", "\n") for name in sets], fontsize=7)
    gain.set_title("nDCG@10", fontsize=10)
    gain.legend(fontsize=6)
    runs = [(chunks, clients) for chunks in result["latency"] for clients in ("1", "8")]
    for i, mode in enumerate(sets["all"]):
        rows = [result["latency"][chunks][mode][clients] for chunks, clients in runs]
        at = [position + 0.27 * i for position in range(len(rows))]
        middle = [row["p50_ms"]["median"] for row in rows]
        above = [row["p95_ms"]["median"] - row["p50_ms"]["median"] for row in rows]
        times.bar(at, middle, 0.25, yerr=[[0.0] * len(rows), above], capsize=2, color=f"C{i}", label=mode)
    times.set_xticks([position + 0.27 for position in range(len(runs))])
    times.set_xticklabels([f"{int(chunks):,} chunks,\n{clients} at once" for chunks, clients in runs], fontsize=7)
    times.set_yscale("log")
    times.set_title("ms a query: p50, and up to p95", fontsize=10)
    return save_figure(figure, "retrieval")


def grounded(result: Result) -> Path:
    """Bare and grounded results by variant, one panel per part; error bars are 95% intervals."""
    figure, axes = new_figure(1, 4)
    names = list(result["facts"])
    parts = (
        ("right when a fact changed", result["facts"], (("bare",), ("older",), ("newer",), ("stale",))),
        ("right computation", result["arithmetic"]["variants"], (("bare",), ("platform",))),
        (
            "terms of a collection", result["unanswerable"],
            (("bare_declined",), ("abstained",), ("falsely_abstained",), ("bare_tells",), ("tells",)),
        ),
        (
            "documents that give orders", result["injection"],
            (("naive", "obeyed"), ("defended", "obeyed"), ("clean", "right"), ("naive", "right"), ("defended", "right")),
        ),
    )  # fmt: skip
    for ax, (title, by_name, shown) in zip(axes, parts, strict=True):
        for i, name in enumerate(names):
            rates = [_rate(by_name[name], path) for path in shown]
            at = [position + 0.27 * i for position in range(len(shown))]
            middle = [rate["share"] or 0.0 for rate in rates]
            low, high = (
                [abs(rate["ci95"][end] - rate["share"]) if rate["ci95"] else 0.0 for rate in rates] for end in (0, 1)
            )
            color = COLORS.get(name, f"C{i}")
            ax.bar(at, middle, 0.25, yerr=[low, high], capsize=2, color=color, label=name)
        ax.set_xticks([position + 0.27 for position in range(len(shown))])
        ax.set_xticklabels([" ".join(path).replace("_", " ").replace(" ", "\n") for path in shown], fontsize=7)
        ax.set_ylim(0, 1.05)
        ax.set_title(title, fontsize=10)
    axes[1].legend(fontsize=7)
    return save_figure(figure, "grounded")


def _rate(row: Result, path: tuple[str, ...]) -> Result:
    for key in path:
        row = row[key]
    return row
