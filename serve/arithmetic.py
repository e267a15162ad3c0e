"""Exact arithmetic for models that cannot compute: a safe calculator, and finding the expression in a question.

Numbers are rational, so that sums, products, quotients and whole powers are exact; roots that are not rational are given to
`DIGITS` digits. Nothing is ever evaluated as code, and the size of every intermediate number is bounded.
"""

import ast
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction

DIGITS = 50  # of roots, and the most that are shown of any result
MAX_CHARS = 400  # of an expression
MAX_BITS = 20_000  # of numerator and denominator of every number on the way
_DEPTH = 60  # of nesting


class ArithmeticFault(ValueError):
    """An expression that can't be computed; the message says why, for a person."""


@dataclass(slots=True, frozen=True)
class Result:
    """What an expression gives."""

    expression: str
    value: Fraction
    exact: bool  # False when a root was rounded on the way

    def __str__(self) -> str:
        """Whole and terminating decimals as they are, others to twelve significant digits, with an ellipsis."""
        if self.exact and self.value.denominator == 1 and len(digits := str(self.value.numerator)) <= DIGITS:
            return digits
        whole, rest = _decimal(self.value, 12)
        return whole if rest and self.exact else f"{whole}…"


def compute(expression: str) -> Result:
    """The value of an arithmetic expression.

    Understands + - * / // % ** ^, brackets, `sqrt`, `cbrt`, `root(x, n)`, `abs`, `round`, `min`, `max`, numbers with group
    commas (`1,234.5`), and a percent sign after a number that no operand follows (`12%` is 0.12).

    Raises:
        ArithmeticFault: not an expression, a division by zero, or numbers too large to be exact about.
    """
    if len(expression) > MAX_CHARS:
        raise ArithmeticFault(f"the expression is longer than {MAX_CHARS} characters")
    text = expression.translate(_SIGNS).strip().rstrip("=").strip()
    text = _GROUPS.sub(lambda found: found[0].replace(",", ""), text)
    text = _PERCENT.sub(r"(\1/100)", text)
    text = _LEADING_ZEROS.sub("", text)
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ArithmeticFault(f"'{_short(expression)}' is not an arithmetic expression") from error
    run = _Run(text)
    return Result(expression.strip(), run.value(tree.body, 0), run.exact)


