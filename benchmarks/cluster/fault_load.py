"""Mixed load under faults: open-loop requests of several kinds, and how each one ended, as its client saw it."""

import asyncio
import random
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
import orjson

from benchmarks.cluster.token_streams import longest_gap

#: How a request ended. Refused: an error in OpenAI's shape with 429, 503 or 504 before the answer began. Interrupted: a stream that
#: ended in an error event. Truncated: one that ended without it and without all tokens. Failed: everything else.
Outcome = Literal["ok", "refused", "interrupted", "truncated", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("ok", "refused", "interrupted", "truncated", "failed")
LOST = OUTCOMES[1:]  # without a whole answer

TIMEOUT_S = 120.0
COLLECTION = "faults"
FACT = "The harbour of Norfell was designed by Ada Quist in 1931."
QUESTION = "Who designed the harbour of Norfell?"
_REFUSALS = (429, 503, 504)
_SUBJECTS = (
    "a gearbox", "a lighthouse", "the tides", "a suspension bridge", "bread", "a violin", "glaciers", "a printing press",
    "the heart", "a sailing ship", "volcanoes", "a clock",
)  # fmt: skip
PROMPTS = tuple(f"Explain in detail what {subject} is, how it works, and its history." for subject in _SUBJECTS)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request. `tokens`: of the answer, exactly; 0 for answers of any length."""

    name: str
    path: str
    share: float  # of the requests
    model: str
    tokens: int = 0
    stream: bool = False

    def body(self, prompt: int) -> dict[str, object]:
        """The body with prompt number `prompt`."""
        if self.path == "/v1/embeddings":
            return {"input": PROMPTS[prompt]}
        chat: dict[str, object] = {"model": self.model, "temperature": 0, "stream": self.stream}
        if self.name == "grounded":
            message = {"role": "user", "content": QUESTION}
            return {**chat, "messages": [message], "max_tokens": 24, "retrieval": {"collection": COLLECTION}}
        exact = {"max_tokens": self.tokens, "ignore_eos": True, "repetition_penalty": 1.1}
        if self.stream:
            exact |= {"return_token_ids": True, "stream_options": {"include_usage": True}}
        return {**chat, **exact, "messages": [{"role": "user", "content": PROMPTS[prompt]}]}


@dataclass(slots=True)
class Record:
    """One request as its client saw it; times in seconds of `time.monotonic`."""

    kind: str
    prompt: int
    sent_s: float
    ended_s: float = 0.0
    outcome: Outcome = "failed"
    status: int = 0
    problem: str = ""
    variant: str = ""
    events_s: list[float] = field(default_factory=list)  # when parts of a streamed answer arrived
    counts: list[int] = field(default_factory=list)  # tokens that had arrived with each of them
    tokens: list[int] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)
    text: str = ""
    migrations: list[dict[str, Any]] = field(default_factory=list)
    missing: int = 0  # tokens fewer than requested in an answer that claims to be whole; negative: more

    @property
    def gap_s(self) -> float | None:
        """Longest time between two parts of the answer; of one that broke off, also until its end."""
        ends = [] if self.outcome == "ok" else [self.ended_s]
        return longest_gap([*self.events_s, *ends]) if self.events_s else None

    def seams(self) -> Iterator[tuple[str, int, float]]:
        """Of each migration, the variant that goes on, the tokens before, and the time from the part before to the first one after."""
        for entry in self.migrations:
            at = bisect_right(self.counts, at_token := int(entry["at_token"]))
            if 0 < at < len(self.counts):
                yield str(entry["to"]), at_token, self.events_s[at] - self.events_s[at - 1]


class StreamReader:
    """Reads a chat stream of an engine or gateway line by line into a record."""

    def __init__(self, record: Record, tokens: int) -> None:
        self._record = record
        self._tokens = tokens
        self._finish = ""
        self._done = False
        self._error: object = None

    def feed(self, line: bytes, now_s: float) -> None:
        """Read one line of the stream."""
        if not line.startswith(b"data: "):
            return
        if line.startswith(b"data: [DONE]"):
            self._done = True
            return
        chunk = orjson.loads(line[6:])
        if "error" in chunk:
            self._error = chunk["error"]
            return
        record = self._record
        record.prompt_tokens = chunk.get("prompt_token_ids") or record.prompt_tokens
        record.migrations = (chunk.get("gearbox") or {}).get("migrations") or record.migrations
        for choice in chunk.get("choices") or ():
            text, ids = choice["delta"].get("content") or "", choice.get("token_ids") or []
            record.text += text
            record.tokens += ids
            if text or ids:
                record.events_s.append(now_s)
                record.counts.append(len(record.tokens))
            self._finish = choice.get("finish_reason") or self._finish

    def end(self) -> None:
        """Decide how the stream ended. An error event counts even if the end marker follows it.

        A proxy may end a stream that broke off as if it were whole: without `length` as its reason, it has not all tokens.
        """
        record = self._record
        if self._error is not None:
            record.outcome, record.problem = "interrupted", _problem(self._error)
            return
        claims = self._done and self._finish == "length"
        if claims and record.tokens:
            record.missing = self._tokens - len(record.tokens)
        record.outcome = "ok" if claims and record.missing <= 0 else "truncated"
        if record.missing > 0:
            record.problem = f"the stream ended as if it were whole, {record.missing} tokens short"
        elif not claims:
            ended = f"with finish_reason {self._finish or None}" if self._done else "without an error event"
            record.problem = f"the stream ended {ended}"


def _problem(error: object) -> str:
    return str(error.get("code") or error.get("message") or "error") if isinstance(error, Mapping) else str(error)[:80]


async def send(
    session: aiohttp.ClientSession, kind: Kind, prompt: int, timeout_s: float = TIMEOUT_S, record: Record | None = None
) -> Record:
    """Send one request; errors are outcomes, too. Returns `record`, or a new one, which is filled as the answer arrives."""
    record = record or Record(kind.name, prompt, time.monotonic())
    try:
        async with asyncio.timeout(timeout_s), session.post(kind.path, json=kind.body(prompt)) as response:
            record.status = response.status
            record.variant = response.headers.get("x-gearbox-variant", "")
            if response.status != 200:
                _refused(record, await response.read())
            elif kind.stream:
                reader = StreamReader(record, kind.tokens)
                try:
                    async for line in _lines(response):
                        reader.feed(line, time.monotonic())
                finally:
                    reader.end()
            else:
                _whole(record, kind, orjson.loads(await response.read()))
    except (
        aiohttp.ClientError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:  # malformed, too
        if record.outcome in ("failed", "truncated"):
            record.problem = type(error).__name__
        if isinstance(error, TimeoutError) and record.outcome == "truncated":
            record.outcome = "failed"  # the client gave up
    record.ended_s = time.monotonic()
    return record


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of any length: `response.content` has a limit, which first chunks with the ids of a long prompt exceed."""
    rest = b""
    async for data in response.content.iter_any():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line


def _refused(record: Record, body: bytes) -> None:
    try:
        error = orjson.loads(body)["error"]
        shaped = bool(error["message"]) and "code" in error
    except (ValueError, LookupError, TypeError):
        error, shaped = body[:80].decode(errors="replace"), False
    record.outcome = "refused" if shaped and record.status in _REFUSALS else "failed"
    record.problem = f"{record.status} {_problem(error)}"


def _whole(record: Record, kind: Kind, document: Mapping[str, Any]) -> None:
    """Check a unary answer. One that has fewer tokens than it must have is truncated."""
    if kind.path == "/v1/embeddings":
        whole = bool(document["data"][0]["embedding"])
    else:
        record.text = document["choices"][0]["message"]["content"] or ""
        whole = not kind.tokens or document["usage"]["completion_tokens"] == kind.tokens
    record.outcome = "ok" if whole else "truncated"


def plan(kinds: Sequence[Kind], seed: object, prompts: int = len(PROMPTS)) -> Callable[[], tuple[Kind, int]]:
    """A seeded sequence of requests: kind and number of the prompt."""
    source = random.Random(f"load {seed}")
    shares = [kind.share for kind in kinds]
    return lambda: (source.choices(kinds, shares)[0], source.randrange(prompts))


@dataclass
class Load:
    """Poisson arrivals of `per_s` requests a second, until `stop`; waits for no answer before the next."""

    session: aiohttp.ClientSession
    kinds: Sequence[Kind]
    per_s: float
    seed: object
    prompts: int = len(PROMPTS)
    on_record: Callable[[Record], object] | None = None  # called for each, which is not kept then
    records: list[Record] = field(default_factory=list)
    _under_way: dict[int, Record] = field(default_factory=dict)  # by identity
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    _arrivals: "asyncio.Task[None] | None" = None

    @property
    def in_flight(self) -> int:
        """Requests without an answer yet."""
        return len(self._tasks)

    @property
    def busiest(self) -> str | None:
        """The variant that writes the most streams now; None where there is no stream, or the system names no variants."""
        variants = Counter(one.variant for one in self._under_way.values() if one.events_s and one.variant)
        return max(variants, key=lambda name: (variants[name], name), default=None)

    async def __aenter__(self) -> "Load":
        self._arrivals = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End the arrivals."""
        if self._arrivals is not None:
            self._arrivals.cancel()
            await asyncio.gather(self._arrivals, return_exceptions=True)

    async def finish(self) -> list[Record]:
        """End the arrivals, wait for all answers, return the records."""
        await self.stop()
        while self._tasks:
            await asyncio.wait(self._tasks)
        return self.records

    async def _run(self) -> None:
        draw, source = plan(self.kinds, self.seed, self.prompts), random.Random(f"arrivals {self.seed}")
        due = time.monotonic()
        while True:
            due += source.expovariate(self.per_s)
            await asyncio.sleep(max(due - time.monotonic(), 0))
            task = asyncio.create_task(self._one(*draw()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _one(self, kind: Kind, prompt: int) -> None:
        record = Record(kind.name, prompt, time.monotonic())
        self._under_way[id(record)] = record
        try:
            await send(self.session, kind, prompt, record=record)
        finally:
            del self._under_way[id(record)]
        (self.on_record or self.records.append)(record)


async def saturation(session: aiohttp.ClientSession, kinds: Sequence[Kind], clients: int, seconds: float) -> float:
    """Whole answers a second to `clients` closed-loop clients: load 1."""
    draw, started, answered = plan(kinds, "saturation"), time.monotonic(), 0

    async def client() -> None:
        nonlocal answered
        while time.monotonic() - started < seconds:
            record = await send(session, *draw())
            if record.outcome == "ok":
                answered += 1
            else:
                await asyncio.sleep(0.5)  # as a client that is told to retry later

    await asyncio.gather(*(client() for _ in range(clients)))
    return answered / (time.monotonic() - started)


async def first_success(ask: Callable[[], Awaitable[bool]], every_s: float, patience_s: float) -> float | None:
    """Seconds until the first of the requests that are sent from now on, one each `every_s`, succeeds; None if none does."""
    started, pending = time.monotonic(), set[asyncio.Task[bool]]()
    try:
        while time.monotonic() - started < patience_s:
            pending.add(asyncio.ensure_future(ask()))
            done, pending = await asyncio.wait(pending, timeout=every_s, return_when=asyncio.FIRST_COMPLETED)
            if any(task.result() for task in done):
                return time.monotonic() - started
            if done:
                await asyncio.sleep(every_s)
        return None
    finally:
        for task in pending:
            task.cancel()
