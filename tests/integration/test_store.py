"""The document store on the real PostgreSQL: isolation, atomic document writes, recovery from a killed server."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.database import Database, DatabaseError
from deployments.state import RUN_ID, processes_of
from serve.errors import RequestError
from serve.retrieval.store.postgres import Chunk, Owner, Source, Store, StoreUnavailable

DIMENSION = 8
ALICE, BOB = Owner("alice", "docs"), Owner("bob", "docs")
RUN = f"test-store-{os.getpid()}"  # processes of other runs on this machine are not ours


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RUN_ID, RUN)
        database = Database(tmp_path_factory.mktemp("store") / "documents")
        database.start()
        yield database
        database.stop()
    assert not processes_of(RUN)


@pytest.fixture
async def store(database: Database) -> AsyncIterator[Store]:
    database.restart_if_dead()
    store = Store(database.conninfo, DIMENSION)
    await store.open()
    with psycopg.connect(database.conninfo, autocommit=True) as connection:
        connection.execute("TRUNCATE gearbox.sources CASCADE")
    yield store
    await store.close()


def unit(seed: int) -> np.ndarray[Any, Any]:
    vector = np.random.default_rng(seed).standard_normal(DIMENSION).astype(np.float32)
    return vector / np.linalg.norm(vector)


def source(name: str, version: int = 0, **meta: object) -> Source:
    return Source(name, bytes([version]) * 32, f"settings-{version}", f"Title of {name}", 100, meta)


async def put(store: Store, owner: Owner, name: str, texts: list[str], version: int = 0, **meta: object) -> str:
    chunks = [Chunk(text, f"heading {i}", i + 1) for i, text in enumerate(texts)]
    vectors = np.stack([unit(hash_of(text)) for text in texts]) if texts else np.empty((0, DIMENSION), np.float32)
    return await store.upsert(owner, source(name, version, **meta), chunks, vectors)


def hash_of(text: str) -> int:
    return sum(ord(char) * 31**i for i, char in enumerate(text)) % 2**32


async def found(store: Store, owner: Owner, text: str, top_k: int = 5, filters: dict | None = None) -> list[str]:
    return [hit.content for hit in await store.vector_search(owner, unit(hash_of(text)), top_k, filters)]


async def test_a_document_is_found_by_meaning_and_by_words_with_all_that_is_known_of_it(store):
    assert await put(store, ALICE, "a.md", ["gears shift", "motors run"], year=2024) == "added"
    for hits in (
        await store.vector_search(ALICE, unit(hash_of("gears shift")), 1),
        await store.keyword_search(ALICE, "shifting a gear?", 1),
    ):
        (hit,) = hits
        assert (hit.source, hit.title, hit.content, hit.heading, hit.page) == (
            "a.md", "Title of a.md", "gears shift", "heading 0", 1,
        )  # fmt: skip
        assert hit.meta == {"year": 2024}
        assert hit.embedding.dtype == np.float32
        assert np.allclose(hit.embedding, unit(hash_of("gears shift")))
    assert (await store.vector_search(ALICE, unit(hash_of("gears shift")), 1))[0].score == pytest.approx(1, abs=1e-6)
    assert await store.indexed_version(ALICE, "a.md") == (bytes(32), "settings-0")


async def test_tenants_and_collections_see_nothing_of_each_other(store):
    other = Owner("alice", "other")
    for owner in (ALICE, BOB, other):
        await put(store, owner, "same.md", [f"gears of {owner.tenant} {owner.collection}"])
    for owner in (ALICE, BOB, other):
        mine = [f"gears of {owner.tenant} {owner.collection}"]
        assert await found(store, owner, "gears", 50) == mine
        assert [hit.content for hit in await store.keyword_search(owner, "gears", 50)] == mine
        assert [one.name for one in await store.list_documents(owner)] == ["same.md"]
    assert await store.collections("alice") == {name: {"documents": 1, "chunks": 1} for name in ("docs", "other")}
    assert list(await store.collections("alice", limit=1)) == ["docs"]
    assert list(await store.collections("alice", after="docs")) == ["other"]
    assert await store.delete(BOB) == 1
    assert await store.indexed_version(ALICE, "same.md") is not None
    assert await store.indexed_version(BOB, "same.md") is None
    assert await store.collections("nobody") == {}


async def test_a_small_collection_among_many_others_rows_is_found_whole(store, database):
    """An index over all tenants would end its scan before it came to these."""
    with psycopg.connect(database.conninfo, autocommit=True) as connection:
        connection.execute(
            """INSERT INTO gearbox.sources (tenant, collection, name, sha256, settings, title, size, chunks, meta)
               VALUES ('crowd', 'docs', 'crowd', '', '', '', 0, 30000, '{}')"""
        )
        connection.execute(
            "DROP INDEX gearbox.chunks_embedding"
        )  # made anew from all rows it takes a tenth of the time
        connection.execute(
            """INSERT INTO gearbox.chunks (source_id, position, tenant, collection, heading, content, embedding)
               SELECT (SELECT id FROM gearbox.sources WHERE tenant = 'crowd'), i, 'crowd', 'docs', '', 'crowd',
                      ARRAY[1, random(), random(), random(), random(), random(), random(), random()]::vector
               FROM generate_series(1, 30000) i"""
        )
        connection.execute("CREATE INDEX chunks_embedding ON gearbox.chunks USING hnsw (embedding vector_cosine_ops)")
    await put(store, ALICE, "a.md", [f"text {i}" for i in range(7)])
    far = -np.ones(DIMENSION, np.float32) / DIMENSION**0.5
    near = np.ones(DIMENSION, np.float32) / DIMENSION**0.5
    options = "-c enable_sort=off -c enable_bitmapscan=off"  # a planner that takes the index of embeddings where it can
    stubborn = Store(f"{database.conninfo} options='{options}'", DIMENSION)
    for query in (near, far):
        assert len(await stubborn.vector_search(ALICE, query, 5)) == 5
        assert len(await stubborn.vector_search(ALICE, query, 50)) == 7
    await stubborn.close()
    crowd = Owner("crowd", "docs")
    began = time.monotonic()
    assert len(await store.vector_search(crowd, near, 20)) == 20
    assert time.monotonic() - began < 1
    assert await store.vector_search(crowd, near, 5, {"field": "meta.x", "operator": "==", "value": 1}) == []


async def test_results_are_the_nearest_in_order(store):
    texts = [f"text {i}" for i in range(200)]
    await put(store, ALICE, "a.md", texts)
    query = unit(1)
    expected = sorted(texts, key=lambda text: -float(unit(hash_of(text)) @ query))[:10]
    assert [hit.content for hit in await store.vector_search(ALICE, query, 10)] == expected


async def test_a_list_in_the_metadata_equals_each_of_its_values(store):
    for name, tags in (("both", ["x", 2]), ("one", "x"), ("none", []), ("other", ["y"]), ("nested", [["x"]])):
        await put(store, ALICE, name, [name], tags=tags)
    await put(store, ALICE, "without", ["without"])

    async def chosen(operator: str, value: object) -> set[str]:
        filters = {"field": "meta.tags", "operator": operator, "value": value}
        return set(await found(store, ALICE, "both", 9, filters))

    assert await chosen("==", "x") == {"both", "one"}
    assert await chosen("in", ["x", "y"]) == {"both", "one", "other"}
    assert await chosen("in", [2.0]) == {"both"}
    assert await chosen("!=", "x") == {"none", "other", "nested", "without"}
    assert await chosen("not in", ["y", 2]) == {"one", "none", "nested", "without"}
    assert await chosen("==", None) == {"without"}
    assert await chosen(">", "a") == {"one"}


async def test_filters_choose_documents_by_their_metadata(store):
    for year in (2020, 2021, 2022):
        await put(store, ALICE, f"{year}.md", [f"report of {year}"], year=year, team="core" if year > 2020 else None)
    await put(store, ALICE, "bare.md", ["report without a year"])

    async def chosen(**one: object) -> set[str]:
        hits = await store.keyword_search(ALICE, "report", 50, one)
        assert {hit.source for hit in await store.vector_search(ALICE, unit(1), 50, one)} == {
            hit.source for hit in hits
        }
        return {hit.source.removesuffix(".md") for hit in hits}

    everything = {"2020", "2021", "2022", "bare"}
    assert await chosen(field="meta.year", operator=">=", value=2021) == {"2021", "2022"}
    assert await chosen(field="year", operator="<", value=2021.5) == {"2020", "2021"}
    assert await chosen(field="meta.year", operator=">", value="2000") == set()
    assert await chosen(field="meta.year", operator="==", value="2020") == set()
    assert await chosen(field="meta.year", operator="!=", value=2020) == everything - {"2020"}
    assert await chosen(field="meta.year", operator="in", value=[2020, 2022, None]) == {"2020", "2022", "bare"}
    assert await chosen(field="meta.year", operator="not in", value=[2020]) == everything - {"2020"}
    assert await chosen(field="meta.year", operator="in", value=[]) == set()
    assert await chosen(field="meta.team", operator="==", value=None) == {"2020", "bare"}
    assert await chosen(field="source", operator="in", value=["2020.md", "x", 5]) == {"2020"}
    assert await chosen(field="title", operator="<", value="Title of 2022") == {"2020", "2021"}
    old = {"field": "meta.year", "operator": "<", "value": 2021}
    assert await chosen(operator="NOT", conditions=[old]) == everything - {"2020"}
    core = {"field": "meta.team", "operator": "==", "value": "core"}
    assert await chosen(operator="OR", conditions=[old, core]) == {"2020", "2021", "2022"}
    assert await chosen(operator="AND", conditions=[old, core]) == set()


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())
NASTY = st.sampled_from(
    ["' OR 1=1 --", "x'); DROP TABLE gearbox.sources; --", "%s", "%(tenant)s", "100%", "\\", '"', "}{"]
)
FIELDS = st.one_of(st.text(min_size=1), NASTY)
LEAVES = st.fixed_dictionaries(
    {
        "field": FIELDS,
        "operator": st.sampled_from(["==", "!=", ">", ">=", "<", "<=", "in", "not in"]),
        "value": st.one_of(SCALARS, NASTY, st.lists(st.one_of(SCALARS, NASTY), max_size=4)),
    }
)
FILTERS = st.recursive(
    LEAVES,
    lambda below: st.fixed_dictionaries(
        {"operator": st.sampled_from(["AND", "OR", "NOT"]), "conditions": st.lists(below, min_size=1, max_size=3)}
    ),
    max_leaves=6,
)


async def test_no_filter_and_no_text_breaks_a_query_or_out_of_the_tenant(store):
    await put(store, BOB, "b.md", ["secret gears"], x=1)
    await put(store, ALICE, "a.md", ["gears"], x=1)
    loop = asyncio.get_running_loop()

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(filters=FILTERS, text=st.one_of(st.text(), NASTY))
    def check(filters: dict[str, Any], text: str) -> None:
        for work in (
            store.keyword_search(ALICE, f"gears {text}", 5, filters),
            store.vector_search(ALICE, unit(1), 5, filters),
        ):
            try:
                hits = asyncio.run_coroutine_threadsafe(work, loop).result(30)
            except RequestError as error:
                assert error.status == 400, error
            else:
                assert {hit.source for hit in hits} <= {"a.md"}

    await asyncio.to_thread(check)
    assert await store.indexed_version(BOB, "b.md")


@pytest.mark.parametrize("text", ["", " ", "the of and", "''", "a & b | !c:*", "o'brien\\x", "😀", "\0", "x" * 100_000])
async def test_a_search_for_any_text_gives_an_answer(store, text):
    await put(store, ALICE, "a.md", ["o'brien"])
    await store.keyword_search(ALICE, text, 5)


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
    for wait in (0.0, 0.01, 0.05, 0.1, 0.2):
        task = asyncio.create_task(put(store, ALICE, "a.md", texts, 1))
        await asyncio.sleep(wait)
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


async def test_documents_without_chunks_and_with_very_many_are_kept(store):
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
        assert connection.execute("SELECT count(*) FROM gearbox.migrations").fetchone() == (1,)


async def misconfigured(work: Any) -> str:
    """The message of an error that only the operator can mend."""
    with pytest.raises(RequestError) as caught:
        await work
    assert (caught.value.status, caught.value.code) == (500, "retrieval_misconfigured")
    assert "retry-after" not in caught.value.headers
    return caught.value.message


async def test_another_dimension_or_language_is_an_error_that_says_what_to_do(database, store):
    for other in (Store(database.conninfo, DIMENSION + 1), Store(database.conninfo, DIMENSION, "german")):
        message = await misconfigured(other.open())
        assert f"made for embeddings of {DIMENSION} dimensions and the language 'english'" in message
        assert "retrieval.embedder" in message


async def test_vectors_of_another_dimension_are_not_the_clients_fault(store):
    await put(store, ALICE, "a.md", ["one"])
    wrong = np.ones((1, DIMENSION + 1), np.float32)
    for work in (
        store.vector_search(ALICE, wrong[0], 5), store.upsert(ALICE, source("b.md"), [Chunk("two")], wrong),
        store.upsert(ALICE, source("b.md"), [Chunk("two")], np.full((1, DIMENSION), np.nan, np.float32)),
    ):  # fmt: skip
        assert "can't be used" in await misconfigured(work)
    assert await found(store, ALICE, "one") == ["one"]


async def test_a_database_that_is_not_what_it_was_is_a_misconfiguration(database, store):
    with psycopg.connect(database.conninfo, autocommit=True) as connection:
        connection.execute("ALTER SCHEMA gearbox RENAME TO elsewhere")
        try:
            assert "does not exist" in await misconfigured(store.exists(ALICE))
        finally:
            connection.execute("ALTER SCHEMA elsewhere RENAME TO gearbox")
    assert await store.exists(ALICE) is False


async def test_a_language_that_is_none_and_a_role_without_rights_are_misconfigurations(database):
    with psycopg.connect(database.conninfo, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS other")
        connection.execute("CREATE DATABASE other")
        connection.execute("CREATE ROLE nobody LOGIN")
    conninfo = psycopg.conninfo.make_conninfo(database.conninfo, dbname="other")
    assert "klingon" in await misconfigured(Store(conninfo, DIMENSION, "klingon").open())
    nobody = psycopg.conninfo.make_conninfo(conninfo, user="nobody")
    assert "permission denied" in await misconfigured(Store(nobody, DIMENSION).open())
    with psycopg.connect(database.conninfo, autocommit=True) as connection:
        connection.execute("DROP DATABASE other")
        connection.execute("DROP ROLE nobody")


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


def kill(database: Database) -> None:
    """Kill the server, and wait until the processes that serve connections have noticed, which may answer until then."""
    process = database._process
    assert process is not None
    serving = psutil.Process(process.pid).children()
    process.kill()
    process.wait(10)
    assert not psutil.wait_procs(serving, 20)[1]


async def test_a_lost_connection_is_not_noticed(store, database):
    await put(store, ALICE, "a.md", ["gears"])
    for work in (lambda: found(store, ALICE, "gears"), lambda: put(store, ALICE, "b.md", ["other"])):
        with psycopg.connect(database.conninfo, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        await work()


async def test_a_killed_server_is_an_error_until_it_is_restarted_and_then_all_goes_on(store, database):
    await put(store, ALICE, "a.md", ["gears"])
    kill(database)
    assert not database.running()
    for work in (
        lambda: store.indexed_version(ALICE, "a.md"), lambda: found(store, ALICE, "gears"), lambda: put(store, ALICE, "b.md", ["x"]),
    ):  # fmt: skip
        with pytest.raises(StoreUnavailable) as caught:
            await work()
        assert (caught.value.status, caught.value.code) == (503, "store_unavailable")
    with pytest.raises(StoreUnavailable):
        await store.open()
    began = time.monotonic()
    assert database.restart_if_dead()
    assert time.monotonic() - began < 20
    assert await found(store, ALICE, "gears") == ["gears"]
    await store.open()
    assert not database.restart_if_dead()


async def test_a_server_killed_during_queries_and_writes_leaves_whole_documents(store, database):
    """Every document is there whole, in a version that was written, and once; what was told to be written is there."""
    stop, told = threading.Event(), {}

    def keep() -> None:
        while not stop.is_set():
            database.restart_if_dead()
            stop.wait(0.1)

    keeper = threading.Thread(target=keep)
    keeper.start()
    until = time.monotonic() + 8

    async def write(number: int) -> None:
        version = 0
        while time.monotonic() < until:
            version = (version + 1) % 250
            try:
                await put(store, ALICE, f"{number}.md", [f"gears v{version} {i}" for i in range(40)], version)
                told[number] = version
            except StoreUnavailable:
                await asyncio.sleep(0.05)

    async def read() -> int:
        answered = 0
        while time.monotonic() < until:
            try:
                hits = await store.keyword_search(ALICE, "gears", 1000)
            except StoreUnavailable:
                await asyncio.sleep(0.05)
                continue
            answered += 1
            by_source: dict[str, list[str]] = {}
            for hit in hits:
                by_source.setdefault(hit.source, []).append(hit.content.split()[1])
            assert all(len(ones) == 40 and len(set(ones)) == 1 for ones in by_source.values())
        return answered

    async def trouble() -> int:
        killed = 0
        while time.monotonic() < until - 3:
            await asyncio.sleep(1)
            if database.running():
                os.kill(database._process.pid, signal.SIGKILL)
                killed += 1
        return killed

    try:
        *_, answered, killed = await asyncio.gather(*(write(i) for i in range(3)), read(), trouble())
    finally:
        stop.set()
        keeper.join()
    database.restart_if_dead()
    assert killed >= 2
    assert answered > 5
    assert len(told) == 3
    listed = await store.list_documents(ALICE)
    assert sorted(one.name for one in listed) == ["0.md", "1.md", "2.md"]
    assert len(await store.keyword_search(ALICE, "gears", 1000)) == 120


async def test_a_server_that_hangs_is_an_error_and_not_a_hang(store, database, monkeypatch):
    monkeypatch.setattr("serve.retrieval.store.postgres._READ_TIMEOUT_S", 0.5)
    await put(store, ALICE, "a.md", ["gears"])
    stopped = [process for process in psutil.process_iter() if database._uses_folder(process)]
    for process in stopped:
        process.suspend()
    try:
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.indexed_version(ALICE, "a.md")
        assert time.monotonic() - began < 20
    finally:
        for process in stopped:
            process.resume()
    assert await store.indexed_version(ALICE, "a.md")


def test_processes_carry_the_mark_of_the_run_and_a_folder_has_one_user(database):
    database.restart_if_dead()
    assert database._process.pid in [process.pid for process in processes_of(RUN)]
    with pytest.raises(DatabaseError, match="another platform"):
        Database(database._folder).start()
    assert database.running()


def test_what_a_killed_platform_left_is_ended_and_its_data_taken_over(tmp_path):
    folder = tmp_path / "documents"
    code = (
        "import os, sys; from pathlib import Path; from deployments.database import Database\n"
        "import psycopg; d = Database(Path(sys.argv[1])); c = d.start()\n"
        "k = psycopg.connect(c, autocommit=True); k.execute('CREATE TABLE t AS SELECT 7 AS a')\n"
        "print(d._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    left = int(subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False).stdout)
    assert psutil.pid_exists(left)
    database = Database(folder)
    conninfo = database.start()
    try:
        assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE
        with psycopg.connect(conninfo) as connection:
            assert connection.execute("SELECT a FROM t").fetchone() == (7,)
    finally:
        database.stop()
    assert not any(database._uses_folder(process) for process in psutil.process_iter())
    assert not Path(conninfo.split()[0].removeprefix("host=")).exists()


def test_a_stale_pid_file_with_a_living_number_does_not_matter(tmp_path):
    database = Database(tmp_path / "documents")
    database.start()
    database.stop()
    (tmp_path / "documents/postmaster.pid").write_text(f"{os.getpid()}\n{tmp_path / 'documents'}\n1\n5432\n\n\n")
    database.start()
    assert database.running()
    database.stop()
    assert not database.restart_if_dead()
    assert not database.running()


def test_a_folder_that_is_something_else_is_left_alone(tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    with pytest.raises(DatabaseError, match="neither empty"):
        Database(folder).start()
    (folder / "PG_VERSION").write_text("16\n")
    with pytest.raises(DatabaseError, match="PostgreSQL 16"):
        Database(folder).start()
    assert (folder / "letter.txt").read_text() == "dear"


def modes(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """Permissions and owners of `folder` and of all above it."""
    return {path: (s.st_mode, s.st_uid, s.st_gid) for path in (folder, *folder.parents) if (s := path.stat())}


def test_folders_that_were_there_keep_their_permissions_and_the_server_runs_all_the_same(tmp_path):
    closed = tmp_path / "home/platform"
    closed.mkdir(parents=True)
    for folder in (closed, closed.parent):
        folder.chmod(0o700)
    before = modes(closed)
    database = Database(closed / "documents")
    try:
        with psycopg.connect(database.start(), autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 7 AS a")
            connection.execute("CHECKPOINT")
        os.kill(database._process.pid, signal.SIGKILL)
        database._process.wait()
        assert database.restart_if_dead()
        with psycopg.connect(database.conninfo) as connection:
            assert connection.execute("SELECT a FROM kept").fetchone() == (7,)
    finally:
        database.stop()
    assert modes(closed) == before
    assert database.log.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
def test_root_leaves_data_to_its_owner_and_says_what_it_cannot_use(tmp_path, monkeypatch):
    database = Database(tmp_path / "documents")
    database.start()
    database.stop()
    folder = tmp_path / "documents"
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 65534, 65534)
    database.start()
    assert psutil.Process(database._process.pid).uids().real == 65534
    database.stop()
    assert folder.stat().st_uid == 65534
    os.chown(folder, 0, 0)
    with pytest.raises(DatabaseError, match="belongs to root"):
        database.start()
    assert folder.stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
def test_programs_that_the_servers_account_cannot_reach_are_told_of_and_not_opened(tmp_path, monkeypatch):
    programs = tmp_path / "closed/bin"
    programs.mkdir(parents=True)
    programs.parent.chmod(0o700)
    monkeypatch.setattr("deployments.database._BIN", programs)
    before = modes(programs)
    with pytest.raises(DatabaseError, match=r"other accounts have no access to .*another user than root"):
        Database(tmp_path / "documents").start()
    assert modes(programs) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["closed", "documents.lock"]
