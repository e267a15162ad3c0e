"""Fixtures of the document store: a real PostgreSQL for a module, and a store emptied for each test."""

import os
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest

from deployments.database import Database
from deployments.state import RUN_ID, processes_of
from serve.retrieval.store.postgres import Store
from tests.support.stored_documents import DIMENSION

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
        connection.execute("TRUNCATE gearbox.sources, gearbox.calibrations CASCADE")
    yield store
    await store.close()
