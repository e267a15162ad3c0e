"""Small PDF files."""

import io

import pypdf


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
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()
