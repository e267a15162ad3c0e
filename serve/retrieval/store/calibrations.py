"""Calibrations: the support threshold of each collection, in the document store."""

from dataclasses import dataclass
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import class_row


@dataclass(slots=True, frozen=True)
class Calibration:
    """A collection's support threshold. It is for the scores of `scorer` only: others can't be compared with it."""

    threshold: float
    rate: float  # share of answerable questions below it, at most
    questions: int
    scorer: str
    calibrated_at: float  # seconds since the epoch


async def read(connection: AsyncConnection[Any], tenant: str, collection: str) -> Calibration | None:
    """The collection's calibration; None where it has none."""
    async with connection.cursor(row_factory=class_row(Calibration)) as cursor:
        await cursor.execute(_READ, (tenant, collection))
        return await cursor.fetchone()


async def write(
    connection: AsyncConnection[Any], tenant: str, collection: str, threshold: float, rate: float, questions: int, scorer: str
) -> Calibration | None:  # fmt: skip
    """Store a calibration in place of the one that the collection had; None, and nothing is stored, without documents."""
    async with connection.cursor(row_factory=class_row(Calibration)) as cursor:
        await cursor.execute(_WRITE, (threshold, rate, questions, scorer, tenant, collection))
        return await cursor.fetchone()


async def delete(connection: AsyncConnection[Any], tenant: str, collection: str) -> bool:
    """Delete the collection's calibration; returns whether it had one."""
    return (await connection.execute(_DELETE, (tenant, collection))).rowcount > 0


_COLUMNS: LiteralString = (
    "threshold, rate, questions, scorer, extract(epoch FROM calibrated_at)::float8 AS calibrated_at"
)
_READ: LiteralString = f"SELECT {_COLUMNS} FROM gearbox.calibrations WHERE tenant = %s AND collection = %s"
_WRITE: LiteralString = f"""
    INSERT INTO gearbox.calibrations (threshold, rate, questions, scorer, tenant, collection)
    SELECT %s, %s, %s, %s, tenant, collection FROM gearbox.sources WHERE tenant = %s AND collection = %s LIMIT 1
    ON CONFLICT (tenant, collection) DO UPDATE SET threshold = excluded.threshold, rate = excluded.rate,
        questions = excluded.questions, scorer = excluded.scorer, calibrated_at = now()
    RETURNING {_COLUMNS}"""
_DELETE: LiteralString = "DELETE FROM gearbox.calibrations WHERE tenant = %s AND collection = %s"
