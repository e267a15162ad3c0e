"""Indexing: convert a document in a worker process, split it into chunks, embed them, upsert them.

A document that hangs, or that breaks the process that reads it, is that document's error and nobody else's.
"""

import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
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
from serve.retrieval.store.postgres import Chunk, IndexedDocument, Owner, Source, Store

CHUNK_TOKENS = 200
MAX_NAME = 1024  # characters
MAX_META = 16 << 10  # bytes, as JSON
_FORMAT = 2  # of what is stored; a new number makes every document one that is not current
_BATCH = 8  # texts embedded at once: a question that is asked meanwhile waits for them, and more at once is no faster
_MARKDOWN_KINDS = ("markdown", "html", "docx")  # that are read as Markdown


@dataclass(slots=True, frozen=True)
class Limits:
    """Of one document."""

    document_bytes: int = 32 << 20
    chunks: int = 20_000
    convert_s: float = 60.0


@dataclass(slots=True, frozen=True)
class IndexResult:
    """Result of indexing a document."""

    status: Literal["added", "replaced", "unchanged"]
    chunks: int  # 0 when it is unchanged
    sha256: str  # of its bytes, in hex
    ms: float
    left_out: tuple[str, ...] | None = (
        None  # what a reader of the document may see and is not indexed; None: not read again
    )


class Splitter:
    """Cuts texts into chunks of at most `tokens` tokens, at the ends of paragraphs and sentences where that can be.

    Args:
        tokenizer: the embedding model's `tokenizer.json`.
        tokens: of a chunk, without its heading.
    """

    def __init__(self, tokenizer: Path | Tokenizer, tokens: int = CHUNK_TOKENS) -> None:
        if isinstance(tokenizer, Path):
            tokenizer = Tokenizer.from_file(str(tokenizer))
            tokenizer.no_truncation()
            tokenizer.no_padding()
        self.tokens = tokens
        self._plain = TextSplitter.from_huggingface_tokenizer(tokenizer, tokens)
        self._markdown = MarkdownSplitter.from_huggingface_tokenizer(tokenizer, tokens)

    def chunks(self, text: Text, kind: str, max_chunks: int) -> list[Chunk]:
        """The chunks of a document, in its order. Raises `RequestError` when there are more than `max_chunks`."""
        splitter = self._markdown if kind in _MARKDOWN_KINDS else self._plain
        found: list[Chunk] = []
        for section in text.sections:
            pieces = splitter.chunks(section.text)
            found += [Chunk(piece, section.heading, section.page) for piece in pieces if piece.strip()]
            if len(found) > max_chunks:
                raise RequestError(
                    413, f"the document has more than {max_chunks} chunks; split it", code="too_many_chunks"
                )
        return found


class Indexer:
    """Indexes documents.

    Args:
        store: where they go.
        embed: makes unit vectors of texts.
        splitter: cuts them.
        model: identity of the embedding model: another one's vectors can't be compared.
        limits: of one document.
        workers: read documents.
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
        self._settings_prefix = _hash([_FORMAT, splitter.tokens, model])

    async def index(
        self,
        owner: Owner,
        name: str,
        data: bytes,
        kind: str | None = None,
        title: str | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> IndexResult:
        """Index a document, in place of what its name had; one that is unchanged costs a look-up.

        Raises:
            RequestError: 400 for a name, title or metadata that can't be stored, 413 for too large a document, 415 for one
                of an unknown type, 422 for one that can't be read, 503 when the store does not answer.
        """
        began = time.monotonic()
        check_name(name)
        title, meta = _title(title), check_meta(meta or {})
        if len(data) > (most := self._limits.document_bytes):
            raise RequestError(
                413, f"the document is larger than {most} bytes", param="content", code="document_too_large"
            )
        try:
            plain = kind_of(name, kind)
        except ConversionError as error:
            raise RequestError(415, str(error), param="type", code="unknown_type", kind=_INVALID) from error
        sha256 = (await anyio.to_thread.run_sync(hashlib.sha256, data)).digest()
        settings = f"{self._settings_prefix}-{_hash([plain, charset_of(kind), title, meta])}"

        def done(
            status: Literal["added", "replaced", "unchanged"], chunks: int, left_out: tuple[str, ...] | None
        ) -> IndexResult:
            return IndexResult(status, chunks, sha256.hex(), 1000 * (time.monotonic() - began), left_out)

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
        """Whether a document is indexed as it would be now; one that is not should be indexed again."""
        return document.settings.startswith(f"{self._settings_prefix}-")

    async def close(self) -> None:
        """End the processes that read documents."""
        await self._workers.close()


def check_name(name: str) -> None:
    """Whether a document can have this name. Raises `RequestError`."""
    if not name or len(name) > MAX_NAME or not name.isprintable():
        message = f"'source' must be a name of 1 to {MAX_NAME} printable characters"
        raise RequestError(400, message, param="source", code="invalid_source")


def check_meta(meta: object) -> dict[str, Any]:
    """Metadata that filters can use: names to texts, numbers, true, false, null, or lists of them. Raises `RequestError`."""

    def plain(value: object) -> bool:
        if isinstance(value, float):
            return abs(value) <= 1e300  # not so for NaN
        if isinstance(value, str):
            return "\0" not in value
        return value is None or isinstance(value, int)

    try:
        if not isinstance(meta, Mapping) or len(orjson.dumps(meta)) > MAX_META:
            raise ValueError
        for key, value in meta.items():
            if not key or "\0" in key or not all(map(plain, value if isinstance(value, list) else [value])):
                raise ValueError
    except (ValueError, TypeError) as error:
        message = (
            f"'meta' must be an object of texts, numbers, true, false, null and lists of them, at most {MAX_META} bytes"
        )
        raise RequestError(400, message, param="meta", code="invalid_meta") from error
    return dict(meta)


def _title(title: str | None) -> str:
    title = " ".join((title or "").split())
    if len(title) > MAX_NAME or (title and not title.isprintable()):
        message = f"'title' must be at most {MAX_NAME} printable characters"
        raise RequestError(400, message, param="title", code="invalid_title")
    return title


def _unreadable(why: str) -> RequestError:
    return RequestError(422, f"the document can't be read: {why}", code="unreadable_document", kind=_INVALID)


def _hash(parts: list[object]) -> str:
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


_INVALID = "invalid_request_error"
