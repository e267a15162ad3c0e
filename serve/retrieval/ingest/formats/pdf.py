"""PDF pages to text, with form field values and annotations."""

import io
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pypdf

from serve.retrieval.ingest.formats import document
from serve.retrieval.ingest.formats.document import ConversionError, Section, Text, tidy

MAX_PAGES = 5_000
_HIDDEN = 0x02 | 0x20  # annotation flags Hidden and NoView
_PASSWORD = 1 << 13  # field flag Password
_SHOWN = 20  # maximum number of page numbers in a note


def read(data: bytes, charset: str | None = None) -> Text:
    """Read the text of every page."""
    reader = pypdf.PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
        raise ConversionError("the PDF is encrypted")
    if len(reader.pages) > MAX_PAGES:
        raise ConversionError(f"the PDF has more than {MAX_PAGES} pages")
    sections, chars, pictures = [], 0, []
    for number, page in enumerate(reader.pages, 1):
        text = _HYPHENATED.sub(r"\1\2", page.extract_text())
        text = tidy("\n\n".join([text, *_written_on(page)]))
        if (chars := chars + len(text)) > document.MAX_CHARS:
            raise ConversionError(f"its text is longer than {document.MAX_CHARS} characters")
        if not text and _has_content(page):
            pictures.append(number)
        sections.append(Section(text, page=number))
    title = reader.metadata.get("/Title") if reader.metadata else None
    return Text(title if isinstance(title, str) else "", tuple(sections), _left_out(pictures, len(reader.attachments)))


def _left_out(pictures: list[int], attached: int) -> tuple[str, ...]:
    notes = []
    if pictures:
        numbers = ", ".join(map(str, pictures[:_SHOWN])) + (", …" if len(pictures) > _SHOWN else "")
        notes.append(f"pages without text, of which pictures are not read ({len(pictures)}): {numbers}")
    if attached:
        notes.append(f"attached files: {attached}")
    return tuple(notes)


def _has_content(page: Any) -> bool:
    resources = _resolved(page.get("/Resources")) or {}
    return bool(isinstance(resources, Mapping) and _resolved(resources.get("/XObject")))


def _written_on(page: Any) -> Iterator[str]:
    """The values of form fields and the text of annotations."""
    annotations = _resolved(page.get("/Annots"))
    for annotation in map(_resolved, annotations if isinstance(annotations, list) else []):
        if not isinstance(annotation, Mapping) or _number(annotation.get("/F")) & _HIDDEN:
            continue
        kind = annotation.get("/Subtype")
        if kind == "/Widget":
            yield _field(annotation)
        elif kind not in ("/Link", "/Popup"):
            yield _text(annotation.get("/Contents"))


def _field(widget: Mapping[str, Any]) -> str:
    """A form field's label and value; for a ticked checkbox, its label."""
    kind, flags = _inherited(widget, "/FT"), _number(_inherited(widget, "/Ff"))
    label = _text(_inherited(widget, "/TU")) or _text(_inherited(widget, "/T"))
    if kind == "/Btn":
        state = _resolved(widget.get("/AS"))
        return f"☑ {label}" if state not in (None, "/Off") else ""
    if kind not in ("/Tx", "/Ch") or flags & _PASSWORD:
        return ""
    value = _inherited(widget, "/V")
    values = [_text(item) for item in (value if isinstance(value, list) else [value])]
    return f"{label}: {', '.join(filter(None, values))}" if any(values) else ""


def _inherited(widget: Mapping[str, Any], name: str) -> Any:
    """An entry of a field, or the entry inherited from its parents."""
    field: Any = widget
    for _ in range(32):
        if not isinstance(field, Mapping):
            return None
        if name in field:
            return _resolved(field[name])
        field = _resolved(field.get("/Parent"))
    return None


def _text(value: Any) -> str:
    """A text value, which may be stored in a stream."""
    value = _resolved(value)
    if isinstance(value, pypdf.generic.StreamObject):
        value = value.get_data()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value) if isinstance(value, str) and not isinstance(value, pypdf.generic.NameObject) else ""


def _number(value: Any) -> int:
    value = _resolved(value)
    return int(value) if isinstance(value, int) else 0


def _resolved(value: Any) -> Any:
    return value.get_object() if isinstance(value, pypdf.generic.PdfObject) else value


_HYPHENATED = re.compile("(\\w)[-\u00ad\u2010]\n([a-zß-öø-ÿ])")
