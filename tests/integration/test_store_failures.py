"""Failures of the document store: misconfiguration, lost connections, and a killed or hanging server."""

import asyncio
import os
import signal
import threading
import time
from typing import Any

import numpy as np
import psutil
import psycopg
import pytest

from deployments.database import Database
from serve.errors import RequestError
from serve.retrieval.store.postgres import Chunk, Store, StoreUnavailable
from tests.support.stored_documents import ALICE, DIMENSION, found, put, source


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
    started = time.monotonic()
    assert database.restart_if_dead()
    assert time.monotonic() - started < 20
    assert await found(store, ALICE, "gears") == ["gears"]
    await store.open()
    assert not database.restart_if_dead()


async def test_a_server_killed_during_queries_and_writes_leaves_whole_documents(store, database):
    """Every document is there whole, in a version that was written, and once; what was acknowledged is there."""
    stop, acknowledged = threading.Event(), {}

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
                acknowledged[number] = version
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
    assert len(acknowledged) == 3
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
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.indexed_version(ALICE, "a.md")
        assert time.monotonic() - started < 20
    finally:
        for process in stopped:
            process.resume()
    assert await store.indexed_version(ALICE, "a.md")
