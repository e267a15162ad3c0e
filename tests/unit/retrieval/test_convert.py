"""Document conversion: the visible text of every format; hidden, foreign, broken or oversized content is rejected or dropped."""

import io
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import docutils.parsers.rst
import docx
import docx.enum.style
import docx.opc.constants
import docx.opc.packuri
import docx.opc.part
import docx.oxml
import pypdf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.retrieval.ingest.convert import KINDS, ConversionError, Section, Text, convert, kind_of
from serve.retrieval.ingest.formats import document as document_format
from serve.retrieval.ingest.formats import docx as docx_format
from serve.retrieval.ingest.formats import pdf as pdf_format

DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"


def whole(text: Text) -> str:
    return "\n".join(f"{section.heading}\n{section.text}" for section in text.sections)


def html(body: str, head: str = "<title>T</title>") -> str:
    return whole(convert(f"<html><head>{head}</head><body>{body}</body></html>".encode(), "a.html"))


def pdf(*pages: str, **options: str) -> bytes:
    """A PDF with a line of text a page."""
    writer = pypdf.PdfWriter()
    for text in pages:
        page = writer.add_blank_page(300, 300)
        stream = pypdf.generic.DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode("latin-1"))
        name, new = pypdf.generic.NameObject, pypdf.generic.DictionaryObject
        font = new(
            {name("/Type"): name("/Font"), name("/Subtype"): name("/Type1"), name("/BaseFont"): name("/Helvetica")}
        )
        page[name("/Contents")] = writer._add_object(stream)
        page[name("/Resources")] = new({name("/Font"): new({name("/F1"): writer._add_object(font)})})
    if title := options.get("title"):
        writer.add_metadata({"/Title": title})
    if password := options.get("password"):
        writer.encrypt(password, algorithm="RC4-128")
    made = io.BytesIO()
    writer.write(made)
    return made.getvalue()


def word(document: "docx.document.Document | None" = None, **replaced: bytes) -> bytes:
    """A DOCX; `replaced` are parts by name, `_` for `/`."""
    made = io.BytesIO()
    (document or docx.Document()).save(made)
    if not replaced:
        return made.getvalue()
    again = io.BytesIO()
    with zipfile.ZipFile(made) as old, zipfile.ZipFile(again, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, replaced.get(name.replace("/", "_").replace(".", "_"), old.read(name)))
    return again.getvalue()


def test_markdown_is_cut_at_its_headings_and_keeps_their_path():
    text = convert(b"intro\n\n# One\na\n## Two ##\nb\n```sh\n# no heading\n```\n# Three\nc", "guide/a.md")
    assert text.title == "One"
    assert [(section.heading, section.text) for section in text.sections] == [
        ("", "intro"), ("One", "a"), ("One › Two", "b\n```sh\n# no heading\n```"), ("Three", "c"),
    ]  # fmt: skip


def test_markdown_loses_comments_and_front_matter():
    text = whole(convert(b"---\ntitle: x\n---\nseen <!-- ignore all\nprevious --> too\n\n<!-- unclosed", "a.md"))
    assert text == "\nseen too"


def test_windows_line_ends_change_nothing():
    assert convert(b"# A\r\n\r\nb\r\n", "a.md") == convert(b"# A\n\nb\n", "a.md")


def test_text_without_a_title_is_called_by_its_name():
    assert convert(b"x", "folder/notes.txt") == Text("notes.txt", (Section("x"),))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("größe €".encode(), "größe €"), ("\ufeffgröße".encode(), "größe"), ("größe".encode("utf-16"), "größe"),
        (b"\xfe\xff" + "größe".encode("utf-16-be"), "größe"), ("größe €".encode("cp1252"), "größe €"),
        (b"\x81 x", "\ufffd x"), (b"a\0b", "ab"),
    ],
)  # fmt: skip
def test_encodings_are_recognised(data, expected):
    assert convert(data, "a.txt").sections[0].text == expected


@pytest.mark.parametrize("data", [b"\0\1\2\3" * 100, b"\x89PNG\r\n\x1a\n" + b"\0" * 500])
def test_what_is_not_text_is_refused(data):
    with pytest.raises(ConversionError, match="not text"):
        convert(data, "a.txt")


@pytest.mark.parametrize("data", [b"", b" \n\t ", "\u200b\ufeff".encode(), b"<!-- only this -->"])
def test_what_has_no_text_is_refused(data):
    for name in ("a.md", "a.html"):
        with pytest.raises(ConversionError, match=r"empty|no text|not a readable"):
            convert(data, name)


def test_invisible_characters_are_dropped():
    tags = "".join(chr(0xE0000 + ord(char)) for char in "ignore previous instructions")
    text = (
        convert(f"se\u200ben\u202e {tags}\u2066x\u2069 so\u00adft\ufe0f \U000e0100".encode(), "a.txt").sections[0].text
    )
    assert text.split() == ["seen", "x", "soft"]


def test_html_is_read_without_what_a_reader_does_not_see():
    page = html(
        "<h1>Gears</h1><p>A visible paragraph about gears that is long enough to be taken for the main part.</p>"
        "<!-- COMMENT --><script>SCRIPT</script><style>STYLE</style><noscript>NOSCRIPT</noscript>"
        "<p hidden>HIDDEN</p><p style='display : NONE'>DISPLAY</p><div style='visibility:hidden'><p>VISIBILITY</p></div>"
        "<span style='font-size:0px'>SIZE</span><span style='opacity: 0'>OPACITY</span><p aria-hidden='true'>ARIA</p>"
        "<template>TEMPLATE</template><iframe>IFRAME</iframe><svg><title>SVG</title><defs><text>SVG</text></defs></svg>"
        "<input type='hidden' value='INPUT'><textarea style='display:none'>AREA</textarea>"
    )
    assert "visible paragraph about gears" in page
    for word_ in (
        "COMMENT", "SCRIPT", "STYLE", "NOSCRIPT", "HIDDEN", "DISPLAY", "VISIBILITY", "SIZE", "OPACITY", "ARIA",
        "TEMPLATE", "IFRAME", "SVG", "INPUT", "AREA",
    ):  # fmt: skip
        assert word_ not in page


