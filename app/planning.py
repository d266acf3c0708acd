"""What dispatch makes happen: requests join the open job of each model, and dead jobs are handed to people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.domain.lifecycle import JOB_OPEN, REQUEST_ENDED, JobStatus, RequestStatus
from app.errors import Conflict
from app.settings import Settings
from app.storage import jobs, moves, requests, versions
from app.storage.tables import ErasureRequest, Job, Model

_LEDGER_LOCK = 7215002
_ANSWERS_LIVE = timedelta(hours=24)
_REPAIR_AGAIN = timedelta(minutes=10)
_LOOK_AHEAD = 1000


def hold_ledger(tx: Session, *, exclusive: bool) -> None:
    """Order planning against registration: a model is either seen by the plan or sees the ledger."""
    lock = func.pg_advisory_xact_lock if exclusive else func.pg_advisory_xact_lock_shared
    tx.execute(select(lock(_LEDGER_LOCK)))


def plan(tx: Session, *, now: datetime, settings: Settings) -> int:
    """Queue what was received, oldest first; returns how many were."""
    hold_ledger(tx, exclusive=False)
    planned = 0
    for request in requests.received(tx, limit=_LOOK_AHEAD):
        models = versions.live(tx, request.models)
        if not models:
            moves.move_request(
                tx,
                request.id,
                now=RequestStatus.RECEIVED,
                then=RequestStatus.NEEDS_ATTENTION,
                at=now,
                reason="no model is registered; register one, then retry the request",
            )
        elif not enqueue(tx, request, models, now=now, settings=settings):
            continue  # a job is full; the younger ones behind it meet the same one
        planned += 1
    return planned


def enqueue(
    tx: Session, request: ErasureRequest, models: Sequence[Model], *, now: datetime, settings: Settings
) -> bool:
    """Let a request join the collecting job of each model; false, and nothing done, when one is full."""
    if any(jobs.is_full(tx, model.id, at=settings.batch_requests) for model in models):
        return False
    opens_at = now + timedelta(seconds=settings.coalesce_seconds)
    for model in models:
        jobs.join(tx, jobs.collecting(tx, model.id, opens_at=opens_at), request.id, model.id)
    moves.move_request(tx, request.id, now=RequestStatus(request.status), then=RequestStatus.QUEUED, at=now)
    return True


def retry(tx: Session, request_id: UUID, *, now: datetime, settings: Settings) -> None:
    """Give a request that needs attention to new jobs, for those models where it has no result.

    Raises:
        NotFound: No such request.
        Conflict: It does not need attention, or there is no model to work on.
    """
    hold_ledger(tx, exclusive=False)
    request = requests.locked(tx, request_id)
    if request.status != RequestStatus.NEEDS_ATTENTION:
        raise Conflict(f"the request is {request.status}; only one that needs attention can be retried")
    done = {row.name for row in requests.targets(tx, [request_id]) if row.result is not None or row.status in JOB_OPEN}
    models = [model for model in versions.live(tx, request.models) if model.name not in done]
    if not models:
        raise Conflict("no registered model is left to work on; register the model, then retry")
    if not enqueue(tx, request, models, now=now, settings=settings):
        raise Conflict("the next job is full; retry in a moment")


def give_up(tx: Session, job: Job, *, now: datetime, reason: str) -> None:
    """Close a job that can't go on; its requests need attention, their clocks keep running."""
    moves.move_job(tx, job, JobStatus.FAILED, error=reason)
    for request, _ in requests.of_job(tx, job.id):
        status = RequestStatus(request.status)
        if status not in REQUEST_ENDED | {RequestStatus.NEEDS_ATTENTION}:
            moves.move_request(tx, request.id, now=status, then=RequestStatus.NEEDS_ATTENTION, at=now, reason=reason)


def repair(tx: Session, *, now: datetime) -> None:
    """Open a job for every model that lives with a deletion undone and that nobody works on.

    A rollback opens that job itself; this catches what slipped between two transactions, and tries again some time
    after a failure.
    """
    hold_ledger(tx, exclusive=False)
    for model in versions.live(tx, None):
        if not jobs.any_open(tx, model.id, or_failed_within=_REPAIR_AGAIN) and versions.undone(tx, model):
            jobs.collecting(tx, model.id, opens_at=now)


def sweep(tx: Session, *, now: datetime, settings: Settings) -> None:
    """Close jobs that used up their attempts."""
    for job in jobs.exhausted(tx, max_attempts=settings.max_attempts):
        why = job.error or "the worker died at every attempt"
        give_up(tx, job, now=now, reason=f"{job.status}: {why} ({job.attempts} attempts)")


def forget_answers(tx: Session) -> None:
    """Forget which Idempotency-Keys were answered, a day later."""
    requests.expire_answers(tx, older_than=_ANSWERS_LIVE)
