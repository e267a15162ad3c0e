"""Intent detection: answer questions that are only a computation, a conversion, a date or a time with a tool, without a model.

Tools that a model calls are in `serve/tools/haystack_tools.py`.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from functools import lru_cache
from threading import Lock

from serve.tools import calculator, clock, question_forms, units
from serve.tools.question_forms import Form, reduced
from serve.tools.vocabulary import Language, languages, split_words

MAX_CHARS = 200
MAX_LIKELY_CHARS = 500  # word problems are longer
_OF_SIGNS = ("en", "de")
_COMMA = re.compile(r"\d,(?!\d{3}(?!\d))\d")  # a decimal comma
_LOADING = Lock()
_CALL = re.compile(rf"\b(?:{'|'.join(calculator.FUNCTIONS)})\(")


@dataclass(slots=True, frozen=True)
class ToolResult:
    """The use of a tool. `input` has the arguments of the tool named `name`; `answer` is a complete line or sentence."""

    name: str
    input: Mapping[str, str]
    output: str
    answer: str


def detect(text: str, enabled: Sequence[str], now: datetime, zone: tzinfo) -> ToolResult | None:
    """The answer of the tool in `enabled` that answers `text` completely, else None. `now` is timezone-aware.

    Every language whose vocabulary has a word of the question reads it; where two read different things, there is no answer. A
    computation without a result, such as a division by zero, is answered with the reason. The first call takes about two seconds of CPU
    time, for the vocabularies; later ones milliseconds.
    """
    if not 3 <= len(text) <= MAX_CHARS:
        return None
    question = calculator.plain(text).lower().strip().rstrip(" .!")
    if _CALL.search(question):  # sqrt(2): notation in any language
        return _calculated(question.rstrip(" =?")) if "calculator" in enabled else None
    results: dict[object, ToolResult] = {}
    for language in _readers(question):
        if (result := next(_readings(question, language, enabled, now, zone), None)) is not None:
            results.setdefault((result.name, *sorted(result.input.items())), result)
    return next(iter(results.values())) if len(results) == 1 else None


def may_compute(text: str) -> bool:
    """Whether the beginning of `text` may ask for a computation, although `detect` finds none."""
    question = calculator.plain(text[:MAX_LIKELY_CHARS]).lower()
    forms = (reduced(language.with_digits(question, ones=False), language) for language in _readers(question))
    return any(form is not None and question_forms.may_compute(form) for form in forms)


def _forms(question: str, language: Language) -> Iterator[Form]:
    for text in dict.fromkeys(language.with_digits(question, ones=ones) for ones in (False, True)):
        form = reduced(text, language)
        if form and (form.has_operator_words or "_" in form.text or language.code in _OF_SIGNS):
            yield form


def _readings(
    question: str, language: Language, enabled: Sequence[str], now: datetime, zone: tzinfo
) -> Iterator[ToolResult]:
    currencies = {character for character in question if unicodedata.category(character) == "Sc"}
    if "calculator" in enabled and len(currencies) < 2:
        for form in _forms(question, language):
            if (expression := question_forms.expression_of(form, language)) and (result := _calculated(expression)):
                yield result
            if (conversion := question_forms.conversion_of(form)) and (
                conversion_result := units.converted(*conversion, language.code)
            ):
                yield ToolResult("calculator", *conversion_result)
    if "clock" in enabled and (found := clock.find_question(question, language, now.astimezone(zone).date())):
        answer = clock.answer(found, now, zone, language.code)
        yield ToolResult("clock", found.arguments, answer, answer)


def _calculated(expression: str) -> ToolResult | None:
    try:
        result = calculator.compute(expression)
    except calculator.ExpressionSyntaxError:
        return None
    except calculator.CalculatorError as fault:
        return ToolResult("calculator", {"expression": expression}, str(fault), calculator.answer(expression))
    return ToolResult("calculator", {"expression": result.expression}, result.text, result.answer)


def _readers(question: str) -> list[Language]:
    """Languages that have a term for a word of the question; English for one of signs alone, German for decimal commas."""
    codes = load()
    known = {code for word in split_words(question) for code in codes.get(word, ())}
    if any(character.isdigit() for character in question):
        known.add("de" if _COMMA.search(question) else "en")
    return [language for language in languages() if language.code in known]


def load() -> Mapping[str, frozenset[str]]:
    """Load the vocabularies, once: codes of languages by the words that begin their terms and their questions for date and time."""
    with _LOADING:
        return _codes_by_word()


@lru_cache(1)
def _codes_by_word() -> Mapping[str, frozenset[str]]:
    index: dict[str, set[str]] = defaultdict(set)
    for language in languages():
        terms = {
            word
            for word, phrases in language.terms.items()
            if {term.name for term in phrases.values()} - {"compute", "unread"}
        }
        clock.load(language)
        for word in terms.union(language.date_nouns, *language.time.keys):
            index[word].add(language.code)
    return {word: frozenset(codes) for word, codes in index.items()}
