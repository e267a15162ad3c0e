"""Idempotency keys: a request that is sent again gets the answer of the first, or waits for it, and nothing is generated twice.

The header is that of draft-ietf-httpapi-idempotency-key-header. Answers are stored in the shared store where that is Redis, so that
all gateways know them, also when one of them was killed; else in the gateway's memory.
"""

import asyncio
import hashlib
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic
from typing import Any, Protocol, TypeVar, cast

import orjson
from limits.aio.storage import RedisStorage
from prometheus_client import Counter

from serve.errors import RequestError
from serve.gateway.http import Headers, Message, Send
from serve.gateway.shared_store import PAUSE_S, SharedStore, StoreUnavailable

ANSWER_TTL_S = 60
LEASE_S = 5.0  # a request in flight, as long as nobody renews it: its gateway may have been killed
MAX_ANSWER_BYTES = 1 << 20  # larger answers are not stored
MAX_MEMORY_BYTES = 64 << 20  # of the answers in a gateway's memory
MAX_MEMORY_ANSWERS = 10_000
MAX_WAITING, MAX_WAITING_BYTES = (
    256,
    64 << 20,
)  # requests of one gateway that wait for another one's answer, and their bodies
MAX_KEY_CHARS = 255
_RENEW_S = LEASE_S / 4
_POLL_S = (0.05, 0.5)  # time between two polls for the answer of a request in flight: at first, and at most
_OPTIONS = ("x-gearbox-", "x-llm-d-")  # headers that decide about the answer as the body does
_RUNNING, _DONE = b"r", b"d"  # the byte after a value's fingerprint
_FINGERPRINT = 32  # bytes
_SWAP = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1
"""
_T = TypeVar("_T")


class Answers(Protocol):
    """Values by name; a value is the marker of a request in flight, or an answer."""

    async def claim(self, name: str, marker: bytes) -> bytes | None:
        """The value of `name`; where there is none, set `marker` for `LEASE_S` and return None."""

    async def swap(self, name: str, marker: bytes, value: bytes, ttl_s: float) -> None:
        """Replace `marker` by `value`, or remove it for an empty one. Another request's value stays."""


class MemoryAnswers:
    """Answers in the memory of one gateway: `MAX_MEMORY_BYTES` of them, after which the oldest go."""

    def __init__(self) -> None:
        self._running: dict[str, bytes] = {}  # they end with their requests: no lease is needed
        self._answers: OrderedDict[str, tuple[bytes, float]] = OrderedDict()  # with the time at which they expire
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._running) + len(self._answers)

    async def claim(self, name: str, marker: bytes) -> bytes | None:
        """See `Answers`."""
        self.expire()
        if (held := self._running.get(name)) is not None:
            return held
        if name in self._answers:
            return self._answers[name][0]
        self._running[name] = marker
        return None

    async def swap(self, name: str, marker: bytes, value: bytes, ttl_s: float) -> None:
        """See `Answers`."""
        if value == marker or self._running.get(name) != marker:
            return
        del self._running[name]
        if value:
            self._answers[name] = value, monotonic() + ttl_s
            self.bytes += len(value)
            while self.bytes > MAX_MEMORY_BYTES or len(self._answers) > MAX_MEMORY_ANSWERS:
                self._drop_oldest()

    def expire(self) -> None:
        """Remove the answers whose time is over; also called regularly, so that none is stored longer."""
        while self._answers and next(iter(self._answers.values()))[1] <= monotonic():
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, (value, _) = self._answers.popitem(last=False)
        self.bytes -= len(value)


class RedisAnswers:
    """Answers in Redis, which removes them when their time is over."""

    def __init__(self, storage: RedisStorage) -> None:
        self._storage = storage

    @property
    def _client(self) -> Any:
        return cast(Any, self._storage.bridge).get_connection()

    async def claim(self, name: str, marker: bytes) -> bytes | None:
        """See `Answers`."""
        while not await self._client.set(name, marker, nx=True, px=round(LEASE_S * 1000)):
            if (held := await self._client.get(name)) is not None:  # None: it has expired just now
                return cast(bytes, held)
        return None

    async def swap(self, name: str, marker: bytes, value: bytes, ttl_s: float) -> None:
        """See `Answers`."""
        await self._client.eval(_SWAP, 1, name, marker, value, round(ttl_s * 1000))


