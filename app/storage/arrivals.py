"""What comes in, many at a time: a statement for each question, however many demands ask it.

Rows go in sorted by what is unique about them, so that two transactions that meet in the same demands wait for each
other in one order and can't deadlock. moves.py writes the requests themselves, since they have a status.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.domain.lifecycle import RequestStatus
from app.storage.sessions import Asked, Rows, fetch, fetch_all
from app.storage.tables import ErasureRequest


@dataclass(slots=True, kw_only=True)
class Arrival:
    """A request that is about to be written, with what a reader of it is shown; no ORM object, which costs 40 µs."""

    id: UUID
    ref: str
    status: RequestStatus
    client_id: UUID
    batch_id: UUID | None
    reference: str | None
    models: list[str] | None
    received_at: datetime
    deadline: datetime
    identity_level: str
    approvals_needed: int
    subject_key: UUID
    suppression_key: bytes
    sealed_user_id: bytes
    dedupe_key: bytes
    wrapped: bytes
    """Its working key, wrapped."""
    traceparent: str | None = None
    key_digest: bytes | None = None
    """Of the Idempotency-Key that it is to be bound to, if it came with one."""
    body_digest: bytes | None = None
    origin: str = "portal"
    reason: str | None = None
    closed_at: datetime | None = None
    clock_from: datetime | None = None
    duplicate_of: UUID | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What an Idempotency-Key was answered with: a request, or what a bulk call was told."""

    request_id: UUID | None
    body_digest: bytes
    told: dict[str, Any] | None  # Any: JSON


@dataclass(frozen=True, slots=True)
class Binding:
    """An Idempotency-Key that is to be bound to its answer."""

    client_id: UUID
    key_digest: bytes
    body_digest: bytes
    request_id: UUID


_ANSWERS: Final = """
    SELECT i.client_id, i.key_digest, i.request_id, i.body_digest, i.answer
    FROM unnest(CAST(%(clients)s AS uuid[]), CAST(%(keys)s AS bytea[])) AS k(client_id, key_digest)
    CROSS JOIN LATERAL (
        SELECT * FROM idempotency_keys WHERE client_id = k.client_id AND key_digest = k.key_digest LIMIT 1
    ) i
"""
"""LATERAL with a LIMIT, which can't become a hash join: planned while the table was small, that one read all of it for
every flush (measured: 4500 rows each, after ten seconds)."""

_BIND: Final = """
    INSERT INTO idempotency_keys (client_id, key_digest, body_digest, request_id)
    SELECT * FROM unnest(CAST(%(clients)s AS uuid[]), CAST(%(keys)s AS bytea[]), CAST(%(bodies)s AS bytea[]),
                         CAST(%(requests)s AS uuid[]))
    ON CONFLICT DO NOTHING RETURNING client_id, key_digest
"""

_BIND_BATCH: Final = """
    INSERT INTO idempotency_keys (client_id, key_digest, body_digest, answer)
    VALUES (%(client_id)s, %(key_digest)s, %(body_digest)s, CAST(%(answer)s AS jsonb))
    ON CONFLICT DO NOTHING RETURNING client_id
"""

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

Place = tuple[UUID, bytes]
"""A client and the digest of one of its Idempotency-Keys."""


def array(values: Iterable[UUID | bytes | str | None]) -> str:
    """An array as PostgreSQL reads it; the driver's own way of writing lists costs 3 µs an element, this one 0.3."""
    return "{" + ",".join(map(_element, values)) + "}"


def _element(value: UUID | bytes | str | None) -> str:
    if isinstance(value, bytes):
        return f'"\\\\x{value.hex()}"'
    if isinstance(value, UUID):
        return value.hex
    if value is None:
        return "NULL"
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def answers(tx: Session, places: Iterable[Place]) -> dict[Place, Answer]:
    """What these Idempotency-Keys were answered with before, where they were."""
    wanted = set(places)
    return _answers(fetch(tx, *_asking_answers(wanted))) if wanted else {}


