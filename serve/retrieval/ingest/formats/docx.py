"""Word documents to text, with all tracked changes accepted."""

import io
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import docx
from docx.opc.constants import RELATIONSHIP_TYPE
from docx.oxml import parse_xml

from serve.retrieval.ingest.formats.document import ConversionError, Outline, Section, Text, one_line, superscript, tidy
from serve.retrieval.ingest.formats.equations import linear
from serve.retrieval.ingest.formats.numbering import Numbering
from serve.retrieval.ingest.formats.tables import Cell, table_text

_MAX_COLUMNS = 63  # of a table in Word
MAX_UNPACKED = 200_000_000  # bytes of an archive's uncompressed content
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def read(data: bytes, charset: str | None = None) -> Text:
    """Read the text of body, notes, text boxes, headers and footers."""
    if data.startswith(_OLE):
        raise ConversionError("it is encrypted, or of a Word before 2007: save it as .docx without a password")
    _measured(data)
    document = docx.Document(io.BytesIO(data))
    reader = _Reader(document)
    reader.blocks(_checked(document.element).body)
    title, sections = _title(document) or reader.outline.title, reader.outline.sections()
    around = tuple(Section(text) for text in reader.around_pages())
    return Text(title, sections + around, tuple(f"{what}: {count}" for what, count in reader.not_read.items()))


def _measured(data: bytes) -> None:
    """Check the uncompressed size by unpacking: the sizes in the archive's directory may be false."""
    left = MAX_UNPACKED
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as content:
                while part := content.read(1 << 20):
                    if (left := left - len(part)) < 0:
                        raise ConversionError(f"unpacked, it is larger than {MAX_UNPACKED // 10**6} MB")


def _checked(root: Any) -> Any:
    """The root of a part. Parts with entities are rejected: Word writes none, and they could expand or read files."""
    if root.getroottree().docinfo.doctype:
        raise ConversionError("a part of it has a document type declaration")
    return root


def _title(document: Any) -> str:
    try:  # python-docx creates properties where there are none
        document.part.package.part_related_by(RELATIONSHIP_TYPE.CORE_PROPERTIES)
    except KeyError:
        return ""
    return str(document.core_properties.title or "")


