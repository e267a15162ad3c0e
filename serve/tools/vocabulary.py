"""Words that the detection of computations knows in each language. They come from libraries.

Number words are text2num's, operators mathparse's, units and number formats CLDR's (Babel), function words stopwordsiso's,
questions for the date and the time Home Assistant's. What these lack is in `terms.yaml`.
"""

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from importlib import import_module
from importlib.resources import files
from typing import Any

import stopwordsiso
import yaml
from babel import Locale
from babel.numbers import get_decimal_symbol, get_group_symbol
from hassil.intents import Intents
from hassil.sample import sample_intents
from mathparse.mathwords import MATH_WORDS
from text_to_num import alpha2digit

from serve.tools.units import PREFIXED, PREFIXES, is_unit

#: Languages by their code in ISO 639-1, with mathparse's code for them.
LANGUAGES = {
    "en": "ENG", "de": "GER", "fr": "FRE", "es": "ESP", "it": "ITA", "pt": "POR", "nl": "DUT", "da": "DAN", "sv": "SWE",
    "nb": "NOR", "fi": "FIN", "pl": "POL", "cs": "CZE", "hu": "HUN", "ro": "RON", "ru": "RUS", "uk": "UKR", "el": "GRE",
}  # fmt: skip
_NUMBER_WORDS = frozenset({"en", "de", "fr", "es", "it", "pt", "nl", "da"})  # languages of text2num
_MATH_KINDS = ("binary_operators", "postfix_unary_operators", "prefix_unary_operators")
_OPERATORS = ("+", "-", "*", "/", "^", "^2", "^3", "sqrt")
_NOT_ARITHMETIC = ("until", "since", "week", "asking")
_MONTHS = (
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
)
_RELATIVE = re.compile(
    r"(?:in )?(?P<count>\d|\\1) (?P<unit>second|day|week)(?P<ago> ago)?"
)  # keys of dateparser's data
_COUNT = re.compile(r"\(\\d[^()]*\)")
_WORD = re.compile(r"[^\W\d_]+")
_GROUPED = re.compile(r"\d{1,3}([.,])\d{3}(?:\1\d{3})*(?:([.,])\d+)?")
_NUMBER = re.compile(r"(?:\d+(?:[.,]\d+)?|\.\d+)(?:e[-+]?\d{1,3})?")


@dataclass(slots=True, frozen=True)
class Term:
    """The meaning of a phrase: an operator (`+`), a function (`sum`), a unit, or nothing (`skip`)."""

    name: str
    unit: str = ""  # CLDR's key, such as length-mile
    plural: bool | None = None  # of a unit: whether the phrase is its plural; None where the forms are alike


@dataclass(slots=True, frozen=True)
class Question:
    """The ways to ask for one thing: any of `keys`, with other words of `words`."""

    keys: frozenset[frozenset[str]]
    own: frozenset[str]  # words of its sentences
    nouns: frozenset[str]  # words of many of its sentences
    words: frozenset[str]  # these, and function words

    def is_asked(self, words: frozenset[str]) -> bool:
        """Whether a question of these words asks for it, and for nothing else."""
        return (
            words <= self.words
            and len(words - self.own) <= 3
            and len(words) > 1
            and any(key <= words for key in self.keys)
        )


