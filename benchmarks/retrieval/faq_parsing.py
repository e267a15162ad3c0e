"""Questions and answers of FAQ documents in HTML, POD, Markdown, AsciiDoc, plain text and JSON.

A question is a heading, a list term or a bold or numbered paragraph that ends in a question mark; its answer is the text up to
the next question or heading. Nothing here depends on the language.
"""

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import lxml.html

MIN_QUESTION_WORDS, MAX_QUESTION_CHARS = 4, 250
MIN_ANSWER_WORDS = 12

_LINKS = 0.7  # share of a paragraph's characters in links from which it is a table of contents
_HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
_BLOCKS = _HEADINGS | {
    "address", "article", "aside", "blockquote", "body", "center", "dd", "div", "dl", "dt", "footer", "form", "header", "hr",
    "li", "main", "nav", "ol", "p", "pre", "section", "table", "tbody", "td", "th", "tr", "ul",
}  # fmt: skip
_SKIPPED = {"head", "nav", "script", "style"}
_BOLD = {"b", "strong"}
_NUMBER = re.compile(  # a list marker, markup of a heading, or the letter of a question
    r"[*#]+\s*|(?:=+|=head\d|Subject:|[~>+\-•]+|[\[(]?#?[A-Z]?\d+(?:[.\-]\d+)*[a-z]?[.:)\]]*(?=\s)|[\[(]?[A-Za-z]?\d*(?:\.\d+)*[.)\]]+|[A-Z]\s?:|[^\W\d_]+\s\d+\s?:)\s+"
)
_ANSWER = re.compile(r"^(?:[A-Z]\s?\d*[.:)]|[^\W\d_]{1,9}\s?\d*:)\s+")  # "A:", "Antwort:"
_LABELS = re.compile(r"\W*\w\s?[:.)]\W*")  # of a question or an answer, alone
_SENTENCE = re.compile(r"\w\w[)\"'”»]?[.!](?:\s|$)")
_POD = re.compile(r"[A-Z]<<?\s?([^<>]*?)\s?>>?")
_LABEL = re.compile(r"\n(?=[ \t]*(?:Q|A|Question|Answer)[ \t]*[\d.]*[:.)][ \t])")
_UNDERLINED = re.compile(r"^[ \t]*(\S.*)\n[ \t]*[-=~]{4,}[ \t]*$", re.M)


@dataclass(slots=True, frozen=True)
class QuestionAnswer:
    """A question of an FAQ and its answer, paragraphs separated by blank lines."""

    question: str
    answer: str


@dataclass(slots=True, frozen=True)
class _Block:
    text: str
    heading: bool = False  # ends an answer
    candidate: bool = False  # may be a question


def parse(files: Iterable[Path]) -> list[QuestionAnswer]:
    """All questions of an FAQ's files that have text as an answer, in order; a repeated question counts once."""
    found: dict[str, QuestionAnswer] = {}
    for file in files:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        suffix = Path(file.name.removesuffix(".gz")).suffix
        if suffix == ".json":
            pairs = _json_pairs(json.loads(data))
        elif suffix == ".html":
            pairs = _pairs(_html_blocks(data))
        else:
            pairs = _pairs(_text_blocks(_decoded(data), suffix == ".pod"))
        for question, answer in pairs:
            if _usable(question, answer):  # the last one: a table of contents comes before the answers
                found.pop(question.lower(), None)
                found[question.lower()] = QuestionAnswer(question, answer)
    return list(found.values())


def _usable(question: str, answer: str) -> bool:
    words = len(question.split())
    return (
        words >= MIN_QUESTION_WORDS
        and question.count("?") <= 2  # more are a table of contents
        and len(question) <= MAX_QUESTION_CHARS
        and len(answer.split()) >= MIN_ANSWER_WORDS
        and _SENTENCE.search(answer) is not None
    )


