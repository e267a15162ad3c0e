"""What is computed instead of asked of a model: questions that are nothing but a computation, or a look at the clock.

For small models, which neither compute nor call tools. Those that a model calls itself are in
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
class Used:
    """One use of a tool. `input` is what the tool of that name takes; `answer` is a whole line or sentence."""

    name: str
    input: Mapping[str, str]
    output: str
    answer: str


def detect(text: str, enabled: Sequence[str], now: datetime, zone: tzinfo) -> Used | None:
    """The tool's answer to `text`, when one of `enabled` answers all of it; else None. `now` knows its offset.

    What has no result, such as a division by zero, is answered with why.
    """
    if "calculator" in enabled and (expression := computation.asked(text)) is not None:
        try:
            result = arithmetic.compute(expression)
        except arithmetic.ArithmeticFault as fault:
            return Used("calculator", {"expression": expression}, str(fault), arithmetic.answer(expression))
        return Used("calculator", {"expression": result.expression}, result.text, result.answer)
    if "clock" in enabled and (asked := clock.asked(text)) is not None:
        told = clock.answer(asked, now, zone)
        return Used("clock", asked.arguments, told, told)
    return None