class _Reader:
    """Reads one document."""

    def __init__(self, document: Any) -> None:
        self.outline = Outline()
        self.not_read: Counter[str] = Counter()
        self._document = document
        self._part = document.part  # the part whose relationships are resolved
        styles = _checked(document.styles.element).findall(f"{_W}style")
        self._styles = {style.get(f"{_W}styleId"): style for style in styles}
        usual = (
            style for style in styles if style.get(f"{_W}type") == "paragraph" and style.get(f"{_W}default") in _ON
        )
        self._usual = next((style.get(f"{_W}styleId") for style in usual), None)
        self._notes = {
            "footnoteReference": self._notes_of(RELATIONSHIP_TYPE.FOOTNOTES),
            "endnoteReference": self._notes_of(RELATIONSHIP_TYPE.ENDNOTES),
        }
        self._noted = 0
        self._numbering = Numbering(self._root_of(RELATIONSHIP_TYPE.NUMBERING))
        self._listed = False  # whether the previous paragraph is a list item
        self._below: list[Callable[[], None]] = []  # text boxes and notes to add after the current paragraph
        self._fields: list[bool] | None = (
            None  # open fields: whether their result has begun; None: fields span paragraphs
        )

    def blocks(self, parent: Any) -> None:
        """Add paragraphs and tables, also inside wrapper elements."""
        for block in _unwrapped(parent):
            if block.tag == f"{_W}tbl":
                self._table(block)
            elif block.tag == f"{_W}altChunk":
                self.not_read["embedded documents"] += 1
            else:
                mark, text, level = self._mark(block), self._paragraph(block), self._level(block)
                if mark and text.strip():
                    text = f"{mark} {text}"
                if level and text.strip():
                    self.outline.heading(level, text)
                else:
                    self.outline.add(text, "\n" if mark and self._listed else "\n\n")
                self._listed = bool(mark)
            while self._below:
                self._below.pop(0)()

    def around_pages(self) -> list[str]:
        """The texts of all headers and footers, without repetitions."""
        texts: dict[str, None] = {}
        also_even = self._document.settings.odd_and_even_pages_header_footer
        for section in self._document.sections:
            parts = [section.header, section.footer]
            if section.different_first_page_header_footer:
                parts += [section.first_page_header, section.first_page_footer]
            if also_even:
                parts += [section.even_page_header, section.even_page_footer]
            for part in parts:
                if not part.is_linked_to_previous:
                    self._part, self.outline = part.part, Outline()
                    self.blocks(_checked(part._element))
                    texts |= dict.fromkeys(section.text for section in self.outline.sections())
        return list(texts)

    def _table(self, table: Any) -> None:
        """Add a table, one line per row. A table with nested tables is treated as layout."""
        lays_out = next(table.iterdescendants(f"{_W}tbl"), None) is not None
        rows: list[list[Cell]] = []
        merged: dict[int, str] = {}  # by column: the text of a cell that reaches into the rows below
        for row in _unwrapped(table):
            if any(row.find(f"{_W}trPr/{_W}{mark}") is not None for mark in ("del", "hidden")):
                continue
            if lays_out:
                for cell in _unwrapped(row):
                    if not _is_removed(cell) and not _continues(cell, "vMerge"):
                        self.blocks(cell)
            else:
                is_header = row.find(f"{_W}trPr/{_W}tblHeader") is not None
                rows.append([])
                column = 0
                for cell in _unwrapped(row):
                    if _is_removed(cell):
                        continue
                    if not _continues(cell, "vMerge"):
                        merged[column] = one_line(tidy(" ".join(map(self._marked, _unwrapped(cell)))))
                    span = _value(cell, "tcPr", "gridSpan") or "1"
                    columns = min(max(int(span), 1), _MAX_COLUMNS) if span.isdecimal() else 1
                    rows[-1].append(Cell(merged.get(column, ""), columns, header=is_header))
                    column += columns
        self.outline.add(table_text(rows))

    def _marked(self, paragraph: Any) -> str:
        return f"{self._mark(paragraph)} {self._paragraph(paragraph)}"

    def _mark(self, paragraph: Any) -> str:
        """The number or bullet of a paragraph, from its properties or its style."""
        style = _value(paragraph, "pPr", "pStyle") or self._usual
        for element in (paragraph, *self._with_bases(style)):
            if number := _value(element, "pPr", "numPr", "numId"):
                level = _value(element, "pPr", "numPr", "ilvl")
                name = None if element is paragraph else element.get(f"{_W}styleId")
                at = int(level) if level and level.isdecimal() else self._numbering.level_of(number, name)
                return self._numbering.next(number, at)
        return ""

    def _paragraph(self, paragraph: Any) -> str:
        steps = {"begin": 1, "end": -1}
        depths = [*accumulate(steps.get(mark.get(f"{_W}fldCharType"), 0) for mark in paragraph.iter(f"{_W}fldChar"))]
        whole = not depths or (min(depths) == 0 == depths[-1])  # false for a field that continues in the next paragraph
        self._fields = [] if whole else None
        return self._text(paragraph, _value(paragraph, "pPr", "pStyle") or self._usual)

    def _text(self, element: Any, style: str | None) -> str:
        """The text in an element of a paragraph of that style."""
        name = _name(element)
        if name in _WRITTEN:
            return _WRITTEN[name](element) if self._fields is None or all(self._fields) else ""
        if name in _GONE or name.endswith("Pr") or (name == "r" and self._is_hidden(element, style)):
            return ""
        if name == "fldChar":
            return self._field(element)
        if name == "txbxContent":
            self._below.append(lambda: self.blocks(element))
        elif name in self._notes:
            return self._note(self._notes[name].get(element.get(f"{_W}id")))
        elif name == "relIds":
            return self._diagram(element)
        elif name in _NOT_READ:
            self.not_read[_NOT_READ[name]] += 1
        elif name == "AlternateContent":
            return self._text(_chosen(element), style)
        elif name == "rt":
            return f"({self._children(element, style)})"
        elif name == "ruby":  # ruby text comes before its base
            return "".join(self._text(child, style) for child in sorted(element, key=lambda one: _name(one) == "rt"))
        else:
            text = self._children(element, style)
            return superscript(text) if name == "r" and _value(element, "rPr", "vertAlign") == "superscript" else text
        return ""

    def _children(self, element: Any, style: str | None) -> str:
        return "".join(self._text(child, style) for child in element if isinstance(child.tag, str))

    def _field(self, mark: Any) -> str:
        """Show a field's result, or the choice of a list, but not its instructions, which may contain fields."""
        kind = mark.get(f"{_W}fldCharType")
        if self._fields is not None:
            if kind == "begin":
                self._fields.append(False)
            elif kind == "separate" and self._fields:
                self._fields[-1] = True
            elif kind == "end" and self._fields:
                self._fields.pop()
        if kind != "begin" or (choice := mark.find(f"{_W}ffData/{_W}ddList")) is None:
            return ""
        entries = [entry.get(f"{_W}val") or "" for entry in choice.findall(f"{_W}listEntry")]
        at = _value(choice, "result") or _value(choice, "default") or "0"
        return entries[int(at)] if at.isdecimal() and int(at) < len(entries) else ""

    def _note(self, note: Any) -> str:
        if note is None:
            return ""
        self._noted += 1
        mark = f"[^{self._noted}]"
        self._below.append(lambda: self.outline.add(f"{mark}: " + " ".join(map(self._paragraph, _unwrapped(note)))))
        return mark

    def _root_of(self, kind: str) -> Any:
        try:
            return _checked(parse_xml(self._document.part.part_related_by(kind).blob))
        except KeyError:
            return None

    def _notes_of(self, kind: str) -> dict[str, Any]:
        if (notes := self._root_of(kind)) is None:
            return {}
        return {note.get(f"{_W}id"): note for note in notes if note.get(f"{_W}type") in (None, "normal")}

    def _diagram(self, element: Any) -> str:
        part = self._part.related_parts.get(element.get(f"{_R}dm"))
        if part is None:
            return ""
        texts = (node.text or "" for node in _checked(parse_xml(part.blob)).iter(f"{_A}t"))
        return "\n".join(text for text in texts if text.strip())

    def _level(self, paragraph: Any) -> int | None:
        """The heading level of a paragraph; None if it is not a heading."""
        level = _level(paragraph)
        for style in self._with_bases(_value(paragraph, "pPr", "pStyle")) if level is None else ():
            name = _HEADING.fullmatch(_value(style, "name") or "")
            level = int(name[1]) if name else _level(style)
            if level is not None:
                break
        return level if level and level < 10 else None

    def _is_hidden(self, run: Any, style: str | None) -> bool:
        """Whether a run is hidden, by its properties, its style or its paragraph's style."""
        for element in (run, *self._with_bases(_value(run, "rPr", "rStyle")), *self._with_bases(style)):
            if (vanish := element.find(f"{_W}rPr/{_W}vanish")) is not None:
                return vanish.get(f"{_W}val", "1") in _ON
        return False

    def _with_bases(self, name: str | None) -> Iterator[Any]:
        """A style and the styles that it is based on."""
        known = set()
        while name not in known and (style := self._styles.get(name)) is not None:
            known.add(name)
            yield style
            name = _value(style, "basedOn")


