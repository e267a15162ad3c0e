"""Document conversion, for every format: the kind, the limits, and texts built to take long or to break a parser."""

import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.retrieval.ingest.convert import KINDS, ConversionError, Section, Text, convert, kind_of
from serve.retrieval.ingest.formats import document as document_format
from tests.support.converted_text import whole

DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"


def test_text_without_a_title_is_called_by_its_name():
    assert convert(b"x", "folder/notes.txt") == Text("notes.txt", (Section("x"),))


@pytest.mark.parametrize("data", [b"", b" \n\t ", "\u200b\ufeff".encode(), b"<!-- only this -->"])
def test_what_has_no_text_is_refused(data):
    for name in ("a.md", "a.html"):
        with pytest.raises(ConversionError, match=r"empty|no text|not a readable"):
            convert(data, name)


def ends(data: bytes, name: str, is_text: bool, within_s: float) -> None:
    """Check that it is converted, or refused, within this CPU time."""
    started = time.process_time()
    with nullcontext() if is_text else pytest.raises(ConversionError):
        convert(data, name)
    assert time.process_time() - started < within_s


@pytest.mark.parametrize("depth", [300, 5_000, 200_000])
def test_deep_nesting_ends_soon_in_text_or_an_error(depth):
    ends(b"<div>" * depth + b"text" + b"</div>" * depth, "a.html", depth == 300, 10)
    ends(b">" * depth + b" text", "a.md", True, 10)
    if depth <= 5_000:  # its length grows with the square of the depth
        ends(b"\n".join(b" " * i + b"* x" for i in range(min(depth, 1500))), "a.rst", False, 10)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("a.md", None, "markdown"), ("A.HTM", None, "html"), ("https://x/a.pdf?b=c.md", None, "pdf"), ("a", "markdown", "markdown"), ("what?.md", None, "markdown"), ("C#.txt", None, "text"),
        ("a.md", "text/plain; charset=utf-8", "text"), ("a", "Text/HTML", "html"), ("a", DOCX, "docx"), ("a.rst", "", "rst"),
        ("https://x/a.md#part", None, "markdown"),
    ],
)  # fmt: skip
def test_the_kind_is_what_is_said_or_else_by_the_ending(name, kind, expected):
    assert kind_of(name, kind) == expected


@pytest.mark.parametrize(
    ("name", "kind"), [("a.exe", None), ("a", None), ("a.md", "image/png"), (".md", None), ("", None)]
)
def test_the_error_for_an_unknown_kind_lists_the_known_ones(name, kind):
    with pytest.raises(ConversionError, match="use one of"):
        kind_of(name, kind)


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html", "a.rst"])
def test_huge_texts_end_soon_in_text_or_an_error(name):
    """reStructuredText has a limit to the length of a line, and lists without items have no text."""
    for data in (b"word " * 500_000, b"`" * 150_000, b"<" * 150_000, b"#" * 150_000, b"-\n" * 50_000):
        ends(data, name, name != "a.rst", 5)
    ends(b" " * 1_500_000, name, False, 5)


def test_text_over_the_limit_is_refused(monkeypatch):
    monkeypatch.setattr(document_format, "MAX_CHARS", 100)
    with pytest.raises(ConversionError, match="longer than 100"):
        convert(b"x" * 101, "a.txt")


@settings(max_examples=150, deadline=None)
@given(data=st.one_of(st.binary(max_size=300), st.text(max_size=300).map(lambda text: text.encode("utf-8", "replace"))))
def test_any_bytes_of_any_kind_are_text_or_a_conversion_error(data):
    for kind in KINDS:
        try:
            text = convert(data, "a", kind)
        except ConversionError as error:
            assert str(error)
        else:
            assert text.title
            assert all(section.text.strip() == section.text != "" for section in text.sections)
            whole(text).encode()  # no lone surrogates: the store's text can't hold them
            assert "\0" not in whole(text) + text.title


def test_nothing_is_written_or_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    convert(b"Title\n=====\n\n.. image:: http://127.0.0.1:1/x.png\n\ntext", "a.rst")
    convert(b"<html><body><img src='http://127.0.0.1:1/x.png'><p>some text here</p></body></html>", "a.html")
    assert not list(Path(tmp_path).iterdir())


TEXT = {
    "a.md": ["`<!--", "`", "`` ` ", "\\`", "# a\n", " #", "[a]: b\n", "---\na: b\n", "> ", "</script", "[", "a\n=\n", "~~~\n````\n", "- - a\n"],
    "a.html": ["<"],
    "a.txt": ["\x1b[", "\x1b[1;", "\x1b]", "  a", "\u0627\u200c\u200b"],
}  # fmt: skip
NO_TEXT = {
    "a.md": ["<!--", "<script>\n", "[//]: # (x)\n", " \n"],
    "a.html": ["<!--", "<p>", "<nav>", "<table>", "<sup>", "<ul><li>", "<svg>", "<math><mi>", "<pre>", "<p style='left:-1111", "<div hidden>", "<h1>",
               "<td>", "<b id=x>", "<nav><h1>", "<br> ", "<![CDATA[", "<p style='/*/*/*"],
    "a.txt": ["a\b", "\r", "\u200b", "\n ", "\t"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "piece", "is_text"),
    [
        (name, piece, pieces is TEXT)
        for pieces in (TEXT, NO_TEXT)
        for name, of_name in pieces.items()
        for piece in of_name
    ],
)
def test_the_time_grows_with_the_length_of_a_text_and_no_faster(name, piece, is_text):
    ends((piece * (100_000 // len(piece))).encode(), name, is_text, 5)


def test_many_headings_do_not_multiply(monkeypatch):
    monkeypatch.setattr(document_format, "MAX_CHARS", 10_000)
    with pytest.raises(ConversionError, match="longer than"):
        convert(f"# {'x' * 190}\n".encode() + b"## a\nb\n" * 100, "a.md")
