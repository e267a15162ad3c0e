"""Intent detection: answer questions that are only a computation, a date or a time with a tool, without a model.

For small models, which neither compute reliably nor call tools. Tools that a model calls are in
`serve/tools/haystack_tools.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo

from serve.tools import calculator as arithmetic
from serve.tools import calculator_intent as computation
from serve.tools import clock

DETECTED = ("calculator", "clock")


@dataclass(slots=True, frozen=True)
class ToolResult:
    """The use of a tool. `input` has the arguments of the tool named `name`; `answer` is a complete line or sentence."""

    name: str
    input: Mapping[str, str]
    output: str
    answer: str


def detect(text: str, enabled: Sequence[str], now: datetime, zone: tzinfo) -> ToolResult | None:
    """The answer of the tool in `enabled` that answers `text` completely, else None. `now` is timezone-aware.

    A computation without a result, such as a division by zero, is answered with the reason.
    """
    if "calculator" in enabled and (expression := computation.find_expression(text)) is not None:
        try:
            result = arithmetic.compute(expression)
        except arithmetic.CalculatorError as fault:
            return ToolResult("calculator", {"expression": expression}, str(fault), arithmetic.answer(expression))
        return ToolResult("calculator", {"expression": result.expression}, result.text, result.answer)
    if "clock" in enabled and (question := clock.find_question(text)) is not None:
        answer = clock.answer(question, now, zone)
        return ToolResult("clock", question.arguments, answer, answer)
    return None