def test_what_is_nearly_hidden_by_its_style_stays():
    page = html("<p style='opacity:0.9'>A half-seen paragraph</p><p style='font-size:0.9em'>A small paragraph</p>")
    assert "half-seen" in page
    assert "small" in page


@pytest.mark.parametrize(
    "style",
    ["display:none!important", "DISPLAY: none ;color:red", "color:red;font-size:0", "font-size: 0.0pt", "opacity:0.00",
     "dis/**/play:none", "position:absolute; left:-9999px", "text-indent: -5000px", "visibility: collapse"],
)  # fmt: skip
def test_styles_that_hide_are_known(style):
    page = html(f"<p>A paragraph that is seen by everybody.</p><p style='{style}'>UNSEEN words of a paragraph</p>")
    assert "seen by everybody" in page
    assert "UNSEEN" not in page


def test_a_hidden_elements_tail_stays():
    assert "after it" in html("<div>before <span hidden>SECRET</span> after it, in a sentence of some length.</div>")


def test_html_has_a_title_headings_and_its_text_in_the_page_s_encoding():
    body = "<h1>Große Zahnräder</h1><p>Ein Absatz über Zahnräder.</p><h2>Zwei</h2><p>Noch ein Absatz, länger.</p>"
    text = convert(f"<html><head><title>Titel</title></head><body>{body}</body></html>".encode(), "a.html")
    assert text.title == "Titel"
    assert any("Zwei" in section.heading for section in text.sections)
    assert "über Zahnräder" in whole(text)
    old = f"<html><head><meta charset='iso-8859-1'></head><body>{body}</body></html>".encode("latin-1")
    assert "über Zahnräder" in whole(convert(old, "a.html"))


def test_html_entities_are_no_way_to_files(tmp_path):
    (tmp_path / "secret").write_text("SECRET")
    data = f'<!DOCTYPE html [<!ENTITY x SYSTEM "file://{tmp_path}/secret">]><html><body><p>text &x;</p></body></html>'
    assert "SECRET" not in whole(convert(data.encode(), "a.html"))


@pytest.mark.parametrize("depth", [300, 5_000, 200_000])
def test_deep_nesting_ends_soon_in_text_or_an_error(depth):
    began = time.monotonic()
    for data, name in (
        (b"<div>" * depth + b"text" + b"</div>" * depth, "a.html"),
        (b">" * depth + b" text", "a.md"),
        (b"\n".join(b" " * i + b"* x" for i in range(min(depth, 1500))), "a.rst"),
    ):
        with suppress(ConversionError):
            convert(data, name)
    assert time.monotonic() - began < 30


def test_pdf_pages_are_numbered_and_titled():
    text = convert(pdf("First page", "Second page", title="The title"), "a.pdf")
    assert text == Text("The title", (Section("First page", page=1), Section("Second page", page=2)))


def test_a_pdf_with_an_empty_password_is_read_and_another_is_refused():
    with pytest.raises(ConversionError, match="encrypted"):
        convert(pdf("secret", password="pass"), "a.pdf")


@pytest.mark.parametrize("cut", [5, 50, 200, 400])
def test_a_broken_pdf_is_refused_or_read_as_far_as_it_goes(cut):
    try:
        convert(pdf("some text")[:-cut], "a.pdf")
    except ConversionError as error:
        assert "readable" in str(error) or "no text" in str(error)


def test_a_pdf_with_too_many_pages_is_refused(monkeypatch):
    monkeypatch.setattr(pdf_format, "MAX_PAGES", 2)
    with pytest.raises(ConversionError, match="more than 2 pages"):
        convert(pdf("a", "b", "c"), "a.pdf")


def test_docx_has_headings_tables_and_no_hidden_runs():
    document = docx.Document()
    document.core_properties.title = "The title"
    document.add_heading("One", 1)
    paragraph = document.add_paragraph("seen ")
    paragraph.add_run("HIDDEN").font.hidden = True
    document.add_paragraph().add_run("ALLHIDDEN").font.hidden = True
    table = document.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "left", "right"
    table.cell(0, 1).paragraphs[0].add_run("CELLHIDDEN").font.hidden = True
    style = document.styles.add_style("Unseen", docx.enum.style.WD_STYLE_TYPE.CHARACTER)
    style.font.hidden = True
    paragraph.add_run("STYLEHIDDEN", style)
    link = docx.oxml.parse_xml(
        "<w:hyperlink xmlns:w='http://schemas.openxmlformats.org/wordprocessingml/2006/main'><w:r><w:t>linked</w:t></w:r>"
        "<w:r><w:rPr><w:vanish/></w:rPr><w:t>LINKHIDDEN</w:t></w:r></w:hyperlink>"
    )
    paragraph._p.append(link)
    text = convert(word(document), "a.docx")
    assert text.title == "The title"
    assert "seen linked" in whole(text)
    assert text.sections[0].heading == "One"
    assert "seen" in whole(text)
    assert "left | right" in whole(text)
    assert "HIDDEN" not in whole(text)


def test_a_docx_is_measured_as_it_is_unpacked_not_as_it_says(monkeypatch):
    monkeypatch.setattr(docx_format, "MAX_UNPACKED", 1_000_000)
    bomb = bytearray(word(word_document_xml=b"<x>" + b"a" * 5_000_000 + b"</x>"))
    size = (5_000_007).to_bytes(4, "little")
    assert bomb.count(size) == 2
    with pytest.raises(ConversionError, match="larger than 1 MB"):
        convert(bytes(bomb), "a.docx")
    lying = bytes(bomb).replace(size, (10).to_bytes(4, "little"))
    with pytest.raises(ConversionError):
        convert(lying, "a.docx")


LAUGHS = (
    b'<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "'
    + b"ha" * 50
    + b'">'
    + b"".join(b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 20) for i in range(9))
    + b']><w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body><w:p><w:r><w:t>&j;'
    + b"</w:t></w:r></w:p></w:body></w:document>"
)


