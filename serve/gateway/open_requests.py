"""Requests under way in a gateway that must stop: they end with an error of the API instead of a cut connection."""

import asyncio
from collections.abc import Awaitable, Callable

from serve.errors import RequestError
from serve.gateway.http import Message, Send
from serve.gateway.sse_relay import error_event

_MESSAGE = "the gateway was stopped before this answer was complete"


class OpenRequests:
    """The generation requests under way in one gateway."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: set[asyncio.Task[None]] = set()

    def end(self) -> int:
        """End all of them now; returns how many there were."""
        self._ended = set(self._tasks)
        for task in self._ended:
            task.cancel()
        return len(self._ended)

    async def run(self, send: Send, work: Callable[[Send], Awaitable[None]]) -> None:
        """Have `work` send the response. If it is ended, a stream gets an `error` event.

        Raises:
            RequestError: 503 `gateway_stopped`: it was ended before its response started. And what `work` raises.
        """
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("requests run in tasks")
        started = complete = False

        async def watch(message: Message) -> None:
            nonlocal started, complete
            started = True
            complete = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        self._tasks.add(task)
        try:
            await work(watch)
        except asyncio.CancelledError:
            if task not in self._ended:
                raise
            task.uncancel()
            error = RequestError(503, _MESSAGE, code="gateway_stopped", headers={"retry-after": "2"})
            if not started:
                raise error from None
            if not complete:
                await send({"type": "http.response.body", "body": error_event(error)})
        finally:
            self._tasks.discard(task)
            self._ended.discard(task)
