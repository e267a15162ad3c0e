"""Search latency and indexing speed for `benchmarks.retrieval.search`: in one process, without Ray and HTTP."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import psycopg
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from benchmarks.reporting.results import spread
from benchmarks.retrieval.corpora import Document
from compression.measure.intervals import bootstrap_ci95
from deployments.database import Database
from serve.retrieval.embedder import Embedder, Vectors
from serve.retrieval.ingest.convert import Text
from serve.retrieval.ingest.indexer import Indexer, Splitter
from serve.retrieval.pipelines import RetrievalPipeline, load_pipelines
from serve.retrieval.service import BUNDLED
from serve.retrieval.store.postgres import Chunk, Owner, Source, Store

SEED = 0
OWNER = Owner("large", "docs")
SMALL, MIDDLE = Owner("small", "docs"), Owner("middle", "docs")  # other tenants in the same store
SMALL_CHUNKS, MIDDLE_CHUNKS = 300, 12_000
FULL = 100_000  # chunks
PER_DOCUMENT, PER_SMALL_DOCUMENT = 50, 5  # chunks of a made-up document
NOISE = 0.45  # norm of the noise added to a unit vector: cosine 0.91
MODES = ("keyword", "dense", "hybrid")
CLIENTS = (1, 8)
ROUNDS = 3
NEAREST = 20  # number of exact neighbours that recall is measured against
SEARCHES = (40, 100, 200)  # hnsw.ef_search; the first is pgvector's default
SHARES = (10, 100, 1000)  # one in N documents passes the filter
WORKERS = (1, 2)
SPEED_DOCUMENTS = {"html": 2, "text": 30}  # documents of a round of indexing

Embed = Callable[[Sequence[str]], Awaitable[Vectors]]


def bar() -> Bar:
    """Progress bar with the time left."""
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Bar(*columns, transient=True)


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean with its 95% interval over bootstrap samples."""
    data = np.asarray(values)
    return {
        "mean": round(float(data.mean()), 4),
        "ci95": [round(one, 4) for one in bootstrap_ci95(data)],
        "n": len(data),
    }


def one_at_a_time(embed: Callable[[Sequence[str]], Vectors]) -> Embed:
    """Embed like the embedder's deployment: in a thread, one batch at a time."""
    busy = asyncio.Lock()

    async def call(texts: Sequence[str]) -> Vectors:
        async with busy:
            return await asyncio.to_thread(embed, texts)

    return call


async def index_all(indexer: Indexer, owner: Owner, documents: Sequence[Document], workers: int, what: str) -> int:
    """Index every document; returns the number of chunks."""
    waiting, chunks = iter(documents), 0
    with bar() as progress:
        task = progress.add_task(what, total=len(documents))

        async def work() -> None:
            nonlocal chunks
            for document in waiting:
                indexed = await indexer.index(owner, document.name, document.data, document.kind, document.title)
                chunks += indexed.chunks
                progress.advance(task)

        await asyncio.gather(*(work() for _ in range(workers)))
    return chunks


@dataclass(slots=True)
class Spent:
    """Seconds in each stage, summed over all workers."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, started: float) -> None:
        """Add the time since `started`."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started


class TimedSplitter(Splitter):
    """A splitter that measures its time."""

    spent: Spent

    def chunks(self, text: Text, kind: str, most: int) -> list[Chunk]:
        """See the splitter."""
        started = time.perf_counter()
        try:
            return Splitter.chunks(self, text, kind, most)
        finally:
            self.spent.add("split", started)


class TimedStore(Store):
    """A store that measures its writing time."""

    spent: Spent

    async def upsert(self, owner: Owner, source: Source, chunks: Sequence[Chunk], embeddings: Vectors) -> Any:
        """See the store."""
        started = time.perf_counter()
        try:
            return await Store.upsert(self, owner, source, chunks, embeddings)
        finally:
            self.spent.add("write", started)