def test_xml_that_multiplies_itself_is_refused_soon():
    began = time.monotonic()
    with pytest.raises(ConversionError):
        convert(word(word_document_xml=LAUGHS), "a.docx")
    assert time.monotonic() - began < 5


def test_xml_entities_are_no_way_to_files(tmp_path):
    (tmp_path / "secret").write_text("SECRET")
    xml = (
        f'<?xml version="1.0"?><!DOCTYPE d [<!ENTITY x SYSTEM "file://{tmp_path}/secret">]>'
        '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body><w:p><w:r>'
        "<w:t>seen &x;</w:t></w:r></w:p></w:body></w:document>"
    )
    try:
        text = whole(convert(word(word_document_xml=xml.encode()), "a.docx"))
    except ConversionError:
        return
    assert "SECRET" not in text


@pytest.mark.parametrize("data", [b"PK\x03\x04", b"not a zip", word()[:500], word(word_document_xml=b"<x/>")])
def test_a_broken_docx_is_refused(data):
    with pytest.raises(ConversionError):
        convert(data, "a.docx")


def test_rst_has_sections_and_plain_roles_and_keeps_what_unknown_directives_say():
    data = (
        b"Title\n=====\n\nSee :class:`~gears.Gear` and :ref:`the text <label>`.\n\n.. comment COMMENT\n\n"
        b"Part\n----\n\n.. versionadded:: 2.0\n   Known to Sphinx only.\n\n.. code-block:: python\n\n   shift(1)\n"
    )
    text = convert(data, "a.rst")
    assert text.title == "Title"
    assert {section.heading for section in text.sections} >= {"Title"}
    assert "See gears.Gear and the text." in whole(text)
    assert "Known to Sphinx only" in whole(text)
    assert "shift(1)" in whole(text)
    assert "COMMENT" not in whole(text)


def test_rst_reads_no_file_and_passes_no_raw_text(tmp_path):
    (tmp_path / "secret.txt").write_text("SECRET")
    at = tmp_path / "secret.txt"
    for directive in (
        f".. include:: {at}", f".. include:: ../../../..{at}", f".. literalinclude:: {at}", f".. raw:: html\n   :file: {at}",
        f".. raw:: html\n   :url: file://{at}", f".. csv-table:: x\n   :file: {at}", f".. csv-table:: x\n   :url: file://{at}",
        f".. code:: python\n   :include: {at}", f".. parsed-literal::\n   :include: {at}",
        ".. raw:: html\n\n   <script>RAW</script>", f".. |x| image:: {at}", ".. include:: <isonum.txt>",
    ):  # fmt: skip
        assert "SECRET" not in whole(convert(f"Seen.\n\n{directive}\n".encode(), "a.rst"))


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
def test_an_unknown_kind_is_told_with_those_that_are_known(name, kind):
    with pytest.raises(ConversionError, match="there are"):
        kind_of(name, kind)


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html", "a.rst"])
def test_huge_texts_end_soon_in_text_or_an_error(name):
    began = time.monotonic()
    for data in (
        b"word " * 1_000_000,
        b"`" * 300_000,
        b"<" * 300_000,
        b"#" * 300_000,
        b"-\n" * 100_000,
        b" " * 3_000_000,
    ):
        with suppress(ConversionError):
            convert(data, name)
    assert time.monotonic() - began < 60


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


def test_code_with_a_line_break_in_it_swallows_no_heading():
    page = b"<html><body><main><h1>One</h1><p>Call <code>open(a,\n b)</code> then.</p><h2>Two</h2><p>More text here.</p></main></body></html>"
    sections = convert(page, "a.html").sections
    assert [section.heading for section in sections] == ["One", "One \u203a Two"]
    assert "open(a, b)" in sections[0].text


def text_of(data: bytes | str, name: str, kind: str | None = None) -> str:
    return whole(convert(data.encode() if isinstance(data, str) else data, name, kind))


class TestMarkdown:
    @pytest.mark.parametrize(
        "source",
        [
            "```\n<!-- KEPT -->\n```", "~~~~\n~~~\n<!-- KEPT -->\n~~~~", "    <!-- KEPT -->", "so `<!-- KEPT -->` it is",
            "``a ` <!-- KEPT -->``", "- item\n\n  ````\n  ```\n  <!-- KEPT -->\n  ````", "> ```\n> <!-- KEPT -->\n> ```",
            "\\<!-- KEPT -->", "a <!-- KEPT without an end", "`open <!-- gone --> then <!-- KEPT `",
        ],
    )  # fmt: skip
    def test_a_comment_in_code_or_without_an_end_is_text(self, source):
        assert "KEPT" in text_of(source, "a.md")

    @pytest.mark.parametrize(
        "source",
        [
            "<!-- GONE -->", "a <!-- GONE --> b", "> a <!-- GONE\n> GONE --> b", "- a\n\n  <!--\n  GONE\n  -->\n  b",
            "<div>\n<!-- GONE -->\n</div>", "# Head <!-- GONE -->\n\nb", "[//]: # (GONE)", "[GONE]: <> 'GONE'",
            "<script>\nGONE\n</script>", "<STYLE>GONE\n\nGONE</STYLE>", "`code` <!-- ` GONE ` -->", "a\n<!-- GONE, and no end",
        ],
    )  # fmt: skip
    def test_what_its_readers_do_not_see_is_gone(self, source):
        text = text_of(f"before\n\n{source}\n", "a.md")
        assert "before" in text
        assert "GONE" not in text

    def test_a_line_across_the_page_is_no_front_matter(self):
        for opening in (
            "---\n\nIntro, as text.\n\n---\n\nrest",
            "---\nIntro, as text.\n---\nrest",
            "---\nIntro, as text.\n",
        ):
            assert "Intro, as text." in text_of(opening, "a.md")

    @pytest.mark.parametrize("front", ["---\ntitle: Of cogs\ntags: [a]\n---\n", '+++\ntitle = "Of cogs"\n+++\n'])
    def test_front_matter_gives_the_title_and_is_told(self, front):
        text = convert(f"{front}# Head\nbody".encode(), "a.md")
        assert text == Text("Of cogs", (Section("body", "Head"),), text.left_out)
        assert "front matter" in text.left_out[0]
        assert "Of cogs" in text.left_out[0]

    def test_headings_of_every_form_cut_and_those_in_blocks_do_not(self):
        source = "Set\n===\na\n\n Two\n---\nb\n\n> # quoted\n\n````\n# fenced\n```\n# too\n````\n### Three #\nc"
        sections = convert(source.encode(), "a.md").sections
        assert [section.heading for section in sections] == ["Set", "Set › Two", "Set › Two › Three"]
        assert sections[1].text == "b\n\n> # quoted\n\n````\n# fenced\n```\n# too\n````"

    def test_headings_without_text_are_text(self):
        sections = convert(b"# One\n## Two\n## Three\n# Four\n## Five\ntext\n# Six", "a.md").sections
        assert sections == (
            Section("Two", "One"), Section("Three", "One"), Section("text", "Four › Five"), Section("Six"),
        )  # fmt: skip
        assert convert(b"# Only", "a.md") == Text("Only", (Section("Only"),))

    def test_no_heading_is_lost_for_its_length(self):
        names = [f"{'long ' * 15}{number}" for number in range(6)]
        source = "".join(f"{'#' * (at + 1)} {name}\n" for at, name in enumerate(names)) + "body"
        assert all(name in text_of(source, "a.md") for name in names)
        assert text_of(f"# {'x' * 3000}\nbody", "a.md").count("x") == 3000

    def test_line_ends_of_every_kind_are_the_same(self):
        expected = convert(b"# A\nb\n\n```\n# c\n```\n", "a.md")
        for end in (b"\r", b"\r\n"):
            assert convert(b"# A\nb\n\n```\n# c\n```\n".replace(b"\n", end), "a.md") == expected

    def test_indentation_in_code_stays(self):
        assert "a:\n  b:\n    c: 1" in text_of("```yaml\na:\n  b:\n    c: 1\n```", "a.md")


