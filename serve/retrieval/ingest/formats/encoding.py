"""Decode documents: by byte order mark, declared charset or UTF-8 with few invalid bytes; otherwise detect or reject."""

import codecs
import re

from serve.retrieval.ingest.formats.document import ConversionError

_SAMPLE = 1 << 16  # bytes used to detect an encoding


def decode(data: bytes, charset: str | None = None, inside: str | None = None) -> tuple[str, tuple[str, ...]]:
    """Decode a document; returns its text and notes for users.

    Args:
        data: its bytes. A byte order mark takes precedence over declared encodings.
        charset: the encoding declared outside the document.
        inside: the encoding declared inside the document.

    Raises:
        ConversionError: it is not text, or its encoding is unknown or cannot be detected.
    """
    text, notes = _decoded(data, charset, inside)
    if text.count("\0") > 2 + len(text) // 100:
        raise ConversionError("it is not text, or is in an encoding that has to be declared (text/plain; charset=…)")
    return text.replace("\0", ""), notes


def _decoded(data: bytes, charset: str | None, inside: str | None) -> tuple[str, tuple[str, ...]]:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return _with_notes(*_decode_as(data[len(mark) :], encoding), encoding)
    notes: tuple[str, ...] = ()
    for name in (charset, inside):
        if not name:
            continue
        if (known := _codec_name(name)) is None:
            if name == charset:
                raise ConversionError(f"the declared charset '{name[:40]}' is not known")
            notes = (f"the charset '{name[:40]}' that it declares is not known",)
        elif known != "ascii":  # ASCII is a subset of UTF-8 and most others, so it is not decisive
            return _with_notes(*_decode_as(data, known), known)
    text, bad = _decode_as(data, "utf-8")
    beyond_ascii = len(text) - len(text.encode("ascii", "ignore"))
    if beyond_ascii - bad >= bad:
        return _with_notes(text, bad, "utf-8", notes)
    encoding = _detect(data)  # UTF-8 with some invalid bytes would have more valid characters
    notes += (f"not UTF-8, and no charset is declared: read as {encoding}, which is a guess",)
    return _with_notes(*_decode_as(data, encoding), encoding, notes)


def _decode_as(data: bytes, encoding: str) -> tuple[str, int]:
    """The text, and the number of invalid byte sequences in it."""
    try:
        return data.decode(encoding), 0
    except UnicodeDecodeError:
        text = data.decode(encoding, "replace")
    replacement = "\ufffd".encode(encoding, "ignore")
    return text, max(1, text.count("\ufffd") - (data.count(replacement) if replacement else 0))


def _with_notes(text: str, bad: int, encoding: str, notes: tuple[str, ...] = ()) -> tuple[str, tuple[str, ...]]:
    return text, (*notes, f"bytes that are not {encoding}: {bad}, replaced by \ufffd") if bad else notes


def _detect(data: bytes) -> str:
    """Detect the encoding by its letters. If undecided, Windows-1252 where most letters are ASCII, else an error."""
    from charset_normalizer import from_bytes

    sample = bytearray()
    for line in _TAG.sub(b" ", data).splitlines():
        if not line.isascii():
            sample += line[: _SAMPLE - len(sample)] + b"\n"
            if len(sample) >= _SAMPLE:
                break
    matches = sorted(
        from_bytes(bytes(sample), cp_isolation=list(_DETECTABLE), enable_fallback=False),
        key=lambda match: (match.chaos, -match.coherence),
    )
    if matches and matches[0].coherence > 0:
        best = (matches[0].chaos, matches[0].coherence)
        equal = [
            name for match in matches if (match.chaos, match.coherence) == best for name in match.could_be_from_charset
        ]
        return "cp1252" if "cp1252" in equal else str(matches[0].encoding)
    if sum(map(sample.count, _ASCII_LETTERS)) >= sum(byte > 127 for byte in sample):
        return "cp1252"
    if matches and (len(matches) == 1 or matches[1].chaos - matches[0].chaos > 0.02):
        return str(matches[0].encoding)
    raise ConversionError("it is not UTF-8, and its encoding can't be detected: declare it (text/plain; charset=…)")


def _codec_name(charset: str) -> str | None:
    """Python's name of a text encoding, mapped as browsers do; None if unsupported."""
    try:
        name = codecs.lookup(charset.strip()).name
    except (LookupError, ValueError):
        return None
    name = _WHATWG_ENCODINGS.get(name, name)
    return name if name in _TEXT else None


_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
# https://encoding.spec.whatwg.org/#names-and-labels: labels map to the superset that pages use in practice
_WHATWG_ENCODINGS = {
    "iso8859-1": "cp1252", "iso8859-9": "cp1254", "iso8859-11": "cp874", "tis-620": "cp874", "gb2312": "gb18030",
    "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs", "utf-16": "utf-16-le", "utf-8-sig": "utf-8",
    "utf-32": "utf-32-le",
}  # fmt: skip
_DETECTABLE = (
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "cp874", "koi8_r",
    "iso8859_2", "cp932", "euc_jp", "gb18030", "big5", "cp949",
)  # fmt: skip
_TEXT = {codecs.lookup(name).name for name in _DETECTABLE} | {
    "ascii", "utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "big5hkscs", "iso2022_jp", "koi8-u", "mac-roman",
    "mac-cyrillic", "cp437", "cp850", "cp852", "cp866", *(f"iso8859-{number}" for number in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)),
}  # fmt: skip
_TAG = re.compile(rb"<[^<>]*>")
_ASCII_LETTERS = [bytes([byte]) for byte in range(128) if chr(byte).isalpha()]
