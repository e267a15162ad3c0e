"""What goes wrong for a reason its user can act on, and how a command says it."""

import errno
import sys
from collections.abc import Callable

from serve.card import CardError


class KnownError(Exception):
    """The message is one line that says what is wrong and what would be right."""


def clear_line(error: BaseException) -> str | None:
    """The one line for an error with a known cause; None for one that deserves its traceback."""
    if isinstance(error, KnownError | CardError):
        return str(error)
    full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
    if full or "No space left on device" in str(error):  # safetensors wraps the system's error in its own
        return "the disk is full: free some space and run it again; it goes on where it stopped"
    if isinstance(error, PermissionError):
        return f"cannot write: {error}"
    return None


def exit_code(work: Callable[[], object]) -> int:
    """Do a command's work. A known error is one line on standard error and 2, as `child.run_child` expects."""
    try:
        work()
    except Exception as error:
        if (line := clear_line(error)) is None:
            raise
        sys.stderr.write(f"error: {line}\n")  # in one piece: other processes write there too
        return 2
    return 0
