"""Exact arithmetic for models that cannot compute: a safe calculator.

Numbers are rational, so that sums, products, quotients and integer powers are exact; irrational results are rounded to
`DIGITS` digits and marked. Nothing is evaluated as code, and the size of every intermediate number is bounded.
Finding a computation in a question is `serve/tools/intent.py`.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction

DIGITS = 50  # precision of irrational numbers, and maximum digits shown of any result
SHOWN_DIGITS = 14  # significant digits of a result whose decimals do not end
MAX_CHARS = 400  # limit on an expression
MAX_BITS = 14_000  # of every intermediate numerator and denominator; Python converts at most 4300 digits to text
_DEPTH = 60  # limit on nesting


class CalculatorError(ValueError):
    """An expression without a result; the message says why and is for users."""


class ExpressionSyntaxError(CalculatorError):
    """The input is not an arithmetic expression."""


@dataclass(slots=True, frozen=True)
class Result:
    """Result of an expression. `expression` has normalized spaces and operators."""

    expression: str
    value: Fraction
    exact: bool  # False when an intermediate result was rounded

    @property
    def text(self) -> str:
        """Integers and terminating decimals in full, others to `SHOWN_DIGITS` significant digits."""
        return self._shown[0]

    @property
    def fraction(self) -> str | None:
        """Numerator/denominator of an exact result with non-terminating decimals, else None."""
        value = str(self.value)
        return value if self.exact and not self._shown[1] and len(value) <= 2 * DIGITS else None

    @property
    def answer(self) -> str:
        """The answer as a line, with `≈` where `text` is rounded: `40366 / 439 ≈ 91.949886104784`."""
        return f"{self.expression} {'=' if self.exact and self._shown[1] else '≈'} {self.text}"

    @property
    def _shown(self) -> tuple[str, bool]:
        """The value's text, and whether it is exact."""
        whole = len(str(abs(self.value.numerator) // self.value.denominator))
        decimal, complete = _to_decimal(self.value, DIGITS)
        if not (complete and self.exact):
            decimal, complete = _to_decimal(
                self.value, SHOWN_DIGITS if whole > DIGITS else max(SHOWN_DIGITS, whole + 2)
            )
        number, mark, power = format(decimal, "f" if -20 <= decimal.adjusted() < DIGITS else "E").partition("E")
        return (number.rstrip("0").rstrip(".") if "." in number else number) + mark + power, complete and self.exact


def compute(expression: str) -> Result:
    """Evaluate an arithmetic expression.

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
        value = Fraction(0)  # the remainder of cancelling numbers is rounding error
    return Result(_normalized(evaluation.tokens), value, evaluation.exact)


def answer(expression: str) -> str:
    """The answer to `expression`: the result, or why there is none."""
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
    largest: Fraction = Fraction(0)  # largest intermediate magnitude

    def whole(self) -> Fraction:
        value = self.sum()
        if self.next:
            raise ExpressionSyntaxError(f"'{_short(self.next)}' is not expected there")
        return value

    @property
    def next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, *symbols: str) -> str:
        """Consume and return the next token if it is one of `symbols`, else return an empty string."""
        token = self.next
        if token not in symbols:
            return ""
        self.at += 1
        return token

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
        return after == "(" or after[:1].isdigit() or after in FUNCTIONS

    def operand(self) -> Fraction:
        token = self.next
        self.at += 1
        if token[:1].isdigit():
            return self._bounded(_number(token))
        if token == "(":
            value = self.sum()
            self.expect(")")
            return value
        if token in FUNCTIONS:
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
        raise CalculatorError(f"'{name}' does not accept these {len(args)} numbers")

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
        result = guarded.power(_to_decimal(base, guarded.prec)[0], _to_decimal(exponent, guarded.prec)[0])
        return Fraction(Context(prec=DIGITS, rounding=ROUND_HALF_EVEN).plus(result))

    def rooted(self, value: Fraction, degree: int) -> Fraction:
        if value < 0 and degree % 2:
            return -self.raised(-value, Fraction(1, degree))
        return self.raised(value, Fraction(1, degree))

    def _bounded(self, value: Fraction) -> Fraction:
        """Return `value`; raise `CalculatorError` if it is too large."""
        if value.numerator.bit_length() > MAX_BITS or value.denominator.bit_length() > MAX_BITS:
            raise CalculatorError("the result is too large to be given")
        self.largest = max(self.largest, abs(value))
        return value


FUNCTIONS = frozenset({"sqrt", "cbrt", "root", "abs", "round", "min", "max", "mean", "factorial"})
_LIST_FUNCTIONS = frozenset(
    {"root", "round", "min", "max", "mean"}
)  # commas between their arguments do not group digits
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
    """Replace printed signs (`× ÷ − √ ²`) by ASCII operators."""
    return text.translate(_SIGNS)


def _tokens(expression: str) -> list[str]:
    text = plain(expression).lower().rstrip()
    if (before := text.removesuffix("?").rstrip()).endswith("="):
        text = before[:-1].rstrip()
    tokens: list[str] = []
    lists: list[bool] = []  # open brackets: whether they contain a function's arguments
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token and token["grouped"] and any(lists):
            token = _UNGROUPED.match(text, at)
        if token is None or (token["name"] and token["name"] not in FUNCTIONS | {"of"}):
            raise ExpressionSyntaxError(f"'{_short(text[at:].strip())}' is not arithmetic")
        if token["sign"] == "(":
            lists.append(bool(tokens) and tokens[-1] in _LIST_FUNCTIONS)
        elif token["sign"] == ")" and lists:
            lists.pop()
        number = token["number"] or (token["grouped"] or "").replace(",", "")
        tokens.append(
            f"0{number}" if number[:1] == "." else number or token["name"] or token["sign"].replace("**", "^")
        )
        at = token.end()
    return tokens


def _normalized(tokens: Sequence[str]) -> str:
    """The expression with one space around operators and none elsewhere."""
    text = ""
    operand = False  # whether the last token ends an operand, so that a following sign is an operator
    for at, token in enumerate(tokens):
        after = tokens[at + 1] if at + 1 < len(tokens) else ""
        ends = token == "%" and not (after == "(" or after[:1].isdigit() or after in FUNCTIONS)
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
    """The root of a positive number, or None if it is irrational."""
    top, bottom = (_whole_root(part, degree) for part in (value.numerator, value.denominator))
    return Fraction(top, bottom) if top**degree == value.numerator and bottom**degree == value.denominator else None


def _whole_root(value: int, degree: int) -> int:
    """The largest integer whose `degree`-th power is at most `value` ≥ 1, by Newton's method from just above."""
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
    """`value` rounded to `digits` significant digits, and whether that is exact."""
    decimal = Context(prec=digits).divide(Decimal(value.numerator), Decimal(value.denominator))
    return decimal, Fraction(decimal) == value


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"
