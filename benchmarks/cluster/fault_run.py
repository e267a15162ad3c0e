"""One fault under load: injection, recovery, and what its clients saw; token streams compared with undisturbed answers."""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp

from benchmarks.cluster.fault_injection import NoTarget, inject
from benchmarks.cluster.fault_load import PROMPTS, TIMEOUT_S, Kind, Load, Record, first_success, send
from benchmarks.cluster.fault_schedule import Fault
from benchmarks.cluster.fault_systems import STREAM_TOKENS, Site, add_document, delete_document, narrowed
from benchmarks.cluster.token_streams import Agreement, compare, compare_text, parts

SETTLE_S = 4.0  # of load after the recovery
PATIENCE_S = 300.0  # for the recovery
_PROBE_EVERY_S = (
    1.0  # four a second are three times what saturates two slow cores, while a fault holds the answers back
)
_ONE = "engine"  # variant of systems without any

Ask = Callable[[str, Sequence[int], int], Awaitable[list[int]]]


@dataclass(frozen=True, slots=True)
class Reference:
    """An undisturbed greedy answer: its tokens, where the system gives them, and its text."""

    tokens: Sequence[int]
    text: str


@dataclass
class Bench:
    """A system under load. `references`: by variant, then by prompt. `before`: number of processes of the whole system."""

    site: Site
    session: aiohttp.ClientSession
    per_s: float
    prompts: int = len(PROMPTS)
    patience_s: float = PATIENCE_S
    references: dict[str, list[Reference]] = field(default_factory=dict)
    before: Mapping[str, int] = field(default_factory=dict)

    async def prepare(self) -> None:
        """Count the processes and, one at a time, get the undisturbed answers. Raises `NoReference`."""
        self.before = await asyncio.to_thread(self.site.counts)
        for variant, model in self.site.pinned.items():
            kind = Kind("stream", "/v1/chat/completions", 1, model, STREAM_TOKENS, stream=True)
            self.references[variant] = []
            for prompt in range(self.prompts):
                record = await send(self.session, kind, prompt)
                if record.outcome != "ok":
                    raise NoReference(f"{self.site.name}, {model}: {record.outcome}: {record.problem}")
                self.references[variant].append(Reference(record.tokens, record.text))

    def load(self, seed: object, per_s: float | None = None) -> Load:
        """The system's load, to be started."""
        return Load(self.session, self.site.kinds, per_s or self.per_s, seed, self.prompts)

    async def first_token_s(self, variant: str, prompt: Sequence[int]) -> float:
        """Time to the first token of a completion of `prompt`, which no cache has. Raises `aiohttp.ClientError`, `TimeoutError`."""
        body = {
            "model": self.site.pinned[variant], "prompt": list(prompt), "max_tokens": 1, "temperature": 0, "stream": True,
            "cache_salt": secrets.token_hex(8),
        }  # fmt: skip
        started = time.monotonic()
        async with asyncio.timeout(TIMEOUT_S), self.session.post("/v1/completions", json=body) as response:
            response.raise_for_status()
            await response.content.readany()
            return time.monotonic() - started

    async def continuation(self, variant: str, prompt: Sequence[int], count: int) -> list[int]:
        """Tokens that `variant` continues `prompt` with. Raises `aiohttp.ClientError`, `LookupError`."""
        body = {
            "model": self.site.pinned[variant], "prompt": list(prompt), "max_tokens": count, "temperature": 0, "ignore_eos": True,
            "repetition_penalty": 1.1, "return_token_ids": True,
        }  # fmt: skip
        async with asyncio.timeout(TIMEOUT_S), self.session.post("/v1/completions", json=body) as response:
            response.raise_for_status()
            return list((await response.json())["choices"][0]["token_ids"])


class NoReference(Exception):
    """The undisturbed system does not answer; the message says what it answered."""


@asynccontextmanager
async def opened(site: Site) -> AsyncIterator[Bench]:
    """A bench of `site` with load 0. The document of grounded requests is there as long as the block lasts."""
    async with site.session() as session:
        if site.grounds:
            await add_document(session)
        try:
            yield Bench(site, session, 0.0)
        finally:
            if site.grounds:
                await delete_document(session)


@dataclass(slots=True)
class Tokens:
    """Tokens of streams, compared with undisturbed answers."""

    checked: int = 0  # streams
    migrated: int = 0  # of them, in several parts
    diverged: int = 0  # of them, with other text from some token on
    unchecked: int = 0  # without a reference to compare with
    lost: int = 0  # tokens
    doubled: int = 0


async def check(records: Sequence[Record], references: Mapping[str, Sequence[Reference]], ask: Ask) -> Tokens:
    """Compare all streams among `records`, whole or not, with the undisturbed answers to the same prompts.

    Parts after a migration are compared with what `ask` gives: the greedy continuation of prompt and answer by that variant.
    """
    found = Tokens()
    for record in records:
        if record.kind != "stream" or not (record.tokens or record.text):
            continue
        variant = record.variant or _ONE
        if variant not in references or (record.migrations and not record.tokens):
            found.unchecked += 1
            continue
        found.checked += 1
        found.migrated += bool(record.migrations)
        try:
            agreements = await _agreements(record, variant, references, ask)
        except (aiohttp.ClientError, TimeoutError, LookupError):
            agreements = []
            found.unchecked += 1
        found.lost += max(sum(one.lost for one in agreements), record.missing)
        found.doubled += max(sum(one.doubled for one in agreements), -record.missing)
        found.diverged += any(one.diverged for one in agreements)
    return found


