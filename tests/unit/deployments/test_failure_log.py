"""Failures of repeated work are logged ever more seldom, and their end is."""

import logging

from deployments.failure_log import FailureLog


def test_the_first_failures_are_logged_and_then_ever_fewer(caplog):
    log = FailureLog(logging.getLogger("test"), "saving failed")
    log.on_success()
    for number in range(100):
        log.on_failure(OSError(f"full {number}"))
    log.on_success()
    log.on_success()
    log.on_failure(OSError("full again"))
    assert [record.getMessage() for record in caplog.records] == [
        "saving failed: full 0",
        *(f"saving failed ({count} times): full {count - 1}" for count in (2, 4, 8, 16, 32, 64)),
        "saving failed, 100 times; it succeeds again",
        "saving failed: full again",
    ]


def test_of_unexpected_failures_the_origin_is_logged(caplog):
    log = FailureLog(logging.getLogger("test"), "saving failed", unexpected=True)
    log.on_failure(KeyError("secret"))
    assert caplog.text.endswith("saving failed: KeyError at an unknown place\n")
