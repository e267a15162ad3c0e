"""Failure log: failures of work that is repeated, without a line for each."""

import logging

from serve.errors import origin_of


class FailureLog:
    """Logs the 1st, 2nd, 4th, 8th, … failure in a row, and the success after them.

    Args:
        log: where to.
        failure: what a line begins with.
        unexpected: whether failures are exceptions of any kind, whose messages are not logged, see `origin_of`.
    """

    def __init__(self, log: logging.Logger, failure: str, *, unexpected: bool = False) -> None:
        self._log, self._failure, self._unexpected = log, failure, unexpected
        self.failures = 0  # since the last success

    def on_failure(self, error: BaseException) -> None:
        """Count a failure, and log it unless it is one of many."""
        self.failures += 1
        if self.failures & (self.failures - 1) == 0:
            times = f" ({self.failures} times)" if self.failures > 1 else ""
            self._log.error("%s%s: %s", self._failure, times, origin_of(error) if self._unexpected else error)

    def on_success(self) -> None:
        """End a series of failures."""
        if self.failures:
            self._log.warning("%s, %d times; it succeeds again", self._failure, self.failures)
            self.failures = 0