class Language:
    """The words of one language, loaded on first use."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.locale = Locale.parse(code)

    @cached_property
    def terms(self) -> Mapping[str, Mapping[tuple[str, ...], Term]]:
        """Phrases by their first word: words in lower case, and their meaning."""
        result: dict[str, dict[tuple[str, ...], Term]] = defaultdict(dict)
        for phrase, term in self._phrases():
            if words := tuple(split_words(phrase)):
                result[words[0]].setdefault(words, term)
        return result

    @cached_property
    def function_words(self) -> frozenset[str]:
        """Words without a content of their own, and single letters (`what's`)."""
        listed = frozenset(word for phrase in stopwordsiso.stopwords(self.code) for word in split_words(phrase))
        return listed - self.words_of("unread")

    @cached_property
    def symbols(self) -> Mapping[str, Term]:
        """Symbols of one letter, such as `m`."""
        patterns = self.locale._data["unit_patterns"]
        return {
            symbol.lower(): Term("unit", key)
            for key in PREFIXED
            for symbol in map(_bare, patterns[key].get("short", {}).values())
            if len(symbol) == 1
        }

    @cached_property
    def time(self) -> Question:
        """The question for the time."""
        return self._question("HassGetCurrentTime")

    @cached_property
    def date(self) -> Question:
        """The question for the date."""
        return self._question("HassGetCurrentDate")

    def words_of(self, name: str) -> frozenset[str]:
        """Single words of the term `name` in `terms.yaml`."""
        return frozenset(word for word in _own_terms().get(self.code, {}).get(name, ()))

    @property
    def has_terms(self) -> bool:
        """Whether `terms.yaml` has the language."""
        return self.code in _own_terms()

    def with_digits(self, text: str, *, ones: bool) -> str:
        """`text` with its number words as digits; `ones` also reads words that may be an article ("a", "un", "ein")."""
        return str(alpha2digit(text, self.code, threshold=0 if ones else 3)) if self.code in _NUMBER_WORDS else text

    def number(self, written: str) -> Fraction | None:
        """A number in the language's notation, or with a decimal point; None if it is neither."""
        group, decimal = self._separators
        if (grouped := _GROUPED.fullmatch(written)) and grouped[1] == group and grouped[2] in (None, decimal):
            written = written.replace(group, "")
        return Fraction(written.replace(",", ".")) if _NUMBER.fullmatch(written) else None

    @cached_property
    def _separators(self) -> tuple[str, str]:
        return get_group_symbol(self.locale), get_decimal_symbol(self.locale)

    @cached_property
    def date_nouns(self) -> frozenset[str]:
        """Words that name what a question for a date asks for: "date", "day"."""
        return (self.date.nouns - self.time.own) | self.days.keys()

    @cached_property
    def days(self) -> Mapping[str, bool]:
        """Words for a day, and whether each is the plural."""
        return self._forms("duration-day")

    @cached_property
    def months(self) -> Mapping[str, int]:
        """Numbers of months by their names."""
        return {name.lower(): number for number, key in enumerate(_MONTHS, 1) for name in self._dates[key]}

    @cached_property
    def day_phrases(self) -> Mapping[str, int | tuple[int, int]]:
        """Phrases for a day: days from today ("tomorrow"), days from today for each that # counts ("in # weeks"), or month and day."""
        result: dict[str, int | tuple[int, int]] = {}
        for key, phrases in [*self._dates["relative-type"].items(), *self._dates["relative-type-regex"].items()]:
            if match := _RELATIVE.fullmatch(key):
                days = {"second": 0, "day": 1, "week": 7}[match["unit"]] * (-1 if match["ago"] else 1)
                count = 1 if match["count"] == "\\1" else int(match["count"])
                if days or not count:
                    result |= dict.fromkeys((_COUNT.sub("#", phrase.lower()) for phrase in phrases), days * count)
        for name, phrases in _own_terms().get(self.code, {}).items():
            if name.startswith("date "):
                month, day = map(int, name[5:].split("-"))
                result |= dict.fromkeys(phrases, (month, day))
        return result

    @cached_property
    def _dates(self) -> Mapping[str, Any]:
        info: Mapping[str, Any] = import_module(f"dateparser.data.date_translation_data.{self.code}").info
        return info

    @cached_property
    def periods(self) -> frozenset[str]:
        """Words for one day, month or year."""
        forms = (self._forms(f"duration-{name}") for name in ("day", "month", "year"))
        return frozenset(word for words in forms for word, plural in words.items() if not plural)

    @cached_property
    def asking(self) -> frozenset[str]:
        """Words of questions, without what they ask for, and "how much is"."""
        return (self.time.own | self.date.own | self.words_of("asking")) - self.date_nouns

    def _forms(self, unit: str) -> dict[str, bool]:
        phrases = ((words, term) for known in self.terms.values() for words, term in known.items())
        return {words[0]: bool(term.plural) for words, term in phrases if term.unit == unit and len(words) == 1}

    def _phrases(self) -> Iterator[tuple[str, Term]]:
        for name, phrases in _own_terms().get(self.code, {}).items():
            if name in _NOT_ARITHMETIC or name.startswith("date "):
                continue
            yield from (
                (phrase, Term("unit", name[5:]) if name.startswith("unit ") else Term(name)) for phrase in phrases
            )
        yield from ((name, Term(name)) for name in ("sqrt", "cbrt"))
        words: Any = MATH_WORDS[LANGUAGES[self.code]]
        for phrase, symbol in [pair for kind in _MATH_KINDS for pair in words[kind].items()]:
            if (name := symbol.replace(" ", "")) in _OPERATORS:
                yield phrase, Term(name)
        units = [*self.locale._data["unit_patterns"].items()]
        if self.code == "en":
            units += Locale("en", "GB")._data["unit_patterns"].items()  # litres, metres
        known = [(key, patterns) for key, patterns in units if is_unit(key)]
        symbols, prefixed = [], []
        for key, patterns in known:
            names = {form: _bare(pattern) for form, pattern in patterns.get("long", {}).items() if form != "per"}
            for name in names.values():
                plural = None if len(set(names.values())) == 1 else name != names.get("one")
                yield name, Term("unit", key, plural)
                for prefix in PREFIXES if key in PREFIXED else ():
                    prefixed.append((prefix + name.lower(), Term("unit", key.replace("-", f"-{prefix}"), plural)))
            symbols += [
                (_bare(symbol), key) for width in ("short", "narrow") for symbol in patterns.get(width, {}).values()
            ]
        for symbol, key in sorted(symbols, key=lambda one: not one[0].islower()):  # ml is milliliter, not ML
            if "°" in symbol or (symbol.isalpha() and len(symbol) > 1 and symbol != "in"):
                yield symbol, Term("unit", key)
        yield from prefixed

    def _question(self, intent: str) -> Question:
        data = json.loads((files("home_assistant_intents") / "data" / f"{self.code}.json").read_text("utf-8"))
        intents = Intents.from_dict({**data, "intents": {intent: data["intents"][intent]}})
        sentences = {frozenset(split_words(sentence)) for _, sentence in sample_intents(intents)}
        keys = frozenset(sentence - self.function_words or sentence for sentence in sentences)
        own = self.words_of("asking").union(*sentences)
        nouns = frozenset(
            word for word in own if sum(word in sentence for sentence in sentences) > 0.3 * len(sentences)
        )
        return Question(keys, own, nouns, own | self.function_words)


@lru_cache(1)
def languages() -> tuple[Language, ...]:
    """All languages, English first."""
    return tuple(map(Language, LANGUAGES))


def _bare(pattern: str) -> str:
    """A unit's name in a pattern such as `{0} miles`."""
    return pattern.replace("{0}", "").strip(" .\u00a0\u202f")


@lru_cache(1)
def _own_terms() -> Mapping[str, Mapping[str, list[str]]]:
    loaded: Mapping[str, Mapping[str, list[str]]] = yaml.safe_load(
        (files("serve.tools") / "terms.yaml").read_text("utf-8")
    )
    return loaded


def with_digits(text: str) -> Iterator[str]:
    """`text` with the number words of each language as digits."""
    return (language.with_digits(text, ones=True) for language in languages() if language.code in _NUMBER_WORDS)


def split_words(text: str) -> list[str]:
    """The words of `text` in lower case."""
    return _WORD.findall(unicodedata.normalize("NFC", text).lower())
