"""Markdown: keep the source as text, split it at headings and remove invisible content (comments, scripts, hidden elements)."""

import re
import tomllib
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

import yaml
from markdown_it import MarkdownIt

from serve.retrieval.ingest.formats.document import Outline, Text, note, tidy
from serve.retrieval.ingest.formats.encoding import decode
from serve.retrieval.ingest.formats.markdown_html import TAG, aligned, invisible_spans, merged
from serve.retrieval.ingest.formats.tables import Cell, table_text

_HIDDEN = "\0"  # stands for a hidden character
_MAX_FRONT = 1 << 16  # characters of front matter; longer front matter is text


def read(data: bytes, charset: str | None = None) -> Text:
    """Read the source without comments and hidden elements, split into sections."""
    text, notes = decode(data, charset)
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace(_HIDDEN, "")
    title, front = _front_matter(text)
    if front:
        notes += (note("front matter", front),)
    body = text[len(front) :]
    environment: dict[str, Any] = {}
    # Only blocks are parsed; `invisible_spans` finds tags outside code, in time linear in the text's length.
    tokens = MarkdownIt("commonmark").disable("inline").parse(body, environment)
    lines = [min(at, len(body)) for at in accumulate((len(line) + 1 for line in body.split("\n")), initial=0)]
    comments, hidden = invisible_spans(tokens, body, lines)
    comments += [(lines[start], lines[end]) for start, end in _empty_links(environment)]
    if unseen := tidy(" ".join(TAG.sub(" ", body[start:end]) for start, end in merged(hidden))):
        notes += (note("hidden HTML", unseen),)
    parts, at = [], 0
    for start, end in merged([*comments, *hidden]):
        parts += [body[at:start], _HIDDEN * (end - start)]
        at = end
    seen = "".join([*parts, body[at:]])  # of the body's length, so that positions are the same in both
    outline, at = Outline(), 0
    for token, inside in pairwise(tokens):
        if token.type == "heading_open" and token.level == 0 and token.map:
            start, end = (lines[line] for line in token.map)
            outline.add(_with_tables(seen[at:start].replace(_HIDDEN, "")))
            name = zip(aligned(body[start:end], inside.content), seen[start:end], strict=False)
            outline.heading(int(token.tag[1]), "".join(char for char, mark in name if mark != _HIDDEN))
            at = end
    outline.add(_with_tables(seen[at:].replace(_HIDDEN, "")))
    return Text(title or outline.title, outline.sections(), notes)


def _front_matter(text: str) -> tuple[str, str]:
    """The title in the front matter, and the front matter; a `---` without it is a thematic break."""
    for begins, ends, load in _FRONT_MATTERS:
        if (opening := begins.match(text)) is None:
            continue
        closing = ends.search(text, opening.end(), opening.end() + _MAX_FRONT)
        if closing is None:
            continue
        try:
            fields = load(text[opening.end() : closing.start()])
        except (yaml.YAMLError, ValueError, RecursionError):
            continue
        if isinstance(fields, dict):
            title = fields.get("title")
            return title if isinstance(title, str) else "", text[: closing.end()]
    return "", ""


def _with_tables(source: str) -> str:
    """The source with its tables, as GitHub writes them, replaced by lines of named values."""
    if not _DELIMITERS.search(source):
        return source
    lines, at = source.split("\n"), 0
    parts: list[str] = []
    rows: list[list[Cell]] = []
    is_header = False
    for token in MarkdownIt("commonmark").disable("inline").enable("table").parse(source):
        if token.type == "table_open" and token.level == 0 and token.map:
            parts += lines[at : token.map[0]]
            at, rows = token.map[1], []
        elif token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            is_header = token.type == "th_open"
        elif token.type == "inline" and rows:
            rows[-1].append(Cell(token.content, header=is_header))
        elif token.type == "table_close" and token.level == 0:
            parts.append(table_text(rows))
    return "\n".join([*parts, *lines[at:]])


def _empty_links(environment: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """Line ranges of `[//]: # (a comment)`: link definitions without target, used as comments."""
    for link in [*environment.get("references", {}).values(), *environment.get("duplicate_refs", [])]:
        if link["href"] in ("", "#"):
            yield link["map"]


_DELIMITERS = re.compile(r"^ {0,3}\|?[ \t]*:?-+:?[ \t]*\|[-:| \t]*$", re.MULTILINE)
_FRONT_MATTERS = (
    (
        re.compile("---[ \t]*\n"),
        re.compile(r"^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.MULTILINE),
        lambda text: yaml.load(text, yaml.BaseLoader),
    ),
    (re.compile(r"\+\+\+[ \t]*\n"), re.compile(r"^\+\+\+[ \t]*(?:\n|\Z)", re.MULTILINE), tomllib.loads),
)