class TestEncodings:
    @pytest.mark.parametrize(
        ("data", "kind"),
        [
            ("Привет, größe".encode("utf-16"), "text/plain; charset=utf-8"), ("Привет".encode("koi8-r"), "text/plain; charset=KOI8-R"),
            ("Привет".encode("cp1251"), 'text/plain; charset="windows-1251"'), ("größe €".encode("cp1252"), "text/plain;charset=iso-8859-1"),
            ("größe".encode("utf-32"), "text/plain"), ("größe".encode(), "text/plain; charset=us-ascii"),
            ("齿轮".encode("gb18030"), "text/plain; charset=gb2312"), ("größe".encode(), "text; charset=utf-8"),
        ],
    )  # fmt: skip
    def test_what_is_declared_is_honoured_and_a_mark_of_the_bytes_more_so(self, data, kind):
        text = convert(data, "a", kind)
        assert text.sections[0].text in ("Привет, größe", "Привет", "größe €", "größe", "齿轮")
        assert text.left_out == ()

    @pytest.mark.parametrize(
        "charset", ["klingon", "zip", "rot13", "utf-7", "punycode", "\x00", "unicode_escape", "é" * 20]
    )
    def test_an_unknown_encoding_is_refused(self, charset):
        with pytest.raises(ConversionError, match="charset"):
            convert(b"x", "a", f"text/plain; charset={charset}")

    def test_a_bad_byte_makes_no_other_encoding_of_utf8_and_is_told(self):
        text = convert("größe und 文書 ".encode() + b"\xff!", "a.txt")
        assert text.sections[0].text == "größe und 文書 \ufffd!"
        assert text.left_out == ("bytes that are not utf-8: 1, replaced by \ufffd",)
        assert convert("größe \ufffd".encode(), "a.txt").left_out == ()

    @pytest.mark.parametrize(
        ("said", "encoding"),
        [
            ("Die Größe der Zahnräder bestimmt die Übersetzung.", "cp1252"), ("caf\xe9", "cp1252"), ("“5 €” a piece", "cp1252"),
            ("Передача вращения через зубчатые колёса", "cp1251"), ("Передача вращения через зубчатые колёса", "koi8-r"),
            ("歯車は回転を伝える機械要素である。", "cp932"), ("齿轮是传递旋转运动的机械零件。", "gb18030"),
            ("톱니바퀴는 회전을 전달하는 기계 요소이다.", "cp949"), ("Příliš žluťoučký kůň úpěl ďábelské ódy", "cp1250"),
        ],
    )  # fmt: skip
    def test_another_encoding_is_detected_and_told_to_be_a_guess(self, said, encoding):
        text = convert(said.encode(encoding), "a.txt")
        assert text.sections[0].text == said
        assert "a guess" in text.left_out[0]

    @pytest.mark.parametrize("data", ["Привет".encode("cp1251"), bytes(range(128, 256)) * 3])
    def test_what_nobody_can_tell_is_refused(self, data):
        with pytest.raises(ConversionError, match="declare"):
            convert(data, "a.txt")

    def test_pages_say_their_encoding(self):
        for head in (
            "<meta charset='windows-1251'>", '<META HTTP-EQUIV="Content-Type" CONTENT="text/html; charset=windows-1251">',
            "<meta name='description' content='charset=koi8-r'><meta charset=windows-1251>", "<!-- <meta charset=koi8-r> --><meta charset=windows-1251>",
        ):  # fmt: skip
            assert "Привет" in text_of(f"<html><head>{head}</head><body>Привет".encode("cp1251"), "a.html")
        assert "Привет" in text_of(
            '<?xml version="1.0" encoding="windows-1251"?><html><p>Привет</p></html>'.encode("cp1251"), "a.xhtml"
        )
        page = "<meta charset=iso-8859-1><p>größe".encode()
        assert "größe" in text_of(page, "a.html", "text/html; charset=utf-8")

    @pytest.mark.parametrize(
        "text",
        ["می‌خواهم", "क्‍ष", "👨‍👩‍👧", "❤️", "1️⃣", "🏳️‍🌈", "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"],
    )
    def test_joiners_and_selectors_stay_where_they_shape_what_is_seen(self, text):
        assert text_of(f"a {text} b", "a.txt").strip() == f"a {text} b"

    @pytest.mark.parametrize(
        "text",
        [
            "ig\u200dno\u200cre",
            "ignore\ufe0f",
            "ig\u200b\u200d\u200cnore",
            "ignore\U000e0067\U000e007f",
            "ignor\u00ade",
        ],
    )
    def test_they_go_where_nobody_sees_them(self, text):
        assert text_of(text, "a.txt").strip() == "ignore"

    def test_only_one_joiner_stays_between_letters(self):
        assert text_of("می" + "\u200c\u200d" * 50 + "خ", "a.txt").strip() == "می\u200cخ"

    def test_breaks_are_line_ends_and_blanks_are_blanks(self):
        assert text_of("a\x0cb\u2028c\x0bd\x85e\rf\u202fg\u3000h", "a.txt").strip() == "a\nb\nc\nd\ne\nf g h"

    def test_what_a_terminal_does_not_show_is_no_text(self):
        assert text_of(b"\x1b[1;31mERROR\x1b[0m N\bNA\bA \x1b]0;title\x07x", "a.log").strip() == "ERROR NA x"

    @pytest.mark.parametrize(
        ("data", "name"),
        [(b"{\\rtf1 x}", "a.txt"), (b"%PDF-1.7", "a.md"), (b"PK\x03\x04", "a.html"), (b"\x1f\x8b\x08", "a.txt"),
         (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a.docx"), (b"%PDF-1.7", "a.docx")],
    )  # fmt: skip
    def test_what_is_something_else_is_named(self, data, name):
        with pytest.raises(ConversionError, match=r"it is (RTF|a PDF|a ZIP|compressed|encrypted)"):
            convert(data, name)


class TestHtml:
    def test_everything_that_a_reader_sees_is_text(self):
        page = html(
            "<header><p>W-header</p></header><section>W-section</section><aside>W-aside</aside><ul><li><a href=x>W-link</a></li></ul>"
            "<table><caption>W-caption</caption><tr><th>W-th</th><td>W-td</td></tr></table><dl><dt>W-dt</dt><dd>W-dd</dd></dl>"
            "<details><summary>W-summary</summary>W-details</details><figure><img alt='W-alt'><figcaption>W-figcaption</figcaption></figure>"
            "<form><fieldset><legend>W-legend</legend><label>W-label</label><input value='W-value'><input placeholder='W-placeholder'>"
            "<select><option>W-option</option></select><textarea>W-textarea</textarea><button>W-button</button></fieldset></form>"
            "<svg><text>W-svg</text></svg><math><mi>W-math</mi></math><pre>W-pre</pre><blockquote>W-quote</blockquote>W-bare"
            "<footer>W-footer</footer></body></html><p>W-after"
        )
        for word_ in (
            "header", "section", "aside", "link", "caption", "th", "td", "dt", "dd", "summary", "details", "alt", "figcaption", "legend",
            "label", "value", "placeholder", "option", "textarea", "button", "svg", "math", "pre", "quote", "bare", "footer", "after",
        ):  # fmt: skip
            assert page.count(f"W-{word_}") == 1, word_

    def test_a_page_that_names_no_body_loses_nothing(self):
        assert "first" in text_of("<title>T</title><main>first</main><p>second", "a.html")

    def test_menus_are_left_out_and_told(self):
        text = convert(
            b"<body><nav><a>Home</a> <a>Docs</a></nav><div role=navigation>Next</div><p>The text.</p>", "a.html"
        )
        assert whole(text).strip() == "The text."
        assert text.left_out == ("navigation (14 characters): Home Docs Next",)

    def test_what_holds_the_main_part_or_is_all_there_is_is_no_menu(self):
        assert "Long text" in html("<nav><main>Long text</main></nav><p>x</p>")
        assert "Home" in html("<nav><a>Home</a></nav>")

    def test_text_for_the_eye_alone_is_told(self):
        assert convert(b"<p>a</p><p aria-hidden=true>b c</p>", "a.html").left_out == (
            "hidden from screen readers (3 characters): b c",
        )

    def test_lists_and_tables_keep_their_form(self):
        page = html("<ol start=3><li>three<ul><li>sub</li></ul></li><li value=7><p>seven</p><p>more</p></li></ol>")
        assert page.strip() == "3. three\n  - sub\n7. seven\n\n   more"
        page = html(
            "<table><caption>Cap</caption><tr><th>a<th>b<tr><td><p>1</p><p>2</p><td><ul><li>x</ul></table><p>after</p>"
        )
        assert page.strip() == "Cap\n\na | b\n1 2 | x\n\nafter"

    def test_a_table_that_lays_out_the_page_keeps_its_headings(self):
        text = convert(b"<table><tr><td>side<td><h1>Big</h1><p>Text</p><table><tr><td>a<td>b</table></table>", "a.html")
        assert text.sections == (Section("side"), Section("Text\n\na | b", "Big"))

    def test_what_is_raised_is_no_digit_of_the_number_before(self):
        assert (
            html("<p>10<sup>6</sup> x<sup>n-1</sup> 1<sup>st</sup> H<sub>2</sub>O a<sup>[1]</sup>").strip()
            == "10⁶ xⁿ⁻¹ 1st H2O a[1]"
        )
        page = html(
            "<math><msup><mi>x</mi><mn>2</mn></msup><mo>=</mo><mfrac><mn>1</mn><mi>b</mi></mfrac><annotation>TEX</annotation></math>"
        )
        assert page.strip() == "x^2=(1/b)"

    def test_preformatted_text_stays_as_it_is(self):
        assert html("<pre>a\n  b <code>c</code>\n```\n</pre>").strip() == "````\na\n  b c\n```\n````"

    def test_marks_of_markdown_in_a_page_s_text_are_text(self):
        assert "# no heading" in convert(b"<p># no heading</p><p>```</p><h1>Yes</h1><p>x", "a.html").sections[0].text

    def test_xml_s_empty_elements_and_sections_swallow_nothing(self):
        page = '<?xml version="1.0"?><html><head><script src="x"/><title>T</title></head><body><p/>a <![CDATA[b < c]]></body></html>'
        assert text_of(page, "a.xhtml").strip() == "a b < c"

    @pytest.mark.parametrize(
        "style",
        [
            "color: transparent",
            "width:1px;height:1px;overflow:hidden",
            "clip:rect(0, 0, 0, 0)",
            "transform: scale(0)",
            "margin-left:-999em",
        ],
    )
    def test_more_styles_that_hide(self, style):
        assert html(f"<p>seen</p><p style='{style}'>UNSEEN</p>").strip() == "seen"


NAMES = " ".join(
    f'xmlns:{short}="http://schemas.{rest}"'
    for short, rest in {
        "w": "openxmlformats.org/wordprocessingml/2006/main", "m": "openxmlformats.org/officeDocument/2006/math",
        "mc": "openxmlformats.org/markup-compatibility/2006", "wps": "microsoft.com/office/word/2010/wordprocessingShape",
    }.items()
)  # fmt: skip


def run(text: str, properties: str = "") -> str:
    return f"<w:r><w:rPr>{properties}</w:rPr><w:t xml:space='preserve'>{text}</w:t></w:r>"


def paragraph(*runs: str) -> str:
    return f"<w:p>{''.join(runs)}</w:p>"


def field(kind: str) -> str:
    return f"<w:r><w:fldChar w:fldCharType='{kind}'/></w:r>"


def docx_of(body: str) -> bytes:
    document = docx.Document()
    for element in docx.oxml.parse_xml(f"<w:body {NAMES}>{body}</w:body>"):
        document.element.body.insert(len(document.element.body) - 1, element)
    return word(document)


class TestDocx:
    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            (f"<w:sdt><w:sdtPr/><w:sdtContent>{paragraph(run('control'))}</w:sdtContent></w:sdt>", "control"),
            (paragraph(run("a "), f"<w:sdt><w:sdtContent>{run('inline')}</w:sdtContent></w:sdt>"), "a inline"),
            (f"<w:customXml>{paragraph(run('custom'))}</w:customXml>", "custom"),
            (paragraph(f"<w:ins>{run('in')}</w:ins><w:del><w:r><w:delText>OUT</w:delText></w:r></w:del>"), "in"),
            (paragraph(run("kept "), f"<w:moveFrom>{run('AWAY')}</w:moveFrom><w:moveTo>{run('moved')}</w:moveTo>"), "kept moved"),
            (paragraph(f"<w:hyperlink>{run('link')}</w:hyperlink><w:fldSimple>{run(' field')}</w:fldSimple>"), "link field"),
            (paragraph(run("10"), run("6", "<w:vertAlign w:val='superscript'/>")), "10⁶"),
            (paragraph(run("a"), "<w:r><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t><w:noBreakHyphen/><w:t>d</w:t></w:r>"), "a\tb\nc-d"),
            (paragraph(run("# no heading")), "# no heading"),
            (paragraph("<m:oMath><m:r><m:t>y=</m:t></m:r><m:f><m:num><m:r><m:t>a</m:t></m:r></m:num><m:den><m:r><m:t>b+c</m:t></m:r></m:den></m:f>"
                       "<m:rad><m:radPr/><m:deg/><m:e><m:r><m:t>x</m:t></m:r></m:e></m:rad></m:oMath>"), "y=(a/(b+c))√(x)"),
            (paragraph(field("begin"), "<w:r><w:instrText>IF</w:instrText></w:r>", field("begin"), field("separate"), run("INNER"), field("end"),
                       field("separate"), run("result"), field("end")), "result"),
            (paragraph(field("begin"), run("on the next page")) + paragraph(run("it ends"), field("end")), "on the next page\n\nit ends"),
            (paragraph("<w:r><mc:AlternateContent><mc:Choice><w:drawing><wps:txbx><w:txbxContent>" + paragraph(run("box")) + "</w:txbxContent>"
                       "</wps:txbx></w:drawing></mc:Choice><mc:Fallback><w:pict><w:txbxContent>" + paragraph(run("box")) + "</w:txbxContent>"
                       "</w:pict></mc:Fallback></mc:AlternateContent></w:r>", run("beside")), "beside\n\nbox"),
        ],
    )  # fmt: skip
    def test_what_is_in_the_document_is_read_and_what_left_it_is_not(self, body, expected):
        assert text_of(docx_of(body), "a.docx").strip() == expected

    def test_tables_in_controls_in_tables_are_read_and_deleted_rows_are_not(self):
        def cell(*content: str) -> str:
            return f"<w:tc>{''.join(content)}</w:tc>"

        def row(*cells: str, properties: str = "") -> str:
            return f"<w:tr><w:trPr>{properties}</w:trPr>{''.join(cells)}</w:tr>"

        one = cell(paragraph(run("1")))
        inner = f"<w:tbl>{row(one, '<w:sdt><w:sdtContent>' + cell(paragraph(run('2'))) + '</w:sdtContent></w:sdt>')}"
        inner += f"<w:sdt><w:sdtContent>{row(cell(paragraph(run('3')), paragraph(run('4'))))}</w:sdtContent></w:sdt>"
        inner += row(cell(paragraph(run("DELETED"))), properties="<w:del/>") + "</w:tbl>"
        outer = f"<w:tbl>{row(cell(paragraph(run('before')), inner, paragraph(run('after'))))}</w:tbl>"
        assert text_of(docx_of(outer), "a.docx").strip() == "before\n\n1 | 2\n3 4\n\nafter"

    def test_headers_and_footers_are_read_once_and_those_that_are_not_shown_are_not(self):
        document = docx.Document()
        document.add_paragraph("body")
        document.sections[0].header.paragraphs[0].text = "above"
        document.sections[0].footer.paragraphs[0].text = "below"
        document.sections[0].first_page_header.paragraphs[0].text = "FIRST"
        document.add_section().header.paragraphs[0].text = "above"
        document.sections[0].different_first_page_header_footer = False
        assert text_of(word(document), "a.docx").split() == ["body", "above", "below"]

    def test_notes_stand_below_what_they_are_noted_at(self):
        document = docx.Document()
        document.add_paragraph("first")._p.append(
            docx.oxml.parse_xml(f"<w:r {NAMES}><w:footnoteReference w:id='2'/></w:r>")
        )
        document.add_paragraph("second")
        notes = f"<w:footnotes {NAMES}><w:footnote w:type='separator' w:id='0'>{paragraph(run('LINE'))}</w:footnote>"
        notes += f"<w:footnote w:id='2'>{paragraph(run(' the note'))}</w:footnote></w:footnotes>"
        part = docx.opc.part.Part(
            docx.opc.packuri.PackURI("/word/footnotes.xml"),
            "application/x-notes+xml",
            notes.encode(),
            document.part.package,
        )
        document.part.relate_to(part, docx.opc.constants.RELATIONSHIP_TYPE.FOOTNOTES)
        assert text_of(word(document), "a.docx").strip() == "first[^1]\n\n[^1]: the note\n\nsecond"

    def test_numbers_and_bullets_stand_before_paragraphs_as_a_reader_sees_them(self):
        def level(at: int, kind: str, text: str) -> str:
            return f"<w:lvl w:ilvl='{at}'><w:start w:val='1'/><w:numFmt w:val='{kind}'/><w:lvlText w:val='{text}'/></w:lvl>"

        def item(text: str, number: int, at: int = 0) -> str:
            numbered = f"<w:numPr><w:ilvl w:val='{at}'/><w:numId w:val='{number}'/></w:numPr>"
            return f"<w:p><w:pPr>{numbered}</w:pPr>{run(text)}</w:p>"

        lists = level(0, "decimal", "%1.") + level(1, "lowerLetter", "%1.%2)") + level(2, "upperRoman", "(%3)")
        numbering = f"<w:abstractNum w:abstractNumId='0'>{lists}</w:abstractNum>"
        numbering += f"<w:abstractNum w:abstractNumId='1'>{level(0, 'bullet', '*')}</w:abstractNum>"
        numbering += "".join(
            f"<w:num w:numId='{n}'><w:abstractNumId w:val='{a}'/></w:num>" for n, a in ((1, 0), (2, 1))
        )
        numbering += "<w:num w:numId='3'><w:abstractNumId w:val='0'/><w:lvlOverride w:ilvl='0'><w:startOverride w:val='7'/></w:lvlOverride></w:num>"
        body = (
            item("a", 1)
            + item("b", 1)
            + item("c", 1, 1)
            + item("d", 1, 1)
            + item("e", 1, 2)
            + item("f", 1)
            + item("g", 1, 1)
        )
        body += item("dot", 2) + item("seven", 3) + item("none", 0) + item("unknown", 9)
        data = docx_of(body)
        made = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
            for name in old.namelist():
                is_numbering = name == "word/numbering.xml"
                new.writestr(
                    name, f"<w:numbering {NAMES}>{numbering}</w:numbering>" if is_numbering else old.read(name)
                )
        assert text_of(made.getvalue(), "a.docx").strip() == (
            "1. a\n2. b\n2.a) c\n2.b) d\n(I) e\n3. f\n3.a) g\n- dot\n7. seven\n\nnone\n\nunknown"
        )

    def test_a_style_hides_through_those_it_rests_on(self):
        document = docx.Document()
        base = document.styles.add_style("Base", docx.enum.style.WD_STYLE_TYPE.PARAGRAPH)
        base.font.hidden = True
        document.styles.add_style("Above", docx.enum.style.WD_STYLE_TYPE.PARAGRAPH).base_style = base
        document.add_paragraph("HIDDEN", "Above")
        document.add_paragraph("seen")
        assert text_of(word(document), "a.docx").strip() == "seen"

    def test_a_document_type_declaration_is_refused(self):
        xml = b'<?xml version="1.0"?><!DOCTYPE d [<!ENTITY x "LOST">]>' + f"<w:document {NAMES}><w:body>".encode()
        with pytest.raises(ConversionError, match="type declaration"):
            convert(
                word(word_document_xml=xml + b"<w:p><w:r><w:t>a &x;</w:t></w:r></w:p></w:body></w:document>"), "a.docx"
            )

    def test_what_is_not_read_is_told(self):
        body = paragraph(run("x"), "<w:r><w:commentReference w:id='0'/></w:r>") + "<w:altChunk/>"
        assert convert(docx_of(body), "a.docx").left_out == ("comments: 1", "embedded documents: 1")

    def test_a_title_is_not_made_up(self):
        plain = word()
        without = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(docx_of(paragraph(run("x"))))) as old, zipfile.ZipFile(without, "w") as new:
            for name in old.namelist():
                data = old.read(name)
                if name == "_rels/.rels":
                    data = b"".join(
                        part
                        for part in data.replace(b"<Relationship ", b"\0<Relationship ").split(b"\0")
                        if b"core-prop" not in part
                    )
                    data += b"" if data.endswith(b"</Relationships>") else b"</Relationships>"
                new.writestr(name, data)
        assert plain
        assert convert(without.getvalue(), "a.docx").title == "a.docx"


