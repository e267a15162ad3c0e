"""Ingestion: unchanged documents are skipped, an unreadable one is an error of that document, too large ones are rejected."""

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Sequence

import numpy as np
import psutil
import pytest
import uvloop
from tokenizers import Tokenizer, models, pre_tokenizers

from serve.errors import RequestError
from serve.retrieval.embedder import Vectors
from serve.retrieval.ingest.conversion_workers import ConversionWorkers
from serve.retrieval.ingest.convert import Section, Text
from serve.retrieval.ingest.indexer import Indexer, Limits, Splitter, check_name
from serve.retrieval.ingest.metadata import check_meta
from serve.retrieval.store.postgres import Chunk, IndexedDocument, Owner, Source

OWNER = Owner("alice", "docs")


class MemoryStore:
    """A store in memory."""

    def __init__(self) -> None:
        self.documents: dict[tuple[Owner, str], tuple[Source, Sequence[Chunk], Vectors]] = {}

    async def indexed_version(self, owner: Owner, name: str) -> tuple[bytes, str] | None:
        found = self.documents.get((owner, name))
        return (found[0].sha256, found[0].settings) if found else None

    async def upsert(self, owner: Owner, source: Source, chunks: Sequence[Chunk], embeddings: Vectors) -> str:
        assert len(embeddings) == len(chunks)
        status = "replaced" if (owner, source.name) in self.documents else "added"
        self.documents[owner, source.name] = source, chunks, embeddings
        return status


