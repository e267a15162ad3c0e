"""Read a question as an expression or a conversion, by the words that a language's vocabulary knows.

A question is first reduced to what its words mean: "What is 15 percent of 80?" becomes `_ _ 15% _ 80`. A reading uses every number, and no
word is left without a known meaning. Signs that stand for other things as often (`9/11`, `24/7`, `2024-05-01`, `1914 - 1918`) are not read.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction

from serve.tools.vocabulary import Language, Term

_TOKEN = re.compile(
    r"(?P<number>(?:\d+(?:[.,]\d+)*|\.\d+)(?:e[-+]?\d+)?)(?!\w)|(?P<word>[^\W\d_]+)(?!\d)|(?P<code>\w+)|(?P<sign>\*\*|[-+*/^%()=!])|(?P<other>\.{2,}|…)"
)
_WITH_UNIT = re.compile(r"(?<![\w.,])(\d+(?:[.,]\d+)*)(?=[^\W\d_]{2,}(?!\w))")  # 5km
_SCALED = re.compile(r"(?<![\d.])([\d.]+) (10{3}|10{6}|10{9}|10{12})(?!\d)")  # 2.5 million
_PHRASE_WORDS = 6
_NUMBER, _GAP = r"(?<![\d.])(-?[\d.]+)(?![\d.])", "(?: _)? ?"
_NUMBERS = re.compile(_NUMBER)
_LISTS = [  # with the signs that may be between the numbers
    (re.compile(rf"(?:[ _{between}]*{_NUMBER}){{2,}}[ _]*"), name)
    for name, between in (("sum", "+"), ("add", "+~"), ("product", "*"), ("mean", ""))
]
_CONVERSIONS = [  # with the place of the source among the units
    (
        re.compile(rf" ?{shape}".replace(" ", r"(?: _)?(?: \?)?(?: _)? ?").replace("N", rf"{_NUMBER}(?:/{_NUMBER})?")),
        source,
    )
    for shape, source in (("N U U ", 0), ("U N U ", 1))
]
_SHARE = "{1} / {0} * 100"
#: Questions that name a function or a percentage: N is a number, _ a function word that must be there, and others may be anywhere.
_SHAPES = [
    (re.compile(_GAP + shape.replace("N", _NUMBER).replace(" ", _GAP) + _GAP), expression)
    for shape, expression in (
        (r"N% \?? _ N \??", "{0} / 100 * {1}"), ("% N N", _SHARE), ("N _ % N", "{0} / {1} * 100"),
        ("N/N _ N", "{0} / {1} * {2}"), ("difference N N", "abs({0} - {1})"), ("quotient N N", "{0} / {1}"),
        ("subtract N N", "{1} - {0}"), ("factorial N", "factorial({0})"), ("N factorial", "factorial({0})"),
        ("N% off N", "{1} * (1 - {0} / 100)"), ("off N N%", "{0} * (1 - {1} / 100)"),
        ("N off N%", "{0} * (1 - {1} / 100)"), ("N N% off", "{0} * (1 - {1} / 100)"),
        ("more N N%", "{0} * (1 + {1} / 100)"), ("N more N%", "{0} * (1 + {1} / 100)"),
    )
]  # fmt: skip


@dataclass(slots=True, frozen=True)
class Form:
    """A reduced question: `_` is a function word, `?` a word without a known meaning, `~` "to", U a unit."""

    text: str
    units: Sequence[Term]
    has_operator_words: bool
    is_explicit: bool  # "calculate", "="
    only_asks: bool  # every function word is one of questions


def reduced(text: str, language: Language) -> Form | None:
    """Reduce `text`, in lower case; None where a number is not in the language's notation."""
    found = list(_TOKEN.finditer(_WITH_UNIT.sub(r"\1 ", text)))
    result, end, at = "", 0, 0
    terms: list[Term] = []
    only_asks = True
    while at < len(found):
        token = found[at]
        result += " " * (token.start() > end)
        if token["number"]:
            if (value := language.number(token["number"])) is None:
                return None
            result += _decimal(value)
        elif token["word"]:
            words = [one["word"] or "" for one in found[at : at + _PHRASE_WORDS]]
            size, term = _phrase(words, language)
            if words[0] in language.symbols and (at == len(found) - 1 or (at and found[at - 1]["number"])):
                size, term = 1, language.symbols[words[0]]
            at += size - 1
            terms.append(term)
            only_asks = only_asks and (term.name != "skip" or words[0] in language.asking)
            result += {"skip": "_", "compute": "_", "unknown": "?", "range": "~"}.get(
                term.name, "U" if term.unit else term.name
            )
        else:
            result += (
                "?" if token["code"] or token["other"] else {"**": "^", "=": "_"}.get(token["sign"], token["sign"])
            )
        end, at = found[at].end(), at + 1
    result = _SCALED.sub(lambda match: _decimal(Fraction(match[1]) * Fraction(match[2])), result)
    result = re.sub(r"(?<!\d)( ?)~|~(?! ?[-\d])", r"\1_", re.sub(r"(?<=\d) ?%", "%", result))
    meant = {term.name for term in terms if not term.unit} - {"skip", "compute", "unknown", "range", "x"}
    is_explicit = "=" in text or any(term.name == "compute" for term in terms)
    return Form(result, [term for term in terms if term.unit], bool(meant), is_explicit, only_asks)


