"""Exact arithmetic for models that cannot compute: a safe calculator.

Numbers are rational, so that sums, products, quotients and whole powers are exact; what is not rational is rounded to
`DIGITS` digits and marked. Nothing is ever evaluated as code, and the size of every number on the way is bounded.
Finding a computation in a question is `serve/tools/calculator_intent.py`.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction

DIGITS = 50  # of numbers that are not rational, and the most that are shown of any result
SHOWN_DIGITS = 14  # significant digits of a result whose decimals do not end
MAX_CHARS = 400  # of an expression
MAX_BITS = 14_000  # of numerator and denominator of every number on the way; Python writes at most 4300 digits
_DEPTH = 60  # of nesting


class CalculatorError(ValueError):
    """An expression that has no result here; the message says why, for a person."""


class ExpressionSyntaxError(CalculatorError):
    """What was given is no expression at all."""


@dataclass(slots=True, frozen=True)
class Result:
    """What an expression gives. `expression` is written evenly, whatever spaces and signs were used."""

    expression: str
    value: Fraction
    exact: bool  # False when something was rounded on the way

    @property
    def text(self) -> str:
        """Whole numbers and decimals that end as they are, others to `SHOWN_DIGITS` significant digits."""
        return self._shown[0]

    @property
    def fraction(self) -> str | None:
        """Numerator/denominator, where that says more than `text`: an exact result whose decimals do not end."""
        value = str(self.value)
        return value if self.exact and not self._shown[1] and len(value) <= 2 * DIGITS else None

    @property
    def answer(self) -> str:
        """The whole line, with `≈` where `text` is not all of it: `40366 / 439 ≈ 91.949886104784`."""
        return f"{self.expression} {'=' if self.exact and self._shown[1] else '≈'} {self.text}"

    @property
    def _shown(self) -> tuple[str, bool]:
        """The text, and whether it is all of the value."""
        whole = len(str(abs(self.value.numerator) // self.value.denominator))
        found, complete = _to_decimal(self.value, DIGITS)
        if not (complete and self.exact):
            found, complete = _to_decimal(self.value, SHOWN_DIGITS if whole > DIGITS else max(SHOWN_DIGITS, whole + 2))
        number, mark, power = format(found, "f" if -20 <= found.adjusted() < DIGITS else "E").partition("E")
        return (number.rstrip("0").rstrip(".") if "." in number else number) + mark + power, complete and self.exact


def compute(expression: str) -> Result:
    """The value of an arithmetic expression.

    Understands `+ - * / // % ** ^`, their printed forms (`× ÷ − √ ²`), brackets, `sqrt`, `cbrt`, `root(x, n)`, `abs`,
    `round(x, digits)`, `min`, `max`, `mean`, `factorial`, group commas (`1,234.5`), percentages (`12%` is 0.12 unless
    an operand follows, then it is the remainder) and `of` for "times" (`15% of 80`). `^` binds tighter than a sign and
    to the right.

    Raises:
        CalculatorError: not an expression, a division by zero, no real result, or numbers too large to be exact about.
    """
    if len(expression) > MAX_CHARS:
        raise ExpressionSyntaxError(f"the expression is longer than {MAX_CHARS} characters")
    evaluation = _Evaluation(_tokens(expression))
    value = evaluation.whole()
    if not evaluation.exact and abs(value) * 10 ** (DIGITS - 15) < evaluation.largest:
        value = Fraction(0)  # what is left of numbers that cancel is their rounding
    return Result(_normalized(evaluation.tokens), value, evaluation.exact)


def answer(expression: str) -> str:
    """What to tell someone who asks for `expression`: the result, or why there is none."""
    try:
        return compute(expression).answer
    except CalculatorError as fault:
        return f"{' '.join(expression.split())[:60]}: {fault}"


@dataclass(slots=True)
class _Evaluation:
    """One evaluation, by recursive descent: sums of products of signed powers of operands."""

    tokens: Sequence[str]
    at: int = 0
    depth: int = 0
    exact: bool = True
    largest: Fraction = Fraction(0)  # magnitude on the way

    def whole(self) -> Fraction:
        value = self.sum()
        if self.next:
            raise ExpressionSyntaxError(f"'{_short(self.next)}' is not expected there")
        return value

    @property
    def next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, *symbols: str) -> str:
        """The next token when it is one of `symbols`, else nothing."""
        found = self.next
        if found not in symbols:
            return ""
        self.at += 1
        return found

    def expect(self, symbol: str) -> None:
        if not self.take(symbol):
            raise ExpressionSyntaxError(f"'{symbol}' is missing")

    def sum(self) -> Fraction:
        value = self.product()
        while operator := self.take("+", "-"):
            other = self.product()
            value = self._bounded(value + other if operator == "+" else value - other)
        return value

    def product(self) -> Fraction:
        value = self.signed()
        while operator := self.take("*", "/", "//", "%", "of"):
            other = self.signed()
            if other == 0 and operator in ("/", "//", "%"):
                raise CalculatorError("a division by zero has no result")
            match operator:
                case "*" | "of":
                    value *= other
                case "/":
                    value /= other
                case "//":
                    value = Fraction(value // other)
                case "%":
                    value %= other
            value = self._bounded(value)
        return value

    def signed(self) -> Fraction:
        self.depth += 1
        if self.depth > _DEPTH:
            raise CalculatorError("the expression is nested too deeply")
        sign = self.take("+", "-")
        value = self.signed() if sign else self.power()
        self.depth -= 1
        return -value if sign == "-" else value

    def power(self) -> Fraction:
        base = self.postfixed()
        if not self.take("^"):
            return base
        return self._bounded(self.raised(base, self.signed()))

    def postfixed(self) -> Fraction:
        value = self.operand()
        while True:
            if self.take("!"):
                value = self._bounded(_factorial(value))
            elif self.next == "%" and not self.operand_follows():
                self.at += 1
                value = self._bounded(value / 100)
            else:
                return value

    def operand_follows(self) -> bool:
        after = self.tokens[self.at + 1] if self.at + 1 < len(self.tokens) else ""
        return after == "(" or after[:1].isdigit() or after in _FUNCTIONS

    def operand(self) -> Fraction:
        token = self.next
        self.at += 1
        if token[:1].isdigit():
            return self._bounded(_number(token))
        if token == "(":
            value = self.sum()
            self.expect(")")
            return value
        if token in _FUNCTIONS:
            if token in ("sqrt", "cbrt") and self.next != "(":
                return self._bounded(self.called(token, [self.power()]))
            self.expect("(")
            args = [self.sum()]
            while self.take(","):
                args.append(self.sum())
            self.expect(")")
            return self._bounded(self.called(token, args))
        raise ExpressionSyntaxError(
            f"a number is missing before '{_short(token)}'" if token else "a number is missing at the end"
        )

    def called(self, name: str, args: list[Fraction]) -> Fraction:
        match name, args:
            case "sqrt", [value]:
                return self.rooted(value, 2)
            case "cbrt", [value]:
                return self.rooted(value, 3)
            case "root", [value, degree] if degree.denominator == 1 and degree >= 1:
                return self.rooted(value, int(degree))
            case "abs", [value]:
                return abs(value)
            case "factorial", [value]:
                return _factorial(value)
            case "round", [value]:
                return Fraction(round(value))
            case "round", [value, digits] if digits.denominator == 1 and abs(digits) <= DIGITS:
                return Fraction(round(value, int(digits)))
            case (("min" | "max"), [_, *_]):
                return (min if name == "min" else max)(args)
            case "mean", [_, *_]:
                return sum(args, Fraction(0)) / len(args)
        raise CalculatorError(f"'{name}' cannot be computed of {len(args)} such numbers")

    def raised(self, base: Fraction, exponent: Fraction) -> Fraction:
        if base == 0 and exponent < 0:
            raise CalculatorError("a division by zero has no result")
        if base in (0, 1) or exponent == 0:
            return Fraction(1) if exponent == 0 else base
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if base != -1 and abs(exponent) * bits > MAX_BITS:
            raise CalculatorError("the result is too large to be given")
        if exponent.denominator == 1:
            return Fraction(base ** int(exponent))
        if base < 0:
            if exponent.denominator % 2 == 0:
                raise CalculatorError("an even root of a negative number is not real")
            return self.raised(-base, exponent) * (-1 if exponent.numerator % 2 else 1)
        root = _rational_root(base, exponent.denominator)
        if root is not None:
            return Fraction(root ** int(exponent.numerator))
        self.exact = False
        guarded = Context(prec=2 * DIGITS, Emax=10**8, Emin=-(10**8))
        found = guarded.power(_to_decimal(base, guarded.prec)[0], _to_decimal(exponent, guarded.prec)[0])
        return Fraction(Context(prec=DIGITS, rounding=ROUND_HALF_EVEN).plus(found))

    def rooted(self, value: Fraction, degree: int) -> Fraction:
        if value < 0 and degree % 2:
            return -self.raised(-value, Fraction(1, degree))
        return self.raised(value, Fraction(1, degree))

    def _bounded(self, value: Fraction) -> Fraction:
        """`value`, unless it is too large."""
        if value.numerator.bit_length() > MAX_BITS or value.denominator.bit_length() > MAX_BITS:
            raise CalculatorError("the result is too large to be given")
        self.largest = max(self.largest, abs(value))
        return value


_FUNCTIONS = frozenset({"sqrt", "cbrt", "root", "abs", "round", "min", "max", "mean", "factorial"})
_LIST_FUNCTIONS = frozenset({"root", "round", "min", "max", "mean"})  # a comma between their numbers groups no digits
_SIGNS = str.maketrans(
    dict(zip("×·⋅∙÷∕⁄−–\u00a0\u202f", "****///--  ", strict=True))
    | {"√": " sqrt ", "∛": " cbrt ", "²": "^2", "³": "^3", "½": "(1/2)", "¼": "(1/4)", "¾": "(3/4)"}
)
_TOKEN = re.compile(
    r"\s*(?:(?P<grouped>\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d.]|,\d))"
    r"|(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[a-z]+)|(?P<sign>\*\*|//|[-+*/%^(),!]))",
    re.ASCII,
)
_UNGROUPED = re.compile(r"\s*(?P<grouped>)(?P<number>\d+)(?P<name>)(?P<sign>)")


def plain(text: str) -> str:
    """`text` with printed signs (`× ÷ − √ ²`) as they are typed."""
    return text.translate(_SIGNS)


def _tokens(expression: str) -> list[str]:
    text = plain(expression).lower().rstrip()
    if (before := text.removesuffix("?").rstrip()).endswith("="):
        text = before[:-1].rstrip()
    found: list[str] = []
    lists: list[bool] = []  # of each open bracket: whether it holds a function's numbers
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token and token["grouped"] and any(lists):
            token = _UNGROUPED.match(text, at)
        if token is None or (token["name"] and token["name"] not in _FUNCTIONS | {"of"}):
            raise ExpressionSyntaxError(f"'{_short(text[at:].strip())}' is not arithmetic")
        if token["sign"] == "(":
            lists.append(bool(found) and found[-1] in _LIST_FUNCTIONS)
        elif token["sign"] == ")" and lists:
            lists.pop()
        number = token["number"] or (token["grouped"] or "").replace(",", "")
        found.append(f"0{number}" if number[:1] == "." else number or token["name"] or token["sign"].replace("**", "^"))
        at = token.end()
    return found


def _normalized(tokens: Sequence[str]) -> str:
    """The expression with one space around operators and none elsewhere."""
    text = ""
    operand = False  # whether what came last is one, so that a sign after it is an operator
    for at, token in enumerate(tokens):
        after = tokens[at + 1] if at + 1 < len(tokens) else ""
        ends = token == "%" and not (after == "(" or after[:1].isdigit() or after in _FUNCTIONS)
        if operand and token in ("+", "-", "*", "/", "//", "%", "of") and not ends:
            text, operand = f"{text} {token} ", False
        elif token == ",":
            text, operand = f"{text}, ", False
        else:
            bare_root = token in ("sqrt", "cbrt") and after != "("
            text += f"{token} " if bare_root else token
            operand = token[:1].isdigit() or token in (")", "%", "!")
    return text


def _number(written: str) -> Fraction:
    exponent = written.lower().partition("e")[2]
    if len(exponent) > 5 or abs(int(exponent or 0)) > MAX_BITS // 4:
        raise CalculatorError("the result is too large to be given")
    return Fraction(written)


def _factorial(value: Fraction) -> Fraction:
    if value.denominator != 1 or value < 0:
        raise CalculatorError("a factorial needs a whole number that is not negative")
    if value > 1400:
        raise CalculatorError("the result is too large to be given")
    return Fraction(math.factorial(int(value)))


def _rational_root(value: Fraction, degree: int) -> Fraction | None:
    """The root of a positive number, when it is rational."""
    top, bottom = (_whole_root(part, degree) for part in (value.numerator, value.denominator))
    return Fraction(top, bottom) if top**degree == value.numerator and bottom**degree == value.denominator else None


def _whole_root(value: int, degree: int) -> int:
    """The largest whole number whose `degree`-th power is at most `value` ≥ 1, by Newton's method from just above."""
    if degree == 2:
        return math.isqrt(value)
    if value.bit_length() <= degree:
        return 1
    exponent = math.log2(value) / degree
    shift = max(0, int(exponent) - 50)
    guess = (int(2 ** (exponent - shift) * (1 + 2**-30)) + 2) << shift
    while (better := ((degree - 1) * guess + value // guess ** (degree - 1)) // degree) < guess:
        guess = better
    return guess


def _to_decimal(value: Fraction, digits: int) -> tuple[Decimal, bool]:
    """`value` to so many significant digits, and whether that is all of it."""
    found = Context(prec=digits).divide(Decimal(value.numerator), Decimal(value.denominator))
    return found, Fraction(found) == value


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"
