"""Decisions about requests: written once, read in order, and what planning has to know of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import delete, exists, func, insert, literal, select, text, update
from sqlalchemy.orm import Session

from app.domain.decisions import HOLDS_OF_DATA, Kind
from app.storage import moves
from app.storage.tables import AuditEntry, Decision, ErasureRequest, Event, Model, Target

_FOUR_EYES = 2


def add(tx: Session, decision: Decision) -> Decision:
    """Write a decision and its event down; the event says the ground, and never the decider's own words."""
    tx.add(decision)
    tx.flush()
    detail: dict[str, str | int] = {"ground": decision.ground} if decision.ground else {}
    if decision.until:
        detail["until"] = decision.until.isoformat()
    moves.record(tx, f"decision.{decision.kind}", request_id=decision.request_id, detail=detail)
    return decision


def note_burst(tx: Session, request_ids: Sequence[UUID], *, at: datetime) -> None:
    """Write down that the service asked people about these requests, whom it never asked before: one statement."""
    asked = exists().where(Decision.request_id == ErasureRequest.id, Decision.kind == Kind.BURST)
    moment = literal(at, Decision.__table__.c.decided_at.type)
    new = select(ErasureRequest.id, literal(Kind.BURST.value), moment).where(
        ErasureRequest.id == func.any(list(request_ids)), ~asked
    )
    tx.execute(insert(Decision).from_select(["request_id", "kind", "decided_at"], new))


def of_request(tx: Session, request_id: UUID, *, kind: Kind | None = None) -> Sequence[Decision]:
    """What was decided about a request, in order."""
    mine = select(Decision).where(Decision.request_id == request_id).order_by(Decision.id)
    return tx.scalars(mine.where(Decision.kind == kind) if kind else mine).all()


def last_hold(tx: Session, request_id: UUID) -> Decision | None:
    """The newest hold of a request, whether or not it lasts."""
    held = (Decision.request_id == request_id) & (Decision.kind == Kind.HELD)
    return tx.scalar(select(Decision).where(held).order_by(Decision.id.desc()).limit(1))


def bound_by(tx: Session, hold_id: int) -> Sequence[UUID]:
    """Requests that a hold was passed on to and that are on hold by it, in order of arrival."""
    return tx.scalars(text(_BOUND_BY), {"hold": hold_id}).all()


def holds(tx: Session, request_ids: Sequence[UUID]) -> dict[UUID, Decision]:
    """The hold of the person's data that somebody decided about another request, for those that it concerns.

    It lasts as long as a request is on hold by it: the one that it was decided about may be withdrawn.
    """
    rows = tx.execute(text(_HOLDS), {"ids": list(request_ids), "grounds": sorted(HOLDS_OF_DATA)}).all()
    found = {d.id: d for d in tx.scalars(select(Decision).where(Decision.id == func.any([row.held for row in rows])))}
    return {row.id: found[row.held] for row in rows}


def approvers(tx: Session, request_id: UUID) -> set[UUID]:
    """Who agreed to a request."""
    agreed = select(Decision.client_id).where(Decision.request_id == request_id, Decision.kind == Kind.APPROVED)
    return {client_id for client_id in tx.scalars(agreed) if client_id is not None}


def refused_models(tx: Session, request_id: UUID) -> set[str]:
    """Models that a request is refused for."""
    return {name for refusal in of_request(tx, request_id, kind=Kind.REFUSED) for name in refusal.models or ()}


def has_begun(tx: Session, request_id: UUID) -> bool:
    """Whether the log says that work on a request began: from then on something may be destroyed for it."""
    begun = (AuditEntry.request_id == request_id) & AuditEntry.type.in_(("erasure.started", "erasure.done"))
    return bool(tx.scalar(select(exists().where(begun))))


def was_extended(tx: Session, request_id: UUID) -> bool:
    """Whether the log says that a deadline was extended: a restored database has the entry without the decision."""
    extended = (AuditEntry.request_id == request_id) & (AuditEntry.type == "request.extended")
    return bool(tx.scalar(select(exists().where(extended))))


def leave_jobs(tx: Session, request_ids: Collection[UUID], *, models: Collection[str] | None = None) -> None:
    """Take requests out of the jobs that have no result for them; out of those of some models, or of all."""
    unfinished = delete(Target).where(Target.request_id == func.any(list(request_ids)), Target.result.is_(None))
    named = select(Model.id).where(Model.name == func.any(list(models or ())))
    tx.execute(unfinished if models is None else unfinished.where(Target.model_id.in_(named)))


def set_identity(tx: Session, request_id: UUID, level: str) -> None:
    """Write down how sure the portal is of the person now."""
    tx.execute(update(ErasureRequest).where(ErasureRequest.id == request_id).values(identity_level=level))


def begin_clock(tx: Session, request_id: UUID, *, clock_from: datetime, deadline: datetime) -> None:
    """Count a request's months from a later moment than its receipt."""
    begun = {"clock_from": clock_from, "deadline": deadline}
    tx.execute(update(ErasureRequest).where(ErasureRequest.id == request_id).values(begun))


def notify(tx: Session, request_id: UUID, kind: Kind, *, at: datetime) -> None:
    """Write down when the person was told of decisions of a kind; what was told before keeps its time."""
    untold = (Decision.request_id == request_id) & (Decision.kind == kind) & Decision.notified_at.is_(None)
    tx.execute(update(Decision).where(untold).values(notified_at=at))


