"""reStructuredText to text. No other files are read, and the text of Sphinx-only directives and roles is included."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from docutils import nodes
from docutils.core import publish_doctree
from docutils.parsers.rst import Directive, directives, roles
from docutils.utils import unescape

from serve.retrieval.ingest.formats.document import Outline, Text, note, one_line, superscript
from serve.retrieval.ingest.formats.encoding import decode
from serve.retrieval.ingest.formats.tables import Cell, table_text

_SETTINGS = {
    "file_insertion_enabled": False, "raw_enabled": False, "report_level": 5, "halt_level": 5, "_disable_config": True,
    "input_encoding": "unicode", "syntax_highlight": "none", "smart_quotes": False,
}  # fmt: skip


def read(data: bytes, charset: str | None = None) -> Text:
    """Read the text of all sections."""
    text, notes = decode(data, charset)
    left_out: list[str] = []
    with _sphinx(left_out):
        tree = publish_doctree(text.replace("\r\n", "\n").replace("\r", "\n"), settings_overrides=_SETTINGS)
    outline, title = Outline(), str(tree.get("title") or "")
    if title:
        outline.heading(1, title)
    _add(tree, 2 if title else 1, outline)
    return Text(outline.title, outline.sections(), notes + tuple(left_out))


def _add(parent: Any, level: int, outline: Outline) -> None:
    for child in parent.children:
        if isinstance(child, nodes.section):
            outline.heading(level, child.next_node(nodes.title).astext())
            _add(child, level + 1, outline)
        elif not (isinstance(child, nodes.title) and isinstance(parent, nodes.section | nodes.document)):
            outline.add(_text(child))


def _text(node: Any) -> str:
    """The text of a node; lists and tables keep their structure."""
    if isinstance(node, nodes.Text):
        return str(node.astext())
    if isinstance(node, nodes.system_message):  # content of a directive that docutils cannot parse
        return "\n\n".join(literal.astext() for literal in node.findall(nodes.literal_block))
    if isinstance(node, nodes.Invisible | nodes.raw | nodes.colspec):
        return ""
    if isinstance(node, nodes.image):
        return f" {node.get('alt') or ''} "
    if isinstance(node, nodes.superscript):
        return superscript(node.astext())
    if isinstance(node, nodes.footnote_reference | nodes.citation_reference):
        return f"[{node.astext()}]"
    if isinstance(node, nodes.literal_block):
        return str(node.astext())
    if isinstance(node, nodes.tgroup):
        return table_text([[_cell(entry) for entry in row.children] for row in node.findall(nodes.row)])
    parts = [part for child in node.children if (part := _text(child)).strip() or isinstance(node, nodes.TextElement)]
    if isinstance(node, nodes.TextElement):
        return "".join(parts)
    if isinstance(node, nodes.bullet_list):
        return "\n".join(_hanging("- ", part) for part in parts)
    if isinstance(node, nodes.enumerated_list):
        return "\n".join(_hanging(f"{number}. ", part) for number, part in enumerate(parts, node.get("start", 1)))
    if isinstance(node, nodes.footnote | nodes.citation) and parts:
        return _hanging(f"[{parts[0]}] ", "\n\n".join(parts[1:]))
    if isinstance(node, nodes.docinfo):  # docinfo fields are named by their class
        kinds = (child.__class__.__name__ for child in node.children)
        return "\n".join(
            part if kind == "field" else f"{kind}: {part}" for kind, part in zip(kinds, parts, strict=False)
        )
    if isinstance(node, nodes.field) and len(parts) == 2:
        return _hanging(f"{parts[0]}: ", parts[1])
    close = nodes.definition_list_item | nodes.line_block | nodes.field_list
    return ("\n" if isinstance(node, close) else "\n\n").join(parts)


def _cell(entry: Any) -> Cell:
    columns, rows = (int(entry.get(name, 0)) + 1 for name in ("morecols", "morerows"))
    return Cell(one_line(_text(entry)), columns, rows, isinstance(entry.parent.parent, nodes.thead))


def _hanging(mark: str, text: str) -> str:
    return mark + text.replace("\n", "\n" + " " * len(mark))


@contextmanager
def _sphinx(left_out: list[str]) -> Iterator[None]:
    """Read unknown directives and roles as text, and skip directives that read files."""
    directive, role = directives.directive, roles.role

    class NotRead(Directive):  # type: ignore[misc]
        has_content = True
        optional_arguments = 1
        final_argument_whitespace = True
        option_spec = _AnyOption()

        def run(self) -> list[Any]:
            left_out.append(note(f"directive {self.name}", " ".join([*self.arguments, *self.content])))
            return []

    def find_directive(name: str, language: Any, document: Any) -> Any:
        if name.lower() in _READ_FILES:
            return NotRead, []
        found, messages = directive(name, language, document)
        return (found, messages) if found is not None else (_Unknown, [])

    def find_role(name: str, language: Any, line: int, reporter: Any) -> Any:
        found, messages = role(name, language, line, reporter)
        return (found, messages) if found is not None else (_read_role, [])

    directives.directive, roles.role = find_directive, find_role
    try:
        yield
    finally:
        directives.directive, roles.role = directive, role


class _AnyOption(dict[str, Any]):
    """An option specification that accepts any name."""

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, name: str) -> Any:
        return lambda value: value


class _Unknown(Directive):  # type: ignore[misc]
    """A directive of Sphinx or an extension: its arguments and content are read as text."""

    has_content = True
    optional_arguments = 1
    final_argument_whitespace = True
    option_spec = _AnyOption()

    def run(self) -> list[Any]:
        name = self.name.rpartition(":")[2].lower()
        if name in _UNSEEN:
            return []
        container = nodes.container()
        if self.arguments and name not in _UNSEEN_ARGUMENT:
            parsed, messages = self.state.inline_text(self.arguments[0], self.lineno)
            container += [nodes.paragraph("", _SAID.get(name, ""), *parsed), *messages]
        if name in _LITERAL:
            container += nodes.literal_block("", "\n".join(self.content))
        else:
            self.state.nested_parse(self.content, self.content_offset, container)
        return [container]


def _read_role(name: str, source: str, text: str, *_: Any, **__: Any) -> Any:
    """Read a Sphinx role as its text, without the target."""
    shown = unescape(text)
    if shown.endswith(">") and (at := shown.rfind("<")) > 0:
        shown = shown[:at].rstrip()
    return [nodes.inline(source, shown.lstrip("~!."))], []


_READ_FILES = {"include", "literalinclude", "raw", "plantuml-file", "download"}
_UNSEEN = {"index", "highlight", "currentmodule", "default-domain", "tabularcolumns", "toctree", "module"}
_UNSEEN_ARGUMENT = {"only", "ifconfig", "sourcecode", "prompt", "tabs", "testcode", "testsetup", "doctest", "literal"}
_LITERAL = {"sourcecode", "prompt", "testcode", "testoutput", "doctest", "mermaid", "graphviz", "plantuml"}
_SAID = {
    "versionadded": "Added in version ", "versionchanged": "Changed in version ", "deprecated": "Deprecated since version ",
    "versionremoved": "Removed in version ",
}  # fmt: skip