class Embedding:
    """Unit vectors seeded by the text's hash; records its batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    async def __call__(self, texts: Sequence[str]) -> Vectors:
        self.batches.append(list(texts))
        made = []
        for text in texts:
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
            vector = np.random.default_rng(seed).standard_normal(8).astype(np.float32)
            made.append(vector / np.linalg.norm(vector))
        return np.stack(made)


def words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def embed() -> Embedding:
    return Embedding()


@pytest.fixture(scope="module")
async def workers() -> AsyncIterator[ConversionWorkers]:
    """Processes that the tests share: each takes a while to start."""
    workers = ConversionWorkers()
    yield workers
    await workers.close()


@pytest.fixture
def indexer(store: MemoryStore, embed: Embedding, workers: ConversionWorkers) -> Indexer:
    return Indexer(store, embed, Splitter(words(), 20), "model-1", workers=workers)


async def refused(work) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await work
    return caught.value


def test_chunks_keep_their_heading_and_page_and_stay_within_the_tokens():
    long = " ".join(f"Sentence number {i} is here." for i in range(40))
    text = Text("t", (Section("short", "One"), Section(long, "One › Two", 7)))
    chunks = Splitter(words(), 20).chunks(text, "pdf", 100)
    assert chunks[0] == Chunk("short", "One", None)
    assert {(chunk.heading, chunk.page) for chunk in chunks[1:]} == {("One › Two", 7)}
    assert all(len(words().encode(chunk.content).ids) <= 20 for chunk in chunks)
    assert " ".join(chunk.content for chunk in chunks[1:]) == long


def pieces(text: str, kind: str = "text") -> list[str]:
    return [chunk.content for chunk in Splitter(words(), 20, 12).chunks(Text("t", (Section(text),)), kind, 100)]


def test_a_table_is_split_between_its_rows_and_each_piece_has_the_caption():
    rows = [f"Country: C{i} | Day: {i}" for i in range(5)]
    table = "\n".join(rows)
    assert pieces(f"Before.\n\nRates in euro\n\n{table}\n\nAfter.") == [
        "Before.",
        *(f"Rates in euro\n{row}" for row in rows),
        "After.",
    ]


def test_a_list_is_split_between_its_items_and_each_piece_has_the_lead_in_and_the_items_above():
    text = "These are exempt:\n\n- one two three four five six seven\n- cars, of which\n  - eight nine ten eleven twelve\n    and more\n  - the last"
    assert pieces(text, "markdown") == [
        "These are exempt:\n- one two three four five six seven",
        "These are exempt:\n- cars, of which",
        "These are exempt:\n- cars, of which\n  - eight nine ten eleven twelve\n    and more\n  - the last",
    ]


def test_a_list_that_fits_into_a_piece_keeps_its_lead_in():
    before = " ".join(f"word{i}" for i in range(16))
    assert pieces(f"{before}\n\nThese are exempt:\n\n- one two three four\n- five six")[-1].startswith(
        "These are exempt:"
    )


def test_an_item_longer_than_a_piece_is_split_under_its_lead_in():
    long = " ".join(f"word{i}" for i in range(50))
    split = pieces(f"Rules:\n\n- {long}\n- short")
    assert all(piece.startswith("Rules:\n") for piece in split)
    assert split[-1] == "Rules:\n- short"
    assert [word for piece in split for word in piece.split() if word.startswith("word")] == long.split()


def test_lines_of_code_are_no_items():
    code = "\n".join(f"cat {i} | sort | uniq" for i in range(8))
    assert "".join(pieces(f"Run this:\n\n```\n{code}\n```", "markdown")).count("Run this:") == 1


def test_a_word_without_end_is_cut_and_ends_soon():
    started = time.process_time()
    chunks = Splitter(words(), 20).chunks(Text("t", (Section("a" * 300_000),)), "text", 20_000)
    assert sum(len(chunk.content) for chunk in chunks) == 300_000
    assert time.process_time() - started < 10


async def test_a_document_is_read_cut_embedded_with_its_headings_and_stored(indexer, store, embed):
    body = "\n\n".join(f"# H{i}\n\nText number {i}." for i in range(150)).encode()
    made = await indexer.index(OWNER, "a.md", body, meta={"year": 2024})
    assert (made.status, made.chunks, made.sha256) == ("added", 150, hashlib.sha256(body).hexdigest())
    source, chunks, vectors = store.documents[OWNER, "a.md"]
    assert (source.title, source.size, source.meta) == ("H0", len(body), {"year": 2024})
    assert [len(batch) for batch in embed.batches] == [8] * 18 + [6]
    assert embed.batches[0][1] == "H1\nText number 1."
    assert chunks[149].content == "Text number 149."
    assert np.allclose(vectors[149], (await embed(["H149\nText number 149."]))[0])


async def test_what_is_unchanged_is_neither_read_nor_embedded_again(indexer, embed, monkeypatch):
    await indexer.index(OWNER, "a.md", b"gears", meta={"a": 1, "b": 2})
    embed.batches.clear()
    monkeypatch.setattr(ConversionWorkers, "convert", None)
    again = await indexer.index(OWNER, "a.md", b"gears", meta={"b": 2, "a": 1})
    assert (again.status, again.chunks, embed.batches) == ("unchanged", 0, [])


async def test_left_out_content_is_reported_when_a_document_is_read_and_unknown_otherwise(indexer):
    page = b"<nav>Home</nav><p>Gears.</p>"
    assert (await indexer.index(OWNER, "a.html", page)).left_out == ("navigation (4 characters): Home",)
    assert (await indexer.index(OWNER, "a.html", page)).left_out is None
    assert (await indexer.index(OWNER, "a.md", b"gears")).left_out == ()


async def test_the_charset_of_the_type_is_honoured_and_another_one_reads_the_document_again(indexer, store):
    data = "größe".encode("latin-1")
    for charset, expected in (("iso-8859-1", "größe"), ("iso-8859-5", "grіпe")):
        assert (await indexer.index(OWNER, "a.txt", data, f"text/plain; charset={charset}")).status != "unchanged"
        assert store.documents[OWNER, "a.txt"][1][0].content == expected
    error = await refused(indexer.index(OWNER, "a.txt", data, "text/plain; charset=klingon"))
    assert (error.status, error.code) == (422, "unreadable_document")
    assert "klingon" in error.message


@pytest.mark.parametrize("change", [{"title": "T"}, {"meta": {"a": 2}}, {"kind": "text"}, {"data": b"other"}])
async def test_any_change_replaces_the_document(indexer, change):
    await indexer.index(OWNER, "a.md", b"gears")
    given = {"data": b"gears", **change}
    assert (await indexer.index(OWNER, "a.md", **given)).status == "replaced"
    assert (await indexer.index(OWNER, "a.md", **given)).status == "unchanged"


async def test_another_model_or_chunk_size_makes_a_document_one_that_is_not_current(indexer, store, embed, workers):
    await indexer.index(OWNER, "a.md", b"gears")
    source, chunks, _ = store.documents[OWNER, "a.md"]
    listed = IndexedDocument(1, source.name, "", 5, len(chunks), source.sha256, source.settings, {}, 0.0)
    assert indexer.is_current(listed)
    for another in (
        Indexer(store, embed, Splitter(words(), 20), "model-2", workers=workers),
        Indexer(store, embed, Splitter(words(), 30), "model-1", workers=workers),
    ):
        assert not another.is_current(listed)
        assert (await another.index(OWNER, "a.md", b"gears")).status == "replaced"


async def test_the_title_given_wins_over_the_documents_own(indexer, store):
    await indexer.index(OWNER, "a.md", b"# Own\n\ntext", title="  Given\n title ")
    assert store.documents[OWNER, "a.md"][0].title == "Given title"


@pytest.mark.parametrize("name", ["", "a" * 1025, "a\nb", "a\0b", "\u202eb.md", "a\ud800"])
async def test_a_name_that_can_not_be_shown_is_refused(indexer, name):
    error = await refused(indexer.index(OWNER, name, b"x", "text"))
    assert (error.status, error.param) == (400, "source")


def test_names_in_any_script_are_taken():
    for name in ("guide/intro.md", "https://example.com/a?b=c", "größe 文書.pdf"):
        check_name(name)


@pytest.mark.parametrize(
    "meta",
    [
        [], "x", {"": 1}, {"a": {"b": 1}}, {"a": [[1]]}, {"a": float("nan")}, {"a": float("inf")}, {"a": "\0"},
        {"a\0": 1}, {"a": "\ud800"}, {"a": 1 << 70}, {1: 2}, {"a": b"x"}, {"a": "x" * (16 << 10)},
    ],
)  # fmt: skip
def test_metadata_that_filters_can_not_use_is_refused(meta):
    with pytest.raises(RequestError) as caught:
        check_meta(meta)
    assert (caught.value.status, caught.value.param) == (400, "meta")


def test_flat_metadata_is_taken():
    meta = {"a": 1, "b": 1.5, "c": "x", "d": None, "e": True, "f": ["x", 1], "größe": "ß"}
    assert check_meta(meta) == meta


async def test_an_unknown_type_is_415_and_a_broken_file_is_422(indexer, store):
    error = await refused(indexer.index(OWNER, "a.exe", b"MZ"))
    assert (error.status, error.kind) == (415, "invalid_request_error")
    for name, data in (("a.pdf", b"%PDF-1.7 nonsense"), ("a.docx", b"PK"), ("a.md", b""), ("a.md", b" \n ")):
        error = await refused(indexer.index(OWNER, name, data))
        assert (error.status, error.code, error.kind) == (422, "unreadable_document", "invalid_request_error")
    assert not store.documents


async def test_too_many_bytes_or_chunks_are_413(store, embed):
    indexer = Indexer(store, embed, Splitter(words(), 20), "m", Limits(document_bytes=2000, chunks=10))
    assert (await refused(indexer.index(OWNER, "a.md", b"x" * 2001))).status == 413
    error = await refused(indexer.index(OWNER, "a.md", b"word. " * 300))
    assert (error.status, error.param, error.code) == (413, "content", "too_many_chunks")
    assert not embed.batches


def reading_by(fault: str) -> ConversionWorkers:
    """Processes in which converting does something else."""
    return ConversionWorkers(
        main=f"import os, time, serve.retrieval.ingest.conversion_workers as r\n{fault}\nr.convert_limited = fault\nr.main()"
    )


HANG = "fault = lambda *_: time.sleep(100)"
CRASH = "fault = lambda *_: os._exit(3)"
BABBLE = "fault = lambda *_: os.write(3, b'x' * 100) and os._exit(0)"
GORGE = "good = r.convert_limited\ndef fault(*given):\n    good(*given)\n    return 'x' * (8 << 30)"
FIRST = "good = r.convert_limited\ndef fault(data, *given):\n    return os._exit(3) if b'bad' in data else good(data, *given)"


def index_by(fault: str, store: MemoryStore, embed: Embedding) -> Indexer:
    return Indexer(store, embed, Splitter(words(), 20), "m", Limits(convert_s=30), reading_by(fault))


async def test_a_document_that_hangs_is_ended(store, embed):
    indexer = Indexer(store, embed, Splitter(words(), 20), "m", Limits(convert_s=0.3), reading_by(HANG))
    started = time.monotonic()
    error = await refused(indexer.index(OWNER, "a.md", b"x"))
    assert (error.status, "longer than 0.3 s" in error.message) == (422, True)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("fault", [CRASH, BABBLE, GORGE])
async def test_a_document_that_breaks_its_reader_is_422(store, embed, fault):
    error = await refused(index_by(fault, store, embed).index(OWNER, "a.md", b"x"))
    assert (error.status, error.code) == (422, "unreadable_document")


async def test_a_document_that_breaks_its_reader_is_nobody_elses_error(store, embed):
    indexer = index_by(FIRST, store, embed)
    names = [("bad" if i % 3 == 0 else "good") for i in range(12)]
    made = await asyncio.gather(
        *(indexer.index(OWNER, f"{i}.md", name.encode()) for i, name in enumerate(names)), return_exceptions=True
    )
    assert [isinstance(one, RequestError) for one in made] == [name == "bad" for name in names]
    await indexer.close()


async def test_a_reader_that_has_ended_meanwhile_is_replaced(store, embed):
    indexer = Indexer(store, embed, Splitter(words(), 20), "m")
    await indexer.index(OWNER, "a.md", b"one")
    (process,) = indexer._workers._idle
    process.kill()
    assert (await indexer.index(OWNER, "a.md", b"two")).status == "replaced"
    await process.wait()
    assert (await indexer.index(OWNER, "a.md", b"three")).status == "replaced"
    await indexer.close()


def test_a_reader_that_had_nothing_to_do_for_a_while_is_replaced_in_the_loop_that_ray_serve_has():
    async def twice() -> list[str]:
        workers = ConversionWorkers(
            main="import serve.retrieval.ingest.conversion_workers as r\nr._IDLE_S = 0.1\nr.main()"
        )
        titles = []
        for _ in range(2):
            titles.append((await workers.convert(b"hello", "a.txt", "text", 30)).title)
            await workers._idle[0].wait()
        return titles

    assert uvloop.run(twice()) == ["a.txt", "a.txt"]


async def test_a_reader_has_no_secret_in_its_environment(monkeypatch):
    monkeypatch.setenv("GEARBOX_RETRIEVAL__DATABASE", "postgresql://me:secret@db/documents")
    monkeypatch.setenv("GEARBOX_RUN_ID", "7")  # by which `gearbox down` finds it
    workers = ConversionWorkers()
    await workers.convert(b"hello", "a.txt", "text", 30)
    environment = psutil.Process(workers._idle[0].pid).environ()
    await workers.close()
    assert environment["GEARBOX_RUN_ID"] == "7"
    assert "secret" not in " ".join(environment.values())


async def test_a_cancelled_caller_ends_the_reader(store, embed):
    indexer = index_by(HANG, store, embed)
    task = asyncio.create_task(indexer.index(OWNER, "a.md", b"x"))

    def readers() -> list[psutil.Process]:
        return [one for one in psutil.Process().children() if HANG in " ".join(one.cmdline())]

    async with asyncio.timeout(30):
        while not readers():
            await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    async with asyncio.timeout(30):
        while readers():
            await asyncio.sleep(0.05)
    assert not store.documents


def test_readers_outlive_the_request_that_started_them_in_a_server_whose_loop_never_ends(store, embed):
    """anyio's pool is ended with the task that used it first."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def call(work) -> object:
        return asyncio.run_coroutine_threadsafe(work, loop).result(60)

    async def made() -> Indexer:
        return Indexer(store, embed, Splitter(words(), 20), "m")

    try:
        indexer = call(made())
        for i in range(3):
            assert call(indexer.index(OWNER, "a.md", b"%d" % i)).chunks == 1
        (process,) = indexer._workers._idle
        assert process.returncode is None
        call(indexer.close())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def test_a_large_document_goes_through_and_what_parsers_print_is_no_answer(store, embed):
    fault = "good = r.convert_limited\ndef fault(*given):\n    print('hello', flush=True)\n    return good(*given)"
    text = await reading_by(fault).convert(b"word " * 1_000_000, "a.txt", "text", 30)
    assert len(text.sections[0].text) == 4_999_999
