"""The only writer of a status: compare-and-set, the event and the promised webhooks in one transaction."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, insert, update
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
from app.storage import webhooks
from app.storage.tables import ErasureRequest, Event, Job, RequestKey

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


def move_request(
    tx: Session, request_id: UUID, *, now: RequestStatus, then: RequestStatus, at: datetime, reason: str | None = None
) -> None:
    """Move one request; when it ends, forget who it was about and promise the webhooks.

    Raises:
        IllegalMove: The machine has no such move, or the request is no longer ``now``.
    """
    check_request(now, then)
    ended = then in REQUEST_ENDED
    moved = tx.scalar(
        update(ErasureRequest)
        .where(ErasureRequest.id == request_id, ErasureRequest.status == now)
        .values(status=then, reason=reason, closed_at=at if ended else None, **(_NOBODY if ended else {}))
        .returning(ErasureRequest.id)
    )
    if moved is None:
        raise IllegalMove(f"the request is no longer {now}")
    if ended:  # without its key, a copy of the sealed user id in a backup says nothing
        tx.execute(delete(RequestKey).where(RequestKey.request_id == request_id))
    record(tx, f"request.{then}", request_id=request_id, detail={"reason": reason} if reason else None)
    reopened = now in REQUEST_ENDED
    if ended or reopened or then is RequestStatus.NEEDS_ATTENTION:
        webhooks.promise(tx, request_id, status=then, at=at)


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
