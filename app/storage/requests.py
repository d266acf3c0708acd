"""Erasure requests: written once at intake, read in order of arrival; their status moves in moves.py."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Row, TextClause, delete, exists, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.domain.lifecycle import PLANNABLE, REQUEST_ENDED, RequestStatus
from app.errors import NotFound
from app.storage import suppressions
from app.storage.tables import (
    Certificate,
    ErasureRequest,
    Event,
    Idempotency,
    Job,
    Model,
    Target,
    Timestamp,
)


def add(tx: Session, request: ErasureRequest) -> UUID | None:
    """Insert a request; none when the same demand is already open."""
    values = {
        column.key: getattr(request, column.key)
        for column in ErasureRequest.__table__.columns
        if column.key not in {"sequence", "status"} and getattr(request, column.key) is not None
    }
    return tx.scalar(insert(ErasureRequest).values(values).on_conflict_do_nothing().returning(ErasureRequest.id))


def get(tx: Session, request_id: UUID, *, seen_by: UUID | None = None) -> ErasureRequest:
    """One request; ``seen_by`` a client, another's is as good as none.

    Raises:
        NotFound: No such request.
    """
    return _seen(tx.get(ErasureRequest, request_id), seen_by)


def locked(tx: Session, request_id: UUID, *, seen_by: UUID | None = None) -> ErasureRequest:
    """One request, held until the transaction ends; ``seen_by`` as in :func:`get`.

    Raises:
        NotFound: No such request.
    """
    return _seen(tx.get(ErasureRequest, request_id, with_for_update=True, populate_existing=True), seen_by)


def _seen(request: ErasureRequest | None, client_id: UUID | None) -> ErasureRequest:
    if request is None or client_id not in {None, request.client_id}:
        raise NotFound("there is no erasure request with this id")
    return request


def page(
    tx: Session,
    *,
    after: int,
    limit: int,
    status: RequestStatus | None = None,
    reference: str | None = None,
    seen_by: UUID | None = None,
) -> Sequence[ErasureRequest]:
    """Requests in order of arrival, beginning behind the cursor ``after``; ``seen_by`` as in :func:`get`."""
    query = select(ErasureRequest).where(ErasureRequest.sequence > after).order_by(ErasureRequest.sequence).limit(limit)
    if status:
        query = query.where(ErasureRequest.status == status)
    if reference:
        query = query.where(ErasureRequest.reference == reference)
    if seen_by:
        query = query.where(ErasureRequest.client_id == seen_by)
    return tx.scalars(query).all()


def received(
    tx: Session, *, limit: int, cooled_since: datetime, full: Collection[str] = ()
) -> Sequence[ErasureRequest]:
    """Requests that wait to be planned, oldest first; another planner's are left to it.

    Those that came in after ``cooled_since`` may still be taken back at leisure, unless they are our own. Those for
    a model whose job is ``full`` keep their place, but not at the cost of those for others.
    """
    cooled = (ErasureRequest.received_at <= cooled_since) | (ErasureRequest.origin != "portal")
    return tx.scalars(
        select(ErasureRequest)
        .where(ErasureRequest.status.in_(PLANNABLE), cooled, *([_not_for(full)] if full else []))
        .order_by(ErasureRequest.sequence)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()


def _not_for(models: Collection[str]) -> TextClause:
    return text(_NOT_FOR).bindparams(full=list(models))


_NOT_FOR = """
NOT EXISTS (
  SELECT FROM unnest(CAST(:full AS text[])) AS f (name)
  WHERE (erasure_requests.models IS NULL OR f.name = ANY (erasure_requests.models)) AND NOT EXISTS (
    SELECT FROM decisions d
    WHERE d.request_id = erasure_requests.id AND d.kind = 'refused' AND f.name = ANY (d.models)))
