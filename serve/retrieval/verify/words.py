"""Words of texts in any language, and which texts have them. No lists of words: forms of a word differ in a short ending."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_MAX_CHARS = 64  # significant characters of a part
_SHORTEST = 4  # letters that two forms of a word share at least
_ENDING = 3  # letters, and a third of the word, in which two forms of it may differ
_LONG = 10  # letters from which on a word counts whole: longer words are rarer
_CONTENT = 4  # letters from which on a word is likely to be one of the subject

_UNSPACED = r"\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"  # scripts without spaces: Thai to Myanmar, Khmer, kana, Chinese
_LETTER = rf"[^\W\d{_UNSPACED}]"
_NUMBER = r"\d++(?:[.,'’\u00a0\u202f]\d++)*+"
_SIGN = r"(?<![\w)\]])[-−](?=\d)"  # of -20, but neither of P-20 nor of 10-20
_PART = re.compile(rf"(?:{_SIGN})?{_NUMBER}|{_LETTER}(?:{_LETTER}|\d)*+")  # 12kg is two, P440 is one
_WORD = re.compile(rf"(?:{_SIGN})?(?:{_NUMBER}|{_LETTER})(?:[-+./#'’]?(?:{_NUMBER}|{_LETTER}))*+")
_CHARACTER = re.compile(rf"[{_UNSPACED}]")
_SEPARATOR = re.compile(r"[.,'’\u00a0\u202f]")


@dataclass(slots=True, frozen=True)
class Word:
    """A word of a text, such as `P-440`, with its parts in lower case, `p` and `440`."""

    start: int
    end: int
    parts: tuple[str, ...]

    @property
    def is_exact(self) -> bool:
        """Whether a part is a number or a code."""
        return any(map(is_exact, self.parts))

    def is_rival(self, other: "Word") -> bool:
        """Whether both are codes of one kind, such as P-440 and P-220."""
        alike = [
            one == two or (is_exact(one) and is_exact(two)) for one, two in zip(self.parts, other.parts, strict=False)
        ]
        return self.is_exact and len(self.parts) == len(other.parts) > 1 and self.parts != other.parts and all(alike)


def words(text: str) -> Iterator[Word]:
    """The words of `text` in order, without those of scripts that put no spaces between words."""
    for match in _WORD.finditer(text):
        yield Word(match.start(), match.end(), tuple(map(_normal, _PART.findall(match[0].casefold()))))


def parts(text: str) -> dict[str, None]:
    """The distinct parts of the words of `text`, and characters of scripts that put no spaces between words."""
    return dict.fromkeys([*map(_normal, _PART.findall(text.casefold())), *_CHARACTER.findall(text)])


def without(text: str, word: Word) -> str:
    """`text` without the word, wherever it is."""
    kept, at = [], 0
    for one in words(text):
        if one.parts == word.parts:
            kept.append(text[at : one.start])
            at = one.end
    return " ".join("".join([*kept, text[at:]]).split())


def is_exact(part: str) -> bool:
    """Whether a part is a number or a code: a similar one is another one."""
    return any(map(str.isdigit, part))


def is_content(part: str) -> bool:
    """Whether a part is likely to be of a text's subject."""
    return len(part) >= _CONTENT or is_exact(part) or _CHARACTER.match(part) is not None


def weight(part: str) -> float:
    """Estimated rarity of a part, to 1: longer ones are rarer, and exact ones decide."""
    if is_exact(part):
        return 1.0
    return 2 * _CONTENT / _LONG if _CHARACTER.match(part) else min(len(part), _LONG) / _LONG


def most_telling(found: Iterable[Word], most: int) -> list[Word]:
    """At most `most` different words of those found: exact ones first, then the longest."""
    distinct = {word.parts: word for word in found}
    ordered = sorted(distinct.values(), key=lambda word: (word.is_exact, word.end - word.start), reverse=True)
    return ordered[:most]


class WordIndex:
    """Which of several texts have a word, or another form of it.

    Args:
        texts: the parts of each text.
    """

    def __init__(self, texts: Iterable[Iterable[str]]) -> None:
        self.texts = 0  # number of texts
        self._postings: dict[str, set[int]] = {}  # by what forms of a word have in common
        for number, text in enumerate(texts):
            self.texts = number + 1
            for part in text:
                for form in _forms(part):
                    self._postings.setdefault(form, set()).add(number)
        self._found: dict[str, frozenset[int]] = {}

    def __contains__(self, part: str) -> bool:
        return any(form in self._postings for form in _forms(part))

    def having(self, part: str) -> frozenset[int]:
        """Numbers of the texts that have the part."""
        if part not in self._found:
            self._found[part] = frozenset().union(*(self._postings.get(form, ()) for form in _forms(part)))
        return self._found[part]


def stem(part: str) -> str:
    """The beginning that all forms of a part have."""
    return _forms(part)[0]


def _forms(part: str) -> Sequence[str]:
    """Beginnings of a part, of which two forms of a word have one in common, the shortest first; an exact one whole."""
    if is_exact(part):
        return [part]
    shortest = max(_SHORTEST, len(part) - min(_ENDING, len(part) // 3))
    return [part[:length] for length in range(shortest, len(part) + 1)] or [part]


def _normal(part: str) -> str:
    """The part; of a number, without separators of thousands and closing zeros: 1,000 and 1.000 are 1000, and 3,50 is 3.5.

    Versions, addresses and dates stay as they are.
    """
    if part[0] in "-−":
        return f"-{_normal(part[1:])}"
    first, *groups = _SEPARATOR.split(part) if part[0].isdigit() else [part]
    marks = _SEPARATOR.findall(part) if groups else []
    if not groups:
        return part[:_MAX_CHARS]
    *thousands, last = groups
    if all(len(group) == 3 for group in groups) and len(set(marks)) == 1 and 0 < len(first) <= 3 and first != "0":
        return "".join([first, *groups])[:_MAX_CHARS]
    if all(len(group) == 3 for group in thousands) and len(set(marks[:-1])) <= 1 and marks[-1] not in marks[:-1]:
        return f"{first}{''.join(thousands)}.{last.rstrip('0')}".rstrip(".")[:_MAX_CHARS]
    return part[:_MAX_CHARS]
