"""Jobs: claimed by a lease with a fencing token, renewed by heartbeat, rung until somebody answers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ARRAY, ColumnElement, Uuid, and_, cast, exists, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased

from app.domain.lifecycle import JOB_OPEN, JobStatus
from app.errors import LeaseLost
from app.storage import moves, totals
from app.storage.tables import Job, Model, Pulse, Target

_RING_AGAIN_SECONDS = 5
_RING_AGAIN_MOST_SECONDS = 60


def _free() -> ColumnElement[bool]:
    return or_(Job.lease_until.is_(None), Job.lease_until < func.now())


def collecting(tx: Session, model_id: UUID, *, opens_at: datetime) -> UUID:
    """The model's job that requests may still join, locked; a new one if there is none."""
    while True:
        joinable = select(Job.id).where(Job.model_id == model_id, Job.status == JobStatus.QUEUED, Job.fence == 0)
        job_id: UUID | None = tx.scalar(joinable.with_for_update())
        if job_id is not None:
            return job_id
        made: UUID | None = tx.scalar(
            insert(Job).values(model_id=model_id, not_before=opens_at).on_conflict_do_nothing().returning(Job.id)
        )
        if made is not None:
            moves.record(tx, "job.queued", job_id=made, model_id=model_id)
            return made


def join(tx: Session, job_id: UUID, request_id: UUID, model_id: UUID) -> None:
    """Let the job serve the request; a retry joins a later job."""
    join_all(tx, job_id, [request_id], model_id)


def join_all(tx: Session, job_id: UUID, request_ids: Sequence[UUID], model_id: UUID) -> None:
    """Let the job serve the requests, in one statement."""
    each = select(func.unnest(cast(list(request_ids), ARRAY(Uuid))), literal(model_id), literal(job_id))
    tx.execute(
        insert(Target)
        .from_select(["request_id", "model_id", "job_id"], each)
        .on_conflict_do_update(
            index_elements=["request_id", "model_id"], set_={"job_id": job_id, "result": None, "sample_ids": None}
        )
    )


def joined(tx: Session) -> dict[UUID, int]:
    """How many requests each model's collecting job serves; a model without one is left out."""
    counted = (
        select(Job.model_id, func.count())
        .join(Target, Target.job_id == Job.id)
        .where(Job.status == JobStatus.QUEUED, Job.fence == 0)
        .group_by(Job.model_id)
    )
    return {row[0]: row[1] for row in tx.execute(counted)}


def full(tx: Session, *, of: int) -> list[str]:
    """Models whose collecting job serves so many requests."""
    counted = (
        select(Model.name)
        .join(Job, Job.model_id == Model.id)
        .join(Target, Target.job_id == Job.id)
        .where(Job.status == JobStatus.QUEUED, Job.fence == 0)
        .group_by(Model.name)
        .having(func.count() >= of)
    )
    return list(tx.scalars(counted))


def any_open(tx: Session, model_id: UUID, *, or_failed_within: timedelta) -> bool:
    """Whether a job of this model has something to do, or failed a short while ago."""
    lately = and_(Job.status == JobStatus.FAILED, Job.closed_at > func.now() - or_failed_within)
    return (
        tx.scalar(select(Job.id).where(Job.model_id == model_id, or_(Job.status.in_(JOB_OPEN), lately)).limit(1))
        is not None
    )


def claim(tx: Session, job_id: UUID, *, lease: timedelta, max_attempts: int) -> Job | None:
    """Take the job if it is open and nobody holds it; the new fence makes every older holder's writes void."""
    silent = tx.scalar(select(Job.lease_until).where(Job.id == job_id).with_for_update())
    claimed = tx.scalar(
        update(Job)
        .where(Job.id == job_id, Job.status.in_(JOB_OPEN), Job.attempts < max_attempts, _free())
        .values(fence=Job.fence + 1, attempts=Job.attempts + 1, rings=0, lease_until=func.now() + lease, progress=None)
        .returning(Job)
    )
    if claimed is not None and silent is not None:  # whoever gives a job back leaves no lease
        totals.count(tx, "lease_expired")
    return claimed


