"""Text of a converted document: sections under headings, and normalization of invisible characters."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

MAX_CHARS = 20_000_000  # limit on a document's text
MAX_HEADING = 200  # characters of a heading path
_MAX_EXCERPT = 60  # characters of an excerpt in `left_out`


class ConversionError(ValueError):
    """A document can't be converted; the message is for users."""


@dataclass(slots=True, frozen=True)
class Section:
    """Text under one heading (or on one page)."""

    text: str
    heading: str = ""
    page: int | None = None


@dataclass(slots=True, frozen=True)
class Text:
    """The text of a document.

    Attributes:
        left_out: notes for users on visible content that the sections omit or change.
    """

    title: str
    sections: tuple[Section, ...]
    left_out: tuple[str, ...] = ()


class Outline:
    """Collects a document's text in sections, each under its headings. No heading is lost: one without text becomes text."""

    def __init__(self) -> None:
        self.title = ""  # the first heading
        self._path: list[tuple[int, str]] = []
        self._parts: list[str] = []
        self._sections: list[Section] = []

    def heading(self, level: int, name: str) -> None:
        """Begin a section. A heading that is too long becomes text."""
        name = " ".join(tidy(name).split())
        if len(name) > MAX_HEADING:
            self.add(name)
        elif name:
            path = [*((at, above) for at, above in self._path if at < level), (level, name)]
            below = len(path) > len(self._path)
            self._close(shown_below=below and len(_joined(path)) <= MAX_HEADING)
            self._path = path
            self.title = self.title or name

    def add(self, text: str, separator: str = "\n\n") -> None:
        """Add text to the section, after `separator`."""
        self._parts += (separator, text)

    def sections(self) -> tuple[Section, ...]:
        """Close the outline and return its sections."""
        self._close(shown_below=False)
        return tuple(self._sections)

    def _close(self, shown_below: bool) -> None:
        text = tidy("".join(self._parts))
        self._parts = []
        if text:
            self._sections.append(Section(text, _shortened(self._path)))
        elif self._path and not shown_below:
            self._sections.append(Section(self._path[-1][1], _shortened(self._path[:-1])))


def _joined(path: Iterable[tuple[int, str]]) -> str:
    return " › ".join(name for _, name in path)


def _shortened(path: list[tuple[int, str]]) -> str:
    """The nearest headings that fit; headings above them appear in their own sections."""
    while len(heading := _joined(path)) > MAX_HEADING:
        path = path[1:]
    return heading


def note(what: str, text: str) -> str:
    """A line of `left_out` about a piece of text."""
    text = " ".join(tidy(text).split())
    excerpt = text if len(text) <= _MAX_EXCERPT else f"{text[:_MAX_EXCERPT].rstrip()}…"
    return f"{what} ({len(text)} characters): {excerpt}"


def superscript(text: str) -> str:
    """Convert digits and signs to superscript characters (10⁶ is not 106); other text is unchanged."""
    return text.translate(_RAISED) if text and not set(text) - set("0123456789+-−=()n") else text


def one_line(text: str) -> str:
    """The text in one line, with single blanks; those within numbers stay what they are."""
    return _WHITE_SPACE.sub(" ", text).strip()


def tidy(text: str) -> str:
    """Remove invisible characters, trailing blanks and runs of blanks or empty lines."""
    text = _INVISIBLE.sub(_needed, _BREAK.sub("\n", unicodedata.normalize("NFC", text)))
    lines = (_BLANKS.sub(" ", line.rstrip()) for line in _SPACE.sub(" ", text).split("\n"))
    return _EMPTY_LINES.sub("\n\n", "\n".join(lines)).strip()


def _needed(run: re.Match[str]) -> str:
    """The characters of an invisible run that affect visible neighbours, such as joiners."""
    hidden, before, after = run[0], run.string[run.start() - 1 : run.start()], run.string[run.end() : run.end() + 1]
    if not before:
        return ""
    if _JOINING.match(before):
        return next((char for char in hidden if char in "\u200c\u200d"), "")
    if _EMOJI.match(before):
        if hidden == "\ufe0f" or (hidden in ("\u200d", "\ufe0f\u200d") and _EMOJI.match(after)):
            return hidden
        return hidden if before == "\U0001f3f4" and hidden in _FLAGS else ""
    if "\u1800" <= before <= "\u18af":
        return hidden if len(hidden) == 1 and "\u180b" <= hidden <= "\u180f" else ""
    return hidden if after == "\u20e3" and hidden == "\ufe0f" else ""


_RAISED = str.maketrans("0123456789+-−=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿ")
_BREAK = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_NOT_IN_NUMBER = r"(?!(?<=\d)[\u00a0\u202f]\d{3}(?!\d))"  # 12 000
_SPACE = re.compile(rf"{_NOT_IN_NUMBER}[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_WHITE_SPACE = re.compile(rf"(?:{_NOT_IN_NUMBER}\s)+")
# zero-width characters, direction marks, fillers, selectors and tags, which could hide text from readers; and non-text
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff"
    "\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]+"
)
# scripts whose letters are shaped by joiners and non-joiners: Arabic to Thaana and N'Ko, of India and Tibet, Myanmar, Khmer, Mongolian
_JOINING = re.compile(
    "[\u0600-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u17ff\ua840-\ua8ff\uaa60-\uaa7f\ufb50-\ufdff\ufe70-\ufefc\U00010a00-\U00011fff]"
)
_EMOJI = re.compile("[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]")
_FLAGS = {"".join(chr(0xE0000 + ord(char)) for char in name) + "\U000e007f" for name in ("gbeng", "gbsct", "gbwls")}
_BLANKS = re.compile(r"(?<=\S)[ \t]{2,}")
_EMPTY_LINES = re.compile(r"\n{3,}")
