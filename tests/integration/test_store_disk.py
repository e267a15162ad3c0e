"""The document store on a full disk, a read-only one, and a read-only server: clear errors, and no document is lost or half there."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from deployments.database import Database, DatabaseError
from deployments.state import RUN_ID
from serve.errors import RequestError
from serve.retrieval.store.postgres import Chunk, Store
from tests.support.stored_documents import ALICE, DIMENSION, source, unit

MIB = 1 << 20
TEXTS = [f"{i} " + "gears turn in the harbour of Norfell " * 100 for i in range(40)]


VECTORS = np.stack([unit(seed) for seed in range(len(TEXTS))])


async def put(store: Store, name: str, version: int) -> str:
    return await store.upsert(ALICE, source(name, version), [Chunk(text) for text in TEXTS], VECTORS)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(folder)]
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this machine allows no mounts")
    folder.chmod(0o755)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def server(disk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setenv(RUN_ID, f"test-disk-{os.getpid()}")
    server = Database(disk / "documents")
    server.start()
    yield server
    server.stop()


async def versions(store: Store) -> dict[str, int]:
    """The version of each document, each of which must have all its chunks, in that version."""
    hits = await store.keyword_search(ALICE, "gears", 10_000)
    chunks: dict[str, list[str]] = {}
    for hit in hits:
        chunks.setdefault(hit.source, []).append(hit.content)
    listed = await store.list_documents(ALICE, limit=1000)
    assert {name: len(texts) for name, texts in chunks.items()} == {one.name: len(TEXTS) for one in listed}
    return {one.name: one.sha256[0] for one in listed}


@pytest.mark.parametrize("left", [6 * MIB, 0], ids=["for the log alone", "nothing"])
async def test_a_full_disk_refuses_documents_and_loses_none(server: Database, disk: Path, left: int):
    store = Store(server.conninfo, DIMENSION)
    await store.open()
    acknowledged = {}
    for i in range(3):
        await put(store, f"{i}.md", 1)
        acknowledged[f"{i}.md"] = 1
    filler = disk / "filler"
    with filler.open("wb") as file, suppress(OSError):
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        for _ in range(max(0, free - left) // 4096):
            file.write(bytes(4096))
    refused = []
    for i in range(60):
        try:
            await put(store, f"{i}.md", 2)
            acknowledged[f"{i}.md"] = 2
        except RequestError as error:
            refused.append((error.status, error.code))
            if len(refused) == 5:
                break
    assert len(refused) == 5
    assert set(refused) <= {(507, "store_full"), (503, "store_unavailable")}
    assert (507, "store_full") in refused
    filler.unlink()
    server.restart_if_dead()
    deadline = time.monotonic() + 20
    while True:
        try:
            found = await versions(store)
            break
        except RequestError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert {name: found.get(name) for name in acknowledged} == acknowledged, "every acknowledged write is there"
    assert await put(store, "after.md", 3) == "added"
    await store.close()


async def test_a_server_that_is_read_only_refuses_documents_and_answers_searches(server: Database):
    store = Store(server.conninfo, DIMENSION)
    await store.open()
    await put(store, "a.md", 1)
    await store.close()
    store = Store(f"{server.conninfo} options='-c default_transaction_read_only=on'", DIMENSION)
    await store.open()  # as a replica that starts meanwhile
    for work in (put(store, "b.md", 1), store.delete(ALICE)):
        with pytest.raises(RequestError) as caught:
            await work
        assert (caught.value.status, caught.value.code) == (503, "store_read_only")
        assert int(caught.value.headers["retry-after"]) > 0
    assert await versions(store) == {"a.md": 1}
    await store.close()


async def test_a_new_database_that_is_read_only_can_be_opened_later(server: Database):
    store = Store(f"{server.conninfo} options='-c default_transaction_read_only=on'", DIMENSION)
    with pytest.raises(RequestError) as caught:
        await store.open()
    assert (caught.value.status, caught.value.code) == (503, "store_read_only")
    await store.close()


def test_a_read_only_disk_is_an_error_that_names_it(disk: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(RUN_ID, f"test-disk-{os.getpid()}")
    server = Database(disk / "documents")
    server.start()
    server.stop()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(DatabaseError, match="disk cannot be written to: Read-only file system"):
        Database(disk / "documents").start()
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    server = Database(disk / "documents")
    server.start()
    server.stop()
