"""Prediction error and coverage by the seconds since a jump of the load. Pure."""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

TIMES = ("ttft", "tpot")
COVERED = (0.93, 0.98)  # aim of the share within the predicted 95% bounds
_WINDOW = 3  # seconds that are taken together to say that the coverage is back


def since_jump(requests: Iterable[Sequence[float]], period_s: float) -> dict[str, Any]:
    """For TTFT and TPOT: `seconds`, one row for each second around the jump, and `back_s`.

    `requests` are as `workloads.predicted` has them, of square waves whose rate rises in the middle of each `period_s`. They are counted
    at their arrival: what the router knew then. A row has the second since the jump, the number of answers, their median error and the
    share within the bound. `back_s` is the first second after the jump from which `_WINDOW` seconds together are within `COVERED`;
    None if there is none.
    """
    half = period_s / 2
    by_second: dict[int, list[Sequence[float]]] = {}
    for one in requests:
        by_second.setdefault(math.floor(one[0] / 1000 % period_s - half), []).append(one)
    found: dict[str, Any] = {}
    for i, time in enumerate(TIMES):
        triples = {
            second: [(took, expected, bound) for took, expected, bound in (one[1 + 3 * i : 4 + 3 * i] for one in answers) if took > 0]
            for second, answers in sorted(by_second.items())
        }  # fmt: skip
        rows = [
            {
                "second": second,
                "answers": len(answers),
                "error": round(statistics.median(abs(expected / took - 1) for took, expected, _ in answers), 4),
                "covered": round(_covered(answers), 4),
            }
            for second, answers in triples.items()
            if answers
        ]
        starts = range(math.ceil(half) - _WINDOW + 1)
        windows = {start: [one for second in range(start, start + _WINDOW) for one in triples.get(second, ())] for start in starts}  # fmt: skip
        low, high = COVERED
        back = (start for start, answers in windows.items() if answers and low <= _covered(answers) <= high)
        found[time] = {"seconds": rows, "back_s": next(back, None)}
    return found


def _covered(answers: Sequence[tuple[float, float, float]]) -> float:
    return statistics.fmean(took <= bound for took, _, bound in answers)
