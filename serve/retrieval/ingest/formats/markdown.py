"""Markdown: keep the source as text, split it at headings and remove invisible content (comments, scripts)."""

import re
import tomllib
from collections.abc import Iterable, Iterator
from typing import Any

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from serve.retrieval.ingest.formats.document import Outline, Text, note
from serve.retrieval.ingest.formats.encoding import decode

_MAX_FRONT = 1 << 16  # characters of front matter; longer front matter is text


def read(data: bytes, charset: str | None = None) -> Text:
    """Read the source without comments, split into sections."""
    text, notes = decode(data, charset)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    title, front = _front_matter(text)
    if front:
        notes += (note("front matter", front),)
    body = text[len(front) :]
    environment: dict[str, Any] = {}
    # Only blocks are parsed; `_in_text` finds comments outside code, in time linear in the text's length.
    tokens = MarkdownIt("commonmark").disable("inline").parse(body, environment)
    lines: list[str | None] = list(body.split("\n"))
    for start, end in _empty_links(environment):
        lines[start:end] = [None] * (end - start)
    outline, at, level, below = Outline(), 0, 0, 0
    for token in tokens:
        if token.type == "heading_open" and token.map:
            level, below = (0 if token.level else int(token.tag[1])), token.map[1]
        elif token.type in ("inline", "html_block") and token.map:
            start, end = token.map
            if level and token.type == "inline":
                outline.add(_source(lines[at:start]))
                outline.heading(level, _without(token.content, _in_text(token.content)))
                at, level = below, 0
            elif (seen := _seen(token, _source(lines[start:end]))) is not None:
                lines[start:end] = [seen, *[None] * (end - start - 1)]
    outline.add(_source(lines[at:]))
    return Text(title or outline.title, outline.sections(), notes)


def _source(lines: list[str | None]) -> str:
    return "\n".join(line for line in lines if line is not None)


def _seen(token: Token, source: str) -> str | None:
    """A block's source without invisible content; None if all of it is visible."""
    if token.type == "html_block":
        return _without(source, _in_html(source))
    return _commented(source, token.content) if "<!--" in token.content else None


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


def _empty_links(environment: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """Line ranges of `[//]: # (a comment)`: link definitions without target, used as comments."""
    for link in [*environment.get("references", {}).values(), *environment.get("duplicate_refs", [])]:
        if link["href"] in ("", "#"):
            yield link["map"]


def _commented(source: str, content: str) -> str:
    """A paragraph's source without comments, located by its content, which lacks the markers at line starts."""
    places, all_places = {start for start, _ in _in_text(content)}, _places(content, "<!--")
    numbers = {number for number, place in enumerate(all_places) if place in places}
    spans = []
    for number, start in enumerate(_places(source, "<!--")):
        if number in numbers and (end := source.find("-->", start + 2)) >= 0:
            spans.append((start, end + 3))
    return _without(source, spans)


def _places(text: str, part: str) -> list[int]:
    positions, at = [], text.find(part)
    while at >= 0:
        positions.append(at)
        at = text.find(part, at + len(part))
    return positions


def _in_text(content: str) -> Iterator[tuple[int, int]]:
    """Spans of a paragraph's closed comments, except in code and after an escaped `<`."""
    last = {len(run[0]): run.start() for run in _TICKS.finditer(content)}  # last run of backticks by length
    at = 0
    while mark := _MARK.search(content, at):
        at = mark.end()
        if mark[0] == "<!--":
            end = content.find("-->", mark.start() + 2)
            if end < 0:
                return
            yield mark.start(), end + 3
            at = end + 3
        elif mark[0][0] == "`" and last.get(len(mark[0]), -1) > mark.start():
            closing = next(run for run in _TICKS.finditer(content, at) if len(run[0]) == len(mark[0]))
            at = closing.end()


def _in_html(source: str) -> Iterator[tuple[int, int]]:
    """Spans of comments, scripts and styles in an HTML block."""
    at = 0
    while opening := _UNSEEN.search(source, at):
        closing = _CLOSINGS[opening[0].lower()].search(source, opening.start() + 2)
        at = closing.end() if closing else len(source)
        yield opening.start(), at


def _without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    parts, at = [], 0
    for start, end in spans:
        parts.append(text[at:start])
        at = end
    return "".join([*parts, text[at:]])


_FRONT_MATTERS = (
    (
        re.compile("---[ \t]*\n"),
        re.compile(r"^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.MULTILINE),
        lambda text: yaml.load(text, yaml.BaseLoader),
    ),
    (re.compile(r"\+\+\+[ \t]*\n"), re.compile(r"^\+\+\+[ \t]*(?:\n|\Z)", re.MULTILINE), tomllib.loads),
)
_TICKS = re.compile("`+")
_MARK = re.compile(r"\\[!-/:-@\[-`{-~]|<!--|`+")
_UNSEEN = re.compile("<!--|<script\\b|<style\\b", re.IGNORECASE)
_CLOSINGS = {
    "<!--": re.compile("-->"),
    "<script": re.compile("</script[^<>]*>", re.IGNORECASE),
    "<style": re.compile("</style[^<>]*>", re.IGNORECASE),
}
