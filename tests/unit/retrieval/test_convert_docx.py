"""Conversion of DOCX: headings, tables, lists, notes and fields; hidden runs, entities and archives that expand."""

import io
import time
import zipfile

import docx
import docx.enum.style
import docx.opc.constants
import docx.opc.packuri
import docx.opc.part
import docx.oxml
import pytest

from serve.retrieval.ingest.convert import ConversionError, convert
from serve.retrieval.ingest.formats import docx as docx_format
from tests.support.converted_text import text_of, whole


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
    started = time.process_time()
    with pytest.raises(ConversionError):
        convert(word(word_document_xml=LAUGHS), "a.docx")
    assert time.process_time() - started < 5


def test_xml_entities_are_no_way_to_files(tmp_path):
    (tmp_path / "secret").write_text("SECRET")
    xml = (
        f'<?xml version="1.0"?><!DOCTYPE d [<!ENTITY x SYSTEM "file://{tmp_path}/secret">]>'
        '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body><w:p><w:r>'
        "<w:t>seen &x;</w:t></w:r></w:p></w:body></w:document>"
    )
    with pytest.raises(ConversionError, match="document type declaration") as refused:
        convert(word(word_document_xml=xml.encode()), "a.docx")
    assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize("data", [b"PK\x03\x04", b"not a zip", word()[:500], word(word_document_xml=b"<x/>")])
def test_a_broken_docx_is_refused(data):
    with pytest.raises(ConversionError):
        convert(data, "a.docx")


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
            (paragraph(run("stays "), f"<w:moveFrom>{run('AWAY')}</w:moveFrom><w:moveTo>{run('moved')}</w:moveTo>"), "stays moved"),
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

    def test_values_of_a_table_have_the_names_of_their_columns_also_when_cells_are_merged(self):
        def row(*cells: str, header: str = "") -> str:
            return f"<w:tr><w:trPr>{header}</w:trPr>{''.join(cells)}</w:tr>"

        def cell(text: str, properties: str = "") -> str:
            return f"<w:tc><w:tcPr>{properties}</w:tcPr>{paragraph(run(text))}</w:tc>"

        header = row(cell("City"), cell("2025", "<w:gridSpan w:val='2'/>"), header="<w:tblHeader/>")
        below = row(cell("Oslo", "<w:vMerge w:val='restart'/>"), cell("1"), cell("2"))
        below += row(cell("", "<w:vMerge/>"), cell("3"), cell(""))
        assert text_of(docx_of(f"<w:tbl>{header}{below}</w:tbl>"), "a.docx").strip() == (
            "City: Oslo | 2025: 1 | 2025: 2\nCity: Oslo | 2025: 3"
        )

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

    def test_content_that_is_not_read_is_reported(self):
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