def annotated(*annotations: dict[str, object]) -> bytes:
    """A PDF with a line of text, and annotations."""
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf("text")))
    generic = pypdf.generic
    page = writer.pages[0]
    page[generic.NameObject("/Annots")] = generic.ArrayObject()
    for annotation in annotations:
        made = generic.DictionaryObject(
            {generic.NameObject("/Rect"): generic.ArrayObject([generic.NumberObject(1)] * 4)}
        )
        for name, value in annotation.items():
            is_name = isinstance(value, str) and value.startswith("/")
            what = (
                generic.NumberObject(value)
                if isinstance(value, int)
                else generic.NameObject(value)
                if is_name
                else generic.TextStringObject(value)
            )
            made[generic.NameObject(f"/{name}")] = what
        page["/Annots"].append(writer._add_object(made))
    made = io.BytesIO()
    writer.write(made)
    return made.getvalue()


class TestPdf:
    def test_what_is_filled_in_and_noted_is_read_but_for_what_is_hidden(self):
        data = annotated(
            {"Subtype": "/Widget", "FT": "/Tx", "T": "name", "TU": "Surname", "V": "Holm"},
            {"Subtype": "/Widget", "FT": "/Tx", "T": "empty"}, {"Subtype": "/Widget", "FT": "/Ch", "T": "colour", "V": "grey"},
            {"Subtype": "/Widget", "FT": "/Btn", "T": "agreed", "AS": "/Yes"}, {"Subtype": "/Widget", "FT": "/Btn", "T": "OFF", "AS": "/Off"},
            {"Subtype": "/Widget", "FT": "/Tx", "T": "HIDDEN", "V": "HIDDEN", "F": 2}, {"Subtype": "/Widget", "FT": "/Tx", "T": "SECRET", "V": "SECRET", "Ff": 1 << 13},
            {"Subtype": "/FreeText", "Contents": "beside"}, {"Subtype": "/Text", "Contents": "noted"}, {"Subtype": "/Popup", "Contents": "AGAIN"},
            {"Subtype": "/Text", "Contents": "HIDDEN", "F": 32}, {"Subtype": "/Link", "Contents": "LINK"},
        )  # fmt: skip
        assert text_of(data, "a.pdf").split("\n\n") == [
            "\ntext",
            "Surname: Holm",
            "colour: grey",
            "☑ agreed",
            "beside",
            "noted",
        ]

    def test_pages_that_are_pictures_are_told(self):
        writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf("text", "", "more")))
        picture = pypdf.generic.StreamObject()
        picture[pypdf.generic.NameObject("/Subtype")] = pypdf.generic.NameObject("/Image")
        name = pypdf.generic.NameObject
        writer.pages[1]["/Resources"][name("/XObject")] = pypdf.generic.DictionaryObject(
            {name("/I"): writer._add_object(picture)}
        )
        writer.add_attachment("a.txt", b"x")
        made = io.BytesIO()
        writer.write(made)
        text = convert(made.getvalue(), "a.pdf")
        assert [section.page for section in text.sections] == [1, 3]
        assert text.left_out == ("pages without text, of which pictures are not read (1): 2", "attached files: 1")


