"""Sentences of a text: their spans."""

import re
from bisect import bisect_left
from itertools import pairwise

from serve.retrieval.verify.phrases import phrases

_TITLES = re.compile(phrases("title"), re.I)
_NUMBERED = re.compile(phrases("numbered"), re.I)
_ABBREVIATIONS = re.compile(phrases("abbreviation"), re.I)
_ORDINAL = re.compile(rf"\s+{phrases('ordinal')}(?!\w)", re.I)  # after a number and a dot: `5. Juli`
_END = re.compile(r"""(?<![.!?…])[.!?…]++["'”’)\]*_`]*+(?=\s)|[。！？]""")
# Before an empty line, a list item, a heading, a quotation, a fence, and a row of a table (`Country: Norway | Full day: 66`)
_LINE = re.compile(r"\n(?=[ \t]*(?:\n|[-*+•|#>]|\d+[.)]\s|```)|[^\n]*\S \| \S)")
_ROW = re.compile(r"^[^\n]*\S \| \S[^\n]*$", re.M)  # of a table, as `ingest.formats.tables` writes it
MAX_CHARS = 20_000  # of a passage or a question that are read: nothing else bounds a chunk of one long word
_FENCE = re.compile(r"```.*?(?:```|\Z)", re.S)
_MARKER = re.compile(r"(?:^|\n)[ \t]*\d+\.$")
_WORD_BREAK = re.compile(r"[\s(\[\"'“]")
_NON_SPACE = re.compile(r"\S")


def sentences(text: str) -> list[tuple[int, int]]:
    """Spans of all sentences: ordered, disjoint, trimmed, covering all text but white space.

    Each list item, table row, heading and fenced code block is one sentence.
    """
    cuts = {0, len(text)}
    fences = [match.span() for match in _FENCE.finditer(text)]
    for fence in fences:
        cuts.update(fence)
    ends = [match.end() for match in _END.finditer(text) if _is_sentence_end(text, match)]
    ends += [match.start() for match in _LINE.finditer(text)] + [match.end() for match in _ROW.finditer(text)]
    for end in ends:
        before = bisect_left(fences, (end,)) - 1  # the last fence that starts before it
        if before < 0 or fences[before][1] <= end:
            cuts.add(end)
    spans = []
    for start, end in pairwise(sorted(cuts)):
        piece = text[start:end].rstrip()
        if stripped := piece.lstrip():
            spans.append((start + len(piece) - len(stripped), start + len(piece)))
    return spans


def is_row(sentence: str) -> bool:
    """Whether a sentence is a table's row."""
    return _ROW.match(sentence) is not None


def _is_sentence_end(text: str, match: re.Match[str]) -> bool:
    """Whether a candidate is the end of a sentence."""
    if not match[0].startswith(".") or match[0].startswith(".."):
        return True
    before = text[max(0, match.start() - 20) : match.start()]
    word = _WORD_BREAK.split(before)[-1]
    next_char = _NON_SPACE.search(text, match.end())
    following = next_char[0] if next_char else ""
    if _TITLES.fullmatch(word) or _MARKER.search(text[max(0, match.start() - 20) : match.start() + 1]):
        return False
    if _NUMBERED.fullmatch(word):
        return not following.isdigit()
    if word.isdigit() and len(word) <= 2 and _ORDINAL.match(text, match.end()):
        return False
    if _ABBREVIATIONS.fullmatch(word) or word.isdigit():
        return not following.islower()
    return not (len(word) == 1 and word.isalpha() and before[-1:].isupper())
