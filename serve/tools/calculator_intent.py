"""Detect a question that is an arithmetic expression, for small models that neither compute well nor call tools.

It matches only when the whole question is a computation. Questions with other words, or that could be a date, a range, a
telephone number, a size or a name, are left to the model: a missed computation is better than a wrong answer.
"""

import re
from collections.abc import Callable

from serve.tools.calculator import MAX_CHARS, CalculatorError, ExpressionSyntaxError, compute, plain


def find_expression(text: str) -> str | None:
    """The expression that `text` asks to compute, in the syntax of `calculator.compute`; None for any other question.

    "What is 40366 divided by 439?" → `40366 / 439`, "20% off 50" → `50*(1-20/100)`, "What happened on 9/11?" → None.
    An expression without a result, such as a division by zero, is returned too: the answer is the reason.
    """
    if not 3 <= len(text) <= MAX_CHARS:
        return None
    question = " ".join(plain(text).lower().replace("’", "'").split())
    question = _GREETING.sub("", question)
    question = _END.sub("", question).rstrip(" ?.,")
    command = _COMMAND.match(question)  # "calculate" makes it a computation, even if it looks like a date
    rest = _QUESTION_OPENING.sub("", question[command.end() :] if command else question, count=1)
    is_question = command is not None or rest != question
    equals = _EQUALS.search(rest)
    rest = _EQUALS.sub("", rest).strip()
    rest = _numbers(rest)
    digits = _DECIMALS.search(rest)
    rest = rest[: digits.start()] if digits else rest
    is_explicit = command is not None or equals is not None or digits is not None
    expression = _to_expression(rest)
    if expression is None or not _is_computation(rest, expression, is_question=is_question, is_explicit=is_explicit):
        return None
    if digits:
        expression = f"round({expression}, {digits[1]})"
    try:
        compute(expression)
    except ExpressionSyntaxError:
        return None
    except CalculatorError:
        pass
    return expression


def _to_expression(text: str) -> str | None:
    """Replace words of arithmetic by operators; None if other words are left or `text` is ambiguous."""
    if _AMBIGUOUS.search(text):
        return None
    for pattern, replacement in _QUESTION_RULES:
        if match := pattern.fullmatch(text):
            text = match.expand(replacement) if isinstance(replacement, str) else replacement(match)
            break
    for pattern, replacement in _WORD_RULES:
        text = pattern.sub(replacement, text)
    return text.strip() if _EXPRESSION.fullmatch(text) else None


def _is_computation(text: str, expression: str, *, is_question: bool, is_explicit: bool) -> bool:
    """Whether an expression is a computation, not a date, range or number that looks like one."""
    if not _OPERATOR.search(expression):
        return False
    if expression.endswith("!"):  # an exclamation mark, unless the whole expression is a factorial
        return is_question and expression[:-1].isdecimal()
    if is_explicit or expression != text.strip():  # operators in words: "9 divided by 11"
        return not _NOT_ARITHMETIC.search(text)
    tight = re.fullmatch(r"\d+(?:\.\d+)*%?(?:[-/]\d+(?:\.\d+)*%?)+", text)
    if tight:  # 9/11, 24/7, 2024-05-01, 555-1234, 802-11; but 40366/439 can only be a division
        fraction = _FRACTION.fullmatch(text) if is_question else _LONG_FRACTION.fullmatch(text)
        return fraction is not None and not _YEAR.match(text)
    spaced = re.fullmatch(r"(\d[\d.,]*) ?(-) ?(\d[\d.,]*)", text)
    if spaced:  # a range: 1914 - 1918, 10 - 20
        first, second = (float(spaced[side].replace(",", "").rstrip(".")) for side in (1, 3))
        season = _YEAR.fullmatch(spaced[1]) and len(spaced[3]) == 2
        return not season and (first >= second or (is_question and not _YEAR.fullmatch(spaced[3])))
    return is_question or not re.fullmatch(r"\d+(?: ?- ?\d+)+|\d{1,2} / \d{1,2}|\d+(?: ?/ ?\d+){2,}", text)