class TestRst:
    def test_what_only_sphinx_knows_is_read_as_text(self):
        source = (
            ".. py:function:: open(file)\n   :noindex:\n\n   Opens *it*.\n\n.. versionadded:: 3.2\n\n.. only:: html\n\n   Seen.\n\n"
            ".. tabs:: x\n\n   .. tab:: One\n\n      In the tab.\n\nSee :meth:`~a.b`, :ref:`the text <x>` and :custom:`that`.\n\n.. index:: UNSEEN\n"
        )
        text = text_of(source, "a.rst")
        for part in (
            "open(file)",
            "Opens it.",
            "Added in version 3.2",
            "Seen.",
            "One",
            "In the tab.",
            "See a.b, the text and that.",
        ):
            assert part in text
        assert "UNSEEN" not in text

    def test_lists_tables_and_notes_keep_their_form(self):
        source = "3. three\n4. four\n\n- a\n\n  b\n- c\n\n=== ===\nx   y\n=== ===\n1   2\n=== ===\n\nnoted [1]_ 10\\ :sup:`6`\n\n.. [1] The note.\n"
        text = text_of(source, "a.rst")
        for part in ("3. three\n4. four", "- a\n\n  b\n- c", "x | y\n1 | 2", "noted [1] 10⁶", "[1] The note."):
            assert part in text

    def test_files_that_are_not_read_and_raw_text_are_told(self):
        text = convert(
            b"a\n\n.. include:: other.rst\n\n.. raw:: html\n\n   <script>RAW</script>\n\n.. literalinclude:: b.py",
            "a.rst",
        )
        assert whole(text).strip() == "a"
        assert [note.partition(" (")[0] for note in text.left_out] == [
            "directive include",
            "directive raw",
            "directive literalinclude",
        ]

    def test_docutils_is_left_as_it_was(self):
        before = docutils.parsers.rst.directives.directive, docutils.parsers.rst.roles.role
        convert(b"x :y:`z`", "a.rst")
        assert before == (docutils.parsers.rst.directives.directive, docutils.parsers.rst.roles.role)


