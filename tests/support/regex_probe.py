"""Find the regular expressions of a package that take more than linear time, by measuring CPU time.

`regex_patterns` finds them, `regex_texts` builds texts for each. Run as a program in a process of its own: `python -m
tests.support.regex_probe ROOT PACKAGE...`, or with patterns as JSON on its standard input.
"""

import json
import math
import re
import signal
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from tests.support.regex_patterns import SCANS, Found, collect
from tests.support.regex_texts import strings

CHARS = (3_000, 12_000)  # string sizes: all strings in the first, the slow ones in the second; see `slowness`
LONG_S = 0.0015  # CPU seconds for the first size above which a string is measured again
MAX_GROWTH = 9.0  # of CPU time from the first size to the second: 4 when linear, 16 when quadratic
LIMIT_S = 0.3  # CPU seconds for one string


class _TooLongError(Exception):
    """A string took more than `LIMIT_S`."""


def slowness(one: Found) -> str | None:
    """A string on which the pattern takes more than linear time; None if none was found."""
    compiled = re.compile(one.pattern, one.flags & ~re.UNICODE | 0)
    candidates = strings(one.pattern, one.flags)
    for method in dict.fromkeys("finditer" if name in SCANS else name for name in one.methods):
        use = _use(getattr(compiled, method))
        for before, pump, after in candidates:
            description = (
                f"{one.where} {one.pattern[:70]!r} .{method} on {before[:40]!r} + {pump[:40]!r} * n + {after!r}"
            )
            # a long repeated piece fits fewer times into a text
            scale = 1 if before else math.isqrt(len(pump))
            small, large = (before + pump * (chars * scale // len(pump) + 1) + after for chars in CHARS)
            try:
                if _cpu_s(use, small, 1) < LONG_S:
                    continue
                first = _cpu_s(use, small, 3)
                # other load on the machine sometimes makes it longer, never shorter
                if all((second := _cpu_s(use, large, 1)) > MAX_GROWTH * max(first, LONG_S / 3) for _ in range(2)):
                    times = (
                        f"{first * 1000:.1f} ms for {len(small)} characters, {second * 1000:.1f} ms for {len(large)}"
                    )
                    return f"{description}: {times}"
            except _TooLongError:
                return f"{description}: did not end within {LIMIT_S} s"
    return None


def _use(method: Callable[[str], Any]) -> Callable[[str], None]:
    def use(text: str) -> None:
        found = method(text)
        if method.__name__ == "finditer":
            for _ in found:
                pass

    return use


def _cpu_s(use: Callable[[str], None], text: str, times: int) -> float:
    best = float("inf")
    for _ in range(times):
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
        started = time.thread_time()  # not process_time, which advances in ticks while the timer runs
        try:
            use(text)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        best = min(best, time.thread_time() - started)
    return best


def _stop(*_: object) -> None:
    raise _TooLongError


def main() -> None:
    """Write as JSON the number of patterns, the slow ones, and the code that may hide some."""
    signal.signal(signal.SIGPROF, _stop)
    if sys.argv[1:]:
        found, offences = collect(Path(sys.argv[1]).resolve(), sys.argv[2:])
    else:
        found = [Found(str(at), *given) for at, given in zip(count(), json.load(sys.stdin))]
        offences = []
    slow = []
    for one in found:
        sys.stderr.write(f"{one.where} {one.pattern[:70]!r}\n")  # the last line names a pattern that hangs
        if said := slowness(one):
            slow.append(said)
    patterns = [[one.where, one.pattern, one.methods] for one in found]
    sys.stdout.write(json.dumps({"patterns": patterns, "slow": slow, "offences": offences}))


if __name__ == "__main__":
    main()