async def indexing(
    database: Database, embedder: Embedder, folder: Path, documents: Sequence[Document]
) -> dict[str, Any]:
    """Documents indexed per second with an empty cache, by number of workers; and the time of each stage."""
    drawn, rows = random.Random(SEED), {}
    by_kind = {kind: [one for one in documents if one.kind == kind] for kind in SPEED_DOCUMENTS}
    for workers in WORKERS:
        rounds = []
        for number in range(ROUNDS + 1):
            some = [one for kind, count in SPEED_DOCUMENTS.items() for one in drawn.sample(by_kind[kind], count)]
            if not number:
                some = some[: len(some) // 8]  # warm-up: starts the conversion processes
            spent = Spent()
            store, splitter = (
                TimedStore(database.conninfo, embedder.dimension),
                TimedSplitter(folder / "tokenizer.json"),
            )
            store.spent = splitter.spent = spent
            await store.open()

            def embed(texts: Sequence[str], spent: Spent = spent) -> Vectors:
                started = time.perf_counter()
                try:
                    return embedder.embed(texts)
                finally:
                    spent.add("embed", started)

            indexer = Indexer(store, one_at_a_time(embed), splitter, "timed")
            owner = Owner(f"speed-{workers}-{number}", "docs")
            started, used = time.perf_counter(), _cpu_s()
            chunks = await index_all(indexer, owner, some, workers, f"indexing, {workers} at once")
            took, used = time.perf_counter() - started, _cpu_s() - used
            await store.delete(owner)
            await store.close()
            if number:
                rest = (
                    {"read and other": max(workers * took - sum(spent.seconds.values()), 0.0)} if workers == 1 else {}
                )
                total = sum(spent.seconds.values()) + sum(rest.values())
                rounds.append(
                    {
                        "documents_per_s": len(some) / took,
                        "chunks_per_s": chunks / took,
                        "mb_per_s": sum(len(one.data) for one in some) / took / 1e6,
                        "cpu_ms_per_chunk": used / chunks * 1000,
                        **{f"share_{stage}": seconds / total for stage, seconds in (spent.seconds | rest).items()},
                    }
                )
        rows[str(workers)] = {key: spread([one[key] for one in rounds], 3) for key in rounds[0]}
    return rows


async def latency(questions: Sequence[str]) -> dict[str, Any]:
    """Query latency in ms by mode and clients, and that of its components."""
    rows: dict[str, Any] = {}
    pipelines = load_pipelines([BUNDLED])
    for mode in MODES:
        pipeline = pipelines[mode]
        for clients in CLIENTS:
            rounds = [await _measure_latency(pipeline, questions, clients) for _ in range(ROUNDS + 1)][
                1:
            ]  # the first one is the warm-up
            rows.setdefault(mode, {})[str(clients)] = {key: spread([one[key] for one in rounds]) for key in rounds[0]}
    return rows


async def _measure_latency(pipeline: RetrievalPipeline, questions: Sequence[str], clients: int) -> dict[str, float]:
    waiting = iter(questions)
    times: list[float] = []
    parts: list[Mapping[str, float]] = []

    async def work() -> None:
        for question in waiting:
            started = time.perf_counter()
            output = await pipeline.run(
                question=question, tenant=OWNER.tenant, collection=OWNER.collection, top_k=4, min_score=0.0
            )
            times.append((time.perf_counter() - started) * 1000)
            parts.append(output.timings_ms)

    started, used = time.perf_counter(), _cpu_s()
    await asyncio.gather(*(work() for _ in range(clients)))
    took, used = time.perf_counter() - started, _cpu_s() - used
    return {
        "p50_ms": float(np.quantile(times, 0.5)),
        "p95_ms": float(np.quantile(times, 0.95)),
        "per_s": len(times) / took,
        "cpu_ms": used / len(times) * 1000,
        **{f"{name}_ms": float(np.median([one[name] for one in parts])) for name in parts[0]},
    }


def vectors_of(conninfo: str, owner: Owner) -> tuple[list[tuple[str, int]], Vectors, list[int]]:
    """A collection's chunks: (source, position), vectors, and the number of each one's document."""
    query = """SELECT s.name, c.position, s.meta -> 'number', c.embedding::real[] FROM gearbox.chunks c
               JOIN gearbox.sources s ON s.id = c.source_id WHERE c.tenant = %s AND c.collection = %s"""
    with psycopg.connect(conninfo) as connection, connection.cursor(binary=True) as cursor:
        rows = cursor.execute(query, (owner.tenant, owner.collection)).fetchall()
    matrix = np.array([row[3] for row in rows], np.float32)
    return [(row[0], row[1]) for row in rows], matrix, [-1 if row[2] is None else int(row[2]) for row in rows]


async def index_recall(database: Database, queries: Vectors) -> list[dict[str, Any]]:
    """Recall of the store's vector search against exact search and its latency, by filter and `ef_search`."""
    rows = []
    for owner in (OWNER, MIDDLE, SMALL):
        keys, matrix, numbers = vectors_of(database.conninfo, owner)
        for share in (1, *SHARES) if owner == OWNER else (1,):
            inside = np.array([number % share == 0 for number in numbers])
            rows_inside = np.flatnonzero(inside)
            truth = [
                {keys[rows_inside[i]] for i in np.argsort(-(matrix[rows_inside] @ one))[:NEAREST]} for one in queries
            ]
            filters = None if share == 1 else {"field": f"meta.in_{share}", "operator": "==", "value": 0}
            for search in SEARCHES if owner == OWNER and share == 1 else SEARCHES[:1]:
                store = Store(f"{database.conninfo} options='-c hnsw.ef_search={search}'", matrix.shape[1])
                await store.vector_search(owner, queries[0].tolist(), NEAREST, filters)
                recalls, times = [], []
                for one, right in zip(queries, truth, strict=True):
                    started = time.perf_counter()
                    hits = await store.vector_search(owner, one.tolist(), NEAREST, filters)
                    times.append((time.perf_counter() - started) * 1000)
                    recalls.append(len({(hit.source, hit.position) for hit in hits} & right) / len(right))
                await store.close()
                rows.append(
                    {
                        "tenant": owner.tenant, "chunks": len(keys), "filter_keeps": len(rows_inside), "ef_search": search,
                        "recall": interval(recalls), "p50_ms": round(float(np.quantile(times, 0.5)), 2),
                        "p95_ms": round(float(np.quantile(times, 0.95)), 2),
                    }
                )  # fmt: skip
    return rows


async def fill(database: Database, store: Store) -> float:
    """Add chunks recombined from existing ones until there are `FULL`; also fill two other tenants. Returns seconds.

    The vector index is built after the inserts.
    """
    draw, noise = random.Random(SEED), np.random.default_rng(SEED)
    with psycopg.connect(database.conninfo, autocommit=True) as connection:
        texts = [
            (row[0], row[1].tolist() if hasattr(row[1], "tolist") else row[1])
            for row in connection.execute(
                "SELECT content, embedding::real[] FROM gearbox.chunks WHERE tenant = %s ORDER BY source_id, position",
                (OWNER.tenant,),
            )
        ]
        index = connection.execute("SELECT indexdef FROM pg_indexes WHERE indexname = 'chunks_embedding'").fetchone()
        connection.execute("DROP INDEX gearbox.chunks_embedding")
        matrix = np.array([vector for _, vector in texts], np.float32)
        missing = [(OWNER, FULL - len(texts)), (MIDDLE, MIDDLE_CHUNKS), (SMALL, SMALL_CHUNKS)]
        started = time.monotonic()
        with bar() as progress:
            task = progress.add_task("chunks", total=sum(count for _, count in missing))
            number = 0
            for owner, count in missing:
                per = min(PER_DOCUMENT, 5) if owner == MIDDLE else PER_DOCUMENT  # so that it has many documents
                for at in range(0, count, per):
                    some = [draw.randrange(len(texts)) for _ in range(min(per, count - at))]
                    chunks = [Chunk(_recombined(texts[i][0], texts[draw.randrange(len(texts))][0])) for i in some]
                    added = noise.standard_normal((len(some), matrix.shape[1]), np.float32)
                    near = matrix[some] + NOISE * added / np.linalg.norm(added, axis=1, keepdims=True)
                    near /= np.linalg.norm(near, axis=1, keepdims=True)
                    meta = {"number": number, **{f"in_{share}": number % share for share in SHARES}}
                    await store.upsert(owner, Source(f"made up {number}", b"", "", meta=meta), chunks, near)
                    number += 1
                    progress.advance(task, len(some))
        assert index is not None
        print(
            f"  the chunks are in after {time.monotonic() - started:.0f} s; the index of embeddings is made", flush=True
        )
        started = time.monotonic()
        connection.execute(index[0])
        took = time.monotonic() - started
        connection.execute("VACUUM ANALYZE gearbox.chunks")
        connection.execute("VACUUM ANALYZE gearbox.sources")
    return took


def _recombined(one: str, other: str) -> str:
    """The first half of one text and the second of another."""
    return f"{one[: len(one) // 2].rpartition(' ')[0]} {other[len(other) // 2 :].partition(' ')[2]}"


def _cpu_s() -> float:
    """Seconds of processor time of this process, its children and the database."""
    me = psutil.Process()
    total = 0.0
    for process in (me, *me.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