@dataclass(slots=True)
class _Run:
    """One evaluation of a parsed expression."""

    text: str
    exact: bool = True

    def value(self, node: ast.expr, depth: int) -> Fraction:
        if depth > _DEPTH:
            raise ArithmeticFault("the expression is nested too deeply")
        match node:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                written = ast.get_source_segment(self.text, node) or ""
                return _bounded(_number(written))
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return -self.value(inner, depth + 1)
            case ast.UnaryOp(op=ast.UAdd(), operand=inner):
                return self.value(inner, depth + 1)
            case ast.BinOp(left=left, op=op, right=right):
                return _bounded(self.combined(op, self.value(left, depth + 1), self.value(right, depth + 1)))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                return _bounded(self.called(name, [self.value(arg, depth + 1) for arg in args]))
        raise ArithmeticFault(f"'{_short(self.text)}' is not an arithmetic expression")

    def combined(self, op: ast.operator, left: Fraction, right: Fraction) -> Fraction:
        if isinstance(op, ast.Div | ast.FloorDiv | ast.Mod) and right == 0:
            raise ArithmeticFault("a division by zero has no result")
        match op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case ast.Div():
                return left / right
            case ast.FloorDiv():
                return Fraction(left // right)
            case ast.Mod():
                return left % right
            case ast.Pow() | ast.BitXor():
                return self.power(left, right)
        raise ArithmeticFault("only + - * / // % and ** combine numbers")

    def power(self, base: Fraction, exponent: Fraction) -> Fraction:
        if exponent.denominator != 1:
            if exponent.denominator > 1000:
                raise ArithmeticFault("an exponent with so many decimals cannot be computed exactly")
            return self.root(self.power(base, Fraction(exponent.numerator)), exponent.denominator)
        times = int(exponent)
        if base == 0 and times < 0:
            raise ArithmeticFault("a division by zero has no result")
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(times) * bits > MAX_BITS and abs(base) != 1:
            raise ArithmeticFault("the result is too large to be given exactly")
        return base**times

    def root(self, value: Fraction, degree: int) -> Fraction:
        """The real root: exact where it is rational, else to `DIGITS` digits."""
        if degree < 1:
            raise ArithmeticFault("a root needs a whole degree of at least 1")
        if value < 0:
            if degree % 2 == 0:
                raise ArithmeticFault("an even root of a negative number is not real")
            return -self.root(-value, degree)
        top, bottom = (_whole_root(part, degree) for part in (value.numerator, value.denominator))
        if top**degree == value.numerator and bottom**degree == value.denominator:
            return Fraction(top, bottom)
        self.exact = False
        shift = 10 ** (DIGITS * degree)
        return Fraction(_whole_root(value.numerator * shift // value.denominator, degree), 10**DIGITS)

    def called(self, name: str, args: list[Fraction]) -> Fraction:
        match name, args:
            case "sqrt", [value]:
                return self.root(value, 2)
            case "cbrt", [value]:
                return self.root(value, 3)
            case "root", [value, degree] if degree.denominator == 1 and degree <= 1000:
                return self.root(value, int(degree))
            case "abs", [value]:
                return abs(value)
            case "round", [value]:
                return Fraction(round(value))
            case "round", [value, digits] if digits.denominator == 1 and abs(digits) <= DIGITS:
                return Fraction(round(value, int(digits)))
            case ("min" | "max"), [_, *_]:
                return (min if name == "min" else max)(args)
        raise ArithmeticFault(f"there is no '{_short(name)}' with {len(args)} numbers")


def asked(text: str) -> str | None:
    """The expression that `text` asks for, when it asks for nothing but that; else None.

    "What is 40366 divided by 439?", "calculate 12% of 350", "the square root of 2 to the power of 3 =". Whatever has words
    left after the usual ones for arithmetic is not one: better to leave a question to the model than to answer another one.
    """
    if not 3 <= len(text) <= MAX_CHARS or not any(map(str.isdigit, text)):
        return None
    left = _FRAME.sub("", " ".join(text.translate(_SIGNS).lower().split()))
    left = left.rstrip(" ?!.=").strip()
    for pattern, replacement in _WORDS:
        left = pattern.sub(replacement, left)
    if not _ONLY.fullmatch(left):
        return None
    if _DATE.fullmatch(left.replace(" ", "")) or not _OPERATES.search(left):
        return None
    try:
        compute(left)
    except ArithmeticFault as fault:
        return left if "division by zero" in str(fault) or "too large" in str(fault) or "real" in str(fault) else None
    return left


_SIGNS = str.maketrans({"×": "*", "·": "*", "⋅": "*", "÷": "/", "−": "-", "–": "-", "^": "**", "√": " sqrt ", "²": "**2", "³": "**3", "½": "(1/2)"})  # fmt: skip
_GROUPS = re.compile(r"(?<![\d,.(])\d{1,3}(?:,\d{3})+(?![\d,])")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*%(?!\s*[\w(.])")
_LEADING_ZEROS = re.compile(r"(?<![\w.])0+(?=\d)")
_FRAME = re.compile(
    r"^(?:hi[,!. ]+|hello[,!. ]+|hey[,!. ]+)?(?:please[, ]+)?(?:can|could|would)?(?: ?you )?(?:please )?"
    r"(?:tell me |give me |work out |what(?:'s| is| does| do)|how much (?:is|are|does)|calculate|compute|evaluate|solve|find)?"
    r"(?: what | how much )?(?: ?is)?(?: the)?(?: exact)?(?: (?:value|result|answer|sum|product|quotient|difference) of)?:? ?",
)
_WORDS: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\b(?:equal|equals|make|makes|give|gives|come to|be)$", ""),
        (r"\b(?:the )?square root of ", " sqrt "),
        (r"\b(?:the )?cube root of ", " cbrt "),
        (r"\b(sqrt|cbrt) (\d[\d.,]*|\([^()]*\))", r"\1(\2)"),
        (r"(?:%| ?percent) of ", "/100*"),
        (r" ?\bpercent\b", "%"),
        (r"\bdivided by\b", "/"),
        (r"\bmultiplied by\b|\btimes\b|(?<=\d) ?x ?(?=\d)", "*"),
        (r"\bto the power(?: of)?\b|\braised to(?: the power(?: of)?)?\b", "**"),
        (r" ?\bsquared\b", "**2"),
        (r" ?\bcubed\b", "**3"),
        (r"\bplus\b", "+"),
        (r"\bminus\b", "-"),
        (r"\bmod(?:ulo)?\b", "%"),
        (r"\ba (half|third|quarter|tenth) of ", lambda found: f"1/{_PARTS[found[1]]}*"),
        (r"\b(half|third|quarter|tenth) of ", lambda found: f"1/{_PARTS[found[1]]}*"),
    )
]
_PARTS: Mapping[str, int] = {"half": 2, "third": 3, "quarter": 4, "tenth": 10}
_ONLY = re.compile(r"(?:[\d\s.,+\-*/%()]|sqrt|cbrt|root|abs|round|min|max)+")
_OPERATES = re.compile(r"\d\s*%?\)?\s*(?:[+\-*/%]|$)(?=.)|sqrt|cbrt|root|abs|round|min|max")
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|\d{3,4}-\d{3,}(?:-\d+)*|\d{4}[-/]\d{1,4}")


def _number(written: str) -> Fraction:
    try:
        if len(written) > MAX_CHARS or "_" in written:
            raise ValueError
        exponent = written.lower().partition("e")[2]
        if not written.lower().startswith("0x") and exponent and abs(int(exponent)) > MAX_BITS // 4:
            raise ArithmeticFault("the result is too large to be given exactly")
        return Fraction(written)
    except ArithmeticFault:
        raise
    except ValueError as error:
        raise ArithmeticFault(f"'{_short(written)}' is not a decimal number") from error


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() > MAX_BITS or value.denominator.bit_length() > MAX_BITS:
        raise ArithmeticFault("the result is too large to be given exactly")
    return value


def _whole_root(value: int, degree: int) -> int:
    """The largest whole number whose `degree`-th power is at most `value`, by Newton's method."""
    if degree == 1 or value < 2:
        return value
    if degree == 2:
        return math.isqrt(value)
    guess = 1 << -(-value.bit_length() // degree)
    while (better := ((degree - 1) * guess + value // guess ** (degree - 1)) // degree) < guess:
        guess = better
    return guess


def _decimal(value: Fraction, digits: int) -> tuple[str, bool]:
    """In decimal to `digits` significant digits after what is whole, and whether that is all of it."""
    whole = len(str(abs(value.numerator) // value.denominator).lstrip("0"))
    context = Context(prec=max(digits, min(whole, DIGITS) + (0 if whole > digits else 2)))
    found = context.divide(Decimal(value.numerator), Decimal(value.denominator))
    complete = Fraction(found) == value
    text = format(found, "f") if abs(found.adjusted()) < DIGITS else format(found, "E")
    return (text.rstrip("0").rstrip(".") if "." in text and "E" not in text else text), complete


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"
