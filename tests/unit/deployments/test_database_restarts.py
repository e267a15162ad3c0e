"""A database that cannot be restarted, because its disk is full, is tried again without a line for each attempt."""

import errno
import os
import subprocess
from collections.abc import Callable

import pytest

from deployments.database import Database, DatabaseError


@pytest.mark.parametrize(
    "failure",
    [
        lambda n: OSError(errno.EROFS, os.strerror(errno.EROFS)),
        lambda n: DatabaseError(f"PostgreSQL exited; the log ends with: [{n}] No space left on device"),
        lambda n: subprocess.TimeoutExpired("postgres", 10),
    ],
    ids=["read-only", "full", "hanging disk"],
)
def test_restarts_that_fail_are_logged_ever_more_seldom(
    tmp_path, monkeypatch, caplog, failure: Callable[[int], Exception]
):
    database, attempts = Database(tmp_path / "documents"), 0
    database._started = True

    def launch() -> None:
        nonlocal attempts
        attempts += 1
        if attempts <= 20:
            raise failure(attempts)

    monkeypatch.setattr(database, "_launch", launch)
    assert [database.restart_if_dead() for _ in range(21)] == [False] * 20 + [True]
    lines = [record.getMessage() for record in caplog.records if "restarting" in record.getMessage()]
    assert len(lines) == 7, "that it died; attempts 1, 2, 4, 8 and 16; the end"
    assert lines[-1] == "restarting the database failed, 20 times; it succeeds again"
