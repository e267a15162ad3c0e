"""Variant report: a self-contained HTML file, PNG plots beside it, and a Markdown table for a README.

Cards may come from anywhere, so everything from them is escaped.
"""

import base64
import html
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compression.files import write_atomically
from compression.report.pareto import dominators
from serve.card import CARD_FILE, Card, CardError, Profile, Quality, load_card

MARKDOWN, PAGE = "report.md", "report.html"


class ReportError(Exception):
    """No card to report on; the message names the folders."""


@dataclass(frozen=True, slots=True)
class Row:
    """A measured variant."""

    label: str
    card: Card
    quality: Quality
    profile: Profile


@dataclass(frozen=True, slots=True)
class Axis:
    """A measure to plot quality against; `sign` is -1 where less is better."""

    name: str
    title: str
    sign: int
    value: Callable[[Row], float]


@dataclass(frozen=True, slots=True)
class Group:
    """Variants that can be compared: of one model, measured on one kind of hardware."""

    model: str
    hardware: str
    rows: Sequence[Row]

    @property
    def axes(self) -> list[Axis]:
        """Those on which all variants can be compared: one without a price would be the cheapest."""
        return [axis for axis in AXES if all(axis.value(row) > 0 for row in self.rows)]

    def dominators(self, axes: Sequence[Axis]) -> list[int | None]:
        """For each row the one that dominates it in quality and on all `axes`, see `pareto.dominators`."""
        points = [(row.quality.quality, *(axis.sign * axis.value(row) for axis in axes)) for row in self.rows]
        return dominators(points)


@dataclass(slots=True)
class Cards:
    """The loaded cards: comparable variants, and one line for each card that is unmeasured or cannot be read."""

    groups: list[Group] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


AXES = (
    Axis("speed", "one stream, tokens/s", 1, lambda row: 1000 / row.profile.tpot[0].p50_ms),
    Axis(
        "throughput", "peak, tokens/s", 1, lambda row: row.profile.peak.output_tokens_per_s if row.profile.peak else 0.0
    ),
    Axis("size", "weights, MB", -1, lambda row: row.card.bytes_on_disk / 1e6),
    Axis("cost", "USD per million output tokens", -1, lambda row: row.profile.cost_usd(0, 1_000_000)),
)


def quality_ci95(quality: Quality) -> tuple[float, float] | None:
    """95% interval of the one quality number, from the interval of what it is derived from; None for a task's."""
    if quality.quality_from == "kl":
        low, high = quality.kl_ci95
        return math.exp(-high), math.exp(-low)
    return quality.answers.equal_tokens_ci95 if quality.quality_from == "agreement" and quality.answers else None


def load_cards(paths: Sequence[Path]) -> Cards:
    """The cards in folders of variants, of models and of caches.

    Raises:
        ReportError: a path has no card in it or below it, or no card at all is measured.
    """
    cards = Cards()
    rows: dict[tuple[str, str], list[Row]] = {}
    for folder in dict.fromkeys(folder for path in paths for folder in _folders(path)):
        try:
            card = load_card(folder)
        except CardError as error:
            cards.left_out.append(str(error))
            continue
        if card.quality is None or card.profile is None:
            cards.left_out.append(f"'{card.name}' in {folder} is not measured yet")
            continue
        row = Row(card.name, card, card.quality, card.profile)
        rows.setdefault((card.model, card.profile.hardware), []).append(_with_unique_label(row, folder, rows))
    cards.groups = [Group(*key, sorted(group, key=lambda row: -row.quality.quality)) for key, group in rows.items()]
    if not cards.groups:
        raise ReportError(f"no measured card: {cards.left_out[0]}")
    return cards


def write_report(cards: Cards, out: Path, plot: Callable[[Group, Axis, Path], None] | None) -> list[Path]:
    """Write page, table and plots into the folder `out`, each atomically; returns the files.

    Args:
        plot: draws a group's plot into a PNG file; without it there are no plots.
    """
    out.mkdir(parents=True, exist_ok=True)
    images: dict[tuple[int, str], Path] = {}
    if plot is not None:
        for at, group in enumerate(cards.groups):
            for axis in group.axes:
                image = out / f"quality-{axis.name}{f'-{at + 1}' if at else ''}.png"
                plot(group, axis, image)
                images[at, axis.name] = image
    files = [out / PAGE, out / MARKDOWN]
    for file, text in zip(files, (_page(cards, images), markdown(cards)), strict=True):
        write_atomically(file, text)
    return [*files, *images.values()]


def markdown(cards: Cards) -> str:
    """A table for each group."""
    parts = []
    for group in cards.groups:
        header, *rows = _table(group)
        parts += [f"**{_cell(group.model)}** on {_cell(group.hardware)}", ""]
        parts += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        parts += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
        parts += ["", _cell(_footnote(group)), ""]
    return "\n".join(parts)


def _folders(path: Path) -> Iterator[Path]:
    """The folders of variants in and below `path`: CACHE/MODEL/VARIANT at most. Unfinished builds are none."""
    files = [file for depth in ("", "*/", "*/*/") for file in sorted(path.glob(f"{depth}{CARD_FILE}"))]
    folders = [file.parent for file in files if file.parent.suffix != ".part"]
    if not folders:
        raise ReportError(f"no {CARD_FILE} in {path} or below it")
    yield from folders


def _with_unique_label(row: Row, folder: Path, rows: Mapping[tuple[str, str], list[Row]]) -> Row:
    """Distinguish two builds of one variant by their folder names."""
    labels = {other.label for group in rows.values() for other in group}
    return row if row.label not in labels else Row(folder.name, row.card, row.quality, row.profile)


