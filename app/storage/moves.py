"""The only writer of a status: compare-and-set, the event and the promised webhooks in one transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from operator import attrgetter
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, Select, Uuid, cast, delete, func, insert, literal, select, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session

from app.domain import webhook
from app.domain.lifecycle import (
    INITIAL,
    JOB_OPEN,
    REQUEST_ENDED,
    WAITING,
    JobStatus,
    RequestStatus,
    check_job,
    check_request,
)
from app.errors import IllegalMove, LeaseLost
from app.storage import audit, portals, totals, webhooks
from app.storage.arrivals import Arrival
from app.storage.sessions import array, fetch
from app.storage.tables import ErasureRequest, Event, Job, RequestKey, Target

_OUTCOMES = {
    RequestStatus.COMPLETED: "completed",
    RequestStatus.PARTIALLY_COMPLETED: "partial",
    RequestStatus.NO_DATA: "no_data",
    RequestStatus.REJECTED: "refused",
    RequestStatus.CANCELLED: "withdrawn",
}
_TAKEN_BACK = {RequestStatus.CANCELLED: "request.withdrawn", RequestStatus.REJECTED: "request.refused"}
_LEAVES = frozenset({RequestStatus.CANCELLED, RequestStatus.REJECTED, RequestStatus.ON_HOLD})
"""Where a request leaves the jobs that would have worked on it, and serves no other one of the same person any more."""
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


ARRIVE = """
    WITH arrived AS (
        INSERT INTO erasure_requests (id, ref, status, client_id, reference, models, identity_level, subject_key,
            suppression_key, sealed_user_id, dedupe_key, traceparent, batch_id, received_at, deadline,
            approvals_needed)
        SELECT id, ref, status, client_id, reference, string_to_array(models, ','), identity_level, subject_key,
            suppression_key, sealed_user_id, dedupe_key, traceparent, CAST(%(batch_id)s AS uuid),
            %(received_at)s, %(deadline)s, %(approvals_needed)s
        FROM unnest(CAST(%(id)s AS uuid[]), CAST(%(ref)s AS text[]), CAST(%(status)s AS text[]),
            CAST(%(client_id)s AS uuid[]), CAST(%(reference)s AS text[]), CAST(%(models)s AS text[]),
            CAST(%(identity_level)s AS text[]),
            CAST(%(subject_key)s AS uuid[]), CAST(%(suppression_key)s AS bytea[]), CAST(%(sealed_user_id)s AS bytea[]),
            CAST(%(dedupe_key)s AS bytea[]), CAST(%(traceparent)s AS text[]))
          AS n(id, ref, status, client_id, reference, models, identity_level, subject_key, suppression_key,
            sealed_user_id, dedupe_key, traceparent)
        ON CONFLICT DO NOTHING RETURNING id, client_id, status
    ), kept AS (
        INSERT INTO keystore.request_keys (request_id, purpose, wrapped)
        SELECT id, %(purpose)s, wrapped
        FROM unnest(CAST(%(id)s AS uuid[]), CAST(%(wrapped)s AS bytea[])) AS k(id, wrapped)
    ), entered AS (
        INSERT INTO audit_entries (type, at, request_id, fields)
        SELECT 'request.received', %(received_at)s, id, CAST(%(said)s AS jsonb) FROM arrived
    ), told AS (
        INSERT INTO events (type, request_id)
        SELECT 'request.received', id FROM arrived
        UNION ALL SELECT 'request.' || status, id FROM arrived WHERE status <> 'received'
    ), counted AS (
        INSERT INTO intake_counts AS c (client_id, day, slot, count)
        SELECT client_id, %(day)s, pg_backend_pid() %% %(slots)s, count(*)
        FROM arrived GROUP BY client_id ORDER BY client_id
        ON CONFLICT (client_id, day, slot) DO UPDATE SET count = c.count + excluded.count
    ), bound AS (
        INSERT INTO idempotency_keys (client_id, key_digest, body_digest, request_id)
        SELECT client_id, key_digest, body_digest, id
        FROM unnest(CAST(%(id)s AS uuid[]), CAST(%(key_digest)s AS bytea[]), CAST(%(body_digest)s AS bytea[]))
          AS k(id, key_digest, body_digest) JOIN arrived USING (id)
        WHERE key_digest IS NOT NULL ORDER BY client_id, key_digest
        ON CONFLICT DO NOTHING RETURNING request_id
    )
    SELECT arrived.id, bound.request_id IS NOT NULL FROM arrived LEFT JOIN bound ON bound.request_id = arrived.id
