"""Clients that send requests to a cluster while it is changed, and record each one's times and error."""

import asyncio
import threading
import time
from dataclasses import dataclass, field

import httpx

MODEL = "smollm2-135m"
QUESTION = "Explain in detail what a gearbox is, what it is made of, and how it is used."
PAUSE_S = 2.0  # between two requests of a client: starting engines need the cores, too


@dataclass(frozen=True, slots=True)
class Kind:
    """The request that one client repeats."""

    name: str
    model: str
    tokens: int
    stream: bool


KINDS = (
    Kind("routed, streamed", f"{MODEL}@best", 24, True),
    Kind("pinned, whole", f"{MODEL}:full", 24, False),
    Kind("pinned, long stream", f"{MODEL}:full", 100, True),
)


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request: its times in seconds after the load's start, and the error in its answer, if any."""

    kind: str
    began_s: float
    ended_s: float
    error: str | None


@dataclass
class Load:
    """Closed-loop clients: each sends its next request after the answer to the last."""

    url: str
    born: float
    pause_s: float = PAUSE_S
    records: list[RequestRecord] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Load":
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(120)

    async def _run(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=120) as client:
            await asyncio.gather(*(self._send_until_ended(client, kind) for kind in KINDS))

    async def _send_until_ended(self, client: httpx.AsyncClient, kind: Kind) -> None:
        while not self._ended.is_set():
            started = time.monotonic() - self.born
            try:
                error = await _send(client, kind)
            except httpx.HTTPError as failure:
                error = f"{type(failure).__name__} {failure}"
            self.records.append(RequestRecord(kind.name, started, time.monotonic() - self.born, error))
            await asyncio.sleep(self.pause_s)


async def _send(client: httpx.AsyncClient, kind: Kind) -> str | None:
    """The error in the answer to one request; None: no error."""
    body = {
        "model": kind.model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": kind.tokens,
        "min_tokens": kind.tokens,
        "stream": kind.stream,
    }
    if not kind.stream:
        answer = await client.post("/v1/chat/completions", json=body)
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.text[:200]}"
        return None if answer.json()["usage"]["completion_tokens"] == kind.tokens else "cut short"
    last, text = "", ""
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            return f"{answer.status_code} {(await answer.aread())[:200]!r}"
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                last = line.removeprefix("data: ")
                text += last
    if last != "[DONE]" or '"error"' in text:
        return f"broke off: {last[:200]}"
    return None