def renew(tx: Session, job_id: UUID, *, fence: int, lease: timedelta, progress: float | None) -> None:
    """The holder's heartbeat.

    Raises:
        LeaseLost: Somebody else has claimed the job, or it is closed.
    """
    renewed = tx.scalar(
        update(Job)
        .where(Job.id == job_id, Job.fence == fence, Job.status.in_(JOB_OPEN))
        .values(lease_until=func.now() + lease, progress=progress)
        .returning(Job.id)
    )
    if renewed is None:
        raise LeaseLost("another worker holds this job; its result counts")


def held(tx: Session, job_id: UUID, *, fence: int) -> Job:
    """The job, locked, as its holder sees it.

    Raises:
        LeaseLost: The fencing token is no longer the newest.
    """
    job = tx.scalar(
        select(Job)
        .where(Job.id == job_id, Job.fence == fence)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    if job is None:
        raise LeaseLost("another worker holds this job; its result counts")
    return job


def release(tx: Session, job_id: UUID, *, fence: int, error: str | None, after: timedelta) -> None:
    """Give the job back, to be tried again not before ``after`` has passed."""
    tx.execute(
        update(Job)
        .where(Job.id == job_id, Job.fence == fence)
        .values(lease_until=None, rung_at=None, error=error, progress=None, not_before=func.now() + after)
    )


def put_back(tx: Session, job_id: UUID, *, fence: int, error: str, after: timedelta) -> None:
    """Give the job back as if it had not been tried: it waited for something that is no fault of its own."""
    release(tx, job_id, fence=fence, error=error, after=after)
    tx.execute(update(Job).where(Job.id == job_id, Job.fence == fence).values(attempts=Job.attempts - 1))


def to_ring(tx: Session, *, max_attempts: int, limit: int) -> Sequence[UUID]:
    """Jobs whose turn it is and that nobody works on, oldest first, one per model.

    A job that was rung and not claimed is rung again after 5, 10, 20 … 60 s: the broker may have lost the
    message, or every worker is busy.
    """
    older = aliased(Job)
    patience = func.least(_RING_AGAIN_SECONDS * func.power(2, Job.rings - 1), _RING_AGAIN_MOST_SECONDS)
    ids = (
        select(Job.id)
        .where(
            Job.status.in_(JOB_OPEN),
            Job.not_before <= func.now(),
            Job.attempts < max_attempts,
            _free(),
            or_(Job.rung_at.is_(None), Job.rung_at < func.now() - func.make_interval(0, 0, 0, 0, 0, 0, patience)),
            ~exists().where(
                older.model_id == Job.model_id, older.status.in_(JOB_OPEN), older.created_at < Job.created_at
            ),
        )
        .order_by(Job.created_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return tx.scalars(
        update(Job).where(Job.id.in_(ids)).values(rung_at=func.now(), rings=Job.rings + 1).returning(Job.id)
    ).all()


def exhausted(tx: Session, *, max_attempts: int) -> Sequence[Job]:
    """Open jobs that nobody holds and that have used up their attempts."""
    return tx.scalars(
        select(Job)
        .where(Job.status.in_(JOB_OPEN), Job.attempts >= max_attempts, _free())
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    ).all()


def being_certified(tx: Session, model_id: UUID) -> bool:
    """Whether a published version of this model still waits for its certificates."""
    return tx.scalar(select(Job.id).where(Job.model_id == model_id, Job.status == JobStatus.PUBLISHED)) is not None


def model_of(tx: Session, job: Job) -> Model:
    """The model that the job updates."""
    return tx.get_one(Model, job.model_id)


def hear(tx: Session, queue: str) -> None:
    """Write down that a consumer of ``queue`` got our pulse through the broker."""
    tx.execute(
        insert(Pulse)
        .values(queue=queue, heard_at=func.now())
        .on_conflict_do_update(index_elements=["queue"], set_={"heard_at": func.now()})
    )


def listening(tx: Session, *, within: timedelta) -> dict[str, bool]:
    """Which queues have a consumer that gave a sign of life; a job under a live lease is one, too."""
    heard = dict(tx.execute(select(Pulse.queue, Pulse.heard_at > func.now() - within)).tuples().all())
    busy = tx.scalar(select(Job.id).where(and_(Job.status.in_(JOB_OPEN), Job.lease_until > func.now())).limit(1))
    return {**heard, "unlearn": heard.get("unlearn", False) or busy is not None}


def get(tx: Session, job_id: UUID) -> Job:
    """One job."""
    return tx.get_one(Job, job_id)