def sent_notices(tx: Session, request_id: UUID) -> dict[str, datetime]:
    """When the person was sent which notice, the first time."""
    mine = (Event.request_id == request_id) & (Event.type == "notice.sent")
    details = tx.scalars(select(Event.detail).where(mine).order_by(Event.id.desc()))
    return {detail["notice"]: datetime.fromisoformat(detail["sent_at"]) for detail in details}


class Known(NamedTuple):
    """What planning has to know of one request besides its own row."""

    approvals: int
    """How many people agreed."""
    by_others: int
    """How many of them did not make the request."""
    burst: bool
    """Whether the service itself asked, since too many would leave a model within a day."""
    refused: frozenset[str]
    """Models that it is refused for."""
    older: UUID | None
    """An older open request for the same person that asks for no less."""
    awaited: int
    """How many people must agree to older requests for the same person that wait for them."""

    def needs_others(self, needed: int) -> bool:
        """Whether the requester's own approval counts for nothing: of two, and where a stolen key could do harm."""
        return needed >= _FOUR_EYES or self.burst

    def agreed(self, needed: int) -> int:
        """How many of those agreed who count where so many must."""
        return self.by_others if self.needs_others(needed) else self.approvals


def known(tx: Session, request_ids: Sequence[UUID]) -> dict[UUID, Known]:
    """What was decided about many requests, and which of them repeat an older one: one statement."""
    rows = tx.execute(text(_KNOWN), {"ids": list(request_ids)})
    return {r.id: Known(r.approvals, r.by_others, r.burst, frozenset(r.refused), r.older, r.awaited) for r in rows}


def link(tx: Session, older: dict[UUID, UUID]) -> None:
    """Note which requests repeat which older ones; who is linked already stays so."""
    statement = (
        "UPDATE erasure_requests r SET duplicate_of = n.older"
        " FROM unnest(CAST(:ids AS uuid[]), CAST(:older AS uuid[])) AS n (id, older)"
        " WHERE r.id = n.id AND r.duplicate_of IS NULL"
    )
    if older:
        tx.execute(text(statement), {"ids": list(older), "older": list(older.values())})


_BOUND_BY = """
SELECT r.id FROM decisions d JOIN erasure_requests r ON r.id = d.request_id AND r.status = 'on_hold'
WHERE d.passed_from = :hold
  AND NOT EXISTS (SELECT FROM decisions n WHERE n.request_id = d.request_id AND n.kind = 'held' AND n.id > d.id)
ORDER BY r.sequence
"""
_HOLDS = """
SELECT DISTINCT ON (y.id) y.id, h.id AS held
FROM erasure_requests y
JOIN erasure_requests o ON o.subject_key = y.subject_key AND o.id <> y.id AND o.status = 'on_hold'
CROSS JOIN LATERAL (
  SELECT d.kind, coalesce(d.passed_from, d.id) AS first FROM decisions d
  WHERE d.request_id = o.id AND d.kind IN ('held', 'released') ORDER BY d.id DESC LIMIT 1
) l
JOIN decisions h ON h.id = l.first
JOIN erasure_requests r ON r.id = h.request_id AND (r.models IS NULL OR y.models IS NULL OR r.models && y.models)
WHERE y.id = ANY (CAST(:ids AS uuid[])) AND l.kind = 'held' AND h.ground = ANY (CAST(:grounds AS text[]))
ORDER BY y.id, h.id
"""
# An older request counts only if nothing stops it: who awaits identity may be anybody, what is on hold or waits for
# people may never go on, what is refused in part asks for less. Whatever has ended has no subject_key; to ask for open
# ones as well, or to order by the bare sequence, would lead PostgreSQL to another index and through everybody's
# requests for each.
_KNOWN = """
SELECT y.id,
  (SELECT count(DISTINCT d.client_id) FROM decisions d
   WHERE d.request_id = y.id AND d.kind = 'approved') AS approvals,
  (SELECT count(DISTINCT d.client_id) FROM decisions d
   WHERE d.request_id = y.id AND d.kind = 'approved' AND d.client_id IS DISTINCT FROM y.client_id) AS by_others,
  EXISTS (SELECT FROM decisions d WHERE d.kind = 'burst' AND (d.request_id = y.id OR d.request_id = ANY (w.ids)))
    AS burst,
  ARRAY(SELECT DISTINCT unnest(d.models) FROM decisions d WHERE d.request_id = y.id AND d.kind = 'refused') AS refused,
  (SELECT o.id FROM erasure_requests o
   WHERE o.subject_key = y.subject_key AND o.sequence < y.sequence
     AND o.status NOT IN ('awaiting_identity', 'on_hold', 'pending')
     AND (o.models IS NULL OR y.models <@ o.models)
     AND NOT EXISTS (SELECT FROM decisions d WHERE d.request_id = o.id AND d.kind = 'refused')
   ORDER BY o.sequence + 0 LIMIT 1) AS older,
  w.awaited
FROM erasure_requests y CROSS JOIN LATERAL (
  SELECT array_agg(o.id) AS ids, coalesce(max(o.approvals_needed), 0) AS awaited FROM erasure_requests o
  WHERE o.subject_key = y.subject_key AND o.sequence < y.sequence AND o.status = 'pending'
    AND (o.models IS NULL OR y.models IS NULL OR o.models && y.models)
) w WHERE y.id = ANY (CAST(:ids AS uuid[]))
"""
