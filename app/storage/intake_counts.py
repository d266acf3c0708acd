"""How many requests a client has made today, and may still make; moves.py counts them where it writes them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime
from typing import Final
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.storage.sessions import Asked, Rows, array, fetch

_ROOM: Final = """
    SELECT c.id, coalesce(c.daily_erasures, %(usual)s) - coalesce(sum(n.count), 0) AS room
    FROM clients c LEFT JOIN intake_counts n ON n.client_id = c.id AND n.day = %(day)s
    WHERE c.id = ANY(CAST(%(clients)s AS uuid[])) GROUP BY c.id
"""

_IN_BULK: Final = """
    SELECT count(*) FROM erasure_requests
    WHERE client_id = %(client)s AND batch_id IS NOT NULL AND received_at > %(since)s
      AND %(beyond)s < (SELECT sum(count) FROM intake_counts
                        WHERE client_id = %(client)s AND day >= CAST(%(since)s AS date) - 1)
"""
"""What came in by the day is looked at first: only if that is more, the requests are read, of which no index helps."""


def room(tx: Session, client_ids: Iterable[UUID], *, day: date, usual: int) -> dict[UUID, int]:
    """How many more requests each client may make on a day, by what is committed."""
    return read(fetch(tx, *asking(client_ids, day=day, usual=usual)))


def asking(client_ids: Iterable[UUID], *, day: date, usual: int) -> Asked:
    """The statement that :func:`room` asks, for those who ask more at once."""
    return _ROOM, {"clients": array(set(client_ids)), "day": day, "usual": usual}


def read(rows: Rows) -> dict[UUID, int]:
    """The answer of :func:`asking`."""
    return {client_id: int(left) for client_id, left in rows}


def in_bulk(tx: Session, client_id: UUID, *, since: datetime, beyond: int) -> int:
    """How many requests a client made in bulk calls since then; 0 where all its requests are no more than that."""
    [[count]] = fetch(tx, _IN_BULK, {"client": client_id, "since": since, "beyond": beyond})
    return int(count)


def hold(tx: Session, client_ids: Iterable[UUID]) -> None:
    """Wait until nobody else spends the last of these clients' day; until the transaction ends."""
    for client_id in sorted(set(client_ids)):
        tx.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(str(client_id), 7215004))))


def forget(tx: Session) -> None:
    """Delete the counts of days that are over in every time zone."""
    tx.execute(text("DELETE FROM intake_counts WHERE day < current_date - 1"))
