"""Conversion of reStructuredText: sections, roles and directives; no file is read and no raw text is passed on."""

import docutils.parsers.rst

from serve.retrieval.ingest.convert import convert
from tests.support.converted_text import text_of, whole


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
        for part in ("3. three\n4. four", "- a\n\n  b\n- c", "x: 1 | y: 2", "noted [1] 10⁶", "[1] The note."):
            assert part in text

    def test_files_that_are_not_read_and_raw_text_are_reported(self):
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
