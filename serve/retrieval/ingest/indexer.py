"""Index documents: convert in a worker process, split into chunks, embed, upsert.

A document that hangs or crashes its worker process fails alone.
"""

import hashlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import anyio.to_thread
import numpy as np
import orjson
from semantic_text_splitter import MarkdownSplitter, TextSplitter
from tokenizers import Tokenizer

from serve.errors import RequestError
from serve.retrieval.embedder import Vectors
from serve.retrieval.ingest.conversion_workers import ConversionWorkers
from serve.retrieval.ingest.convert import ConversionError, Text, charset_of, kind_of
from serve.retrieval.ingest.items import Run, item_runs
from serve.retrieval.ingest.metadata import check_meta
from serve.retrieval.store.postgres import Chunk, IndexedDocument, Owner, Source, Store

CHUNK_TOKENS = 200
ITEM_TOKENS = 100  # smaller than a chunk: a question about one row finds it among few others
MAX_NAME = 1024  # characters
_FORMAT = 4  # version of the stored form; a new number makes all indexed documents outdated
_BATCH = 8  # texts per embedding batch: questions wait for a batch, and larger ones are not faster
_MARKDOWN_KINDS = ("markdown", "html", "docx")  # formats converted to Markdown


@dataclass(slots=True, frozen=True)
class Limits:
    """Limits on one document."""

    document_bytes: int = 32 << 20
    chunks: int = 20_000
    convert_s: float = 60.0


@dataclass(slots=True, frozen=True)
class IndexResult:
    """Result of indexing a document."""

    status: Literal["added", "replaced", "unchanged"]
    chunks: int  # 0 when the document is unchanged
    sha256: str  # of the document's bytes, in hex
    ms: float
    left_out: tuple[str, ...] | None = None  # notes on visible content that is not indexed; None: not converted again


