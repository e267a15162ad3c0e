"""Response stream: what a client has got of one streamed answer, over all engines that write it."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal

from serve.gateway.continuation import Continuation, Detokenize, NotContinuable, loggable
from serve.gateway.sse_relay import EngineFault, StreamRelay

InterruptionCause = Literal["connection", "stalled", "engine_error"]
_DONE = b"data: [DONE]\n\n"


class StreamInterrupted(Exception):
    """The engine broke off a stream after its first token."""

    def __init__(self, cause: InterruptionCause) -> None:
        super().__init__(cause)
        self.cause: InterruptionCause = cause


@dataclass(slots=True)
class ResponseStream:
    """A client's stream: its relay, and where it went on.

    `inexact` is the field of the request for which it cannot be continued, None where it can.
    """

    relay: StreamRelay
    inexact: str | None = None
    continues: bool = False  # whether an engine continues an answer that another one started
    check: asyncio.Future[None] | None = None  # see `cut`; raises `NotContinuable`, `EngineUnreachable`
    first_token: Callable[[], None] = lambda: (
        None
    )  # called at the first token of each part, or when a whole answer has come

    @property
    def continuation(self) -> Continuation:
        """The tokens of the stream. Raises `NotContinuable` where they are not known."""
        if (continuation := self.relay.continuation) is None:
            why = "its tokens are not known" if self.inexact is None else f"it has {loggable(self.inexact)}"
            raise NotContinuable(why, self.inexact)
        return continuation

    def feed(self, data: bytes) -> bytes:
        """What to send on for `data` of the engine. Raises `EngineFault` for an error event or an event that cannot be read."""
        try:
            return self.relay.feed(self.continuation.translate(data) if self.continues else data)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise EngineFault(b"") from error

    def complete(self) -> bytes:
        """What to send on when an engine breaks off whose last token has arrived: only usage and end are missing."""
        if self.relay.done or not self.relay.ended:
            return b""
        try:
            end = _DONE if self.relay.report.total_tokens else self.continuation.usage()
        except NotContinuable:  # how many tokens it has is not known
            return b""
        self.relay.resume()
        return self.relay.feed(end)

    async def cut(self, detokenize: Detokenize) -> Coroutine[Any, Any, None] | None:
        """Prepare the stream for another engine; returns a check as `Continuation.cut`. Raises `NotContinuable`."""
        check = await self.continuation.cut(detokenize)
        self.relay.resume()
        self.continues = True
        return check

    async def checked(self) -> None:
        """Wait for `check`: nothing of a continuation counts before."""
        if self.check is not None:
            await self.check

    def drop_check(self) -> None:
        """End `check`, whatever its result."""
        if self.check is not None and not self.check.cancel() and not self.check.cancelled():
            self.check.exception()  # an exception that nothing looks at is logged
        self.check = None
