"""Equations of Word (OMML) and web pages (MathML) as linear text: x^2 and (a/b), not x2 and ab."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from serve.retrieval.ingest.formats.document import tidy

_VALUE = "{http://schemas.openxmlformats.org/officeDocument/2006/math}val"


def linear(element: Any) -> str:
    """Convert an equation to linear text."""
    name = _name(element)
    parts = [
        linear(child) for child in _children(element) if _name(child) not in _UNSEEN and not _name(child).endswith("Pr")
    ]
    if write := _WRITTEN.get(name):
        return write(element, parts)
    if name in ("t", "mi", "mn", "mo", "mtext", "ms") or not parts:
        return tidy("".join(element.itertext()))
    return "".join(parts)


def _children(element: Any) -> Iterator[Any]:
    return (child for child in element if isinstance(child.tag, str))


def _name(element: Any) -> str:
    return str(element.tag).rpartition("}")[2].rpartition(":")[2]


def _grouped(text: str) -> str:
    return text if len(text) < 2 or text.isalnum() else f"({text})"


def _part(parts: list[str], at: int) -> str:
    return parts[at] if at < len(parts) else ""


def _scripts(*marks: str) -> Callable[[Any, list[str]], str]:
    """A writer for scripts: the base, then each part after its mark."""

    def write(_: Any, parts: list[str]) -> str:
        behind = (f"{mark}{_grouped(part)}" for mark, part in zip(marks, parts[1:], strict=False) if part)
        return _part(parts, 0) + "".join(behind)

    return write


def _root(element: Any, parts: list[str]) -> str:
    name = _name(element)
    if name == "msqrt":
        return f"√({''.join(parts)})"
    base, degree = (_part(parts, 0), _part(parts, 1)) if name == "mroot" else (_part(parts, 1), _part(parts, 0))
    return f"{_grouped(degree)}√({base})"


def _delimited(element: Any, parts: list[str]) -> str:
    opening, between, closing = (
        _property_value(element, name, other) for name, other in (("begChr", "("), ("sepChr", "|"), ("endChr", ")"))
    )
    return opening + between.join(parts) + closing


def _operator(element: Any, parts: list[str]) -> str:
    below, above, base = (_part(parts, at) for at in range(3))
    limits = "".join(f"{mark}{_grouped(part)}" for mark, part in (("_", below), ("^", above)) if part)
    return f"{_property_value(element, 'chr', '∫')}{limits} {base}"


def _property_value(element: Any, name: str, otherwise: str) -> str:
    """The value of an element's property `name`, or `otherwise`."""
    properties = (
        property for child in _children(element) if _name(child).endswith("Pr") for property in _children(child)
    )
    return next((str(property.get(_VALUE, "")) for property in properties if _name(property) == name), otherwise)


_UNSEEN = {"annotation", "annotation-xml", "ctrlPr", "instrText", "delText", "del", "moveFrom", "none", "mprescripts"}
_WRITTEN: Mapping[str, Callable[[Any, list[str]], str]] = {
    **dict.fromkeys(("f", "mfrac"), lambda _, parts: f"({_grouped(_part(parts, 0))}/{_grouped(_part(parts, 1))})"),
    **dict.fromkeys(("sSup", "msup", "mover", "limUpp"), _scripts("^")),
    **dict.fromkeys(("sSub", "msub", "munder", "limLow"), _scripts("_")),
    **dict.fromkeys(("sSubSup", "msubsup", "munderover"), _scripts("_", "^")),
    **dict.fromkeys(("rad", "mroot", "msqrt"), _root),
    **dict.fromkeys(("mr", "mtr", "mlabeledtr"), lambda _, parts: ", ".join(parts)),
    **dict.fromkeys(("m", "mtable"), lambda _, parts: f"[{'; '.join(parts)}]"),
    "eqArr": lambda _, parts: "; ".join(parts),
    "func": lambda _, parts: " ".join(parts),
    "d": _delimited,
    "nary": _operator,
}
