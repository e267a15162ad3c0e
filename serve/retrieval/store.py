"""Where documents are kept: PostgreSQL with pgvector. One transaction per source, so that it is there whole or not at all.

Every statement names the tenant. Connections come from a pool, one for each statement: Haystack's own store shares one cursor
between all that ask at once, so that one could read another's rows.
"""

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, LiteralString

import numpy as np
import psycopg
from pgvector.psycopg import register_vector_async
from psycopg import AsyncConnection, sql
from psycopg.rows import class_row, dict_row, tuple_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from serve.errors import RequestError
from serve.retrieval.filters import FilterError, where

_WAIT_S = 5.0  # for a connection: what the database cannot give by then is an error, not a hang
_LOCK = 7_276_432  # of migrations: one at a time, whichever process comes first


class StoreDown(RequestError):
    """The database does not answer."""

    def __init__(self) -> None:
        super().__init__(
            503, "the document store does not answer; retry later", code="store_unavailable", headers={"retry-after": "2"}
        )


@dataclass(slots=True, frozen=True)
class Owner:
    """Whose documents: a tenant's collection. Nothing is ever read across."""

    tenant: str
    collection: str


@dataclass(slots=True, frozen=True)
class Chunk:
    """A piece of a document, as it is found and shown."""

    content: str
    heading: str = ""
    page: int | None = None


@dataclass(slots=True, frozen=True)
class Source:
    """A document before it is indexed. `digest` is of its bytes and of how they are cut and embedded."""

    name: str  # path or URL: what is indexed again under the same name replaces it
    digest: bytes
    title: str = ""
    size: int = 0  # bytes
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class Listed:
    """A document that is indexed."""

    id: int
    name: str
    title: str
    size: int
    chunks: int
    digest: bytes
    meta: dict[str, Any]
    indexed_at: float  # seconds since the epoch


@dataclass(slots=True, frozen=True)
class Hit:
    """A chunk that was found, with its score by one way of searching."""

    source: str
    title: str
    position: int
    content: str
    heading: str
    page: int | None
    meta: dict[str, Any]
    score: float


