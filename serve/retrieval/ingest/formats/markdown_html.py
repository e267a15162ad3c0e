"""HTML in Markdown: find comments, scripts and hidden elements, by the rule of `serve.retrieval.ingest.formats.html`."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markdown_it.token import Token

from serve.retrieval.ingest.formats.html import VOID, tag_is_unseen

_Span = tuple[int, int]


@dataclass(slots=True, frozen=True)
class _Start:
    """A start tag whose end tag is not read yet."""

    begin: int
    limit: int  # where the element ends at the latest
    unseen: bool  # a page does not show the element
    by_attribute: bool  # for its attributes, not for its name alone


def invisible_spans(tokens: Sequence[Token], body: str, lines: Sequence[int]) -> tuple[list[_Span], list[_Span]]:
    """Find what a page of this Markdown does not show: spans of comments and scripts, and of hidden elements.

    `tokens` are of a parse of blocks only, `lines` the positions at which the lines of `body` begin, and its end. A hidden element may begin in one block and end in another one. One without an end
    tag ends with the paragraph, list or quote that it begins in, else with the document.
    """
    comments: list[_Span] = []
    hidden: list[_Span] = []
    starts: dict[str, list[_Start]] = defaultdict(list)  # by name
    outer_end = 0  # of the outermost list or quote
    for token in tokens:
        if not token.map:
            continue
        begin, end = (lines[line] for line in token.map)
        if token.level == 0:
            outer_end = len(body) if token.type == "html_block" else end
        if token.type == "html_block":
            spans, tags = _in_html(body[begin:end])
        elif token.type == "inline":
            spans, tags = _in_text(aligned(body[begin:end], token.content))
        else:
            continue
        comments += [(begin + start, begin + stop) for start, stop in spans]
        for tag in tags:
            name = tag["name"].lower()
            place = begin + tag.start()
            if starts[name] and (tag["end"] or name == "p"):
                start = starts[name].pop()
                hidden += [(start.begin, min(start.limit, place + len(tag[0]) * bool(tag["end"])))] * start.unseen
            if tag["end"]:
                continue
            unseen = tag_is_unseen(name, tag["attributes"])
            if name in VOID:
                hidden += [(place, place + len(tag[0]))] * unseen
            else:
                limit = end if token.type == "inline" or name == "p" else outer_end
                starts[name].append(_Start(place, limit, unseen, unseen and not tag_is_unseen(name, "")))
    # `List<Object>` in a sentence is a type: without an end tag, a name alone hides nothing
    hidden += [(start.begin, start.limit) for left in starts.values() for start in left if start.by_attribute]
    return comments, hidden


def aligned(source: str, content: str) -> str:
    """A paragraph's source with blanks in place of the markers of lists, quotes and headings."""
    lines = []
    for whole, line in zip(source.split("\n"), content.split("\n"), strict=False):
        before, text, _ = whole.partition(line.strip())
        lines.append(" " * len(before) + text)
    return "\n".join(lines)


def merged(spans: Iterable[_Span]) -> list[_Span]:
    """The spans in order, overlapping ones as one."""
    result: list[_Span] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def _in_text(content: str) -> tuple[list[_Span], list[re.Match[str]]]:
    """Spans of a paragraph's closed comments, and its tags; none in code and none after an escaped `<`."""
    last = {len(run[0]): run.start() for run in _TICKS.finditer(content)}  # last run of backticks by length
    last_comment = content.rfind("-->")
    spans, tags, at = [], [], 0
    while mark := _MARK.search(content, at):
        at = mark.end()
        if mark["name"]:
            tags.append(mark)
        elif mark[0] == "<!--" and mark.start() + 2 <= last_comment:
            at = content.find("-->", mark.start() + 2) + 3
            spans.append((mark.start(), at))
        elif mark[0][0] == "`" and last.get(len(mark[0]), -1) > mark.start():
            closing = next(run for run in _TICKS.finditer(content, at) if len(run[0]) == len(mark[0]))
            at = closing.end()
    return spans, tags


def _in_html(source: str) -> tuple[list[_Span], list[re.Match[str]]]:
    """Spans of comments, scripts and styles in an HTML block, and its other tags."""
    spans: list[_Span] = []
    tags: list[re.Match[str]] = []
    at = 0
    while opening := _UNREAD.search(source, at):
        tags += TAG.finditer(source, at, opening.start())
        closing = _CLOSINGS[opening[0].lower()].search(source, opening.start() + 2)
        at = closing.end() if closing else len(source)
        spans.append((opening.start(), at))
    return spans, [*tags, *TAG.finditer(source, at)]


_TICKS = re.compile("`+")
# At a `<`, of all searches for a tag's end at most two are inside quotes, and the others end: the time is linear.
_ANY_TAG = (
    r"""<(?P<end>/?)(?P<name>[A-Za-z][A-Za-z0-9-]*+)(?=[\s/>])(?P<attributes>(?:[^<>"']++|"[^"]*+"|'[^']*+')*+)>"""
)
TAG = re.compile(_ANY_TAG)
_MARK = re.compile(rf"\\[!-/:-@\[-`{{-~]|<!--|`+|{_ANY_TAG}")
_UNREAD = re.compile("<!--|<script\\b|<style\\b", re.IGNORECASE)
_CLOSINGS = {
    "<!--": re.compile("-->"),
    "<script": re.compile("</script[^<>]*>", re.IGNORECASE),
    "<style": re.compile("</style[^<>]*>", re.IGNORECASE),
}
