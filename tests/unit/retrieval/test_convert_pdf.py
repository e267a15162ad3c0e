"""Conversion of PDF: pages, form fields and annotations; encrypted, broken and oversized files."""

import io

import pypdf
import pytest

from serve.retrieval.ingest.convert import ConversionError, Section, Text, convert
from serve.retrieval.ingest.formats import pdf as pdf_format
from tests.support.converted_text import text_of
from tests.support.pdf_files import pdf


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

    def test_pages_that_are_pictures_are_reported(self):
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