class Idempotency:
    """Answers requests that have an `Idempotency-Key`. Keys belong to their tenant.

    Args:
        store: of the rate limits.
        requests: counter of these requests, by outcome.
    """

    def __init__(self, store: SharedStore, requests: Counter) -> None:
        self._store = store
        self._requests = requests
        self.memory = MemoryAnswers()
        shared = store.storage if isinstance(store.storage, RedisStorage) else None
        self._answers: Answers = RedisAnswers(shared) if shared else self.memory
        self._waiting = self._waiting_bytes = 0

    async def answer(
        self, tenant: str, path: str, headers: Headers, raw: bytes, send: Send, work: Callable[[Send], Awaitable[None]]
    ) -> None:
        """Have `work` send the answer, or send that of the same request before. Without the header this is only `work`.

        Only answers with status 200 are stored: a request that got an error is processed again. So is one whose client left, after
        `work` was cancelled, whose gateway was killed, or whose answer was too large.

        Args:
            tenant, path, headers, raw: of the request; `raw` is its body.
            work: sends the answer in one part.

        Raises:
            RequestError: 400 for an invalid key; 422 when the key was used for another request; 409 when too many requests
                wait; 503 when the store fails, unless it is to fail open. And what `work` raises.
        """
        if (key := idempotency_key(headers)) is None:
            return await work(send)
        name = "gearbox:idempotency:" + hashlib.sha256(f"{tenant}\0{key}".encode()).hexdigest()
        marker = _fingerprint(key, path, headers, raw) + _RUNNING + uuid.uuid4().bytes
        try:
            stored = await self._claim(name, marker, len(raw))
        except StoreUnavailable as error:
            if self._store.fails_open:
                return await work(send)
            raise RequestError(
                503, "whether this request was answered before cannot be checked at the moment; try again",
                code="idempotency_unavailable", headers={"retry-after": str(round(PAUSE_S))},
            ) from error  # fmt: skip
        if stored is None:
            return await self._run(name, marker, send, work)
        self._requests.labels("replayed").inc()
        head, _, body = stored[_FINGERPRINT + 1 :].partition(b"\n")
        replayed = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in orjson.loads(head)]
        replayed.append((b"idempotent-replayed", b"true"))
        await send({"type": "http.response.start", "status": 200, "headers": replayed})
        await send({"type": "http.response.body", "body": body})

    async def _claim(self, name: str, marker: bytes, body_bytes: int) -> bytes | None:
        """The stored answer; None: process the request now. Waits while the same request is in flight."""
        if (held := await self._claim_or_poll(name, marker)) is None or _is_answer(held):
            return held
        if self._waiting >= MAX_WAITING or self._waiting_bytes + body_bytes > MAX_WAITING_BYTES:
            why = "too many requests wait for one with the same 'Idempotency-Key'; retry later"
            raise RequestError(409, why, param="idempotency-key", code="idempotency_key_in_use", headers={"retry-after": "1"})  # fmt: skip
        self._waiting += 1
        self._waiting_bytes += body_bytes
        try:
            pause_s, most_s = _POLL_S
            while True:
                await asyncio.sleep(pause_s)
                pause_s = min(1.5 * pause_s, most_s)
                if (held := await self._claim_or_poll(name, marker)) is None or _is_answer(held):
                    return held
        finally:
            self._waiting -= 1
            self._waiting_bytes -= body_bytes

    async def _claim_or_poll(self, name: str, marker: bytes) -> bytes | None:
        held = await self._in_store(lambda: self._answers.claim(name, marker))
        if held is not None and held[:_FINGERPRINT] != marker[:_FINGERPRINT]:
            why = "this 'Idempotency-Key' was used for another request; use a new key for each request"
            raise RequestError(422, why, param="idempotency-key", code="idempotency_key_reused")
        return held

    async def _run(self, name: str, marker: bytes, send: Send, work: Callable[[Send], Awaitable[None]]) -> None:
        """Process the request, and store its answer before it is sent: what a client may have seen is not generated again."""
        head: Message | None = None
        done = False

        async def store_first(message: Message) -> None:
            nonlocal head, done
            if message["type"] == "http.response.start":
                head = message
                return
            if head is not None:
                if head["status"] == 200 and not message.get("more_body"):
                    renewing.cancel()
                    done = await self._store_answer(name, marker, head["headers"], message.get("body", b""))
                await send(head)
                head = None
            await send(message)

        renewing = asyncio.create_task(self._renew(name, marker))
        try:
            await work(store_first)
        finally:
            renewing.cancel()
            if not done:
                await self._store.finish(self._swap(name, marker, b"", 0))

    async def _store_answer(self, name: str, marker: bytes, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        """Whether the marker needs no removal: it was replaced, or expires because the store fails."""
        if len(body) > MAX_ANSWER_BYTES:
            self._requests.labels("too_large").inc()
            return False
        head = orjson.dumps([(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers])
        self._requests.labels("stored").inc()
        await self._store.finish(
            self._swap(name, marker, marker[:_FINGERPRINT] + _DONE + head + b"\n" + body, ANSWER_TTL_S)
        )
        return True

    async def _renew(self, name: str, marker: bytes) -> None:
        while True:
            await asyncio.sleep(_RENEW_S)
            await self._swap(name, marker, marker, LEASE_S)

    async def _swap(self, name: str, marker: bytes, value: bytes, ttl_s: float) -> None:
        with suppress(StoreUnavailable):  # logged and counted; the lease expires
            await self._in_store(lambda: self._answers.swap(name, marker, value, ttl_s))

    async def _in_store(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Run an operation; the memory's depends on no store that is down. Raises `StoreUnavailable`."""
        return await (work() if self._answers is self.memory else self._store.run("idempotency", work))


def idempotency_key(headers: Headers) -> str | None:
    """The request's key; None without one. Raises `RequestError` 400."""
    key = headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= MAX_KEY_CHARS and key.isascii() and key.isprintable()):
        why = f"'Idempotency-Key' must have 1 to {MAX_KEY_CHARS} printable ASCII characters"
        raise RequestError(400, why, param="idempotency-key", code="invalid_idempotency_key")
    return key


def _fingerprint(key: str, path: str, headers: Headers, raw: bytes) -> bytes:
    """SHA-256 of all that decides about the answer; with the key, so that a guessed prompt cannot be checked against stored ones."""
    options = sorted((name, value) for name, value in headers.items() if name.startswith(_OPTIONS))
    return hashlib.sha256(orjson.dumps([key, path, options]) + raw).digest()


def _is_answer(held: bytes) -> bool:
    return held[_FINGERPRINT : _FINGERPRINT + 1] == _DONE
