"""Rule-based grading of answers for `benchmarks.retrieval.grounded_answers`, independent of the platform's own rules."""

import re
from collections.abc import Iterable
from fractions import Fraction

from compression.measure.intervals import wilson_ci95

DEFINES = 0.4  # minimum share of a definition's words in an answer about it
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?![\d])")
_COMMON = frozenset(
    re.findall(
        r"\w+",
        """about also another been being between both called commonly does each from have into known like many more most
        often only other over same should some such than that their them then there these they this those through under
        used uses using usually very were what when where which while will with within would your term""",
    )
)
_DECLINES = re.compile(
    r"\b(?:do(?:es)?|did|could|can|am|'m|is|are|was)(?: not|n['’]t)\b[^.]{0,40}"
    r"\b(?:know|aware|familiar|find|mention|specif|provid|contain|exist|real|have (?:any )?information"
    r"|recogni[sz]ed?|widely)"
    r"|\bno (?:information|such|record|mention)\b"
    r"|\bunknown\b",
    re.I,
)


def share(marks: Iterable[bool]) -> dict[str, object]:
    """Hits, total, and their share with its 95% interval; both are None without items."""
    marks = list(marks)
    hits, items = sum(marks), len(marks)
    if not items:
        return {"hits": 0, "items": 0, "share": None, "ci95": None}
    return {
        "hits": hits,
        "items": items,
        "share": round(hits / items, 4),
        "ci95": [round(bound, 4) for bound in wilson_ci95(hits, items)],
    }


def names(answer: str, values: Iterable[str]) -> bool:
    """Whether the answer contains one of `values` as whole words or numbers: 4.2 is not in 4.25."""
    return any(_named(value).search(answer) is not None for value in values)


def _named(value: str) -> re.Pattern[str]:
    before, after = (r"(?<![\w.,:])", r"(?!\w|[.,:]\d)") if value[0].isdigit() else (r"(?<!\w)", r"(?!\w)")
    return re.compile(before + re.escape(value) + after, re.I)


def computes(answer: str, value: Fraction, question: str) -> bool:
    """Whether a number that is not in the question is `value`, exactly or rounded to at least two decimals."""
    in_question = set(_NUMBER.findall(question))
    for written in _NUMBER.findall(answer):
        if written in in_question:
            continue
        decimals = len(written.partition(".")[2])
        number = Fraction(written.replace(",", ""))
        if number == value or (decimals >= 2 and abs(number - value) <= Fraction(1, 2 * 10**decimals)):
            return True
    return False


def defines(answer: str, definition: str, question: str) -> bool:
    """Whether an answer has enough of a definition's words, without those of the question, to give the same meaning."""
    expected = _words(definition) - _words(question)
    return bool(expected) and len(expected & _words(answer)) >= DEFINES * len(expected)


def declines(answer: str) -> bool:
    """Whether a model's answer says that it does not know, or that there is no such thing.

    "A fictional character of the film …" does not count: it is an invention as well.
    """
    return _DECLINES.search(answer) is not None


def _words(text: str) -> set[str]:
    """Prefixes of the text's words of four letters or more, without the most common words."""
    return {word[:6] for word in re.findall(r"[a-z]{4,}", text.lower()) if word not in _COMMON}
