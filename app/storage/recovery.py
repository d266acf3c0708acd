"""Writing back what a restored backup lacks; everything here may be done twice."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import delete, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.storage import audit, moves
from app.storage.tables import (
    AuditEntry,
    Certificate,
    ErasureRequest,
    Forgotten,
    Manifest,
    Model,
    Posting,
    RequestKey,
    Suppression,
)


def by_ref(tx: Session, ref: str) -> UUID | None:
    """The request that the log calls ``ref``."""
    return tx.scalar(select(ErasureRequest.id).where(ErasureRequest.ref == ref))


def shred(tx: Session, request_id: UUID) -> None:
    """Delete a working key that the restore brought back."""
    working = (RequestKey.request_id == request_id) & (RequestKey.purpose == audit.WORKING)
    tx.execute(delete(RequestKey).where(working))


def drop_pending(tx: Session, ids: Sequence[int]) -> None:
    """Give up entries that waited for a place when the backup was made, and got it afterwards.

    The trigger that keeps entries from being deleted is for everybody else; a restore is the database owner's.
    """
    tx.execute(text("ALTER TABLE audit_entries DISABLE TRIGGER append_only"))
    tx.execute(delete(AuditEntry).where(AuditEntry.id.in_(ids), AuditEntry.leaf_index.is_(None)))
    tx.execute(text("ALTER TABLE audit_entries ENABLE TRIGGER append_only"))


def suppress(tx: Session, key: bytes, *, model: str) -> None:
    """Put somebody back on the suppression list."""
    tx.execute(insert(Suppression).values(suppression_key=key, model=model).on_conflict_do_nothing())


def bury(
    tx: Session,
    *,
    job: str,
    model: str,
    manifest: str,
    ordinal: int,
    samples: list[int],
) -> bool:
    """Note a deletion that was made, and drop the index rows of the person; true if the backup did not know."""
    model_id = tx.scalar(select(Model.id).where(Model.name == model))
    manifests = list(tx.scalars(select(Manifest.id).where(Manifest.model_id == model_id, Manifest.digest == manifest)))
    if model_id is None or not manifests:
        return False  # registered after the backup: it must be registered again, and the suppression list sees it
    moves.job_again(tx, UUID(job), model_id)
    made = 0
    for manifest_id in manifests:
        row = {"job_id": UUID(job), "manifest_id": manifest_id, "ordinal": ordinal, "sample_ids": samples}
        done = tx.execute(insert(Forgotten).values(row).on_conflict_do_nothing().returning(Forgotten.ordinal)).all()
        made += len(done)
        tx.execute(delete(Posting).where(Posting.manifest_id == manifest_id, Posting.sample_ids.contained_by(samples)))
    return made > 0


def certify(tx: Session, request_id: UUID, envelope: dict[str, Any], *, at: datetime) -> None:  # Any: JSON
    """Bring a certificate back."""
    tx.add(Certificate(request_id=request_id, envelope=envelope, issued_at=at))
