"""The only writer of a status: compare-and-set, the event and the promised webhooks in one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session

from app.domain.lifecycle import (
    JOB_OPEN,
    REQUEST_ENDED,
    JobStatus,
    RequestStatus,
    check_job,
    check_request,
)
from app.errors import IllegalMove, LeaseLost
from app.storage import audit, webhooks
from app.storage.tables import ErasureRequest, Event, Job, RequestKey

_OUTCOMES = {
    RequestStatus.COMPLETED: "completed",
    RequestStatus.PARTIALLY_COMPLETED: "partial",
    RequestStatus.NO_DATA: "no_data",
    RequestStatus.REJECTED: "refused",
    RequestStatus.CANCELLED: "withdrawn",
}
_TAKEN_BACK = {RequestStatus.CANCELLED: "request.withdrawn", RequestStatus.REJECTED: "request.refused"}
_NOBODY: dict[str, Any] = dict.fromkeys(  # Any: columns of several types
    ("subject_key", "suppression_key", "sealed_user_id", "dedupe_key")
)


def record(
    tx: Session,
    kind: str,
    *,
    request_id: UUID | None = None,
    job_id: UUID | None = None,
    model_id: UUID | None = None,
    detail: dict[str, str | int] | None = None,
) -> None:
    """Write one event; ``detail`` says what a reader needs besides the ids, and never who."""
    tx.execute(
        insert(Event).values(type=kind, request_id=request_id, job_id=job_id, model_id=model_id, detail=detail or {})
    )


def receive(tx: Session, request: ErasureRequest, *, detail: dict[str, str | int] | None = None) -> None:
    """Write down that a request has come in."""
    due = request.deadline.isoformat()
    audit.enter(tx, "request.received", {"due": due}, at=request.received_at, request_id=request.id)
    record(tx, "request.received", request_id=request.id, detail=detail)


@dataclass(frozen=True)
class Ending:
    """What a request ends with: its certificate's digest, if it has one, and how long backups keep its deleted key."""

    certificate: str | None = None
    backups: timedelta = timedelta(0)


def move_request(
    tx: Session,
    request_id: UUID,
    *,
    now: RequestStatus,
    then: RequestStatus,
    at: datetime,
    reason: str | None = None,
    ending: Ending | None = None,
    due: datetime | None = None,
) -> None:
    """Move one request and tell the log; when it ends, forget who it was about and promise the webhooks.

    Args:
        tx: The caller's transaction.
        request_id: Which.
        now: Where the caller believes it is.
        then: Where it goes.
        at: When.
        reason: Why, where the status alone does not say.
        ending: Needed when it ends.
        due: A new deadline, when it is opened again.

    Raises:
        IllegalMove: The machine has no such move, or the request is no longer ``now``.
    """
    check_request(now, then)
    ended = then in REQUEST_ENDED
    before = tx.execute(  # locked: what is forgotten now must be known a moment longer
        select(ErasureRequest.deadline, ErasureRequest.subject_key)
        .where(ErasureRequest.id == request_id)
        .with_for_update()
    ).one()
    closing = {"closed_at": at if ended else None, **({"deadline": due} if due else {})}
    if ended and before.subject_key is not None:  # else it ended before, and ends again after a rollback
        assert ending is not None
        closing |= {**_NOBODY, "backups_expire_at": at + ending.backups}
    moved = tx.scalar(
        update(ErasureRequest)
        .where(ErasureRequest.id == request_id, ErasureRequest.status == now)
        .values(status=then, reason=reason, **closing)
        .returning(ErasureRequest.id)
    )
    if moved is None:
        raise IllegalMove(f"the request is no longer {now}")
    if ended:
        shred = before.subject_key is not None
        _tell_the_end(tx, request_id, then, ending or Ending(), at=at, in_time=at <= before.deadline, shred=shred)
    elif then is RequestStatus.IN_PROGRESS:
        audit.enter(tx, "erasure.started", at=at, request_id=request_id)
    elif now in REQUEST_ENDED:
        audit.enter(tx, "request.reopened", {"due": (due or before.deadline).isoformat()}, at=at, request_id=request_id)
    record(tx, f"request.{then}", request_id=request_id, detail={"reason": reason} if reason else None)
    if ended or now in REQUEST_ENDED or then is RequestStatus.NEEDS_ATTENTION:
        webhooks.promise(tx, request_id, status=then, at=at)


def end_again(tx: Session, request: ErasureRequest, *, then: RequestStatus, at: datetime) -> bool:
    """End a request that had ended when a backup was made that does not know; says nothing to the log, which knows.

    Returns:
        Whether there was anything to do.
    """
    known = tx.get(ErasureRequest, request.id, with_for_update=True)
    if known is not None and known.closed_at is not None:
        return False
    if known is None:
        request.status, request.closed_at = then, at
        tx.add(request)
    else:
        ended = {"status": then, "closed_at": at, **_NOBODY}
        tx.execute(update(ErasureRequest).where(ErasureRequest.id == request.id).values(ended))
    tx.flush()
    record(tx, "request.restored", request_id=request.id, detail={"status": then.value})
    return True


def job_again(tx: Session, job_id: UUID, model_id: UUID) -> None:
    """Note that a job was certified which a restored backup does not know."""
    done = postgresql.insert(Job).values(id=job_id, model_id=model_id, status=JobStatus.CERTIFIED, fence=1)
    tx.execute(done.on_conflict_do_nothing())
    tx.execute(
        update(Job)
        .where(Job.id == job_id, Job.status.in_(JOB_OPEN))
        .values(status=JobStatus.CERTIFIED, closed_at=func.now(), lease_until=None)
    )


def _tell_the_end(
    tx: Session, request_id: UUID, then: RequestStatus, ending: Ending, *, at: datetime, in_time: bool, shred: bool
) -> None:
    """Delete the key and tell the log, in the order that the verifier asks for."""
    if then in _TAKEN_BACK:
        audit.enter(tx, _TAKEN_BACK[then], at=at, request_id=request_id)
    if shred:  # without its key, a copy of the sealed user id in a backup says nothing
        working = (RequestKey.request_id == request_id) & (RequestKey.purpose == audit.WORKING)
        tx.execute(delete(RequestKey).where(working))
        audit.enter(tx, "key.shredded", at=at, request_id=request_id)
    certified = {"cert": ending.certificate} if ending.certificate else {}
    if certified:
        audit.enter(tx, "certificate.issued", certified, at=at, request_id=request_id)
    audit.enter(
        tx,
        "request.closed",
        {"outcome": _OUTCOMES[then], "in_time": in_time, **certified},
        at=at,
        request_id=request_id,
    )


def move_job(tx: Session, job: Job, then: JobStatus, **values: Any) -> None:  # Any: columns of Job
    """Move a job that the caller holds by its fencing token; progress resets the attempts.

    Raises:
        IllegalMove: The machine has no such move.
        LeaseLost: Another worker has claimed the job since; nothing of this transaction may stay.
    """
    now = JobStatus(job.status)
    check_job(now, then)
    closing = {} if then in JOB_OPEN else {"closed_at": func.now(), "lease_until": None}
    moved = tx.scalar(
        update(Job)
        .where(Job.id == job.id, Job.status == now, Job.fence == job.fence)
        .values(status=then, attempts=0, progress=None, **{"error": None, **closing, **values})
        .returning(Job.id)
    )
    if moved is None:
        raise LeaseLost("another worker holds this job; its result counts")
    record(tx, f"job.{then}", job_id=job.id, model_id=job.model_id)
