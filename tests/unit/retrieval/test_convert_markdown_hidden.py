"""HTML in Markdown: what a page would not show is left out and reported."""

import time

import pytest

from serve.retrieval.ingest.convert import convert


def whole(text):
    return "\n".join(f"{section.heading}\n{section.text}" for section in text.sections)


@pytest.mark.parametrize(
    "source",
    [
        "<p hidden>SECRET</p>", '<div style="display:none">\n\n# SECRET\n\nSECRET\n\n```\nSECRET\n```\n\n</div>',
        'x <span style="display:none">SECRET <b>SECRET</b></span> y', "x <span hidden>SECRET\nSECRET</span>", "# A <i hidden>SECRET</i>",
        '> a\n> b <span hidden>SECRET\n> SECRET</span> c', "x <SPAN Title='a>b' HIDDEN>SECRET</SPAN> y", "<template>SECRET</template>",
        "- x <b style='font-size: 0'>SECRET</b>", '<p hidden>SECRET</p hidden>\n', "<p hidden>SECRET\n\nKEPT 2", "<p hidden>SECRET\n\nKEPT 2\n\n</p>",
        "<div hidden>SECRET <div>SECRET</div> SECRET</div>", "<div hidden>\n\nSECRET\n\n<div>\n\nSECRET\n\n</div>\nSECRET\n</div>",
        "> <div hidden>SECRET\n>\n> SECRET", "- <div hidden>SECRET\n\n  SECRET", "x <span hidden>SECRET", "> a <span\n> hidden>SECRET</span> KEPT",
        "A <i hidden>SECRET</i> KEPT\n===", "<img hidden alt=SECRET>", "<div hidden>SECRET</div>\n\n[SECRET]: http://x",
        "[SECRET]: #\n[//]: # (SECRET)",
    ],
)  # fmt: skip
def test_what_html_hides_is_not_indexed(source):
    text = whole(convert(f"KEPT 1\n\n{source}\n\nKEPT 3\n".encode(), "a.md"))
    assert "KEPT 1" in text
    assert "KEPT 3" in text
    assert text.count("KEPT") == 2 + source.count("KEPT")
    if not source.endswith("http://x"):  # a link definition outside the element
        assert "SECRET" not in text


@pytest.mark.parametrize(
    "source",
    [
        "`<p hidden>` is seen `</p>`", "```html\n<p hidden>seen</p>\n```", "\\<p hidden> is seen", "    <p hidden>seen</p>",
        "<p>seen</p>", "a < b hidden > seen", '<a title="hidden">seen</a>', "x <img hidden src=x> seen", "<!-- <p hidden> -->seen",
        "x <span hidden>y</span> seen", "<p hidden>y<p>seen</p>", "<p hidden=until-found>seen</p>", "List<Object > seen",
    ],
)  # fmt: skip
def test_what_only_looks_hidden_is_indexed(source):
    assert "seen" in whole(convert(f"KEPT\n\n{source}\n".encode(), "a.md"))


def test_an_element_without_an_end_tag_hides_the_rest_of_the_document():
    text = convert(b"a\n\n<div hidden>b\n\n# c\n\nd", "a.md")
    assert whole(text) == "\na"
    assert text.left_out == ("hidden HTML (7 characters): b # c d",)


def test_hidden_elements_are_reported_once_and_comments_are_not():
    text = convert(b"a <i hidden>top <b>secret</b></i> <!-- c -->\n\n<p hidden>rest</p>\n", "a.md")
    assert text.left_out == ("hidden HTML (15 characters): top secret rest",)


def test_text_around_hidden_elements_is_unchanged():
    source = b"# A <i hidden>x</i>B #\n\n- one <i hidden>x</i>two\n  1. > three <b hidden>x</b>\n     > four\n"
    assert whole(convert(source, "a.md")) == "A B\n- one two\n  1. > three\n     > four"


@pytest.mark.parametrize(
    "part", ["<p hidden>", "<a hidden ", "<i hidden>\n\n", "x <b hidden=\"'>", "<!-- ", "> <div hidden>\n\n", "`<b>``"]
)
def test_hidden_elements_are_found_in_linear_time(part):
    started = time.process_time()
    convert(("seen\n\n" + part * (200_000 // len(part))).encode(), "a.md")
    assert time.process_time() - started < 5
