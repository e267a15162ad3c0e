"""Schema of the document store, and its migrations."""

from collections.abc import Sequence
from typing import Any, LiteralString

from psycopg import AsyncConnection, sql

from serve.errors import retrieval_misconfigured

_LOCK = 7_276_432  # advisory lock: only one process migrates at a time

# Each migration is applied once, in order. Never edit one: add another.
_MIGRATIONS: Sequence[LiteralString] = (
    """
    CREATE TABLE gearbox.made_for (dimension integer NOT NULL, language text NOT NULL);
    INSERT INTO gearbox.made_for VALUES ({dimension}, {language});
    CREATE TABLE gearbox.sources (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        tenant text NOT NULL, collection text NOT NULL, name text NOT NULL,
        sha256 bytea NOT NULL, settings text NOT NULL, title text NOT NULL, size bigint NOT NULL, chunks integer NOT NULL,
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
    -- whole rows in one place: every search reads the embedding, or the words to rank by them
    ALTER TABLE gearbox.chunks ALTER embedding SET STORAGE PLAIN, SET (toast_tuple_target = 8160);
    CREATE INDEX chunks_owner ON gearbox.chunks (tenant, collection);
    CREATE INDEX chunks_words ON gearbox.chunks USING gin (words);
    CREATE INDEX chunks_embedding ON gearbox.chunks USING hnsw (embedding vector_cosine_ops);
    """,
    """
    CREATE TABLE gearbox.calibrations (
        tenant text NOT NULL, collection text NOT NULL,
        threshold float8 NOT NULL, rate float8 NOT NULL, questions integer NOT NULL, scorer text NOT NULL,
        calibrated_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (tenant, collection));
    """,
)


async def migrate(connection: AsyncConnection[Any], dimension: int, language: str) -> None:
    """Apply the missing migrations. Raises `RequestError` 500 for a database of another dimension or language."""
    async with connection.transaction():
        if await _migrations(connection) < len(_MIGRATIONS):  # a database that is read-only may be up to date
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            await connection.execute("CREATE SCHEMA IF NOT EXISTS gearbox")
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS gearbox.migrations (number integer PRIMARY KEY, at timestamptz DEFAULT now())"
            )
            done = await _migrations(connection)
            for number, statements in enumerate(_MIGRATIONS[done:], done + 1):
                statement = sql.SQL(statements).format(dimension=sql.Literal(dimension), language=sql.Literal(language))
                await connection.execute(statement)
                await connection.execute("INSERT INTO gearbox.migrations (number) VALUES (%s)", (number,))
        row = await (await connection.execute("SELECT dimension, language FROM gearbox.made_for")).fetchone()
    if row != (dimension, language):
        stored = f"{row[0]} dimensions and the language '{row[1]}'" if row else "nothing"
        raise retrieval_misconfigured(
            f"the document store was made for embeddings of {stored}, but the configuration's embedder makes {dimension} "
            f"dimensions and its language is '{language}': set retrieval.embedder and retrieval.language back, or use "
            "another database and index the documents again"
        )


async def _migrations(connection: AsyncConnection[Any]) -> int:
    """Number of migrations that were applied."""
    table = await (await connection.execute("SELECT to_regclass('gearbox.migrations')")).fetchone()
    if table is None or table[0] is None:
        return 0
    row = await (await connection.execute("SELECT coalesce(max(number), 0) FROM gearbox.migrations")).fetchone()
    return int(row[0]) if row else 0
