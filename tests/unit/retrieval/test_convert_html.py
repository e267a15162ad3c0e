"""Conversion of HTML: the visible text with its headings, lists and tables; hidden elements are dropped."""

import pytest

from serve.retrieval.ingest.convert import Section, convert
from tests.support.converted_text import text_of, whole


def html(body: str, head: str = "<title>T</title>") -> str:
    return whole(convert(f"<html><head>{head}</head><body>{body}</body></html>".encode(), "a.html"))


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


def test_code_with_a_line_break_in_it_swallows_no_heading():
    page = b"<html><body><main><h1>One</h1><p>Call <code>open(a,\n b)</code> then.</p><h2>Two</h2><p>More text here.</p></main></body></html>"
    sections = convert(page, "a.html").sections
    assert [section.heading for section in sections] == ["One", "One \u203a Two"]
    assert "open(a, b)" in sections[0].text


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

    def test_menus_are_left_out_and_reported(self):
        text = convert(
            b"<body><nav><a>Home</a> <a>Docs</a></nav><div role=navigation>Next</div><p>The text.</p>", "a.html"
        )
        assert whole(text).strip() == "The text."
        assert text.left_out == ("navigation (14 characters): Home Docs Next",)

    def test_what_holds_the_main_part_or_is_all_there_is_is_no_menu(self):
        assert "Long text" in html("<nav><main>Long text</main></nav><p>x</p>")
        assert "Home" in html("<nav><a>Home</a></nav>")

    def test_text_hidden_from_screen_readers_is_reported(self):
        assert convert(b"<p>a</p><p aria-hidden=true>b c</p>", "a.html").left_out == (
            "hidden from screen readers (3 characters): b c",
        )

    def test_lists_and_tables_keep_their_form(self):
        page = html("<ol start=3><li>three<ul><li>sub</li></ul></li><li value=7><p>seven</p><p>more</p></li></ol>")
        assert page.strip() == "3. three\n  - sub\n7. seven\n\n   more"
        page = html(
            "<table><caption>Cap</caption><tr><th>a<th>b<tr><td><p>1</p><p>2</p><td><ul><li>x</ul></table><p>after</p>"
        )
        assert page.strip() == "Cap\n\na: 1 2 | b: x\n\nafter"

    def test_values_of_a_table_have_the_names_of_their_columns_also_when_cells_are_merged(self):
        page = html(
            "<table><thead><tr><td rowspan=2>City<td colspan=2>2025</tr><tr><td>Spring<td>Autumn</thead>"
            "<tr><td rowspan=2>Oslo<td>1<td>2<tr><td>3<td><tr><td colspan=3>Closed</table>"
        )
        assert page.strip().split("\n") == [
            "City: Oslo | 2025 Spring: 1 | 2025 Autumn: 2", "City: Oslo | 2025 Spring: 3", "Closed",
        ]  # fmt: skip

    def test_a_number_keeps_the_blanks_within_it(self):
        page = html("<table><tr><th>Ville<th>Loyer<tr><td>Paris<td>12&nbsp;000&nbsp;€</table><p>1&#8239;500&nbsp;kg")
        assert page.strip() == "Ville: Paris | Loyer: 12\u00a0000 €\n\n1\u202f500 kg"

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
