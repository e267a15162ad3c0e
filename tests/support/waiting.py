"""Wait for a condition instead of a time."""

import time
from collections.abc import Callable

import pytest


def eventually(condition: Callable[[], bool], within_s: float, what: str) -> None:
    """Wait for `condition`, fail with `what` when it does not come true. It is checked ever more seldom, at last each 0.2 s."""
    end, pause_s = time.monotonic() + within_s, 0.01
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, 0.2)
    pytest.fail(f"not within {within_s} s: {what}")