async def _agreements(
    record: Record, variant: str, references: Mapping[str, Sequence[Reference]], ask: Ask
) -> list[Agreement]:
    reference = references[variant][record.prompt]
    if not (record.tokens and reference.tokens):
        found = compare_text(record.text, reference.text)
        missing = len(reference.text) - found.equal
        if record.outcome == "ok" and found == Agreement(len(record.text)) and missing > 0:
            found = Agreement(found.equal, lost=missing)  # it claims to be whole
        return [found]
    agreements = []
    for part in parts(variant, record.migrations, len(record.tokens)):
        start, expected = record.tokens[: part.start], list(reference.tokens)
        if part.start:
            own = references[part.variant][record.prompt].tokens
            expected = [*start, *own[part.start :]]
            if list(own[: part.start]) != start:
                count = max(STREAM_TOKENS - part.start, 1)
                expected = [*start, *await ask(part.variant, [*record.prompt_tokens, *start], count)]
        agreements.append(compare(record.tokens[: part.end], expected))
    return agreements


async def seams(records: Sequence[Record], bench: Bench) -> list[list[float]]:
    """Of each migration of `records`: the gap that it made, and what a first token after the same prompt takes now, s."""
    found = []
    for record in records:
        for variant, at, gap_s in record.seams():
            with suppress(aiohttp.ClientError, TimeoutError, LookupError):
                prefix_s = await bench.first_token_s(variant, [*record.prompt_tokens, *record.tokens[:at]])
                found.append([round(gap_s, 3), round(prefix_s, 3)])
    return found


async def strike(bench: Bench, fault: Fault | None, seed: object, seconds: float = 0.0) -> dict[str, Any]:
    """Load with one fault, until the system has recovered; without a fault, `seconds` of load. Returns a row for the journal."""
    site, skipped, hit = bench.site, "", None
    recovery: dict[str, float | None] = {}
    async with bench.load(seed) as load:
        await asyncio.sleep(fault.after_s if fault else seconds)
        processes = await asyncio.to_thread(site.find)
        if fault is not None and fault.target.startswith("engine") and (hit := load.busiest) is not None:
            of_variant = await asyncio.to_thread(narrowed(site, hit).find)
            processes |= {fault.target: of_variant.get(fault.target) or processes.get(fault.target, [])}
        struck = time.monotonic()
        if fault is not None:
            try:
                recovery = await _recovery(bench, fault, processes, struck)
            except NoTarget as error:
                skipped = str(error)
            await asyncio.sleep(SETTLE_S)
        records = await load.finish()
    under_way = [one for one in records if fault is None or _overlaps(one, struck, recovery.get("healthy_s"))]
    gaps = [gap for one in under_way if one.kind == "stream" and (gap := one.gap_s) is not None]
    return {
        "fault": {**asdict(fault), "name": fault.name, "variant": hit} if fault else None,
        "skipped": skipped,
        "recovery": recovery,
        **counted(records),
        "gaps_s": [round(gap, 3) for gap in gaps],
        "seams": await seams(under_way, bench),
        "tokens": asdict(await check(records, bench.references, bench.continuation)),
        "lost": [
            [one.kind, round(one.sent_s - struck, 2), round(one.ended_s - struck, 2), one.outcome, one.problem]
            for one in records
            if one.outcome != "ok"
        ],
    }


def _overlaps(record: Record, struck: float, healthy_s: float | None) -> bool:
    return record.ended_s >= struck and (healthy_s is None or record.sent_s <= struck + healthy_s)


def counted(records: Sequence[Record]) -> dict[str, Any]:
    """Outcomes by kind of request, and the problems of those without a whole answer."""
    by_kind: dict[str, Counter[str]] = {}
    for one in records:
        by_kind.setdefault(one.kind, Counter())[one.outcome] += 1
    problems = Counter(f"{one.kind} {one.outcome}: {one.problem}" for one in records if one.outcome != "ok")
    return {"requests": {kind: dict(counts) for kind, counts in by_kind.items()}, "problems": dict(problems)}


async def _recovery(bench: Bench, fault: Fault, processes: Mapping[str, Any], struck: float) -> dict[str, float | None]:
    """Inject `fault`; seconds from its begin until a new request succeeds, and until all is well. None: not within the patience."""
    site, session = bench.site, bench.session
    stored = fault.target in ("database", "disk")
    injecting = asyncio.create_task(inject(fault, processes, site.disk))
    await asyncio.sleep(0)  # it is injected before the first request
    if injecting.done():
        await injecting
    ask = site.searches if stored and site.grounds else site.answers

    async def until_healthy() -> float | None:
        await injecting
        while time.monotonic() - struck < bench.patience_s:
            if await site.healthy(session, bench.before):
                return round(time.monotonic() - struck, 2)
            await asyncio.sleep(_PROBE_EVERY_S)
        return None

    try:
        first, healthy = await asyncio.gather(
            first_success(lambda: ask(session), _PROBE_EVERY_S, bench.patience_s), until_healthy()
        )
    finally:
        injecting.cancel()  # over, unless this was interrupted: what is stopped is continued then
        await asyncio.gather(injecting, return_exceptions=True)
    return {"first_success_s": None if first is None else round(first, 2), "healthy_s": healthy}
