"""Documents as text: Markdown, HTML, PDF, DOCX, reStructuredText and plain text, whoever made them.

What a reader would not see is left out: hidden elements, comments, scripts. Archives are measured before they are unpacked.
Nothing outside the document is ever read.
"""

import io
import os
import re
import resource
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

MAX_CHARS = 20_000_000  # of a document's text
MAX_UNPACKED = 200_000_000  # bytes of an archive's content
MAX_PAGES = 5_000
MAX_MEMORY = 4 << 30  # bytes, of a process that reads a document


class ConversionError(ValueError):
    """A document that can't be read; the message says why, for a person."""


@dataclass(slots=True, frozen=True)
class Section:
    """Text under one heading (or on one page)."""

    text: str
    heading: str = ""
    page: int | None = None


@dataclass(slots=True, frozen=True)
class Text:
    """A document as it reads."""

    title: str
    sections: tuple[Section, ...]


def convert(data: bytes, name: str, kind: str | None = None) -> Text:
    """The text of a document.

    Args:
        data: its bytes.
        name: its file name or URL, whose ending says the type when `kind` does not.
        kind: one of `KINDS`, or its MIME type.

    Raises:
        ConversionError: an unknown type, a broken or encrypted file, more than the limits, or no text in it.
    """
    kind = kind_of(name, kind)
    if not data:
        raise ConversionError("the document is empty")
    try:
        text = _READERS[kind](data)
    except ConversionError:
        raise
    except RecursionError as error:
        raise ConversionError(f"the {kind} document is nested too deeply") from error
    except Exception as error:  # parsers of foreign files raise anything
        raise ConversionError(f"not a readable {kind} document ({type(error).__name__})") from error
    sections = tuple(
        Section(tidied, _tidy(section.heading)[:200], section.page)
        for section in text.sections
        if (tidied := _tidy(section.text))
    )
    if not sections:
        raise ConversionError("there is no text in it")
    if sum(len(section.text) for section in sections) > MAX_CHARS:
        raise ConversionError(f"its text is longer than {MAX_CHARS} characters")
    title = _tidy(text.title) or next((section.heading for section in sections if section.heading), "")
    return Text(title[:200] or PurePosixPath(name).name[:200], sections)


def convert_limited(data: bytes, name: str, kind: str, seconds: float) -> Text:
    """`convert` in a process of its own, which gives way to the engines and can't take all memory or run on for ever."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    for what, most in ((resource.RLIMIT_CPU, int(used + seconds) + 2), (resource.RLIMIT_AS, MAX_MEMORY)):
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    os.setpriority(os.PRIO_PROCESS, 0, 10)
    return convert(data, name, kind)


def kind_of(name: str, kind: str | None = None) -> str:
    """The kind of a document. Raises `ConversionError` for one that can't be read."""
    if kind:
        plain = kind.partition(";")[0].strip().lower()
        found = plain if plain in KINDS else _MIME.get(plain)
        if found is None:
            raise ConversionError(f"documents of type '{plain[:80]}' are not read; there are {', '.join(KINDS)}")
        return found
    ending = PurePosixPath(urlsplit(name).path if "://" in name else name).suffix.lower()
    if ending not in _ENDINGS:
        raise ConversionError(f"files ending in '{ending[:20]}' are not read; there are {', '.join(_ENDINGS)}")
    return _ENDINGS[ending]