_GREETING = re.compile(r"^(?:(?:hi|hello|hey|ok|okay|so|quick question|question|q|math question)(?: there)?[,!.:]* )+")
_END = re.compile(
    r"(?<![ ?.])[ ?.]*(?:[,.?] ?)?(?:(?:please|thanks|thank you|exactly|approximately)[ ?.!]*)?"
    r"(?:(?:please )?(?:answer|reply|respond|give)(?: me)?(?: with)?(?: only| just)+(?: with)? (?:the|a) "
    r"(?:number|result|answer|final answer)[ .!]*)?$"
)
_COMMAND = re.compile(
    r"^(?:please[, ]+)?(?:(?:can|could|would|will) you (?:please )?)?(?:help me )?"
    r"(?:calculate|compute|evaluate|work out|solve)(?: for me| the following)?:? "
)
_QUESTION_OPENING = re.compile(
    r"^(?:please[, ]+)?(?:(?:can|could|would|will) you (?:please )?|do you know |i (?:want|need) to know )?(?:please )?"
    r"(?:tell me |give me |find )?"
    r"(?:what(?: number)?(?:'s| is| equals| are| does| do|s| will| would)? (?:you get if you )?|how much (?:is|are|does|do|will) |find )?"
    r"(?:the )?(?:(?:exact |numerical |numeric )*(?:value|result|answer) (?:of|to|for) )?(?:the )?:?(?: )?"
)
_EQUALS = re.compile(
    r"(?: ?= ?\??| (?:equals?|makes?|gives?|comes? to|is|be|equal to|is equal to)(?: what)?"
    r"| ?(?:=|equals|is) (?:what|how much|x|\?))$"
)
_DECIMALS = re.compile(
    r",? ?(?:(?:rounded )?(?:to|with) |round(?:ed)? to )(\d{1,2}) (?:decimals?(?: places?)?|decimal digits?|places|dp)$"
)

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {word: value for value, word in enumerate(_ONES)} | {word: 10 * at for at, word in enumerate(_TENS, 2)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_NUMBER_WORD = "|".join(sorted({*_VALUES, *_SCALES}, key=len, reverse=True))
_SPELLED = re.compile(rf"\b(?:a )?(?:{_NUMBER_WORD})(?:(?:[ -]| and )(?:{_NUMBER_WORD}))*\b")
_SCALED = re.compile(r"(?<![\d.,])(\d+(?:\.\d+)?) (hundred|thousand|million|billion)\b")


def _numbers(text: str) -> str:
    """Replace number words by digits: "twenty-one" is 21, "2 million" is 2000000."""
    text = _SCALED.sub(lambda match: f"({match[1]}*{_SCALES[match[2]]})", text)
    return _SPELLED.sub(_spelled, text)


def _spelled(match: re.Match[str]) -> str:
    """The digits of one number, or the unchanged words if they are several ("one two", "five and six")."""
    total = current = 0
    last = None  # value of the previous word
    words = re.findall(r"[a-z]+", match[0].removeprefix("a "))
    for word in words:
        if word == "and":
            if last is None or last < 100:
                return _spelled_each(match[0])
        elif word == "hundred":
            current, last = max(current, 1) * 100, 100
        elif word in _SCALES:
            total, current, last = total + max(current, 1) * _SCALES[word], 0, 1000
        else:
            value = _VALUES[word]
            if last is not None and last < 100 and not (last >= 20 and last % 10 == 0 and 0 < value < 10):
                return _spelled_each(match[0])
            current, last = current + value, value
    return str(total + current)


def _spelled_each(text: str) -> str:
    """Replace small numbers on both sides of "and" by digits."""
    parts = text.split(" and ")
    return " and ".join(_SPELLED.sub(_spelled, part) for part in parts) if len(parts) > 1 else text


_N = r"(-?\d[\d,]*(?:\.\d+)?|-?\.\d+)"  # a number
_P = r"(\d+(?:\.\d+)?)(?: ?%| percent| per cent)"  # a percentage
_PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
_PART = rf"({'|'.join(_PARTS)})"
_ORDINAL = r"(\d{1,3})(?:st|nd|rd|th)"


def _list(function: str) -> Callable[[re.Match[str]], str]:
    """ "3, 5 and 7" as the numbers of a sum, a product or a mean."""

    def expression_of(match: re.Match[str]) -> str:
        numbers = [number.replace(",", "") for number in re.split(r", and |, | and ", match[1])]
        if sign := {"sum": "+", "product": "*"}.get(function):
            return sign.join(f"({number})" if number[0] == "-" else number for number in numbers)
        return f"{function}({', '.join(numbers)})"

    return expression_of


_LIST_ITEM = r"-?\d++(?:,\d++)*+(?:\.\d+)?"  # a number in a list: a trailing comma separates items
_NUMBERS = rf"({_LIST_ITEM}(?:(?:, and |, | and ){_LIST_ITEM})+)"
Rules = list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]]
#: Patterns of whole questions.
_QUESTION_RULES: Rules = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (rf"{_P} off(?: of)? \$?{_N}", r"\2*(1-\1/100)"),
        (rf"{_N} (?:minus|less) {_P}", r"\1*(1-\2/100)"),
        (rf"{_N} (?:plus) {_P}", r"\1*(1+\2/100)"),
        (rf"(?:increase )?{_N} (?:increased )?by {_P}", r"\1*(1+\2/100)"),
        (
            rf"(?:decrease|reduce) {_N} by {_P}|{_N} (?:decreased|reduced) by {_P}",
            lambda match: f"{match[1] or match[3]}*(1-{match[2] or match[4]}/100)",
        ),
        (rf"{_N} (?:is|as) (?:what|a) (?:percent|percentage|%) of {_N}", r"\1/\2*100"),
        (rf"(?:what )?(?:percent|percentage|%) of {_N} is {_N}", r"\2/\1*100"),
        (rf"sum of {_NUMBERS}", _list("sum")),
        (rf"add(?: up)? {_NUMBERS}", _list("sum")),
        (rf"product of {_NUMBERS}", _list("product")),
        (rf"multiply {_NUMBERS}", _list("product")),
        (rf"(?:average|mean|arithmetic mean) of {_NUMBERS}", _list("mean")),
        (rf"(?:largest|maximum|max|biggest) of {_NUMBERS}", _list("max")),
        (rf"(?:smallest|minimum|min) of {_NUMBERS}", _list("min")),
        (rf"difference (?:between|of) {_N} and {_N}", r"abs(\1-\2)"),
        (rf"quotient of {_N} and {_N}", r"\1/\2"),
        (rf"add {_N} (?:to|and|plus) {_N}", r"\1+\2"),
        (rf"subtract {_N} from {_N}", r"\2-\1"),
        (rf"multiply {_N} by {_N}", r"\1*\2"),
        (rf"divide {_N} by {_N}", r"\1/\2"),
        (rf"remainder (?:of|when) {_N} (?:is )?divided by {_N}", r"\1 % \2"),
        (rf"(?:twice|double) {_N}", r"2*\1"),
        (rf"triple {_N}", r"3*\1"),
        (rf"square {_N}|square of {_N}", lambda match: f"({match[1] or match[2]})^2"),
        (rf"cube {_N}|cube of {_N}", lambda match: f"({match[1] or match[2]})^3"),
        (r"factorial of (\d+)|(\d+) factorial", lambda match: f"factorial({match[1] or match[2]})"),
        (rf"absolute value of {_N}", r"abs(\1)"),
    )
]
_OPERAND = r"(-?\d[\d,]*(?:\.\d+)?|\([^()]*\))"
#: Replacements of words anywhere in an expression.
_WORD_RULES: Rules = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\$(?=\d)", ""),
        (rf"(?:the )?(?:square root|sqrt) (?:of )?{_OPERAND}", r"sqrt(\1)"),
        (rf"(?:the )?(?:cube root|cbrt) (?:of )?{_OPERAND}", r"cbrt(\1)"),
        (rf"(?:the )?{_ORDINAL} root of {_OPERAND}", r"root(\2, \1)"),
        (r"(?<=\d)(?: percent| per cent| ?%) of (?=\d)", "% of "),
        (r"(?<=\d)(?: percent| per cent)\b", "%"),
        (rf"\b(?:a|1) {_PART} of (?=\d)", lambda match: f"1/{_PARTS[match[1]]}*"),
        (rf"\b(\d+) {_PART}s of (?=\d)", lambda match: f"{match[1]}/{_PARTS[match[2]]}*"),
        (r"\b(half) (?:of )?(?=\d)", "1/2*"),
        (r"^(\d+ ?/ ?\d+) of (?=\d)", r"\1*"),
        (r"\bdivided by\b", "/"),
        (r"\bmultiplied by\b|\btimes\b|(?<=[\d)]) ?x ?(?=[\d(])", "*"),
        (
            r"\b(?:raised )?to the (?:power(?: of)?|exponent(?: of)?) (?=[-\d(])|\braised to (?=\d)"
            rf"|\bto the (?={_ORDINAL}\b(?: power)?)",
            "^",
        ),
        (rf"\^{_ORDINAL}(?: power)?\b", r"^\1"),
        (r"(?<=[\d)]) squared\b", "^2"),
        (r"(?<=[\d)]) cubed\b", "^3"),
        (r"\bplus\b", "+"),
        (r"\bminus\b", "-"),
        (r"\bmod(?:ulo|ulus)?\b", "%"),
    )
]
_EXPRESSION = re.compile(r"(?:[\d\s.,+\-*/%^()!]|sqrt|cbrt|root|abs|round|min|max|mean|factorial|(?<=%) of(?= ))+")
_OPERATOR = re.compile(
    r"[\d)%!]\s*(?:\*\*|//|[-+*/^]|%(?: of)?)\s*[-\d(.a-z]|(?:sqrt|cbrt|root|abs|round|min|max|mean|factorial)\W|^\d+!$"
)
#: Ambiguous words, with two possible results.
_AMBIGUOUS = re.compile(
    r"root of [\d.,]+ (?:plus|minus|times|divided|multiplied|[-+*/])|(?:^|[(*/+-] ?)(?:minus |- ?)\d[\d.,]* squared"
    r"|(?<![\d.,])0[x\d]|[*/] ?\d[\d.]*(?: ?%| percent) of|\d ?[-+] ?\d[\d.]* ?(?:%|percent)(?! ?(?:of|[\d(]))"
)
_NOT_ARITHMETIC = re.compile(r"^\d{3}-\d{3}-\d{4}$|^\d{4}-\d{2}-\d{2}$|^\d+x\d+$|^\d{1,2}/\d{1,2}/\d{2,4}$")
_FRACTION = re.compile(r"(\d{4,}|\d+\.\d+)/\d+(?:\.\d+)?|(?:\d+)/(?:\d{4,}\.\d+)")
_LONG_FRACTION = re.compile(r"\d{5,}/\d+")
_YEAR = re.compile(r"(?:1[5-9]|20)\d\d(?!\d)")
