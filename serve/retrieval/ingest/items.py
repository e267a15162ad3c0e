"""Lists and tables in a text: runs of items, one a line, each with what a reader needs from above it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MAX_LEAD = 300  # characters of the paragraph, or its last sentence, above a run


@dataclass(slots=True, frozen=True)
class Item:
    """A list item or a table's row, with the lines that continue it; positions in the text."""

    start: int
    end: int
    indent: int


@dataclass(slots=True, frozen=True)
class Run:
    """Successive items, and the paragraph directly above them: a lead-in or a caption."""

    items: Sequence[Item]
    lead_start: int  # of that paragraph; `start` if there is none
    lead: str

    @property
    def start(self) -> int:
        """Position of the first item."""
        return self.items[0].start

    @property
    def end(self) -> int:
        """Position after the last item."""
        return self.items[-1].end

    def context(self, text: str, position: int) -> str:
        """What is above the item at `position`: the lead and the items that it is nested in."""
        at = next(i for i, item in enumerate(self.items) if item.end > position)
        above, indent = [], self.items[at].indent
        for item in reversed(self.items[:at]):
            if item.indent < indent:
                above.append(text[item.start : item.end])
                indent = item.indent
        return "\n".join(filter(None, [self.lead, *reversed(above)]))


def item_runs(text: str) -> Iterator[Run]:
    """The runs of at least two items; lines in fenced code are none."""
    items: list[Item] = []
    paragraph: tuple[int, int] | None = None  # the last one that may lead to a run
    blank = fenced = False
    start = 0
    for line in text.splitlines(keepends=True):
        end, indent = start + len(line.rstrip()), len(line) - len(line.lstrip())
        is_fence = line.lstrip().startswith(("```", "~~~"))
        fenced ^= is_fence
        if not line.strip():
            blank = True
        elif not (fenced or is_fence) and _ITEM.match(line):
            items.append(Item(start, end, indent))
            blank = False
        elif items and indent and not is_fence:
            items[-1] = Item(items[-1].start, end, items[-1].indent)
            blank = False
        else:
            if len(items) > 1:
                yield _run(text, items, paragraph)
            if items or blank or is_fence or fenced or paragraph is None:
                paragraph = None if is_fence or fenced else (start, end)
            else:
                paragraph = paragraph[0], end
            items, blank = [], False
        start += len(line)
    if len(items) > 1:
        yield _run(text, items, paragraph)


def _run(text: str, items: list[Item], paragraph: tuple[int, int] | None) -> Run:
    if paragraph is None:
        return Run(items, items[0].start, "")
    start, end = paragraph
    if end - start > MAX_LEAD:
        start = max([start, *(start + mark.end() for mark in _SENTENCE_END.finditer(text[start:end]))])
    if end - start > MAX_LEAD:
        return Run(items, items[0].start, "")
    return Run(items, start, text[start:end])


_ITEM = re.compile(r"[ \t]*(?:[-*+•‣◦–·]|(?:\d{1,4}|[a-z])[.)])[ \t]+\S|.*\S \| \S")
_SENTENCE_END = re.compile(r"[.!?…。！？]\s+")