def _phrase(words: Sequence[str], language: Language) -> tuple[int, Term]:
    """The longest known phrase at the start of `words`: its length in words, and its meaning."""
    known = language.terms.get(words[0], {})
    for size in range(len(words), 0, -1):
        if term := known.get(tuple(words[:size])):
            return size, term
    return 1, Term("x" if words[0] == "x" else "skip" if words[0] in language.function_words else "unknown")


def expression_of(form: Form, language: Language) -> str | None:
    """The expression that a question asks for, in the syntax of `calculator.compute`; None for another question.

    One unknown word is accepted beside a percentage ("tip"), and beside operators in words where `terms.yaml` lacks the language, and
    with it the words for "calculate".
    """
    for pattern, name in _LISTS:
        if name in form.text and pattern.fullmatch(form.text.replace(name, "", 1)):
            numbers = _NUMBERS.findall(form.text)
            return (
                f"mean({', '.join(numbers)})"
                if name == "mean"
                else (" * " if name == "product" else " + ").join(numbers)
            )
    text = _gaps(form.text)
    for pattern, expression in _SHAPES:
        if match := pattern.fullmatch(text):
            if expression == _SHARE and Fraction(match[1]) < Fraction(match[2]):
                return None  # "what percent of 20 is 80", or "what percent is 20 of 80"
            return expression.format(*match.groups())
    text = " ".join(form.text.replace("_", " ").split())
    if form.has_operator_words and not language.has_terms:
        text = text.replace("?", "", 1)
    if not re.search(r"[\d)%] ?(?:[-+*/^x!]|% ?[\d(])|sqrt|cbrt", text) or re.search(r"[-+] ?[\d.]+%(?! ?\d)", text):
        return None  # no operator, or a percentage of what?
    if form.has_operator_words and text.startswith("-") and "^" in text:
        return None  # the power of the negative number, or the negative of the power
    root = re.search(r"(?:sqrt|cbrt) \d", text)
    if (root and re.search(r"[-+*/^]", text[root.end() :])) or not (
        form.has_operator_words or form.is_explicit or _has_sure_signs(text, form)
    ):
        return None  # the root of the number, or of all that follows
    return text.replace("x", "*")


def _has_sure_signs(text: str, form: Form) -> bool:
    """Whether the signs between numbers are operators, not those of a date, a range, a size, a version or a telephone number."""
    if not re.fullmatch(r"[\d.]+(?: ?[-/x] ?[\d.]+)+", text):
        return True
    numbers = [Fraction(number) for number in re.split(r" ?[-/x] ?", text)]
    if any(1500 <= number < 2100 for number in numbers):
        return False  # years
    if " " not in text:
        return "/" in text and len(numbers) == 2 and max(numbers) >= 1000
    if "_" in form.text:
        return form.only_asks
    return numbers[0] >= numbers[-1] if "-" in text else max(numbers) >= 100


def conversion_of(form: Form) -> tuple[Fraction, str, str] | None:
    """A quantity with its unit, and the unit that a question asks for it in, by CLDR's keys; None for another question.

    Without a number, it is one of the unit in the singular: "How many feet are there in a mile?"
    """
    if len(form.units) != 2 or form.units[0].unit == form.units[1].unit:
        return None
    text = _gaps(re.sub(r"~|sum", "_", form.text))
    for pattern, source in _CONVERSIONS:
        if text.count("?") < 2 and (match := pattern.fullmatch(text)) and match[2] != "0":
            return Fraction(match[1]) / Fraction(match[2] or 1), form.units[source].unit, form.units[1 - source].unit
    plurals = [term.plural for term in form.units]
    if form.is_explicit and re.fullmatch(r" _ U _ U ?", text) and plurals[0] is not True:  # "convert inch to cm"
        return Fraction(1), form.units[0].unit, form.units[1].unit
    if re.fullmatch(r"(?: _)? ?U(?: _)? ?U(?: _)? ?", text) and True in plurals and False in plurals:
        source = plurals.index(False)
        return Fraction(1), form.units[source].unit, form.units[1 - source].unit
    return None


def may_compute(form: Form) -> bool:
    """Whether a question may ask for a computation that is not read: two numbers, or one with an operation or two units."""
    numbers = len(_NUMBERS.findall(form.text))
    operation = form.has_operator_words or form.is_explicit or len(form.units) > 1
    return numbers > 1 or (numbers > 0 and operation) or re.search(r"\d ?[-+*/^] ?[\d?]", form.text) is not None


def _gaps(text: str) -> str:
    """`text` with one `_` for function words that follow each other."""
    return re.sub("[ _]+", lambda match: " _ " if "_" in match[0] else " ", text)


def _decimal(value: Fraction) -> str:
    """A decimal number with a point, exactly."""
    if value.denominator == 1:
        return str(value.numerator)
    return format(Context(prec=60).divide(Decimal(value.numerator), Decimal(value.denominator)), "f")