"""


def of_job(tx: Session, job_id: UUID) -> Sequence[tuple[ErasureRequest, Target]]:
    """The job's open requests with their targets, locked in order of arrival like everywhere, so that none deadlock.

    The others for the same people are locked with them: at the job's end they are told what became of the person.
    Who waited for a lock knows the request as it is now and its targets as they were: so these are read afterwards.
    """
    ours = lock_with_twins(tx, tx.scalars(select(Target.request_id).where(Target.job_id == job_id)).all())
    rows = tx.execute(
        select(ErasureRequest, Target)
        .join(Target, Target.request_id == ErasureRequest.id)
        .where(Target.job_id == job_id, ErasureRequest.id == func.any(list(ours)))
        .order_by(ErasureRequest.sequence)
        .execution_options(populate_existing=True)
    ).all()
    return [(row[0], row[1]) for row in rows]


def lock_with_twins(tx: Session, request_ids: Collection[UUID]) -> Sequence[UUID]:
    """Lock requests and the others for the same people, as far as they are open, in order of arrival; returns which.

    Two statements, each by an index: as one, PostgreSQL reads everybody's requests (200 000: 150 ms instead of 3).
    """
    named = ErasureRequest.id == func.any(list(request_ids))
    known = ErasureRequest.subject_key.is_not(None)
    people = tx.scalars(select(ErasureRequest.subject_key).where(named, known)).all()
    theirs = (ErasureRequest.subject_key == func.any(list(people))) & known
    still_open = (named | theirs) & ErasureRequest.status.not_in(REQUEST_ENDED)
    return tx.scalars(
        select(ErasureRequest.id).where(still_open).order_by(ErasureRequest.sequence).with_for_update()
    ).all()


def twins(tx: Session, request: ErasureRequest, *, statuses: Collection[RequestStatus]) -> Sequence[ErasureRequest]:
    """Other requests for the same person that ask for some of the same models, in order of arrival."""
    same = (ErasureRequest.subject_key == request.subject_key) & (ErasureRequest.id != request.id)
    overlap = ErasureRequest.models.is_(None) | ErasureRequest.models.bool_op("&&")(request.models)
    wanted = select(ErasureRequest).where(same, ErasureRequest.status.in_(statuses))
    found = wanted if request.models is None else wanted.where(overlap)
    return tx.scalars(found.order_by(ErasureRequest.sequence).execution_options(populate_existing=True)).all()


def tell_twins(tx: Session, request: ErasureRequest, job_id: UUID, model_id: UUID) -> None:
    """Note with the open requests for the same person that the model has forgotten the person by now.

    Those that the job serves know it. The index rows are about to go, and at this one's end its ``subject_key``: then
    nobody could tell any more.
    """
    served = select(Target.request_id).where(Target.job_id == job_id)
    twins = (ErasureRequest.subject_key == request.subject_key) & ErasureRequest.id.not_in(served)
    gone_from = func.array_append(ErasureRequest.gone_from, model_id)
    told = update(ErasureRequest).where(twins).values(gone_from=gone_from).returning(ErasureRequest.id)
    ids = tx.scalars(told.execution_options(synchronize_session=False)).all()
    not_mutual = ErasureRequest.id.is_distinct_from(request.duplicate_of)
    unlinked = ErasureRequest.id.in_(ids) & ErasureRequest.duplicate_of.is_(None) & not_mutual
    linked = update(ErasureRequest).where(unlinked).values(duplicate_of=request.id)
    tx.execute(linked.execution_options(synchronize_session=False))


def was_undone(tx: Session, request_id: UUID, model_id: UUID) -> bool:
    """Whether a rollback undid what the model had forgotten for this request while the request was open."""
    undone = (Event.request_id == request_id) & (Event.model_id == model_id) & (Event.type == "request.undone")
    return bool(tx.scalar(select(exists().where(undone))))


def traceparents(tx: Session, job_id: UUID, *, limit: int = 129) -> list[str]:
    """The traces that the job's requests came in by, oldest first; of requests that came while somebody traced."""
    found = tx.scalars(
        select(ErasureRequest.traceparent)
        .join(Target, Target.request_id == ErasureRequest.id)
        .where(Target.job_id == job_id, ErasureRequest.traceparent.is_not(None))
        .order_by(ErasureRequest.sequence)
        .limit(limit)
    )
    return [trace for trace in found if trace is not None]


def targets(tx: Session, request_ids: Sequence[UUID]) -> Sequence[Row[UUID, str, str, str | None, UUID]]:
    """How the requests stand with each model: (request id, model, job status, result, job id)."""
    return tx.execute(
        select(Target.request_id, Model.name, Job.status, Target.result, Job.id)
        .join(Model, Model.id == Target.model_id)
        .join(Job, Job.id == Target.job_id)
        .where(Target.request_id.in_(request_ids))
        .order_by(Model.name)
    ).all()


def target(tx: Session, request_id: UUID, model_id: UUID) -> Target | None:
    """One request against one model."""
    return tx.get(Target, (request_id, model_id))


def owners(tx: Session, request_ids: Sequence[UUID]) -> dict[UUID | None, UUID | None]:
    """Whose requests these are."""
    if not request_ids:
        return {}
    owned = select(ErasureRequest.id, ErasureRequest.client_id).where(ErasureRequest.id.in_(request_ids))
    return {row.id: row.client_id for row in tx.execute(owned)}


def results(tx: Session, request_id: UUID) -> list[str | None]:
    """The results of one request over its models; none where a job is still at it."""
    return list(tx.scalars(select(Target.result).where(Target.request_id == request_id)).all())


def events(tx: Session, request_id: UUID) -> Sequence[Event]:
    """What happened to a request and to the jobs that serve it, in order."""
    jobs = tx.scalars(select(Target.job_id).where(Target.request_id == request_id)).all()
    return tx.scalars(select(Event).where(told_of(request_id, jobs)).order_by(Event.id)).all()


def told_of(request_id: UUID, job_ids: Collection[UUID]) -> ColumnElement[bool]:
    """Which events are about a request or its jobs: by indexes, as asking for the jobs inside would read them all."""
    return (Event.request_id == request_id) | (Event.job_id == func.any(list(job_ids)))


def certificates(tx: Session, request_id: UUID) -> Sequence[Certificate]:
    """The request's certificates, newest first; an older one is superseded."""
    return tx.scalars(
        select(Certificate).where(Certificate.request_id == request_id).order_by(Certificate.issued_at.desc())
    ).all()


def unstamped(tx: Session, *, limit: int) -> list[bytes]:
    """Payloads of certificates without a time stamp, oldest first."""
    payload = func.decode(Certificate.envelope["payload"].astext, "base64")
    stamped = select(Timestamp.digest).where(Timestamp.digest == func.sha256(payload))
    waiting = select(payload).where(~stamped.exists()).order_by(Certificate.issued_at).limit(limit)
    return [bytes(found) for found in tx.scalars(waiting)]


def suppress(tx: Session, request: ErasureRequest, *, refused: Collection[str] = ()) -> None:
    """Write down that this person must not come back; the row is there before anything is destroyed."""
    if request.suppression_key is None:
        return  # a deletion that a rollback undid: the ledger has had it since the first time
    suppressions.add(tx, request.suppression_key, request.models, refused=refused)


def expire_answers(tx: Session, *, older_than: timedelta) -> None:
    """Forget Idempotency-Keys past their published lifetime."""
    tx.execute(delete(Idempotency).where(Idempotency.created_at < func.now() - older_than))


def oldest_open(tx: Session) -> datetime | None:
    """When the oldest request without an end arrived."""
    return tx.scalar(select(func.min(ErasureRequest.received_at)).where(ErasureRequest.closed_at.is_(None)))
