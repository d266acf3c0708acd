"""Idempotency-Keys and what they were answered with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy.orm import Session

from app.storage.sessions import Asked, Rows, array, fetch

Place = tuple[UUID, bytes]
"""A client and the digest of one of its Idempotency-Keys."""


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


def answers(tx: Session, places: Iterable[Place]) -> dict[Place, Answer]:
    """What these Idempotency-Keys were answered with before, where they were."""
    wanted = set(places)
    return read(fetch(tx, *asking(wanted))) if wanted else {}


def asking(places: Iterable[Place]) -> Asked:
    """The statement that :func:`answers` asks, for those who ask more at once."""
    wanted = sorted(places)
    return _ANSWERS, {"clients": array(c for c, _ in wanted), "keys": array(k for _, k in wanted)}


def read(rows: Rows) -> dict[Place, Answer]:
    """The answer of :func:`asking`."""
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