def answers_and_room(
    tx: Session, places: Iterable[Place], client_ids: Iterable[UUID], *, day: date, usual: int
) -> tuple[dict[Place, Answer], dict[UUID, int]]:
    """Both :func:`answers` and :func:`room`, in one round trip."""
    earlier, left = fetch_all(tx, _asking_answers(set(places)), _asking_room(client_ids, day, usual))
    return _answers(earlier), _room(left)


def _asking_answers(places: Iterable[Place]) -> Asked:
    wanted = sorted(places)
    return _ANSWERS, {"clients": array(c for c, _ in wanted), "keys": array(k for _, k in wanted)}


def _answers(rows: Rows) -> dict[Place, Answer]:
    return {(client, key): Answer(request, body, told) for client, key, request, body, told in rows}


def bind(tx: Session, bindings: Iterable[Binding]) -> set[Place]:
    """Bind keys to their answers; returns those that nobody had bound before."""
    rows = sorted(bindings, key=lambda b: (b.client_id, b.key_digest))
    if not rows:
        return set()
    columns = {
        "clients": array(b.client_id for b in rows),
        "keys": array(b.key_digest for b in rows),
        "bodies": array(b.body_digest for b in rows),
        "requests": array(b.request_id for b in rows),
    }
    return {(client_id, key_digest) for client_id, key_digest in fetch(tx, _BIND, columns)}


def bind_batch(tx: Session, place: Place, *, body_digest: bytes, told: str) -> bool:
    """Bind a key to what a bulk call was told, as JSON; false when another transaction did so first."""
    client_id, key_digest = place
    row = {"client_id": client_id, "key_digest": key_digest, "body_digest": body_digest, "answer": told}
    return bool(fetch(tx, _BIND_BATCH, row))


def twins(tx: Session, dedupe_keys: Sequence[bytes]) -> dict[bytes, ErasureRequest]:
    """The open requests that make these demands."""
    if not dedupe_keys:
        return {}
    found = tx.scalars(select(ErasureRequest).where(ErasureRequest.dedupe_key == func.any(list(dedupe_keys))))
    return {bytes(request.dedupe_key or b""): request for request in found}


def those(tx: Session, request_ids: Iterable[UUID]) -> dict[UUID, ErasureRequest]:
    """Requests by their ids."""
    wanted = list(set(request_ids))
    if not wanted:
        return {}
    found = tx.scalars(select(ErasureRequest).where(ErasureRequest.id == func.any(wanted)))
    return {request.id: request for request in found}


def room(tx: Session, client_ids: Iterable[UUID], *, day: date, usual: int) -> dict[UUID, int]:
    """How many more requests each client may make on a day, by what is committed."""
    return _room(fetch(tx, *_asking_room(client_ids, day, usual)))


def _asking_room(client_ids: Iterable[UUID], day: date, usual: int) -> Asked:
    return _ROOM, {"clients": array(set(client_ids)), "day": day, "usual": usual}


def _room(rows: Rows) -> dict[UUID, int]:
    return {client_id: int(left) for client_id, left in rows}


def in_bulk(tx: Session, client_id: UUID, *, since: datetime, beyond: int) -> int:
    """How many requests a client made in bulk calls since then; 0 where all its requests are no more than that."""
    [[count]] = fetch(tx, _IN_BULK, {"client": client_id, "since": since, "beyond": beyond})
    return int(count)


def hold_counts(tx: Session, client_ids: Iterable[UUID]) -> None:
    """Wait until nobody else spends the last of these clients' day; until the transaction ends."""
    for client_id in sorted(set(client_ids)):
        tx.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(str(client_id), 7215004))))


def forget_counts(tx: Session) -> None:
    """Delete the counts of days that are over in every time zone."""
    tx.execute(text("DELETE FROM intake_counts WHERE day < current_date - 1"))
