"""Web pages to text with headings, lists and tables. Hidden content is omitted; menus are omitted with a note."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from html import escape

import lxml.html
from selectolax.lexbor import LexborHTMLParser, LexborNode

from serve.retrieval.ingest.formats.document import ConversionError, Outline, Text, note, one_line, superscript
from serve.retrieval.ingest.formats.encoding import decode
from serve.retrieval.ingest.formats.equations import linear
from serve.retrieval.ingest.formats.tables import Cell, table_text

_HEAD = 1 << 16  # bytes searched for a declared encoding
_MAX_SPAN = 1000  # columns or rows of a cell, as in browsers
_MAX_DEPTH = 1000  # nesting depth of elements: processing time grows with it


def read(data: bytes, charset: str | None = None) -> Text:
    """Read the visible text of a page."""
    text, notes = decode(data, charset, _declared(data))
    page = _parsed(_from_xml(text) if _XML_START.match(text) else text)
    if page.root is None:
        raise ConversionError("there is no text in it")
    title = page.css_first("head title", default=None)
    seen = _Page(page, menus=False)
    if not seen.sections:
        seen = _Page(page, menus=True)
    return Text((title.text() if title else "") or seen.title, seen.sections, notes + seen.left_out)


def _declared(data: bytes) -> str | None:
    """The encoding in an XML declaration or `meta` element."""
    start = data[:_HEAD]
    if declaration := _XML.match(start):
        return declaration[1].decode("ascii")
    if b"charset" not in start.lower():
        return None
    for meta in _parsed(start.decode("latin-1")).css("meta"):
        charset = (meta.attributes.get("charset") or "").strip()
        if not charset and (meta.attributes.get("http-equiv") or "").strip().lower() == "content-type":
            charset = (
                (meta.attributes.get("content") or "").lower().partition("charset=")[2].partition(";")[0].strip(" \"'")
            )
        if charset:
            return (
                "utf-8" if charset.lower().startswith("utf-16") else charset
            )  # the declaration itself was readable as ASCII
    return None


def _parsed(page: str) -> LexborHTMLParser:
    depth = 0
    for tag in _TAG.finditer(page):
        if tag[2].lower() not in _ENDED_BY_OTHERS:
            depth = depth + 1 if not tag[1] else max(0, depth - 1)
            if depth > _MAX_DEPTH:
                raise ConversionError("it is nested too deeply")
    return LexborHTMLParser(page)


def _from_xml(text: str) -> str:
    """Convert XML syntax to HTML: self-closing elements and CDATA sections."""
    first, *parts = text.split("<![CDATA[")
    text = first + "".join(escape(inner) + rest for inner, _, rest in (part.partition("]]>") for part in parts))
    return _ENDED.sub(lambda tag: tag[0] if tag[1].lower() in VOID else f"<{tag[1]}{tag[2]}></{tag[1]}>", text)


def _walk(root: LexborNode, enter: Callable[[LexborNode], bool], leave: Callable[[LexborNode], None]) -> None:
    """Visit a tree without recursion; nodes for which `enter` is false are not descended into."""
    entered: list[LexborNode] = []
    node: LexborNode | None = root
    while node is not None or entered:
        if node is None:
            node = entered.pop()
            leave(node)
            node = node.next if entered else None
        elif enter(node):
            entered.append(node)
            node = node.child
        else:
            node = node.next if entered else None


_Attributes = Mapping[str, str | None]


@dataclass(slots=True)
class _Table:
    """An open table with its rows."""

    lays_out: bool  # a layout table, without data
    rows: list[list[Cell]] = field(default_factory=lambda: [[]])


class _Page:
    """One traversal of a page, without recursion."""

    def __init__(self, page: LexborHTMLParser, menus: bool) -> None:
        self._menus = menus
        self._outline = Outline()
        self._pieces: list[str] = []  # pieces of the current paragraph
        self._separator = "\n\n"  # separator before the current paragraph
        self._lists: list[tuple[int, int] | None] = []  # open lists: number and step of the next item; None: bullets
        self._items: list[str] = []  # marks of the open items
        self._marked = 0  # number of open items whose mark is written
        self._tables: list[_Table] = []  # open tables
        self._raised: list[int] = []  # indices in `_pieces` where superscripts begin
        self._left: dict[str, list[str]] = defaultdict(list)
        self._pre = 0
        self._holders = _holders(page)
        if page.root is None:
            raise ConversionError("the page has no elements")
        _walk(page.root, self._enter, self._leave)
        self._close()
        self.sections = self._outline.sections()
        self.title = self._outline.title
        self.left_out = tuple(note(what, " ".join(texts)) for what, texts in self._left.items())

    def _enter(self, node: LexborNode) -> bool:
        if node.is_text_node:
            self._text(node.text_content)
            return False
        if not node.is_element_node:
            return False
        tag, attributes = node.tag or "", node.attributes
        if _is_unseen(tag, attributes) or "headerlink" in (attributes.get("class") or "").split():
            return False  # `headerlink` is a pilcrow that shows on hover
        if tag in ("math", "svg"):
            self._text(_equation(node) if tag == "math" else _drawn(node))
            return False
        if attributes.get("aria-hidden") == "true":
            self._left["hidden from screen readers"].append(_text_of(node))
            return False
        if (
            (tag == "nav" or (attributes.get("role") or "").lower() in _MENUS)
            and not self._menus
            and node.mem_id not in self._holders
        ):
            self._left["navigation"].append(_text_of(node))
            return False
        self._start(node, tag, attributes)
        return True

    def _start(self, node: LexborNode, tag: str, attributes: _Attributes) -> None:
        if tag in _BLOCKS:
            self._break()
        if tag in _LISTS:
            self._lists.append(
                (_number(attributes.get("start"), 1), -1 if "reversed" in attributes else 1) if tag == "ol" else None
            )
        elif tag == "li":
            self._items.append(self._mark(attributes))
            self._separator = "\n"
        elif tag == "table":
            self._tables.append(_Table(_only_lays_out(node)))
        elif tag in ("td", "th") and self._tables:
            if self._tables[-1].lays_out:
                self._break()
            else:  # a caption, or content misplaced outside cells
                self._write(self._taken())
        elif tag in _PREFORMATTED:
            self._pre += 1
        elif tag == "sup":
            self._raised.append(len(self._pieces))
        elif tag == "img" or (tag == "input" and (attributes.get("type") or "").lower() in _SHOWN):
            label = attributes.get("alt") if tag == "img" else attributes.get("value") or attributes.get("placeholder")
            self._pieces.append(f" {label or ''} ")
        elif tag == "br":
            self._pieces.append(_NEW_LINE)
        if (mark := _AROUND.get(tag)) and not self._pre:
            self._pieces.append(mark[0])

    def _leave(self, node: LexborNode) -> None:
        tag = node.tag or ""
        if (mark := _AROUND.get(tag)) and not self._pre:
            if self._pieces and self._pieces[-1] == mark[0]:
                self._pieces.pop()  # remove marks around empty content
            else:
                self._pieces.append(mark[1])
        table = self._tables[-1] if self._tables and not self._tables[-1].lays_out else None  # the current data table
        if tag in _HEADINGS and table is None:
            name = self._taken()
            self._outline.heading(int(tag[1]), name)
        elif tag in ("td", "th") and table is not None:
            columns, below = (
                min(max(_number(node.attributes.get(name), 1), 1), _MAX_SPAN) for name in ("colspan", "rowspan")
            )
            in_header = tag == "th" or (node.parent is not None and _in_head(node.parent))
            table.rows[-1].append(Cell(self._taken(), columns, below, in_header))
        elif tag == "tr" and table is not None:
            table.rows.append([])
        elif tag == "table" and self._tables:
            rows = self._tables.pop().rows
            self._close()
            self._write(table_text(rows))
            self._separator = "\n\n"
        elif tag == "sup" and self._raised:
            begin = self._raised.pop()
            self._pieces[begin:] = [superscript("".join(self._pieces[begin:]))]
        elif tag in _PREFORMATTED and self._pre == 1:
            self._close()
        elif tag in _BLOCKS:
            self._break()
        if tag in _LISTS and self._lists:
            self._lists.pop()
            self._separator = "\n\n"
        elif tag == "li" and self._items:
            self._items.pop()
            self._marked = min(self._marked, len(self._items))
            self._separator = "\n"
        elif tag in _PREFORMATTED:
            self._pre -= 1
        elif tag in ("dt", "option", "summary", "legend"):
            self._separator = "\n"

    def _text(self, text: str | None) -> None:
        if text:
            self._pieces.append(_KEPT_LINES.sub(_NEW_LINE, text) if self._pre else _LINES.sub(" ", text))

    def _break(self) -> None:
        """End the paragraph: with a blank in table cells, which are one line, and with a newline in preformatted text."""
        if self._pre:
            self._pieces.append(_NEW_LINE)
        elif self._tables and not self._tables[-1].lays_out:
            self._pieces.append(" ")
        else:
            self._close()

    def _close(self) -> None:
        text = "".join(self._pieces)
        self._pieces.clear()
        self._raised.clear()
        if self._pre:
            text = text.replace(_NEW_LINE, "\n").strip("\n")
            fence = "`" * max(3, 1 + max(map(len, _TICKS.findall(text)), default=0))
            text = f"{fence}\n{text}\n{fence}" if text.strip() else ""
        else:
            text = "\n".join(one_line(line) for line in text.split(_NEW_LINE)).strip()
        if text not in _MARKS:  # left over where an inline element contains paragraphs
            self._write(text)

    def _write(self, text: str) -> None:
        if not text:
            return
        indent = "  " * max(0, min(len(self._items), 20) - 1)
        if self._items:
            mark = self._items[-1] if self._marked < len(self._items) else " " * len(self._items[-1])
            self._marked = len(self._items)
            lines = text.split("\n")
            text = "\n".join([f"{indent}{mark}{lines[0]}", *(f"{indent}{' ' * len(mark)}{line}" for line in lines[1:])])
        self._outline.add(text, self._separator)
        self._separator = "\n\n"

    def _taken(self) -> str:
        """Take the text of a heading or cell, as one line."""
        text = one_line("".join(self._pieces).replace(_NEW_LINE, " "))
        self._pieces.clear()
        self._raised.clear()
        return text

    def _mark(self, item: _Attributes) -> str:
        if not self._lists or (numbered := self._lists[-1]) is None:
            return "- "
        number, step = _number(item.get("value"), numbered[0]), numbered[1]
        self._lists[-1] = (number + step, step)
        return f"{number}. "


def _holders(page: LexborHTMLParser) -> set[int]:
    """IDs of elements that contain main content or its heading, and so are not menus."""
    holder_ids: set[int] = set()
    for part in page.css("main, article, h1"):
        holder: LexborNode | None = part
        while holder is not None and holder.mem_id not in holder_ids:
            holder_ids.add(holder.mem_id)
            holder = holder.parent
    return holder_ids


def _text_of(node: LexborNode) -> str:
    return " ".join(part.text_content or "" for part in node.traverse(include_text=True) if part.is_text_node)


def _equation(node: LexborNode) -> str:
    return linear(lxml.html.fragment_fromstring(node.html or "", parser=lxml.html.HTMLParser(huge_tree=True)))


def _drawn(drawing: LexborNode) -> str:
    """The text in an SVG drawing."""
    pieces: list[str] = []
    inside = 0

    def enter(node: LexborNode) -> bool:
        nonlocal inside
        if node.is_text_node:
            pieces.append(node.text_content or "" if inside else "")
            return False
        tag, attributes = (node.tag or "").lower(), node.attributes
        if tag in _NOT_DRAWN or _is_hidden(tag, attributes) or attributes.get("display") == "none":
            return False
        inside += tag in _DRAWN
        pieces.append(" " if tag in _DRAWN else "")
        return True

    def leave(node: LexborNode) -> None:
        nonlocal inside
        inside -= (node.tag or "").lower() in _DRAWN
        pieces.append(" " if (node.tag or "").lower() in _DRAWN else "")

    _walk(drawing, enter, leave)
    return "".join(pieces)


def _number(text: str | None, otherwise: int) -> int:
    return int(text) if text and _INTEGER.fullmatch(text) else otherwise


def _in_head(row: LexborNode) -> bool:
    return row.parent is not None and row.parent.tag == "thead"


def _only_lays_out(table: LexborNode) -> bool:
    """Whether a table is used for layout, not for data."""
    if (table.attributes.get("role") or "").lower() in ("presentation", "none"):
        return True
    return any(part.tag in _LAID_OUT and part.mem_id != table.mem_id for part in table.traverse())


def tag_is_unseen(name: str, attributes: str) -> bool:
    """Whether a page does not show the element of a start tag: its name in lower case, its attributes as they are written."""
    if name != "dialog" and not _MAY_HIDE.search(attributes):  # nearly all
        return name in _UNSEEN
    element = LexborHTMLParser(f"<b {attributes}>").css_first("b", default=None)
    return element is not None and _is_unseen(name, element.attributes)


def _is_unseen(tag: str, attributes: _Attributes) -> bool:
    """Whether a page does not show an element."""
    return tag in _UNSEEN or _is_hidden(tag, attributes)


def _is_hidden(tag: str, attributes: _Attributes) -> bool:
    if "hidden" in attributes and (attributes["hidden"] or "").strip().lower() != "until-found":
        return True
    if tag == "dialog" and "open" not in attributes:
        return True
    return _hides(dict(_declarations(attributes.get("style") or "")))


def _declarations(style: str) -> Iterator[tuple[str, str]]:
    """Names and values of an inline style, in lower case, without blanks and comments."""
    parts = style.lower().split("/*")
    bare = "".join([parts[0], *(part.partition("*/")[2] for part in parts[1:])])
    for declaration in "".join(bare.split()).split(";"):
        name, _, value = declaration.partition(":")
        yield name, value.removesuffix("!important")


def _hides(style: dict[str, str]) -> bool:
    if style.get("display") == "none" or style.get("visibility") in ("hidden", "collapse"):
        return True
    if style.get("color") == "transparent" or style.get("transform") in ("scale(0)", "scale(0,0)"):
        return True
    if style.get("clip", "").replace("px", "").replace(",", "") == "rect(0000)" or style.get("clip-path") in (
        "inset(50%)",
        "inset(100%)",
    ):
        return True
    sizes = {name: size for name, value in style.items() if (size := _size(value)) is not None}
    if any(sizes.get(name) == 0 for name in ("opacity", "font-size")):
        return True
    if any(sizes.get(name, 0) <= -100 for name in ("left", "top", "right", "text-indent", "margin-left")):
        return True
    cut = style.get("overflow") in ("hidden", "clip")
    return cut and any(0 <= sizes.get(name, 9) <= 1 for name in ("width", "height", "max-width", "max-height"))


def _size(value: str) -> float | None:
    match = _SIZE.fullmatch(value) if len(value) <= 40 else None
    return float(match[1]) if match else None


_MAY_HIDE = re.compile("hidden|style", re.IGNORECASE)
_XML = re.compile(rb"\s{0,100}<\?xml[^>]{0,200}?encoding\s{0,9}=\s{0,9}[\"']([A-Za-z0-9._:-]{1,40})[\"']")
_XML_START = re.compile(r"\s{0,100}<\?xml\s")
_ENDED = re.compile(r"<([A-Za-z][A-Za-z0-9:-]{0,40})([^<>]*)/>")
VOID = {
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr", "frame",
}  # fmt: skip
_HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
_LISTS = {"ul", "ol", "menu", "dir"}
_BLOCKS = _HEADINGS | _LISTS | {
    "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "dialog", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "footer", "form", "header", "hgroup", "hr", "legend", "li", "main", "nav", "optgroup",
    "option", "p", "pre", "search", "section", "select", "summary", "table", "tr", "textarea", "xmp", "listing", "plaintext",
}  # fmt: skip
_UNSEEN = {
    "head", "script", "style", "template", "noscript", "noframes", "iframe", "object", "audio", "video", "canvas", "datalist",
    "meter", "progress",
}  # fmt: skip
_NOT_DRAWN = {"title", "desc", "defs", "symbol", "metadata", "style", "script", "clippath", "mask", "pattern"}
_DRAWN = {"text", "foreignobject"}
_LAID_OUT = {"table", "h1", "h2", "h3", "h4", "h5", "h6", "main", "article", "section", "form", "pre"}
_ENDED_BY_OTHERS = VOID | {
    "p", "li", "dd", "dt", "option", "optgroup", "tr", "td", "th", "thead", "tbody", "tfoot", "colgroup", "caption", "rt", "rp",
    "rb", "rtc", "html", "head", "body",
}  # fmt: skip
_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9-]*)")
_MENUS = {"navigation", "menu", "menubar"}
_SHOWN = {"", "text", "search", "email", "url", "tel", "number", "date", "time", "month", "week", "datetime-local", "submit", "reset", "button"}  # fmt: skip
_AROUND = {
    "code": ("`", "`"), "del": ("~~", "~~"), "s": ("~~", "~~"), "strike": ("~~", "~~"), "q": ("“", "”"),
    "button": (" ", " "), "label": (" ", " "),
}  # fmt: skip
_MARKS = {mark for marks in _AROUND.values() for mark in marks}
_PREFORMATTED = {"pre", "xmp", "listing", "plaintext"}
_NEW_LINE = "\0"  # stands for a visible line break until whitespace is collapsed: no text contains it
_LINES = re.compile(r"[ \t\r\n\f]+")
_KEPT_LINES = re.compile(r"\r\n|[\r\n\f]")
_TICKS = re.compile("`+")
_INTEGER = re.compile(r"-?[0-9]{1,9}")
_SIZE = re.compile(r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?:px|r?em|pt|%|v[hw]|ex|ch|cm|mm|in|pc)?")
