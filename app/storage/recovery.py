"""Writing back what a restored backup lacks; everything here may be done twice."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.domain.lifecycle import REQUEST_ENDED, WAITING, RequestStatus
from app.errors import Misconfigured
from app.storage import decisions, jobs, moves, suppressions
from app.storage.samples import TRAIN, forget_subjects
from app.storage.tables import (
    AuditEntry,
    Certificate,
    ErasureRequest,
    Forgotten,
    Manifest,
    Model,
    Posting,
    Target,
)

_REFUSED_SINCE = "refused in part after the backup that was restored; refuse that part again, then release it"


def by_ref(tx: Session) -> dict[str, UUID]:
    """Every request by the name that the log has for it."""
    return dict(tx.execute(select(ErasureRequest.ref, ErasureRequest.id)).tuples().all())


def still_open(tx: Session) -> dict[str, UUID]:
    """Every request without an end, by the name that the log has for it."""
    named = select(ErasureRequest.ref, ErasureRequest.id).where(ErasureRequest.closed_at.is_(None))
    return dict(tx.execute(named).tuples().all())


def set_clock(tx: Session, request_id: UUID, *, due: datetime, clock_from: datetime | None) -> None:
    """Let a request be due when the log says so, and its clock begin where an identity was confirmed."""
    mine = ErasureRequest.id == request_id
    begun = {"clock_from": clock_from} if clock_from else {}
    tx.execute(update(ErasureRequest).where(mine).values(deadline=due, **begun))


def hold_back(tx: Session, request_id: UUID, *, at: datetime) -> None:
    """Put a request on hold until people have decided again what is lost; not one for which work has begun."""
    status = RequestStatus(tx.get_one(ErasureRequest, request_id, with_for_update=True, populate_existing=True).status)
    if status in WAITING - {RequestStatus.ON_HOLD} and not decisions.has_begun(tx, request_id):
        moves.move_request(tx, request_id, now=status, then=RequestStatus.ON_HOLD, at=at, reason=_REFUSED_SINCE)


def need_keystore(tx: Session) -> None:
    """Data and keys are dumped apart, so one may come back without the other.

    Raises:
        Misconfigured: The keys' schema is not there, which no other statement would say so clearly.
    """
    if tx.scalar(text("SELECT to_regclass('keystore.request_keys')")) is None:
        raise Misconfigured(
            "PostgreSQL has no schema keystore: restore its own dump, too, or, if the last is gone, its empty table "
            "(pg_dump --schema=keystore --schema-only on another database of this version)"
        )


def await_backups(tx: Session, request_id: UUID, *, until: datetime | None) -> None:
    """Remember when the last backup goes that may hold a request's deleted key; none: the log says that it is gone."""
    ended = ErasureRequest.id == request_id
    tx.execute(update(ErasureRequest).where(ended).values(backups_expire_at=until))


def drop_pending(tx: Session, ids: Iterable[int]) -> None:
    """Give up entries that waited for a place when the backup was made, and got it afterwards.

    The trigger that keeps entries from being deleted is for everybody else; a restore is the database owner's.
    """
    tx.execute(text("ALTER TABLE audit_entries DISABLE TRIGGER append_only"))
    tx.execute(delete(AuditEntry).where(AuditEntry.id.in_(list(ids)), AuditEntry.leaf_index.is_(None)))
    tx.execute(text("ALTER TABLE audit_entries ENABLE TRIGGER append_only"))


def suppress(tx: Session, key: bytes, *, model: str) -> None:
    """Put somebody back on the suppression list."""
    suppressions.put_back(tx, key, model)


def bury(tx: Session, *, job: str, model: str, manifest: str, ordinal: int, samples: list[int], at: datetime) -> bool:
    """Note a deletion that was made, and drop the index rows of the person; true if the backup did not know."""
    model_id = tx.scalar(select(Model.id).where(Model.name == model))
    manifests = list(tx.scalars(select(Manifest.id).where(Manifest.model_id == model_id, Manifest.digest == manifest)))
    if model_id is None or not manifests:
        return False  # registered after the backup: it must be registered again, and the suppression list sees it
    moves.job_again(tx, UUID(job), model_id)
    _join_another(tx, UUID(job), model_id, at=at)
    made = 0
    for manifest_id in manifests:
        row = {"job_id": UUID(job), "manifest_id": manifest_id, "ordinal": ordinal, "sample_ids": samples}
        done = tx.execute(insert(Forgotten).values(row).on_conflict_do_nothing().returning(Forgotten.ordinal)).all()
        made += len(done)
        _drop_index_rows(tx, model_id, manifest_id, samples)
    return made > 0


def certify(tx: Session, request_id: UUID, envelope: dict[str, Any], *, at: datetime) -> None:  # Any: JSON
    """Bring a certificate back, unless it is there."""
    there = select(Certificate.id).where(Certificate.request_id == request_id, Certificate.envelope == envelope)
    if tx.scalar(there) is None:
        tx.add(Certificate(request_id=request_id, envelope=envelope, issued_at=at))
        tx.flush()


def _join_another(tx: Session, job_id: UUID, model_id: UUID, *, at: datetime) -> None:
    """Give requests that the job served, and that wait for another model, to a new job: this one's result is lost."""
    waiting = (
        select(Target.request_id)
        .join(ErasureRequest, ErasureRequest.id == Target.request_id)
        .where(Target.job_id == job_id, Target.result.is_(None), ErasureRequest.status.not_in(REQUEST_ENDED))
    )
    for request_id in tx.scalars(waiting).all():
        jobs.join(tx, jobs.collecting(tx, model_id, opens_at=at), request_id, model_id)


def _drop_index_rows(tx: Session, model_id: UUID, manifest_id: UUID, samples: list[int]) -> None:
    """Forget whose these samples were: people all of whose samples are forgotten now, and who ask for nothing else.

    Somebody who shared all of their samples with the forgotten goes with them: nothing tells the two apart any more.
    """
    gone = select(func.unnest(Forgotten.sample_ids)).where(Forgotten.manifest_id == manifest_id)
    forgotten = list(tx.scalars(gone))
    asking = select(ErasureRequest.subject_key).where(ErasureRequest.subject_key.is_not(None))
    theirs = select(Posting.subject_key).where(
        Posting.manifest_id == manifest_id,
        Posting.split == TRAIN,
        Posting.sample_ids.bool_op("&&")(samples),
        Posting.sample_ids.bool_op("<@")(forgotten),
        Posting.subject_key.not_in(asking),
    )
    forget_subjects(tx, tx.scalars(theirs).all(), model_id=model_id)
