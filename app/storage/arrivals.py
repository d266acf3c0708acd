"""Requests that come in, many at a time: a statement for each question, however many demands ask it.

moves.py writes them, since they have a status: sorted by what is unique about them, so that two transactions that meet
in the same demands wait for each other in one order and can't deadlock. Two that use the same two Idempotency-Keys
crosswise for new demands and known ones may; PostgreSQL ends one, and it is tried again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.domain.lifecycle import RequestStatus
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