def _table(group: Group) -> Iterator[list[str]]:
    costs = any(axis.name == "cost" for axis in group.axes)
    tasks = list(dict.fromkeys(name for row in group.rows for name in row.quality.task_scores))
    yield [
        *("variant", "made by", "MB", "quality", "95%", "perplexity", "KL", "top-1", "answers", *tasks, "drift"),
        *("tok/s", "peak tok/s", "TTFT ms", *(["$/M out"] if costs else []), "front"),
    ]
    for row, by in zip(group.rows, group.dominators(group.axes), strict=True):
        quality, profile = row.quality, row.profile
        interval = quality_ci95(quality)
        yield [
            row.label,
            " → ".join(_step(step.technique, step.parameters) for step in row.card.steps),
            f"{row.card.bytes_on_disk / 1e6:.0f}",
            f"{quality.quality:.3f}",
            f"{interval[0]:.3f}–{interval[1]:.3f}" if interval else "",
            f"{quality.perplexity:.2f}",
            f"{quality.kl_to_full:.3f}",
            f"{quality.top1_agreement:.3f}",
            f"{quality.answers.equal_tokens:.2f}" if quality.answers else "",
            *(_score(quality, name) for name in tasks),
            f"{quality.drift.mean_abs:.4f}" if quality.drift else "",
            f"{AXES[0].value(row):.1f}",
            f"{profile.peak.output_tokens_per_s:.0f}" if profile.peak else "",
            f"{profile.ttft[0].p50_ms:.0f}",
            *([f"{profile.cost_usd(0, 1_000_000):.3f}"] if costs else []),
            "yes" if by is None else f"no: {group.rows[by].label}",
        ]


def _step(technique: str, parameters: Mapping[str, object]) -> str:
    detail = [str(parameters[key]) for key in ("scheme", "method", "layers") if parameters.get(key) is not None]
    return f"{technique} ({', '.join(detail)})" if detail else technique


def _score(quality: Quality, name: str) -> str:
    score = quality.task_scores.get(name)
    return f"{score.score:.2f} ({score.ci95[0]:.2f}–{score.ci95[1]:.2f})" if score else ""


def _footnote(group: Group) -> str:
    derivations = dict.fromkeys(f"{row.quality.quality_from}: {row.quality.derivation}" for row in group.rows)
    sets = dict.fromkeys(row.quality.set for row in group.rows)
    engines = dict.fromkeys(row.profile.engine for row in group.rows)
    return (
        f"quality from {'; '.join(derivations)}. Measured on {'; '.join(sets)}, through {'; '.join(engines)}. "
        f"front: no other variant is at least as good in quality, {', '.join(axis.name for axis in group.axes)}; else one that is."
    )


def _cell(text: str) -> str:
    """Text that is neither HTML nor the end of a cell in Markdown."""
    plain = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", plain)


def _page(cards: Cards, images: Mapping[tuple[int, str], Path]) -> str:
    body = []
    for at, group in enumerate(cards.groups):
        body.append(f"<h2>{_escape(group.model)} <small>{_escape(group.hardware)}</small></h2>")
        plots = [(axis, images[at, axis.name]) for axis in group.axes if (at, axis.name) in images]
        body += ["<div class=plots>", *(_image(axis, image) for axis, image in plots), "</div>"]
        header, *rows = _table(group)
        body.append("<div class=scroll><table><thead><tr>")
        body += [f"<th>{_escape(name)}</th>" for name in header]
        body.append("</tr></thead><tbody>")
        for row in rows:
            mark = ' class="dominated"' if row[-1] != "yes" else ""
            body.append(f"<tr{mark}>" + "".join(f"<td>{_escape(value)}</td>" for value in row) + "</tr>")
        body.append(f"</tbody></table></div><p class=note>{_escape(_footnote(group))}</p>")
        body += [_details(row) for row in group.rows]
    if cards.left_out:
        body.append("<h2>Left out</h2><ul>" + "".join(f"<li>{_escape(line)}</li>" for line in cards.left_out) + "</ul>")
    return _FRAME.format(style=_STYLE, body="\n".join(body))


def _image(axis: Axis, image: Path) -> str:
    content = base64.b64encode(image.read_bytes()).decode()
    return f'<img alt="quality against {_escape(axis.title)}" src="data:image/png;base64,{content}">'


def _details(row: Row) -> str:
    """The complete card as a collapsed section."""
    return f"<details><summary>{_escape(row.label)}: the card</summary><pre>{_escape(row.card.model_dump_json(indent=2))}</pre></details>"


def _escape(text: str) -> str:
    return html.escape(text)


_FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Gearbox variants</title><style>{style}</style></head><body><h1>Variants</h1>
{body}
</body></html>
"""
_STYLE = """
:root { color-scheme: light dark; --fg: #1b1f24; --bg: #fff; --dim: #656d76; --line: #d0d7de; }
@media (prefers-color-scheme: dark) { :root { --fg: #e6edf3; --bg: #0d1117; --dim: #8b949e; --line: #30363d; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg); margin: 2rem auto; padding: 0 1rem;
  max-width: 90rem; }
h2 small, .note { color: var(--dim); font-weight: normal; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; } .plots img { max-width: min(100%, 30rem); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
tr.dominated td { color: var(--dim); }
pre { overflow-x: auto; font-size: 12px; border: 1px solid var(--line); padding: .7rem; }
"""
