"""Convert untrusted documents to text: Markdown, HTML, PDF, DOCX, reStructuredText and plain text.

Invisible content (hidden elements, comments, scripts) is omitted. Visible content that is omitted is reported in `left_out`.
Nothing outside the document is ever read.
"""

import os
import resource
from collections.abc import Mapping
from email.message import Message
from importlib import import_module
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from serve.retrieval.ingest.formats import document
from serve.retrieval.ingest.formats.document import MAX_CHARS, ConversionError, Section, Text, tidy

__all__ = [
    "KINDS",
    "MAX_CHARS",
    "ConversionError",
    "Section",
    "Text",
    "charset_of",
    "convert",
    "convert_limited",
    "kind_of",
]

MAX_MEMORY = 4 << 30  # bytes of a conversion process
_MAX_NOTES = 50  # notes of a document
_MAX_NOTE = 300  # characters


def convert(data: bytes, name: str, kind: str | None = None) -> Text:
    """Convert a document to text.

    Args:
        data: its bytes.
        name: its file name or URL, whose extension determines the type when `kind` does not.
        kind: one of `KINDS`, or its MIME type, either with a `charset`.

    Raises:
        ConversionError: unknown type, corrupt or encrypted file, exceeded limits, or no text.
    """
    charset = charset_of(kind)
    kind = kind_of(name, kind)
    if not data:
        raise ConversionError("the document is empty")
    for beginning, what, signature_kind in _BEGINNINGS:
        if data.startswith(beginning) and kind != signature_kind:
            raise ConversionError(f"it is {what}, not {kind}")
    try:
        text: Text = import_module(f"serve.retrieval.ingest.formats.{kind}").read(
            data, charset
        )  # imported on demand: parsers have heavy dependencies
    except (ConversionError, MemoryError):
        raise
    except RecursionError as error:
        raise ConversionError(f"the {kind} document is nested too deeply") from error
    except Exception as error:  # parsers may raise any exception for untrusted files
        raise ConversionError(f"not a readable {kind} document ({type(error).__name__})") from error
    sections = tuple(section for section in text.sections if section.text)
    if not sections:
        raise ConversionError("; ".join(["there is no text in it", *text.left_out[:3]]))
    if sum(len(section.text) + len(section.heading) for section in sections) > document.MAX_CHARS:
        raise ConversionError(f"its text is longer than {document.MAX_CHARS} characters")
    title = " ".join(tidy(text.title).split())
    notes = tuple(" ".join(tidy(line).split())[:_MAX_NOTE] for line in text.left_out[:_MAX_NOTES])
    if len(text.left_out) > _MAX_NOTES:
        notes += (f"and {len(text.left_out) - _MAX_NOTES} more",)
    return Text(title[:200] or PurePosixPath(name).name[:200], sections, notes)


def convert_limited(data: bytes, name: str, kind: str | None, seconds: float) -> Text:
    """Run `convert` with limits on this process: lowest priority, CPU time and memory."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    for resource_id, limit in ((resource.RLIMIT_CPU, int(used + seconds) + 2), (resource.RLIMIT_AS, MAX_MEMORY)):
        hard = resource.getrlimit(resource_id)[1]
        resource.setrlimit(resource_id, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    os.setpriority(os.PRIO_PROCESS, 0, 19)  # below engines, which have 10
    return convert(data, name, kind)


def kind_of(name: str, kind: str | None = None) -> str:
    """The format of a document. Raises `ConversionError` for unsupported formats."""
    if kind:
        plain = kind.partition(";")[0].strip().lower()
        format_name = plain if plain in KINDS else _MIME.get(plain)
        if format_name is None:
            raise ConversionError(f"documents of type '{plain[:80]}' are not supported; use one of {', '.join(KINDS)}")
        return format_name
    ending = PurePosixPath(urlsplit(name).path if "://" in name else name).suffix.lower()
    if ending not in _ENDINGS:
        raise ConversionError(f"files ending in '{ending[:20]}' are not supported; use one of {', '.join(_ENDINGS)}")
    return _ENDINGS[ending]


def charset_of(kind: str | None) -> str | None:
    """The charset of a MIME type."""
    header = Message()
    header["content-type"] = " ".join((kind or "").split())
    declared = header.get_param("charset")
    return declared or None if isinstance(declared, str) else None


# magic numbers of formats, to detect files with a wrong extension
_BEGINNINGS = (
    (b"%PDF-", "a PDF", "pdf"), (b"PK\x03\x04", "a ZIP archive, perhaps an office document", "docx"), (b"{\\rtf", "RTF", ""),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old or encrypted office document", "docx"), (b"\x1f\x8b\x08", "compressed", ""),
)  # fmt: skip
KINDS = ("text", "markdown", "html", "pdf", "docx", "rst")
_ENDINGS: Mapping[str, str] = {
    ".txt": "text", ".text": "text", ".log": "text", ".md": "markdown", ".markdown": "markdown", ".html": "html",
    ".htm": "html", ".xhtml": "html", ".pdf": "pdf", ".docx": "docx", ".rst": "rst",
}  # fmt: skip
_MIME: Mapping[str, str] = {
    "text/plain": "text", "text/markdown": "markdown", "text/x-markdown": "markdown", "text/html": "html",
    "application/xhtml+xml": "html", "application/pdf": "pdf", "text/x-rst": "rst", "text/prs.fallenstein.rst": "rst",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
}  # fmt: skip