def _unwrapped(parent: Any) -> Iterator[Any]:
    """The children of an element, with wrappers (content controls, insertions) replaced by their children."""
    for child in parent:
        if not isinstance(child.tag, str):
            continue
        name = _name(child)
        if name in _WRAPPERS:
            yield from _unwrapped(child)
        elif name == "AlternateContent":
            yield from _unwrapped(_chosen(child))
        elif name not in _GONE and not name.endswith("Pr"):
            yield child


def _chosen(alternatives: Any) -> Any:
    """The first `Choice` of alternatives; the others have the same content for other programs."""
    return next(
        (alternative for alternative in alternatives if _name(alternative) == "Choice"),
        next(iter(alternatives), alternatives),
    )


def _is_removed(cell: Any) -> bool:
    """Whether a cell is deleted, or merged into the cell before it."""
    return cell.find(f"{_W}tcPr/{_W}cellDel") is not None or _continues(cell, "hMerge")


def _continues(cell: Any, merge: str) -> bool:
    """Whether a cell is the continuation of a merged cell."""
    mark = cell.find(f"{_W}tcPr/{_W}{merge}")
    return mark is not None and mark.get(f"{_W}val", "continue") == "continue"


def _level(element: Any) -> int | None:
    level = _value(element, "pPr", "outlineLvl")
    return int(level) + 1 if level and level.isdecimal() and len(level) == 1 else None


def _value(element: Any, *path: str) -> str | None:
    child = element.find("/".join(f"{_W}{name}" for name in path))
    return None if child is None else child.get(f"{_W}val")


def _name(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]


def _symbol(element: Any) -> str:
    """A character of a symbol font; private-use characters are omitted, as they have no meaning in other fonts."""
    try:
        char = chr(int(element.get(f"{_W}char", ""), 16))
    except (ValueError, OverflowError):
        return ""
    return "" if "\ue000" <= char <= "\uf8ff" else char


_ON = ("1", "true", "on")
_HEADING = re.compile(r"heading ([1-9])", re.IGNORECASE)
_WRAPPERS = {"sdt", "sdtContent", "customXml", "smartTag", "ins", "moveTo"}
_GONE = {"del", "moveFrom", "instrText", "delText", "delInstrText", "sectPr", "tblGrid", "Fallback"}
_NOT_READ = {"chart": "charts", "OLEObject": "embedded documents", "commentReference": "comments"}
_WRITTEN: dict[str, Callable[[Any], str]] = {
    "t": lambda element: element.text or "",
    **dict.fromkeys(("tab", "ptab"), lambda _: "\t"),
    **dict.fromkeys(("br", "cr"), lambda _: "\n"),
    "noBreakHyphen": lambda _: "-",
    "sym": _symbol,
    **dict.fromkeys(("oMath", "oMathPara"), linear),
    "docPr": lambda element: f" {element.get('descr') or ''} ",
    "textpath": lambda element: element.get("string") or "",
}
