"""Wait for a condition instead of a time."""

import time
from collections.abc import Callable

import pytest


def eventually(condition: Callable[[], bool], within_s: float, what: str) -> None:
    """Wait for `condition`, fail with `what` when it does not come true."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.2)
    pytest.fail(f"not within {within_s} s: {what}")
