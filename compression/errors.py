"""Errors that a user can act on, and their reporting by the commands of this package."""

import errno
import sys
from collections.abc import Callable

from serve.card import CardError


class UserError(Exception):
    """An error that the user can fix. Its message is one line: what is wrong and what would be right."""


def error_line(error: BaseException) -> str | None:
    """One-line message of an error with a known cause; None for one that needs its traceback."""
    if isinstance(error, UserError | CardError):
        return str(error)
    disk_full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
    if disk_full or "No space left on device" in str(error):  # safetensors wraps the system's error in its own
        return "the disk is full: free some space and run the same command again; it resumes where it stopped"
    if isinstance(error, PermissionError):
        return f"cannot write: {error}"
    return None


def run_command(action: Callable[[], object]) -> int:
    """Run a command and return its exit code: 2, with one line on standard error, for an error with a known cause.

    `build.subprocesses.run_subprocess` reads that line and code.
    """
    try:
        action()
    except Exception as error:
        if (line := error_line(error)) is None:
            raise
        sys.stderr.write(f"error: {line}\n")  # one write: other processes use the same stream
        return 2
    return 0
