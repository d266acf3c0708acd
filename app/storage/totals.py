"""What metrics count for good: a row per happening, added up by dispatch, so that no process has to live on for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from sqlalchemy import insert, text
from sqlalchemy.orm import Session

from app.storage.tables import Measurement

SECONDS: Final = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 21_600.0)
"""Upper bounds of the buckets that values are put into; the last one is a step's time limit as it is shipped."""

_BUCKET = "(SELECT count(*)::int FROM unnest(CAST(:bounds AS float8[])) AS bound WHERE bound < value)"
_ADD_UP = f"""
WITH taken AS (DELETE FROM measurements RETURNING name, label, value)
INSERT INTO totals (name, label, bucket, times, value)
SELECT name, label, {_BUCKET} AS bucket, count(*), sum(value) FROM taken GROUP BY 1, 2, 3
ON CONFLICT (name, label, bucket)
DO UPDATE SET times = totals.times + excluded.times, value = totals.value + excluded.value
"""  # noqa: S608 - our own words
_READ = f"""
SELECT name, label, bucket, sum(times)::bigint, sum(value) FROM (
  SELECT name, label, bucket, times, value FROM totals
  UNION ALL
  SELECT name, label, {_BUCKET}, 1, value FROM measurements
) AS everything GROUP BY 1, 2, 3
"""  # noqa: S608 - our own words


class Sum(NamedTuple):
    """Measurements of one name and label: how many fell into each bucket, and what they add up to."""

    buckets: Mapping[int, int]
    value: float


def count(tx: Session, name: str, label: str = "") -> None:
    """Count one happening, in the transaction that makes it true."""
    measure(tx, name, label, value=1.0)


def measure(tx: Session, name: str, label: str = "", *, value: float) -> None:
    """Note how much it was: seconds, normally."""
    tx.execute(insert(Measurement).values(name=name, label=label, value=value))


def add_up(tx: Session) -> None:
    """Turn measurements into totals; what others have not committed yet is taken the next time."""
    tx.execute(text(_ADD_UP), {"bounds": list(SECONDS)})


def read(tx: Session) -> dict[tuple[str, str], Sum]:
    """Everything that was ever counted, by name and label; the same whether it has been added up or not."""
    found: dict[tuple[str, str], Sum] = {}
    for name, label, bucket, times, value in tx.execute(text(_READ), {"bounds": list(SECONDS)}):
        before = found.get((name, label), Sum({}, 0.0))
        found[name, label] = Sum({**before.buckets, bucket: times}, before.value + value)
    return found
