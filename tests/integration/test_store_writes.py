"""Writes to the document store: atomic, concurrent, cancelled; migrations, and the limit of connections."""

import asyncio
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest

from serve.errors import RequestError
from serve.retrieval.store import schema
from serve.retrieval.store.postgres import Chunk, Owner, Store
from tests.support.stored_documents import ALICE, DIMENSION, put, source, unit


async def test_concurrent_readers_see_the_old_document_or_the_new_one(store):
    await put(store, ALICE, "a.md", [f"gears v0 {i}" for i in range(20)])
    seen, done = [], asyncio.Event()

    async def read() -> None:
        while not done.is_set():
            hits = await store.keyword_search(ALICE, "gears", 100)
            seen.append((len(hits), {hit.content.split()[1] for hit in hits}))
            await asyncio.sleep(0)

    readers = [asyncio.create_task(read()) for _ in range(4)]
    for version in range(1, 15):
        assert await put(store, ALICE, "a.md", [f"gears v{version} {i}" for i in range(20)], version) == "replaced"
    done.set()
    await asyncio.gather(*readers)
    assert len(seen) > 20
    assert {number for number, _ in seen} == {20}
    assert all(len(versions) == 1 for _, versions in seen)


async def test_two_writers_of_one_name_leave_one_whole_document(store, database):
    another = Store(database.conninfo, DIMENSION)
    results = await asyncio.gather(
        *(put((store, another)[i % 2], ALICE, "a.md", [f"gears v{i} {j}" for j in range(9)], i) for i in range(16))
    )
    assert sorted(results) == ["added"] + ["replaced"] * 15
    hits = await store.keyword_search(ALICE, "gears", 100)
    assert len(hits) == 9
    assert len({hit.content.split()[1] for hit in hits}) == 1
    await another.close()


async def test_many_writers_of_many_names_do_not_block_each_other(store):
    await asyncio.gather(*(put(store, ALICE, f"{i}.md", [f"gears {i}"]) for i in range(60)))
    listed = await store.list_documents(ALICE, limit=1000)
    assert len(listed) == 60
    first = await store.list_documents(ALICE, limit=25)
    rest = await store.list_documents(ALICE, after=first[-1].name, limit=1000)
    assert [one.name for one in first + rest] == [one.name for one in listed] == sorted(one.name for one in listed)


async def test_a_put_that_is_cancelled_or_that_fails_leaves_what_was_there(store):
    await put(store, ALICE, "a.md", ["gears old"])
    texts = [f"gears new {i}" for i in range(3000)]
    vectors = np.stack([unit(i) for i in range(3000)])

    class CancelledAt(list[Chunk]):
        """Chunks; the put is cancelled when it writes the one at `row`."""

        row: int | None = None

        def __iter__(self) -> Iterator[Chunk]:
            for i, chunk in enumerate(super().__iter__()):
                if i == self.row:
                    task.cancel()
                yield chunk

    for row in (None, 0, 1, 1000, 2999):
        chunks = CancelledAt(map(Chunk, texts))
        chunks.row = row
        task = asyncio.create_task(store.upsert(ALICE, source("a.md", 1), chunks, vectors))
        if row is None:  # before its first statement is answered
            await asyncio.sleep(0)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [hit.content for hit in await store.keyword_search(ALICE, "gears", 50)] == ["gears old"]
    with pytest.raises(ValueError, match="zip"):
        await store.upsert(ALICE, source("a.md", 1), [Chunk("x")] * 2, np.zeros((1, DIMENSION), np.float32))
    with pytest.raises(RequestError) as caught:
        await store.upsert(ALICE, source("a.md", 1), [Chunk("x\0y")], np.ones((1, DIMENSION), np.float32))
    assert caught.value.status == 400
    assert await store.indexed_version(ALICE, "a.md") == (bytes(32), "settings-0")
    assert await put(store, ALICE, "a.md", ["gears new"], 1) == "replaced"


async def test_documents_without_chunks_and_with_very_many_are_stored(store):
    assert await put(store, ALICE, "empty.md", []) == "added"
    assert (await store.list_documents(ALICE))[0].chunks == 0
    await put(store, ALICE, "huge.md", [f"gears {i}" for i in range(5000)])
    assert len(await store.vector_search(ALICE, unit(1), 50)) == 50
    assert await store.delete(ALICE, "huge.md") == 1
    assert await store.vector_search(ALICE, unit(1), 50) == []
    assert await store.delete(ALICE, "huge.md") == 0


async def test_opening_twice_and_at_once_migrates_once(database):
    with psycopg.connect(database.conninfo, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS gearbox CASCADE")
        stores = [Store(database.conninfo, DIMENSION) for _ in range(8)]
        await asyncio.gather(*(store.open() for store in stores))
        await stores[0].open()
        assert connection.execute("SELECT count(*) FROM gearbox.migrations").fetchone() == (len(schema._MIGRATIONS),)


async def test_a_collection_exists_as_long_as_it_has_documents_and_only_for_its_tenant(store):
    assert await store.exists(ALICE) is False
    await put(store, ALICE, "a.md", ["one"])
    assert await store.exists(ALICE) is True
    assert await store.exists(Owner("other", ALICE.collection)) is False
    assert await store.exists(Owner(ALICE.tenant, "other")) is False
    await store.delete(ALICE)
    assert await store.exists(ALICE) is False


async def test_more_callers_than_connections_wait_for_one(database, store):
    narrow = Store(database.conninfo, DIMENSION, connections=2)
    await put(store, ALICE, "a.md", ["gears"])
    answers = await asyncio.gather(*(narrow.keyword_search(ALICE, "gears", 1) for _ in range(200)))
    assert all(len(hits) == 1 for hits in answers)
    with psycopg.connect(database.conninfo) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        ).fetchone()
    assert row is not None
    assert row[0] <= 2 + 2 + 1
    await narrow.close()
