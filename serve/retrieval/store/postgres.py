"""Document store: PostgreSQL with pgvector. Each document is written in one transaction, so it is indexed completely or not at all.

Every statement names the tenant. Concurrent operations have separate connections: Haystack's own store shares one cursor among
them, so that a request could read another's rows.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, LiteralString, TypeVar

import numpy as np
import psycopg
from pgvector.psycopg import register_vector_async
from psycopg import AsyncConnection, sql
from psycopg.pq import TransactionStatus
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from serve.errors import RequestError, retrieval_misconfigured
from serve.retrieval.store import calibrations
from serve.retrieval.store.calibrations import Calibration
from serve.retrieval.store.filters import FilterError, where_clause
from serve.retrieval.store.keywords import LEXEMES, weighted_rank
from serve.retrieval.store.schema import migrate

_CONNECT_TIMEOUT_S = 5.0  # timeout for a connection
_READ_TIMEOUT_S = 15.0  # timeout of a query
_WRITE_TIMEOUT_S = 600.0
_MAX_EXACT_CHUNKS = (
    2_000  # collections up to this many chunks are searched exactly: an index over all tenants may miss some
)

Vector = np.ndarray[Any, np.dtype[np.float32]]
_T = TypeVar("_T")


class StoreUnavailable(RequestError):
    """The database is unavailable."""

    def __init__(self) -> None:
        super().__init__(
            503,
            "the document store does not answer; retry later",
            code="store_unavailable",
            headers={"retry-after": "2"},
        )


@dataclass(slots=True, frozen=True)
class Owner:
    """A tenant's collection. No query reads another tenant's rows."""

    tenant: str
    collection: str


@dataclass(slots=True, frozen=True)
class Chunk:
    """A piece of a document, the unit of search."""

    content: str
    heading: str = ""
    page: int | None = None


@dataclass(slots=True, frozen=True)
class Source:
    """A document to index. It is unchanged if its bytes and settings equal those of the indexed document."""

    name: str  # path or URL; indexing the same name again replaces the document
    sha256: bytes  # of the document's bytes
    settings: str  # hash of the settings for conversion, splitting and embedding
    title: str = ""
    size: int = 0  # bytes
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class IndexedDocument:
    """An indexed document."""

    id: int
    name: str
    title: str
    size: int
    chunks: int
    sha256: bytes
    settings: str
    meta: dict[str, Any]
    indexed_at: float  # seconds since the epoch


@dataclass(slots=True, frozen=True)
class Hit:
    """A chunk found by one search method, with its score."""

    source: str
    title: str
    position: int
    content: str
    heading: str
    page: int | None
    meta: dict[str, Any]
    score: float
    embedding: Vector


class Store:
    """Documents of all tenants in one database.

    The store pools idle connections itself. When the server refuses connections, a caller of
    `psycopg_pool.AsyncConnectionPool` waits for its whole timeout (5.0 s instead of 1 ms), and
    `AsyncNullConnectionPool` connects for every statement (19 ms or more instead of 0.1 ms).

    Args:
        conninfo: libpq connection string.
        dimension: of the embeddings.
        language: a PostgreSQL text-search configuration, for the keyword index.
        connections: maximum number of open connections.
    """

    def __init__(self, conninfo: str, dimension: int, language: str = "english", connections: int = 8) -> None:
        self._conninfo, self._dimension, self._language = conninfo, dimension, language
        self._free = asyncio.Semaphore(connections)
        self._idle: list[AsyncConnection[Any]] = []
        self._closed = False

    async def open(self) -> None:
        """Bring the schema up to date. Raises `StoreUnavailable`, and may then be called again.

        Raises:
            RequestError: 503 `store_read_only`: the schema is not up to date, and the database read-only; 500 `retrieval_misconfigured`: the database lacks pgvector, a permission or the language, or was
                created for embeddings of another dimension, or for another language.
        """
        self._closed = False
        try:
            async with asyncio.timeout(_WRITE_TIMEOUT_S), await self._open_connection() as connection:
                await migrate(connection, self._dimension, self._language)
        except (psycopg.OperationalError, TimeoutError) as error:
            raise StoreUnavailable from error
        except psycopg.errors.ReadOnlySqlTransaction as error:
            raise _read_only() from error
        except (
            psycopg.ProgrammingError,
            psycopg.NotSupportedError,
        ) as error:  # no pgvector, missing permission, unknown language
            raise _unusable(error) from _of_server(error)

    async def close(self) -> None:
        """Close all connections; those in use are closed after use."""
        self._closed = True
        await self._close_idle()

    async def indexed_version(self, owner: Owner, name: str) -> tuple[bytes, str] | None:
        """SHA-256 and settings of the document that is indexed under `name`."""

        async def read(connection: AsyncConnection[Any]) -> tuple[bytes, str] | None:
            cursor = await connection.execute(
                "SELECT sha256, settings FROM gearbox.sources WHERE tenant = %s AND collection = %s AND name = %s",
                (owner.tenant, owner.collection, name),
            )
            row = await cursor.fetchone()
            return (bytes(row[0]), row[1]) if row else None

        return await self._with_retry(read, _READ_TIMEOUT_S)

    async def upsert(
        self, owner: Owner, source: Source, chunks: Sequence[Chunk], embeddings: np.ndarray[Any, Any]
    ) -> Literal["added", "replaced"]:
        """Insert a document or replace the document of the same name. `embeddings` is (chunks, dimension), float32.

        Concurrent searches see the old chunks or the new chunks, never both. Writes of the same name are serialized.
        """
        key = (owner.tenant, owner.collection, source.name)

        async def write(connection: AsyncConnection[Any]) -> Literal["added", "replaced"]:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL statement_timeout = '{_WRITE_TIMEOUT_S:.0f}s'")
                await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_lock_key(*key),))
                deleted = await connection.execute(
                    "DELETE FROM gearbox.sources WHERE tenant = %s AND collection = %s AND name = %s", key
                )
                cursor = await connection.execute(
                    """INSERT INTO gearbox.sources (tenant, collection, name, sha256, settings, title, size, chunks, meta)
                       VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING id""",
                    (
                        *key, source.sha256, source.settings, source.title, source.size, len(chunks),
                        Jsonb(dict(source.meta)),
                    ),
                )  # fmt: skip
                row = await cursor.fetchone()
                if row is None:
                    raise psycopg.InternalError("INSERT … RETURNING gave no row")
                async with connection.cursor() as writer, writer.copy(_COPY) as copy:
                    copy.set_types(["int8", "int4", "text", "text", "text", "text", "int4", "vector"])
                    for i, (chunk, embedding) in enumerate(zip(chunks, embeddings, strict=True)):
                        await copy.write_row(
                            (
                                row[0],
                                i,
                                owner.tenant,
                                owner.collection,
                                chunk.heading,
                                chunk.content,
                                chunk.page,
                                embedding,
                            )
                        )
            return "replaced" if deleted.rowcount else "added"

        return await self._with_retry(write, _WRITE_TIMEOUT_S)

    async def delete(self, owner: Owner, name: str | None = None) -> int:
        """Delete a document, or the whole collection with its calibration; returns the number of deleted documents."""
        query: LiteralString = "DELETE FROM gearbox.sources WHERE tenant = %s AND collection = %s"
        params: tuple[str, ...] = (owner.tenant, owner.collection)
        if name is not None:
            query, params = f"{query} AND name = %s", (*params, name)

        async def write(connection: AsyncConnection[Any]) -> int:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL statement_timeout = '{_WRITE_TIMEOUT_S:.0f}s'")
                if name is None:
                    await calibrations.delete(connection, owner.tenant, owner.collection)
                return (await connection.execute(query, params)).rowcount

        return await self._with_retry(write, _WRITE_TIMEOUT_S)

    async def list_documents(self, owner: Owner, after: str = "", limit: int = 100) -> list[IndexedDocument]:
        """List documents ordered by name, from the first name after `after`."""

        async def read(connection: AsyncConnection[Any]) -> list[IndexedDocument]:
            async with connection.cursor(row_factory=class_row(IndexedDocument)) as cursor:
                await cursor.execute(
                    """SELECT id, name, title, size, chunks, sha256, settings, meta,
                              extract(epoch FROM indexed_at)::float8 AS indexed_at
                       FROM gearbox.sources WHERE tenant = %s AND collection = %s AND name > %s ORDER BY name LIMIT %s""",
                    (owner.tenant, owner.collection, after, limit),
                )
                return await cursor.fetchall()

        return await self._with_retry(read, _READ_TIMEOUT_S)

    async def collections(self, tenant: str, after: str = "", limit: int = 100) -> dict[str, dict[str, int]]:
        """Numbers of documents and chunks of `tenant`'s collections, ordered by name, from the first name after `after`."""

        async def read(connection: AsyncConnection[Any]) -> dict[str, dict[str, int]]:
            cursor = await connection.execute(
                """SELECT collection, count(*), sum(chunks)::int8 FROM gearbox.sources
                   WHERE tenant = %s AND collection > %s GROUP BY collection ORDER BY collection LIMIT %s""",
                (tenant, after, limit),
            )
            return {
                name: {"documents": documents, "chunks": chunks} for name, documents, chunks in await cursor.fetchall()
            }

        return await self._with_retry(read, _READ_TIMEOUT_S)

    async def exists(self, owner: Owner) -> bool:
        """Whether the collection has a document."""

        async def read(connection: AsyncConnection[Any]) -> bool:
            cursor = await connection.execute(
                "SELECT EXISTS (SELECT FROM gearbox.sources WHERE tenant = %s AND collection = %s)",
                (owner.tenant, owner.collection),
            )
            return await cursor.fetchone() == (True,)

        return await self._with_retry(read, _READ_TIMEOUT_S)

    async def calibration(self, owner: Owner) -> Calibration | None:
        """The collection's calibration; None where it has none."""
        return await self._with_retry(
            lambda connection: calibrations.read(connection, owner.tenant, owner.collection), _READ_TIMEOUT_S
        )

    async def set_calibration(
        self, owner: Owner, threshold: float, rate: float, questions: int, scorer: str
    ) -> Calibration | None:
        """Store the collection's calibration in place of the one it had; None, and nothing is stored, without documents."""
        row = (owner.tenant, owner.collection, threshold, rate, questions, scorer)
        return await self._with_retry(lambda connection: calibrations.write(connection, *row), _READ_TIMEOUT_S)

    async def delete_calibration(self, owner: Owner) -> bool:
        """Delete the collection's calibration; returns whether it had one."""
        return await self._with_retry(
            lambda connection: calibrations.delete(connection, owner.tenant, owner.collection), _READ_TIMEOUT_S
        )

    async def vector_search(
        self, owner: Owner, embedding: Sequence[float], top_k: int, filters: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """The chunks whose embeddings are nearest; scores are cosine similarities.

        Small collections are searched exactly. For large ones, the index over all tenants is used and its results are filtered;
        if too few remain, the collection is searched exactly.
        """
        condition, params = _search_parameters(owner, top_k, filters)
        params["query"] = np.asarray(embedding, np.float32)

        async def read(connection: AsyncConnection[Any]) -> list[Hit]:
            large = await (await connection.execute(_IS_LARGE, params)).fetchone()
            if large == (True,) and len(hits := await _hits(connection, _VECTOR_SEARCH, condition, params)) == top_k:
                return hits
            return await _hits(connection, _EXACT_VECTOR_SEARCH, condition, params)

        return await self._with_retry(read, _READ_TIMEOUT_S)

    async def keyword_search(
        self, owner: Owner, text: str, top_k: int, filters: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """The chunks that best match any words of `text`; rare words have a higher weight."""
        condition, params = _search_parameters(owner, top_k, filters)
        question = {"query": text.replace("\0", " "), "language": self._language}

        async def read(connection: AsyncConnection[Any]) -> list[Hit]:
            lexemes = await (await connection.execute(LEXEMES, question)).fetchall()
            if not lexemes:
                return []
            score, words = weighted_rank(lexemes)
            return await _hits(connection, _KEYWORD_SEARCH, condition, {**params, **words}, score=score)

        return await self._with_retry(read, _READ_TIMEOUT_S)

    async def _with_retry(self, work: Callable[[AsyncConnection[Any]], Awaitable[_T]], within_s: float) -> _T:
        """Run `work`, which is transactional; retried once if the connection breaks.

        Raises:
            StoreUnavailable: the database is unavailable.
            RequestError: 400 for values that PostgreSQL can't store, 500 if the database is not the one that was opened, 507
                if its disk is full, 503 if it is read-only.
        """
        for attempt in (1, 2):
            try:
                async with asyncio.timeout(within_s), self._connection() as connection:
                    return await work(connection)
            except TimeoutError as error:
                raise StoreUnavailable from error
            except psycopg.errors.DataException as error:  # from pgvector: vectors of different dimensions
                raise _unusable(error) from error
            except psycopg.ProgrammingError as error:  # for example dropped tables
                raise _unusable(error) from _of_server(error)
            except psycopg.DataError as error:  # for example a character that PostgreSQL's text type can't store
                why = f"the document store can't hold that: {str(error).splitlines()[0]}"
                raise RequestError(400, why, code="invalid_value") from error
            except psycopg.errors.DiskFull as error:
                why = "the document store's disk is full; nothing was changed"
                raise RequestError(507, why, code="store_full", headers={"x-should-retry": "false"}) from error
            except psycopg.errors.ReadOnlySqlTransaction as error:  # for example a standby server after a failover
                raise _read_only() from error
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                await self._close_idle()  # other idle connections are probably broken too
                if attempt == 2 or isinstance(error, psycopg.errors.QueryCanceled):
                    raise StoreUnavailable from error
        raise AssertionError

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection[Any]]:
        """An exclusive connection. A connection that broke or is inside a transaction is not reused."""
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            await self._free.acquire()
        try:
            connection = self._idle.pop() if self._idle else await self._connect()
            try:
                yield connection
            finally:
                if connection.info.transaction_status == TransactionStatus.IDLE and not self._closed:
                    self._idle.append(connection)
                else:
                    await connection.close()
        finally:
            self._free.release()

    async def _open_connection(self) -> AsyncConnection[Any]:
        return await AsyncConnection.connect(self._conninfo, autocommit=True, connect_timeout=int(_CONNECT_TIMEOUT_S))

    async def _connect(self) -> AsyncConnection[Any]:
        connection = await self._open_connection()
        try:
            await register_vector_async(connection)
            # iterative scan: with a filter, a plain HNSW scan would return too few rows
            await connection.execute(
                f"SET statement_timeout = '{_READ_TIMEOUT_S}s'; SET hnsw.iterative_scan = strict_order"
            )
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _close_idle(self) -> None:
        while self._idle:
            await self._idle.pop().close()


def parse_filters(filters: Mapping[str, Any]) -> tuple[sql.Composable, dict[str, Any]]:
    """Translate `filters` to an SQL condition and its parameters. Raises `RequestError` 400."""
    try:
        return where_clause(filters)
    except FilterError as error:
        raise RequestError(400, str(error), param="retrieval.filters", code="invalid_filter") from error


def _search_parameters(
    owner: Owner, top_k: int, filters: Mapping[str, Any] | None
) -> tuple[sql.Composable, dict[str, Any]]:
    """The SQL condition and the parameters of a search. Raises `RequestError`."""
    condition, params = parse_filters(filters) if filters else (sql.SQL("TRUE"), {})
    return condition, {"tenant": owner.tenant, "collection": owner.collection, "top_k": top_k, **params}


async def _hits(
    connection: AsyncConnection[Any],
    query: LiteralString,
    condition: sql.Composable,
    params: Mapping[str, Any],
    **parts: sql.Composable,
) -> list[Hit]:
    async with connection.cursor(row_factory=dict_row, binary=True) as cursor:
        await cursor.execute(sql.SQL(query).format(filters=condition, **parts), params)
        rows = await cursor.fetchall()
    return [Hit(**{**row, "embedding": row["embedding"].to_numpy()}) for row in rows]


_COPY = """COPY gearbox.chunks (source_id, position, tenant, collection, heading, content, page, embedding)
           FROM STDIN (FORMAT BINARY)"""

_IS_LARGE: LiteralString = f"""
    SELECT count(*) = {_MAX_EXACT_CHUNKS} OR sum(chunks) > {_MAX_EXACT_CHUNKS} FROM (
        SELECT chunks FROM gearbox.sources WHERE tenant = %(tenant)s AND collection = %(collection)s
        LIMIT {_MAX_EXACT_CHUNKS}) AS counted"""

_HIT_COLUMNS: LiteralString = (
    "SELECT s.name AS source, s.title, c.position, c.content, c.heading, c.page, s.meta, c.embedding"
)
_CONDITION: LiteralString = "c.tenant = %(tenant)s AND c.collection = %(collection)s AND {filters}"

_VECTOR_SEARCH: LiteralString = f"""
    {_HIT_COLUMNS}, 1 - (c.embedding <=> %(query)s) AS score
    FROM gearbox.chunks c JOIN gearbox.sources s ON s.id = c.source_id WHERE {_CONDITION}
    ORDER BY c.embedding <=> %(query)s LIMIT %(top_k)s"""

# `+ 0` keeps the planner from using the index on embeddings
_EXACT_VECTOR_SEARCH: LiteralString = f"""
    {_HIT_COLUMNS}, 1 - (c.embedding <=> %(query)s) AS score
    FROM gearbox.chunks c JOIN gearbox.sources s ON s.id = c.source_id WHERE {_CONDITION}
    ORDER BY (c.embedding <=> %(query)s) + 0, c.source_id, c.position LIMIT %(top_k)s"""

# The outer join is only for filters; without them, the planner removes it.
_KEYWORD_SEARCH: LiteralString = f"""
    WITH best AS MATERIALIZED (
        SELECT c.source_id, c.position, ({{score}})::float8 AS score
        FROM gearbox.chunks c LEFT JOIN gearbox.sources s ON s.id = c.source_id
        WHERE c.words @@ %(words)s::tsquery AND {_CONDITION}
        ORDER BY score DESC, c.source_id, c.position LIMIT %(top_k)s)
    {_HIT_COLUMNS}, best.score
    FROM best JOIN gearbox.chunks c USING (source_id, position) JOIN gearbox.sources s ON s.id = c.source_id
    ORDER BY best.score DESC, c.source_id, c.position"""


def _read_only() -> RequestError:
    why = "the document store is read-only at the moment; nothing was changed"
    return RequestError(503, why, code="store_read_only", headers={"retry-after": "10"})


def _of_server(error: psycopg.Error) -> psycopg.Error | None:
    """The error if the server sent it: libpq's may contain a password, and causes are in logs and in the platform's state."""
    return error if error.diag.message_primary else None


def _unusable(error: psycopg.Error) -> RequestError:
    """The error for an unusable database, with the server's message."""
    reason = error.diag.message_primary or f"{type(error).__name__}; look at its connection string"
    return retrieval_misconfigured(f"the document store can't be used: {reason}")


def _lock_key(*parts: str) -> int:
    """The 64-bit key of an advisory lock, from a name."""
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest(), signed=True)
