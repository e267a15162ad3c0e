"""Words of a question that no passage has: a name or a number among them makes the passages about something else.

No list of words decides which unknown word matters, so that this holds for any language that the embedder knows. The embedder says
how much a word is of the question: without "Finland", "What is the per diem for Finland?" is another question; without "what", it is
nearly the same.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from serve.retrieval.verify.words import is_exact, parts, words

MAX_QUESTION_CHARS = 400  # in longer ones no single word moves the vector
_MAX_WORDS = 8  # of a question; the longest, those with digits first
_BEGINNING = 4  # fewest letters that two forms of a word share; shorter words have no other forms


@dataclass(slots=True, frozen=True)
class UnknownWord:
    """A word of a question that no passage has."""

    without: str  # the question without it
    exact: bool  # part of it is a number or a code: a similar one in a passage is another one


def unknown_words(question: str, passages: Sequence[str]) -> list[UnknownWord]:
    """The question's words with a part that no passage has, nor a word that begins with the first half of its letters, at least four.

    Shorter parts and those with digits are compared whole. The passages found by words and by meaning stand for the collection: it
    hardly has a word that none of them has.
    """
    if len(question) > MAX_QUESTION_CHARS:
        return []
    known = sorted({part for passage in passages for part in parts(passage)})
    ranked = []
    for word in words(question):
        missing = [part for part in word.parts if not _is_known(part, known)]
        without = " ".join((question[: word.start] + question[word.end :]).split())
        if missing and any(map(str.isalnum, without)):
            exact = any(is_exact(part) for part in missing)
            ranked.append(((exact, word.end - word.start), UnknownWord(without, exact)))
    ranked.sort(key=lambda pair: pair[0], reverse=True)
    return [word for _, word in ranked[:_MAX_WORDS]]


def _is_known(part: str, known: Sequence[str]) -> bool:
    """Whether `known`, which is sorted, has the part or another form of it."""
    whole = len(part) <= _BEGINNING or is_exact(part)
    beginning = part if whole else part[: max(_BEGINNING, round(len(part) / 2))]
    at = bisect_left(known, beginning)
    return at < len(known) and (known[at] == part if whole else known[at].startswith(beginning))