class Store:
    """Documents of all tenants in one database.

    Args:
        conninfo: libpq connection string.
        dimension: of the embeddings.
        language: a PostgreSQL text-search configuration, for the keyword index.
        connections: the most that are open at once.
    """

    def __init__(self, conninfo: str, dimension: int, language: str = "english", connections: int = 8) -> None:
        self._dimension, self._language = dimension, language
        self._pool = AsyncConnectionPool(
            conninfo, min_size=1, max_size=connections, open=False, timeout=_WAIT_S, max_idle=300,
            configure=_configure, check=AsyncConnectionPool.check_connection,
            kwargs={"autocommit": True, "connect_timeout": 5},
        )  # fmt: skip
        self._conninfo = conninfo

    async def open(self) -> None:
        """Bring the schema up to date and connect. Raises `StoreDown`."""
        try:
            async with await AsyncConnection.connect(self._conninfo, connect_timeout=5) as connection:
                await _migrate(connection, self._dimension, self._language)
        except psycopg.OperationalError as error:
            raise StoreDown from error
        await self._pool.open()

    async def close(self) -> None:
        """Give all connections back."""
        await self._pool.close()

    async def digest(self, owner: Owner, name: str) -> bytes | None:
        """Of the document that is indexed under `name`."""
        async with self._connection() as connection, connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(
                "SELECT digest FROM gearbox.sources WHERE tenant = %s AND collection = %s AND name = %s",
                (owner.tenant, owner.collection, name),
            )
            row = await cursor.fetchone()
        return bytes(row[0]) if row else None

    async def put(
        self, owner: Owner, source: Source, chunks: Sequence[Chunk], embeddings: np.ndarray[Any, Any]
    ) -> Literal["added", "replaced"]:
        """Index a document in place of what its name had. `embeddings` is (chunks, dimension), float32.

        Readers see the old chunks or the new ones, never both. Two that write the same name come one after the other.
        """
        key = (owner.tenant, owner.collection, source.name)
        async with self._connection() as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_number(*key),))
            deleted = await connection.execute(
                "DELETE FROM gearbox.sources WHERE tenant = %s AND collection = %s AND name = %s", key
            )
            cursor = await connection.execute(
                """INSERT INTO gearbox.sources (tenant, collection, name, digest, title, size, chunks, meta)
                   VALUES (%s, %s, %s, %s, %s, %s, %s, %s) RETURNING id""",
                (*key, source.digest, source.title, source.size, len(chunks), Jsonb(dict(source.meta))),
            )
            row = await cursor.fetchone()
            assert row is not None
            async with connection.cursor() as writer, writer.copy(_COPY) as copy:
                copy.set_types(["int8", "int4", "text", "text", "text", "text", "int4", "vector"])
                for i, (chunk, embedding) in enumerate(zip(chunks, embeddings, strict=True)):
                    await copy.write_row(
                        (row[0], i, owner.tenant, owner.collection, chunk.heading, chunk.content, chunk.page, embedding)
                    )
        return "replaced" if deleted.rowcount else "added"

    async def delete(self, owner: Owner, name: str | None = None) -> int:
        """Remove a document, or all of the collection; returns how many went."""
        query: LiteralString = "DELETE FROM gearbox.sources WHERE tenant = %s AND collection = %s"
        params: tuple[str, ...] = (owner.tenant, owner.collection)
        if name is not None:
            query, params = f"{query} AND name = %s", (*params, name)
        async with self._connection() as connection:
            return (await connection.execute(query, params)).rowcount

    async def listed(self, owner: Owner, after: str = "", limit: int = 100) -> list[Listed]:
        """Documents by name, those after `after`."""
        async with self._connection() as connection, connection.cursor(row_factory=class_row(Listed)) as cursor:
            await cursor.execute(
                """SELECT id, name, title, size, chunks, digest, meta, extract(epoch FROM indexed_at)::float8 AS indexed_at
                   FROM gearbox.sources WHERE tenant = %s AND collection = %s AND name > %s ORDER BY name LIMIT %s""",
                (owner.tenant, owner.collection, after, limit),
            )
            return await cursor.fetchall()

    async def collections(self, tenant: str) -> dict[str, dict[str, int]]:
        """Documents and chunks of each collection of `tenant`."""
        async with self._connection() as connection, connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(
                """SELECT collection, count(*), sum(chunks)::int8 FROM gearbox.sources
                   WHERE tenant = %s GROUP BY collection ORDER BY collection""",
                (tenant,),
            )
            return {name: {"documents": documents, "chunks": chunks} for name, documents, chunks in await cursor.fetchall()}

    async def nearest(
        self, owner: Owner, embedding: Sequence[float], top_k: int, filters: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """The chunks whose embeddings are nearest; scores are cosine similarities."""
        return await self._search(owner, _NEAREST, {"query": np.asarray(embedding, np.float32)}, top_k, filters)

    async def matching(
        self, owner: Owner, text: str, top_k: int, filters: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """The chunks that best match the words of `text`, any of them; scores are PostgreSQL's `ts_rank_cd`."""
        return await self._search(owner, _MATCHING, {"query": text, "language": self._language}, top_k, filters)

    async def _search(
        self, owner: Owner, query: LiteralString, params: dict[str, Any], top_k: int, filters: Mapping[str, Any] | None
    ) -> list[Hit]:
        try:
            condition, more = where(filters) if filters else (sql.SQL("TRUE"), {})
        except FilterError as error:
            raise RequestError(400, str(error), param="retrieval.filters", code="invalid_filter") from error
        params |= {"tenant": owner.tenant, "collection": owner.collection, "top_k": top_k, **more}
        async with self._connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(sql.SQL(query).format(filters=condition), params)
            return [Hit(**row) for row in await cursor.fetchall()]

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection[Any]]:
        """A connection of one's own. Raises `StoreDown` when there is none, or when it broke."""
        try:
            async with self._pool.connection() as connection:
                yield connection
        except (PoolTimeout, psycopg.OperationalError) as error:
            raise StoreDown from error


_COPY = """COPY gearbox.chunks (source_id, position, tenant, collection, heading, content, page, embedding)
           FROM STDIN (FORMAT BINARY)"""

_NEAREST: LiteralString = """
    SELECT s.name AS source, s.title, c.position, c.content, c.heading, c.page, s.meta,
           1 - (c.embedding <=> %(query)s) AS score
    FROM gearbox.chunks c JOIN gearbox.sources s ON s.id = c.source_id
    WHERE c.tenant = %(tenant)s AND c.collection = %(collection)s AND {filters}
    ORDER BY c.embedding <=> %(query)s LIMIT %(top_k)s"""

# any word is enough: of a whole question, a document rarely has all
_MATCHING: LiteralString = """
    WITH asked AS (
        SELECT string_agg(quote_literal(lexeme), ' | ')::tsquery AS words
        FROM unnest(to_tsvector(%(language)s::regconfig, %(query)s)))
    SELECT s.name AS source, s.title, c.position, c.content, c.heading, c.page, s.meta,
           ts_rank_cd(c.words, asked.words, 1)::float8 AS score
    FROM asked, gearbox.chunks c JOIN gearbox.sources s ON s.id = c.source_id
    WHERE c.words @@ asked.words AND c.tenant = %(tenant)s AND c.collection = %(collection)s AND {filters}
    ORDER BY score DESC, c.source_id, c.position LIMIT %(top_k)s"""

# Each is applied once, in order, and never changed: a later one changes what it made.
_MIGRATIONS: Sequence[LiteralString] = (
    """
    CREATE TABLE gearbox.sources (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        tenant text NOT NULL, collection text NOT NULL, name text NOT NULL,
        digest bytea NOT NULL, title text NOT NULL, size bigint NOT NULL, chunks integer NOT NULL,
        meta jsonb NOT NULL, indexed_at timestamptz NOT NULL DEFAULT now(),
        UNIQUE (tenant, collection, name));
    CREATE TABLE gearbox.chunks (
        source_id bigint NOT NULL REFERENCES gearbox.sources ON DELETE CASCADE,
        position integer NOT NULL,
        tenant text NOT NULL, collection text NOT NULL,
        heading text NOT NULL, content text NOT NULL, page integer,
        embedding vector({dimension}) NOT NULL,
        words tsvector NOT NULL GENERATED ALWAYS AS (
            setweight(to_tsvector({language}, heading), 'A') || to_tsvector({language}, content)) STORED,
        PRIMARY KEY (source_id, position));
    CREATE INDEX chunks_owner ON gearbox.chunks (tenant, collection);
    CREATE INDEX chunks_words ON gearbox.chunks USING gin (words);
    CREATE INDEX chunks_embedding ON gearbox.chunks USING hnsw (embedding vector_cosine_ops);
    """,
)


async def _migrate(connection: AsyncConnection[Any], dimension: int, language: str) -> None:
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        await connection.execute("CREATE SCHEMA IF NOT EXISTS gearbox")
        await connection.execute("CREATE TABLE IF NOT EXISTS gearbox.migrations (number integer PRIMARY KEY, at timestamptz DEFAULT now())")
        row = await (await connection.execute("SELECT coalesce(max(number), 0) FROM gearbox.migrations")).fetchone()
        done = row[0] if row else 0
        for number, statements in enumerate(_MIGRATIONS[done:], done + 1):
            made = sql.SQL(statements).format(dimension=sql.Literal(dimension), language=sql.Literal(language))
            await connection.execute(made)
            await connection.execute("INSERT INTO gearbox.migrations (number) VALUES (%s)", (number,))


async def _configure(connection: AsyncConnection[Any]) -> None:
    """Of every new connection. Iterative scans: with a filter, HNSW alone would find too few."""
    await register_vector_async(connection)
    await connection.execute("SET hnsw.iterative_scan = strict_order")
    await connection.execute("SET statement_timeout = '30s'")


def _number(*parts: str) -> int:
    """A lock's 64 bits from a name."""
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest(), signed=True)