def _pairs(blocks: Iterable[_Block]) -> Iterator[tuple[str, str]]:
    question, answer = "", list[str]()
    for block in blocks:
        plain = _unnumbered(" ".join(block.text.split()).rstrip("¶# "))
        if block.candidate and plain.rstrip('*_"”»`) ').endswith("?"):
            yield question, "\n\n".join(answer)
            question, answer = plain.strip("*_` "), []
        elif block.heading:
            yield question, "\n\n".join(answer)
            question, answer = "", []
        elif text := _ANSWER.sub("", block.text) if not answer else block.text:
            answer.append(text)
    yield question, "\n\n".join(answer)


def _unnumbered(text: str) -> str:
    while (shorter := _NUMBER.sub("", text, count=1) if _NUMBER.match(text) else text) != text:
        text = shorter
    return text


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _text_blocks(text: str, pod: bool) -> Iterator[_Block]:
    """Paragraphs of plain text; numbered, labelled and underlined ones may be questions."""
    text = _UNDERLINED.sub(r"\n# \1\n", text.replace("\r\n", "\n").expandtabs())
    text = _LABEL.sub("\n\n", text)
    if pod:
        text = _POD.sub(r"\1", _POD.sub(r"\1", re.sub(r"\n?X<[^>]*>", "", text)))
    for paragraph in re.split(r"\n[ \t]*\n", text):
        lines = [line.rstrip() for line in paragraph.strip("\n").splitlines()]
        margin = min((len(line) - len(line.lstrip()) for line in lines if line), default=0)
        body = "\n".join(line[margin:] for line in lines).strip()
        if body and not re.fullmatch(r"[\W_]+", body):
            heading = re.match(r"(?:=head\d|#+|==+) ", body) is not None
            yield _Block(body, heading, heading or _NUMBER.match(body) is not None)


def _html_blocks(data: bytes) -> Iterator[_Block]:
    """Paragraphs of HTML; headings, terms and paragraphs that are bold or in an element for questions may be questions."""
    root = lxml.html.document_fromstring(re.sub(r"^\s*<\?xml[^>]*>", "", _decoded(data)))
    pieces: list[str] = []
    bold = linked = 0  # characters of the paragraph inside bold text and inside links
    depth = {"bold": 0, "link": 0, "verbatim": 0}
    stack: list[str] = []

    def paragraph() -> Iterator[_Block]:
        nonlocal bold, linked
        text = "".join(pieces)
        text = text.strip("\n") if depth["verbatim"] else " ".join(text.split())
        size = len(re.sub(r"\s", "", text))
        if size and re.search(r"\w", text):
            heading = bool({*_HEADINGS, "question"} & set(stack))
            marked = heading or "dt" in stack[-2:] or bold >= size
            if not _LABELS.fullmatch(text) and (heading or linked < _LINKS * size):
                yield _Block(text, heading, marked)
        pieces.clear()
        bold = linked = 0

    def add(text: str | None) -> None:
        nonlocal bold, linked
        if text:
            pieces.append(text)
            size = len(re.sub(r"\s", "", text))
            bold += size if depth["bold"] else 0
            linked += size if depth["link"] else 0

    def walk(element: lxml.html.HtmlElement) -> Iterator[_Block]:
        tag = element.tag if isinstance(element.tag, str) else ""
        if tag and tag not in _SKIPPED:
            kind = "bold" if tag in _BOLD else "link" if tag == "a" and element.get("href") else None
            block = tag in _BLOCKS
            if block:
                yield from paragraph()
                stack.append("question" if element.get("class", "").startswith("question") else tag)
                kind = "verbatim" if tag == "pre" else kind
            depth.update({kind: depth[kind] + 1} if kind else {})
            add("\n" if tag == "br" else element.text)
            for child in element:
                yield from walk(child)
            if block:
                yield from paragraph()
                stack.pop()
            depth.update({kind: depth[kind] - 1} if kind else {})
        add(element.tail)

    yield from walk(root)


def _json_pairs(value: object) -> Iterator[tuple[str, str]]:
    """Every object with a question and an answer, at any depth."""
    if isinstance(value, list):
        for item in value:
            yield from _json_pairs(item)
    elif isinstance(value, dict):
        question, answer = value.get("question", value.get("q")), value.get("answer", value.get("a"))
        if isinstance(question, str) and isinstance(answer, str):
            yield " ".join(question.split()), answer
        for item in value.values():
            yield from _json_pairs(item)
