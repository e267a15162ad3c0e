"""Indexing: what is unchanged is left, what can't be read is one document's error, what is too large is refused."""

import asyncio
import hashlib
import os
import time
from collections.abc import Sequence

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from serve.errors import RequestError
from serve.retrieval import convert, ingest
from serve.retrieval.convert import Section, Text
from serve.retrieval.embed import Vectors
from serve.retrieval.ingest import Indexer, Limits, Splitter, check_meta, check_name
from serve.retrieval.store import Chunk, Listed, Owner, Source

OWNER = Owner("alice", "docs")


class Kept:
    """A store in memory."""

    def __init__(self) -> None:
        self.documents: dict[tuple[Owner, str], tuple[Source, Sequence[Chunk], Vectors]] = {}

    async def known(self, owner: Owner, name: str) -> tuple[bytes, str] | None:
        found = self.documents.get((owner, name))
        return (found[0].sha256, found[0].settings) if found else None

    async def put(self, owner: Owner, source: Source, chunks: Sequence[Chunk], embeddings: Vectors) -> str:
        assert len(embeddings) == len(chunks)
        status = "replaced" if (owner, source.name) in self.documents else "added"
        self.documents[owner, source.name] = source, chunks, embeddings
        return status


class Embedding:
    """Unit vectors seeded by the text's hash; counts what it is asked."""

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
def kept() -> Kept:
    return Kept()


@pytest.fixture
def embed() -> Embedding:
    return Embedding()


@pytest.fixture
def indexer(kept: Kept, embed: Embedding) -> Indexer:
    return Indexer(kept, embed, Splitter(words(), 20), "model-1")


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


def test_a_word_without_end_is_cut_and_ends_soon():
    began = time.monotonic()
    chunks = Splitter(words(), 20).chunks(Text("t", (Section("a" * 300_000),)), "text", 20_000)
    assert sum(len(chunk.content) for chunk in chunks) == 300_000
    assert time.monotonic() - began < 10


async def test_a_document_is_read_cut_embedded_with_its_headings_and_stored(indexer, kept, embed):
    body = "\n\n".join(f"# H{i}\n\nText number {i}." for i in range(150)).encode()
    made = await indexer.index(OWNER, "a.md", body, meta={"year": 2024})
    assert (made.status, made.chunks, made.sha256) == ("added", 150, hashlib.sha256(body).hexdigest())
    source, chunks, vectors = kept.documents[OWNER, "a.md"]
    assert (source.title, source.size, source.meta) == ("H0", len(body), {"year": 2024})
    assert [len(batch) for batch in embed.batches] == [64, 64, 22]
    assert embed.batches[0][1] == "H1\nText number 1."
    assert chunks[149].content == "Text number 149."
    assert np.allclose(vectors[149], (await embed(["H149\nText number 149."]))[0])


async def test_what_is_unchanged_is_neither_read_nor_embedded_again(indexer, embed, monkeypatch):
    await indexer.index(OWNER, "a.md", b"gears", meta={"a": 1, "b": 2})
    embed.batches.clear()
    monkeypatch.setattr(ingest, "convert_limited", None)
    again = await indexer.index(OWNER, "a.md", b"gears", meta={"b": 2, "a": 1})
    assert (again.status, again.chunks, embed.batches) == ("unchanged", 0, [])


@pytest.mark.parametrize("change", [{"title": "T"}, {"meta": {"a": 2}}, {"kind": "text"}, {"data": b"other"}])
async def test_any_change_replaces_the_document(indexer, change):
    await indexer.index(OWNER, "a.md", b"gears")
    given = {"data": b"gears", **change}
    assert (await indexer.index(OWNER, "a.md", **given)).status == "replaced"
    assert (await indexer.index(OWNER, "a.md", **given)).status == "unchanged"


async def test_another_model_or_chunk_size_makes_a_document_one_that_is_not_current(indexer, kept, embed):
    await indexer.index(OWNER, "a.md", b"gears")
    source, chunks, _ = kept.documents[OWNER, "a.md"]
    listed = Listed(1, source.name, "", 5, len(chunks), source.sha256, source.settings, {}, 0.0)
    assert indexer.current(listed)
    for another in (
        Indexer(kept, embed, Splitter(words(), 20), "model-2"),
        Indexer(kept, embed, Splitter(words(), 30), "model-1"),
    ):
        assert not another.current(listed)
        assert (await another.index(OWNER, "a.md", b"gears")).status == "replaced"


async def test_the_title_given_wins_over_the_documents_own(indexer, kept):
    await indexer.index(OWNER, "a.md", b"# Own\n\ntext", title="  Given\n title ")
    assert kept.documents[OWNER, "a.md"][0].title == "Given title"


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


async def test_an_unknown_type_is_415_and_a_broken_file_is_422(indexer, kept):
    error = await refused(indexer.index(OWNER, "a.exe", b"MZ"))
    assert (error.status, error.kind) == (415, "invalid_request_error")
    for name, data in (("a.pdf", b"%PDF-1.7 nonsense"), ("a.docx", b"PK"), ("a.md", b""), ("a.md", b" \n ")):
        error = await refused(indexer.index(OWNER, name, data))
        assert (error.status, error.code, error.kind) == (422, "unreadable_document", "invalid_request_error")
    assert not kept.documents


async def test_too_many_bytes_or_chunks_are_413(kept, embed):
    indexer = Indexer(kept, embed, Splitter(words(), 20), "m", Limits(document_bytes=2000, chunks=10))
    assert (await refused(indexer.index(OWNER, "a.md", b"x" * 2001))).status == 413
    error = await refused(indexer.index(OWNER, "a.md", b"word. " * 300))
    assert (error.status, error.code) == (413, "too_many_chunks")
    assert not embed.batches


def hang(*_: object) -> Text:
    while True:
        time.sleep(1)


def crash(*_: object) -> Text:
    os._exit(3)


def gorge(*_: object) -> Text:
    convert.convert_limited(b"x", "a.txt", "text", 10)
    return Text("", (Section("x" * (8 << 30)),))


async def test_a_document_that_hangs_is_ended_and_the_next_is_read(kept, embed, monkeypatch):
    indexer = Indexer(kept, embed, Splitter(words(), 20), "m", Limits(convert_s=1.5))
    with monkeypatch.context() as patch:
        patch.setattr(ingest, "convert_limited", hang)
        began = time.monotonic()
        error = await refused(indexer.index(OWNER, "a.md", b"x"))
        assert (error.status, "longer than 1.5 s" in error.message) == (422, True)
        assert time.monotonic() - began < 10
    assert (await indexer.index(OWNER, "a.md", b"x")).status == "added"


@pytest.mark.parametrize("fault", [crash, gorge])
async def test_a_document_that_breaks_its_reader_is_422_and_the_next_is_read(indexer, monkeypatch, fault):
    with monkeypatch.context() as patch:
        patch.setattr(ingest, "convert_limited", fault)
        error = await refused(indexer.index(OWNER, "a.md", b"x"))
        assert (error.status, error.code) == (422, "unreadable_document")
    assert (await indexer.index(OWNER, "a.md", b"x")).status == "added"


async def test_a_cancelled_caller_ends_the_reader(indexer, kept, monkeypatch):
    monkeypatch.setattr(ingest, "convert_limited", hang)
    task = asyncio.create_task(indexer.index(OWNER, "a.md", b"x"))
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert not kept.documents