"""
"""One statement, so that a flush is a few round trips however many it carries."""
_SLOTS = 64
"""Rows over which a client's day is counted: one for each connection, so that transactions don't queue for it."""
_COLUMNS = (
    *("id", "ref", "status", "client_id", "reference", "identity_level", "subject_key", "suppression_key"),
    *("sealed_user_id", "dedupe_key", "traceparent", "wrapped", "key_digest", "body_digest"),
)


def arrive(tx: Session, arrivals: Sequence[Arrival], *, day: date) -> dict[UUID, bool]:
    """Write down requests that came in at one moment: row, key, event, the log's entry, and the client's count.

    Returns:
        The ids of those that are new, and whether each was bound to its Idempotency-Key; of the others, the same demand
        is open.
    """
    if not arrivals:
        return {}
    rows, first = sorted(arrivals, key=attrgetter("dedupe_key")), arrivals[0]
    assert {row.status for row in rows} <= INITIAL
    said = {"due": first.deadline.isoformat()}
    audit.check("request.received", said, of_request=True)
    columns: dict[str, Any] = {name: array(map(attrgetter(name), rows)) for name in _COLUMNS}  # Any: of several types
    columns["models"] = array(",".join(row.models) if row.models else None for row in rows)
    of_all = {name: getattr(first, name) for name in ("batch_id", "received_at", "deadline", "approvals_needed")}
    of_all |= {"said": json.dumps(said), "purpose": audit.WORKING, "day": day, "slots": _SLOTS}
    arrived: dict[UUID, bool] = dict(fetch(tx, ARRIVE, columns | of_all))
    if len(arrived) < len(rows):
        unused = [row.id for row in rows if row.id not in arrived]
        tx.execute(delete(RequestKey).where(RequestKey.request_id == func.any(unused)))
    waits = RequestStatus.AWAITING_IDENTITY
    if unknown := [row.id for row in rows if row.status == waits and row.id in arrived]:
        webhooks.promise(tx, unknown, event=f"erasure_request.{waits}", at=first.received_at)
    return arrived


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
        reason: Why; obligatory for an end.
        ending: Needed when it ends.
        due: A new deadline, when it is opened again.

    Raises:
        IllegalMove: The machine has no such move, the request is no longer ``now``, or an end comes without a reason.
    """
    check_request(now, then)
    ended = then in REQUEST_ENDED
    if ended and not reason:
        raise IllegalMove(f"a request that becomes {then} needs a reason, which its history says for ever")
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
    if then in _LEAVES:
        tx.execute(update(ErasureRequest).where(ErasureRequest.duplicate_of == request_id).values(duplicate_of=None))
        tx.execute(delete(Target).where(Target.request_id == request_id, Target.result.is_(None)))
    _promise(tx, [request_id], webhook.event_of(now, then), status=then, at=at)


def move_requests(
    tx: Session,
    request_ids: Sequence[UUID],
    *,
    now: RequestStatus,
    then: RequestStatus,
    at: datetime,
    reason: str | None = None,
    approvals: int = 0,
) -> None:
    """Move many waiting requests, which the caller has locked, to where they wait on: as many statements as for one.

    Args:
        tx: The caller's transaction.
        request_ids: Which.
        now: Where they all are.
        then: A status of WAITING, so there is nothing to say to the log.
        at: When.
        reason: Why, where the status alone does not say.
        approvals: How many people must agree from now on, where that is more than before.

    Raises:
        IllegalMove: The machine has no such move, or one of them is no longer ``now``; nothing may stay.
    """
    check_request(now, then)
    assert then in WAITING
    if not request_ids:
        return
    values: dict[str, Any] = {  # Any: columns of several types
        "status": then,
        "reason": reason,
        "approvals_needed": func.greatest(ErasureRequest.approvals_needed, approvals),
    }
    ours = (ErasureRequest.id == func.any(list(request_ids))) & (ErasureRequest.status == now)
    moved = update(ErasureRequest).where(ours).values(values).returning(ErasureRequest.id)
    if len(tx.scalars(moved).all()) != len(request_ids):
        raise IllegalMove(f"one of {len(request_ids)} requests is no longer {now}")
    if then is RequestStatus.PENDING:  # it may never go on, and serves nobody while it waits for people
        served = ErasureRequest.duplicate_of == func.any(list(request_ids))
        tx.execute(update(ErasureRequest).where(served).values(duplicate_of=None))
    told = {"type": f"request.{then}", "detail": {"reason": reason} if reason else {}}
    tx.execute(insert(Event).from_select(["request_id", *told], _each(request_ids, **told)))
    _promise(tx, request_ids, webhook.event_of(now, then), status=then, at=at)


def _each(request_ids: Sequence[UUID], **same: Any) -> Select[Any]:  # Any: columns of several types
    """One row for each id, with the same other columns."""
    columns = [literal(value, Event.__table__.c[name].type).label(name) for name, value in same.items()]
    return select(func.unnest(cast(list(request_ids), ARRAY(Uuid))), *columns)


def extend(tx: Session, request_id: UUID, *, due: datetime, at: datetime) -> None:
    """Move the deadline of an open request, and tell the log and whoever listens."""
    request = tx.get_one(ErasureRequest, request_id)
    tx.execute(update(ErasureRequest).where(ErasureRequest.id == request_id).values(deadline=due))
    audit.enter(tx, "request.extended", {"due": due.isoformat()}, at=at, request_id=request_id)
    _promise(tx, [request_id], webhook.EXTENDED, status=RequestStatus(request.status), at=at)


def _promise(tx: Session, request_ids: Sequence[UUID], event: str, *, status: RequestStatus, at: datetime) -> None:
    """Word of a change for all who listen: webhook endpoints, and the portals that the requests came from."""
    webhooks.promise(tx, request_ids, event=event, at=at)
    portals.promise(tx, request_ids, status=status, at=at)


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
    said = {"status": then.value, "reason": "it had ended before the database was restored"}
    record(tx, "request.restored", request_id=request.id, detail={**said})
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
    totals.count(tx, "requests_ended", then)
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