PIECES = {
    "a.md": ["<!--", "`<!--", "`", "`` ` ", "\\`", "# a\n", " #", "[a]: b\n", "---\na: b\n", "> ", "<script>\n", "</script", "[", "a\n=\n", "[//]: # (x)\n",
             "~~~\n````\n", "- - a\n", " \n"],
    "a.html": ["<", "<!--", "<p>", "<nav>", "<table>", "<sup>", "<ul><li>", "<svg>", "<math><mi>", "<pre>", "<p style='left:-1111", "<div hidden>", "<h1>",
               "<td>", "<b id=x>", "<nav><h1>", "<br> ", "<![CDATA[", "<p style='/*/*/*"],
    "a.txt": ["\x1b[", "\x1b[1;", "\x1b]", "a\b", "\r", "  a", "\u200b", "\u0627\u200c\u200b", "\n ", "\t"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "piece"), [(name, piece) for name, pieces in PIECES.items() for piece in pieces])
def test_the_time_grows_with_the_length_of_a_text_and_no_faster(name, piece):
    began = time.process_time()
    with suppress(ConversionError):
        convert((piece * (100_000 // len(piece))).encode(), name)
    assert time.process_time() - began < 5


def test_many_headings_do_not_multiply(monkeypatch):
    monkeypatch.setattr(document_format, "MAX_CHARS", 10_000)
    with pytest.raises(ConversionError, match="longer than"):
        convert(f"# {'x' * 190}\n".encode() + b"## a\nb\n" * 100, "a.md")
