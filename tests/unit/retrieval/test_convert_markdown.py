"""Conversion of Markdown: headings, front matter, comments, code."""

import pytest

from serve.retrieval.ingest.convert import Section, Text, convert
from tests.support.converted_text import text_of, whole


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
    def test_text_that_readers_do_not_see_is_dropped(self, source):
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
    def test_front_matter_gives_the_title_and_is_reported(self, front):
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


def test_values_of_a_table_have_the_names_of_their_columns():
    source = "Rates:\n\n| Country | Day |\n|---|--:|\n| Norway | 82 <!-- net --> |\n| A \\| B | |\n\nAfter.\n\n    | x | y |\n    |---|---|\n"
    assert text_of(source, "a.md").strip() == (
        "Rates:\n\nCountry: Norway | Day: 82\nCountry: A | B | Day: –\n\nAfter.\n\n    | x | y |\n    |---|---|"
    )
