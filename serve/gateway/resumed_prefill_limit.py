"""Limit of resumed prefills: how many continued streams have their prompts read again at a time, and in which order."""

import asyncio
import heapq
import itertools
from collections.abc import Callable

WAIT_S = 10.0  # for a turn at most


class ResumedPrefillLimit:
    """Lets streams of one gateway have their prompts read again, in the order of the times at which they should go on.

    Args:
        most: how many may now.
    """

    def __init__(self, most: Callable[[], int]) -> None:
        self._most = most
        self._reading = 0
        self._queue: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    async def acquire(self, resume_by: float) -> Callable[[], None]:
        """Wait for a turn; returns what ends it, which may be called repeatedly.

        After `WAIT_S` the prompt is read without one: a stream that waits on is lost sooner or later, one that is read slows down others.
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (resume_by, next(self._numbers), turn))
        self._wake()
        try:
            await asyncio.wait((turn,), timeout=WAIT_S)
        except asyncio.CancelledError:
            if not turn.cancel():  # it was its turn at last
                self._release()
            raise
        if turn.cancel():
            self._reading += 1
        held = [None]

        def release() -> None:
            if held:
                held.clear()
                self._release()

        return release

    def _release(self) -> None:
        self._reading -= 1
        self._wake()

    def _wake(self) -> None:
        while self._queue and self._reading < self._most():
            turn = heapq.heappop(self._queue)[2]
            if not turn.done():  # done: it waited too long, or its client has gone
                turn.set_result(None)
                self._reading += 1