def _decoded(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    if text.count("\0") > 2 + len(text) // 100:
        raise ConversionError("it is not text")
    return text.replace("\0", "")


def _plain(data: bytes) -> Text:
    return Text("", (Section(_decoded(data)),))


def _markdown(data: bytes) -> Text:
    text = _COMMENT.sub("", _decoded(data).replace("\r\n", "\n"))
    if front := _FRONT_MATTER.match(text):
        text = text[front.end() :]
    return Text("", tuple(_by_heading(text)))


def _by_heading(text: str) -> Iterator[Section]:
    """Markdown in sections, each under its headings; a `#` inside a fence is none."""
    path: list[tuple[int, str]] = []
    lines: list[str] = []
    fence = ""
    for line in text.split("\n"):
        if mark := _FENCE.match(line):
            if not fence:
                fence = mark[1][:3]
            elif line.strip().startswith(fence):
                fence = ""
        if not fence and (heading := _HEADING.match(line)):
            yield Section("\n".join(lines), " › ".join(name for _, name in path))
            level = len(heading[1])
            path, lines = [*((at, name) for at, name in path if at < level), (level, heading[2].strip())], []
        else:
            lines.append(line)
    yield Section("\n".join(lines), " › ".join(name for _, name in path))


def _html(data: bytes) -> Text:
    import lxml.etree
    import lxml.html
    import trafilatura

    parser = lxml.html.HTMLParser(remove_comments=True, remove_pis=True, huge_tree=False)
    try:
        tree = lxml.html.document_fromstring(_declared(data), parser=parser)
    except lxml.etree.ParserError as error:
        raise ConversionError("there is no text in it") from error
    title = tree.findtext(".//title") or ""
    styled = [one for one in tree.xpath("//*[@style]") if _HIDING.search(_SPACE.sub("", one.get("style").lower()))]
    for element in tree.xpath(_UNSEEN) + styled:
        if element.getparent() is not None:
            element.drop_tree()
    for code in tree.xpath("//code[not(ancestor::pre)]"):  # with a line break in it, it becomes half a fence
        for part in code.iter():
            part.text = part.text and _LINES.sub(" ", part.text)
            part.tail = part.tail and _LINES.sub(" ", part.tail)
    found = trafilatura.extract(
        tree, output_format="markdown", include_comments=False, include_tables=True, include_links=False,
        include_images=False, favor_recall=True, deduplicate=False, with_metadata=False,
    )  # fmt: skip
    whole = _text_of(tree)
    return Text(title, tuple(_by_heading(whole if not found or len(found) < len(whole) // 20 else found)))


def _text_of(tree: Any) -> str:
    """All text of a page in which its main part can't be told from the rest."""
    for heading in tree.iter("h1", "h2", "h3", "h4", "h5", "h6"):
        name = " ".join(heading.text_content().split())
        for child in list(heading):
            heading.remove(child)
        heading.text = f"{'#' * int(heading.tag[1])} {name}"
    return "\n".join(line for line in map(str.strip, "\n".join(tree.itertext()).splitlines()) if line)


def _declared(data: bytes) -> bytes | str:
    """UTF-8 where that is what it is: lxml takes a page that declares nothing for Latin-1."""
    try:
        return re.sub(r"^\s*<\?xml[^>]*\?>", "", data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return data


def _pdf(data: bytes) -> Text:
    import pypdf

    reader = pypdf.PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
        raise ConversionError("the PDF is encrypted")
    if len(reader.pages) > MAX_PAGES:
        raise ConversionError(f"the PDF has more than {MAX_PAGES} pages")
    sections, chars = [], 0
    for number, page in enumerate(reader.pages, 1):
        text = _HYPHENATED.sub(r"\1\2", page.extract_text())
        if (chars := chars + len(text)) > MAX_CHARS:
            raise ConversionError(f"its text is longer than {MAX_CHARS} characters")
        sections.append(Section(text, page=number))
    title = reader.metadata.get("/Title") if reader.metadata else None
    return Text(title if isinstance(title, str) else "", tuple(sections))


def _docx(data: bytes) -> Text:
    import docx
    from docx.table import Table

    _measured(data)
    document = docx.Document(io.BytesIO(data))
    lines = []
    for block in document.iter_inner_content():
        if isinstance(block, Table):
            lines.append(_table(block))
            continue
        text = _seen(block)
        style = block.style.name if block.style is not None and block.style.name else ""
        level = _LEVEL.match(style)
        lines.append(f"{'#' * int(level[1])} {text}" if level and text.strip() else text)
    return Text(document.core_properties.title, tuple(_by_heading("\n\n".join(lines))))


def _table(table: Any) -> str:
    """A line a row. A cell that spans several is written once."""
    rows = []
    for row in table.rows:
        cells = {cell._tc: cell for cell in row.cells}.values()
        rows.append(" | ".join(_tidy(" ".join(_cell(block) for block in cell.iter_inner_content())) for cell in cells))
    return "\n".join(rows)


def _cell(block: Any) -> str:
    return _seen(block) if hasattr(block, "runs") else _table(block)


def _seen(paragraph: Any) -> str:
    """The text of a paragraph's runs, in links and insertions too, but for those that are hidden."""
    from docx.text.run import Run

    runs = [Run(run, paragraph) for run in paragraph._p.xpath(".//w:r[not(ancestor::*[local-name()='Fallback'])]")]
    return "".join(run.text for run in runs if not _is_hidden(run, paragraph))


def _is_hidden(run: Any, paragraph: Any) -> bool:
    said = (run.font.hidden, *(style.font.hidden for style in (run.style, paragraph.style) if style is not None))
    return bool(next((hidden for hidden in said if hidden is not None), False))


def _measured(data: bytes) -> None:
    """An archive's content is measured as it is unpacked: what its directory says may be a lie."""
    left = MAX_UNPACKED
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as content:
                while part := content.read(1 << 20):
                    if (left := left - len(part)) < 0:
                        raise ConversionError(f"unpacked, it is larger than {MAX_UNPACKED // 10**6} MB")


def _rst(data: bytes) -> Text:
    from docutils import nodes
    from docutils.core import publish_doctree

    settings = {
        "file_insertion_enabled": False, "raw_enabled": False, "report_level": 5, "halt_level": 5, "_disable_config": True,
        "input_encoding": "unicode", "syntax_highlight": "none",
    }  # fmt: skip
    tree = publish_doctree(_decoded(data), settings_overrides=settings)

    def walk(node: Any, path: tuple[str, ...]) -> Iterator[Section]:
        parts: list[str] = []
        below: list[Any] = []
        for child in node.children:
            if isinstance(child, nodes.section):
                below.append(child)
            elif isinstance(child, nodes.system_message):  # a directive that only Sphinx knows: its own text is in it
                parts += [literal.astext() for literal in child.findall(nodes.literal_block)]
            elif not isinstance(child, nodes.title | nodes.Invisible):
                parts.append(_written(child.astext()))
        yield Section("\n\n".join(parts), " › ".join(path))
        for section in below:
            yield from walk(section, (*path, section.next_node(nodes.title).astext()))

    title = str(tree.get("title") or "")
    return Text(title, tuple(walk(tree, (title,) if title else ())))


def _written(text: str) -> str:
    """Without the marks of roles that only Sphinx knows."""
    return _ROLE.sub(lambda found: found[1].partition(" <")[0].lstrip("~!."), text)


def _tidy(text: str) -> str:
    """Without invisible characters and runs of blanks; at most one empty line in a row."""
    text = _INVISIBLE.sub("", text).replace("\r", "\n").replace("\u00a0", " ")
    lines = (_BLANKS.sub(" ", line.rstrip()) if line[:4].strip() else line.rstrip() for line in text.split("\n"))
    return _EMPTY_LINES.sub("\n\n", "\n".join(lines)).strip()


_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_FRONT_MATTER = re.compile(r"\A---\n.*?\n(?:---|\.\.\.)\n", re.DOTALL)
_FENCE = re.compile(r"\s{0,3}(`{3,}|~{3,})")
_HEADING = re.compile(r"(#{1,6})\s+(.+?)\s*#*$")
_HYPHENATED = re.compile(r"(\w)-\n([a-z])")
_LEVEL = re.compile(r"Heading ([1-6])$")
_ROLE = re.compile(r":[\w:+.-]+:`([^`]*)`")
# zero-width, direction marks, fillers, selectors and tags: text for a model that no reader sees; and what is no text at all
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0"
    "\U000e0000-\U000e0fff\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]"
)
_BLANKS = re.compile(r"[ \t]{2,}")
_EMPTY_LINES = re.compile(r"\n{3,}")
_UNSEEN = "//script | //style | //template | //noscript | //head | //iframe | //object | //svg | //*[@hidden] | //*[@aria-hidden='true']"
_UNSEEN += " | //a[contains(concat(' ', @class, ' '), ' headerlink ')]"  # Sphinx's pilcrow, seen when pointed at
_LINES = re.compile(r"\s*\n\s*")
_SPACE = re.compile(r"\s+|/\*.*?\*/|!important")
_HIDING = re.compile(
    r"(?:^|;)(?:display:none|visibility:(?:hidden|collapse)|(?:opacity|font-size):0*(?:\.0*)?(?:px|r?em|pt|%)?"
    r"|(?:left|top|right|text-indent):-\d{3,}\.?\d*(?:px|r?em|pt|%))(?:;|$)"
)

_READERS: Mapping[str, Callable[[bytes], Text]] = {
    "text": _plain, "markdown": _markdown, "html": _html, "pdf": _pdf, "docx": _docx, "rst": _rst,
}  # fmt: skip
KINDS = tuple(_READERS)
_ENDINGS: Mapping[str, str] = {
    ".txt": "text", ".text": "text", ".log": "text", ".md": "markdown", ".markdown": "markdown", ".html": "html",
    ".htm": "html", ".xhtml": "html", ".pdf": "pdf", ".docx": "docx", ".rst": "rst",
}  # fmt: skip
_MIME: Mapping[str, str] = {
    "text/plain": "text", "text/markdown": "markdown", "text/x-markdown": "markdown", "text/html": "html",
    "application/xhtml+xml": "html", "application/pdf": "pdf", "text/x-rst": "rst", "text/prs.fallenstein.rst": "rst",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
}  # fmt: skip
