"""Low-overhead closed-loop load generator: keep-alive connections, one prepared request, no parsing of bodies.

In the benchmark's own process, on uvloop and httptools. Its own CPU share is part of every sample: near 1 it, and not the
system, is what limits the requests per second.
"""

import asyncio
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools
import orjson
import uvloop

_DONE = b"data: [DONE]"


class LoadError(Exception):
    """An unexpected answer: the measurement is invalid."""


@dataclass(slots=True)
class Sample:
    """Measurements of one run."""

    requests: int = 0
    elapsed_s: float = 0.0
    client_cpu_s: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)  # until the first byte of the body

    @property
    def per_s(self) -> float:
        """Requests per second."""
        return self.requests / self.elapsed_s

    @property
    def client_share(self) -> float:
        """Share of one core that the load generator used."""
        return self.client_cpu_s / self.elapsed_s


@dataclass(slots=True)
class Load:
    """The request, and how often to send it: for `seconds`, or `count` times in total."""

    url: str
    body: dict[str, object]
    connections: int
    seconds: float = 0.0
    count: int = 0


def run(load: Load) -> Sample:
    """Run `load`. Raises `LoadError` on anything but 200, and on a stream without its end."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(load))


async def _run(load: Load) -> Sample:
    parts = urlsplit(load.url)
    body = orjson.dumps(load.body)
    head = (
        f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer none\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    sample = Sample()
    started_cpu, started = time.process_time(), time.perf_counter()
    budget = _Budget(load.count or None, started + load.seconds if load.seconds else None)
    request = head.encode() + body
    streams = bool(load.body.get("stream"))
    clients = []
    for _ in range(load.connections):
        _, client = await loop.create_connection(
            lambda: _Client(request, streams, budget, sample, loop.create_future()), parts.hostname, parts.port
        )
        clients.append(client)
    await asyncio.gather(*(client.finished for client in clients))
    sample.elapsed_s = time.perf_counter() - started
    sample.client_cpu_s = time.process_time() - started_cpu
    return sample


@dataclass(slots=True)
class _Budget:
    """Number of requests that may still be sent."""

    left: int | None
    deadline: float | None

    def take(self) -> bool:
        if self.left is not None:
            self.left -= 1
            return self.left >= 0
        return self.deadline is not None and time.perf_counter() < self.deadline


class _Client(asyncio.Protocol):
    """One connection that sends its next request as soon as the last is answered."""

    def __init__(
        self, request: bytes, streams: bool, budget: _Budget, sample: Sample, finished: "asyncio.Future[None]"
    ) -> None:
        self._request = request
        self._streams = streams
        self._budget = budget
        self._sample = sample
        self.finished = finished
        self._sent_at = 0.0
        self._first = 0.0
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._send_next()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(error.__context__ or error)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.finished.done():
            self.finished.set_exception(LoadError(f"the connection was closed in mid-answer: {error}"))

    def on_body(self, body: bytes) -> None:
        if not self._first:
            self._first = time.perf_counter()
        self._tail = body if len(body) > 64 else (self._tail + body)[-128:]

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        if self._parser.get_status_code() != 200:
            return self._fail(LoadError(f"status {self._parser.get_status_code()}: {self._tail[-400:]!r}"))
        if self._streams and _DONE not in self._tail:
            return self._fail(LoadError(f"a stream without its end: {self._tail[-400:]!r}"))
        self._sample.requests += 1
        self._sample.latencies_ms.append((now - self._sent_at) * 1000)
        self._sample.first_ms.append((self._first - self._sent_at) * 1000)
        self._send_next()

    def _send_next(self) -> None:
        if not self._budget.take():
            if not self.finished.done():
                self.finished.set_result(None)
            return self._transport.close()
        self._parser = httptools.HttpResponseParser(self)
        self._sent_at, self._first = time.perf_counter(), 0.0
        self._transport.write(self._request)  # type: ignore[attr-defined]

    def _fail(self, error: BaseException) -> None:
        if not self.finished.done():
            self.finished.set_exception(LoadError(str(error)))
        self._transport.close()