class Splitter:
    """Splits texts into chunks of at most `tokens` tokens, at the ends of paragraphs and sentences where possible.

    A list or table is split between its items or rows, and each piece begins with the lead-in or caption above it.

    Args:
        tokenizer: the embedding model's `tokenizer.json`.
        tokens: maximum tokens of a chunk, without its heading, and without the lead-in of a list that fits into one chunk.
        item_tokens: maximum tokens of a piece of a list or table that does not fit into one chunk, without its lead-in.
    """

    def __init__(self, tokenizer: Path | Tokenizer, tokens: int = CHUNK_TOKENS, item_tokens: int = ITEM_TOKENS) -> None:
        if isinstance(tokenizer, Path):
            tokenizer = Tokenizer.from_file(str(tokenizer))
            tokenizer.no_truncation()
            tokenizer.no_padding()
        self.tokens = tokens
        self.item_tokens = min(item_tokens, tokens)
        self._tokenizer = tokenizer
        self._plain = TextSplitter.from_huggingface_tokenizer(tokenizer, tokens)
        self._markdown = MarkdownSplitter.from_huggingface_tokenizer(tokenizer, tokens)

    def chunks(self, text: Text, kind: str, max_chunks: int) -> list[Chunk]:
        """Split a document into chunks, in order. Raises `RequestError` when there are more than `max_chunks`."""
        splitter = self._markdown if kind in _MARKDOWN_KINDS else self._plain
        chunks: list[Chunk] = []
        for section in text.sections:
            pieces = self._pieces(splitter, section.text)
            chunks += [Chunk(piece, section.heading, section.page) for piece in pieces if piece.strip()]
            if len(chunks) > max_chunks:
                raise RequestError(
                    413,
                    f"the document has more than {max_chunks} chunks; split it",
                    param="content",
                    code="too_many_chunks",
                )
        return chunks

    def _pieces(self, splitter: TextSplitter | MarkdownSplitter, text: str) -> Iterator[str]:
        """The pieces of a section's text."""
        if self._size(text) <= self.tokens:
            yield text
            return
        at = 0
        short: list[Run] = []
        for run in item_runs(text):
            if self._size(text[run.lead_start : run.end]) <= self.tokens:
                short.append(run)
                continue
            yield from _with_leads(splitter, text, at, run.lead_start, short)
            yield from self._packed(splitter, text, run)
            at, short = run.end, []
        yield from _with_leads(splitter, text, at, len(text), short)

    def _packed(self, splitter: TextSplitter | MarkdownSplitter, text: str, run: Run) -> Iterator[str]:
        """As many items a piece as fit; an item that is too long is split too."""
        first, used = 0, 0
        for i, item in enumerate(run.items):
            size = self._size(text[item.start : item.end])
            if used and used + size > self.item_tokens:
                yield _joined(run.context(text, run.items[first].start), text[run.items[first].start : item.start])
                first, used = i, 0
            used += size
            if size > self.tokens:
                for piece in splitter.chunks(text[item.start : item.end]):
                    yield _joined(run.context(text, item.start), piece)
                first, used = i + 1, 0
        if used:
            yield _joined(run.context(text, run.items[first].start), text[run.items[first].start : run.end])

    def _size(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _with_leads(
    splitter: TextSplitter | MarkdownSplitter, text: str, start: int, end: int, runs: Sequence[Run]
) -> Iterator[str]:
    """Pieces of `text[start:end]`; one that begins inside a run begins with its lead-in."""
    for offset, piece in splitter.chunk_indices(text[start:end]):
        run = next((run for run in runs if run.start <= start + offset < run.end), None)
        yield _joined(run.context(text, start + offset), piece) if run else piece


def _joined(context: str, piece: str) -> str:
    return f"{context}\n{piece.rstrip()}" if context else piece.rstrip()


class Indexer:
    """Indexes documents.

    Args:
        store: the document store.
        embed: texts to unit vectors.
        splitter: splits texts into chunks.
        model: identity of the embedding model; vectors of different models can't be compared.
        limits: of one document.
        workers: convert documents.
    """

    def __init__(
        self,
        store: Store,
        embed: Callable[[Sequence[str]], Awaitable[Vectors]],
        splitter: Splitter,
        model: str,
        limits: Limits | None = None,
        workers: ConversionWorkers | None = None,
    ) -> None:
        self._store, self._embed, self._splitter = store, embed, splitter
        self._limits, self._workers = limits or Limits(), workers or ConversionWorkers()
        self._settings_prefix = _hash([_FORMAT, splitter.tokens, splitter.item_tokens, model])

    async def index(
        self,
        owner: Owner,
        name: str,
        data: bytes,
        kind: str | None = None,
        title: str | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> IndexResult:
        """Index a document; it replaces the document of the same name. An unchanged document costs one query.

        Raises:
            RequestError: 400 for a name, title or metadata that can't be stored, 413 for a document that is too large,
                415 for an unknown type, 422 for a document that can't be converted, 503 when the store is unavailable.
        """
        started = time.monotonic()
        check_name(name)
        title, meta = _title(title), check_meta(meta or {})
        if len(data) > (max_bytes := self._limits.document_bytes):
            raise RequestError(
                413, f"the document is larger than {max_bytes} bytes", param="content", code="document_too_large"
            )
        try:
            plain = kind_of(name, kind)
        except ConversionError as error:
            raise RequestError(415, str(error), param="type", code="unknown_type") from error
        sha256 = (await anyio.to_thread.run_sync(hashlib.sha256, data)).digest()
        settings = f"{self._settings_prefix}-{_hash([plain, charset_of(kind), title, meta])}"

        def done(
            status: Literal["added", "replaced", "unchanged"], chunks: int, left_out: tuple[str, ...] | None
        ) -> IndexResult:
            return IndexResult(status, chunks, sha256.hex(), 1000 * (time.monotonic() - started), left_out)

        if await self._store.indexed_version(owner, name) == (sha256, settings):
            return done("unchanged", 0, None)
        try:
            text = await self._workers.convert(data, name, kind, self._limits.convert_s)
        except ConversionError as error:
            raise _unreadable(str(error)) from error
        chunks = await anyio.to_thread.run_sync(self._splitter.chunks, text, plain, self._limits.chunks)
        if not chunks:
            raise _unreadable("there is no text in it")
        vectors = []
        for at in range(0, len(chunks), _BATCH):
            texts = [f"{chunk.heading}\n{chunk.content}".strip() for chunk in chunks[at : at + _BATCH]]
            vectors.append(await self._embed(texts))
        source = Source(name, sha256, settings, title or text.title, len(data), meta)
        status = await self._store.upsert(owner, source, chunks, np.concatenate(vectors))
        return done(status, len(chunks), text.left_out)

    def is_current(self, document: IndexedDocument) -> bool:
        """Whether a document was indexed with the current settings; otherwise it should be indexed again."""
        return document.settings.startswith(f"{self._settings_prefix}-")

    async def close(self) -> None:
        """End the conversion workers."""
        await self._workers.close()


def check_name(name: str) -> None:
    """Validate a document's name. Raises `RequestError`."""
    if not name or len(name) > MAX_NAME or not name.isprintable():
        message = f"'source' must be a name of 1 to {MAX_NAME} printable characters"
        raise RequestError(400, message, param="source", code="invalid_source")


def _title(title: str | None) -> str:
    title = " ".join((title or "").split())
    if len(title) > MAX_NAME or (title and not title.isprintable()):
        message = f"'title' must be at most {MAX_NAME} printable characters"
        raise RequestError(400, message, param="title", code="invalid_title")
    return title


def _unreadable(why: str) -> RequestError:
    return RequestError(422, f"the document can't be read: {why}", code="unreadable_document")


def _hash(parts: list[object]) -> str:
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
