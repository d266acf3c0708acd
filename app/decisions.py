"""What people decide about a request, and what follows from it at once; one function is one transaction.

Every decision is a row, an event, and an entry in the public log where that has a word for it. What a request's state
does not allow is a Conflict that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy.orm import Session

from app import ending, holds, planning
from app.domain import deadlines
from app.domain.decisions import (
    HOLDS_OF_DATA,
    ExtensionReason,
    Ground,
    HoldGround,
    IdentityLevel,
    Kind,
    check_refusal,
)
from app.domain.lifecycle import CANCELLABLE, JOB_OPEN, REQUEST_ENDED, WAITING, RequestStatus
from app.errors import Conflict, ExpungeError, Invalid
from app.settings import Settings
from app.storage import audit, decisions, jobs, moves, requests, versions
from app.storage.tables import Decision, ErasureRequest

_REPEATED = "this deletion was made once and is being repeated after a rollback"
_BEGUN = "the work on it has begun, and what was begun can't be undone"
_OURS = "the service made this request itself: somebody who was erased before is in a model again"


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """What is not erased, and why: the whole request, some of its models, or a class of the controller's data."""

    ground: Ground
    explanation: str | None = None
    models: Sequence[str] | None = None
    data_class: str | None = None


@dataclass(frozen=True, kw_only=True)
class Extension:
    """Why a request takes longer than a month, how much, and when the person was told."""

    further_months: int
    reason: ExtensionReason
    explanation: str | None = None
    notified_at: datetime | None = None


@dataclass(frozen=True)
class Outcome:
    """How one item of a bulk decision went: the request as it stands now, or why not."""

    request_id: UUID
    request: ErasureRequest | None = None
    error: ExpungeError | None = None


def confirm_identity(
    tx: Session,
    request_id: UUID,
    level: IdentityLevel,
    *,
    by: UUID,
    seen_by: UUID | None,
    now: datetime,
    settings: Settings,
) -> ErasureRequest:
    """Let a request go on whose person is known now; by policy its month begins here.

    Raises:
        NotFound: The caller knows no such request.
        Conflict: It does not await identity.
        Invalid: The level is below what the policy needs.
    """
    request = requests.locked(tx, request_id, seen_by=seen_by)
    if request.status != RequestStatus.AWAITING_IDENTITY:
        raise Conflict(f"the request is {request.status}; only one that awaits identity can have it confirmed")
    if not level.reaches(settings.identity_needed):
        raise Invalid("level", f"this installation works on requests from the level {settings.identity_needed} on")
    decisions.set_identity(tx, request_id, level)
    due = _begin_clock(tx, request, now=now, settings=settings)
    said = {"due": due.isoformat()} if due else {}
    audit.enter(tx, "request.identity_confirmed", said, at=now, request_id=request_id)
    _decide(tx, request, Kind.IDENTITY_CONFIRMED, by=by, at=now, ground=level, until=due)
    return _moved(tx, request, RequestStatus.RECEIVED, at=now)


def _begin_clock(tx: Session, request: ErasureRequest, *, now: datetime, settings: Settings) -> datetime | None:
    """The new deadline, if the policy suspends the clock; one that was extended keeps what it was extended to."""
    if not settings.suspend_while_awaiting_identity or request.clock_from is not None:
        return None
    if decisions.was_extended(tx, request.id):
        return None
    due = deadlines.due(now, settings.zone)
    decisions.begin_clock(tx, request.id, clock_from=now, deadline=due)
    return due


def approve(
    tx: Session, request_id: UUID, *, by: UUID, now: datetime, explanation: str | None = None
) -> ErasureRequest:
    """Agree to a request; the last one needed lets it go on.

    Raises:
        NotFound: No such request.
        Conflict: It is not pending, the caller has agreed before, or made a request that others must agree to.
    """
    request = requests.locked(tx, request_id)
    if request.status != RequestStatus.PENDING:
        raise Conflict(f"the request is {request.status}; only one that is pending can be approved")
    known = decisions.known(tx, [request_id])[request_id]
    if by in decisions.approvers(tx, request_id):
        raise Conflict("you have approved this request; somebody else must, too")
    if by == request.client_id and known.needs_others(request.approvals_needed):
        raise Conflict("whoever made the request can't be one of the people who approve it")
    _decide(tx, request, Kind.APPROVED, by=by, at=now, explanation=explanation)
    if known.agreed(request.approvals_needed) + 1 < request.approvals_needed:
        return requests.locked(tx, request_id)
    return _moved(tx, request, RequestStatus.APPROVED, at=now)


def hold(
    tx: Session,
    request_id: UUID,
    *,
    ground: HoldGround,
    until: datetime,
    by: UUID,
    now: datetime,
    settings: Settings,
    explanation: str | None = None,
) -> ErasureRequest:
    """Let a request wait until people have looked at it again; it leaves the jobs that would have worked on it.

    A hold of the person's data is passed on to the person's other requests, now and when they come in.

    Raises:
        NotFound: No such request.
        Conflict: Work on it has begun or is done, or it is held already.
        Invalid: The day of review is over.
    """
    if until <= now:
        raise Invalid("until", "the day of the next review lies in the future")
    if ground in HOLDS_OF_DATA:  # before or after a planning, whole: it sees this hold, or we see what it queued
        planning.hold_ledger(tx, exclusive=True)
    requests.lock_with_twins(tx, [request_id])
    request = _waiting(tx, request_id, "held")
    if request.status == RequestStatus.ON_HOLD:
        raise Conflict("the request is on hold already; release it first")
    held = _decide(tx, request, Kind.HELD, by=by, at=now, ground=ground, explanation=explanation, until=until)
    request = _moved(tx, request, RequestStatus.ON_HOLD, at=now, reason=holds.reason(held, settings))
    if ground in HOLDS_OF_DATA:
        holds.bind_twins(tx, request, at=now, settings=settings)
    return request


def release(
    tx: Session, request_id: UUID, *, by: UUID, now: datetime, settings: Settings, explanation: str | None = None
) -> ErasureRequest:
    """End a hold, also where it was passed on: requests are planned anew, or wait for the person's identity as before.

    Raises:
        NotFound: No such request.
        Conflict: It is not on hold, or only because another one for the same person is.
    """
    planning.hold_ledger(tx, exclusive=True)  # a planning is before this, or does not see the hold any more
    requests.lock_with_twins(tx, [request_id])
    request = requests.locked(tx, request_id)
    if request.status != RequestStatus.ON_HOLD:
        raise Conflict(f"the request is {request.status}; only one that is on hold can be released")
    holds.need_own(tx, request)
    freed = [twin_id for twin_id in holds.freed_with(tx, request) if twin_id != request_id]
    released = [_release(tx, request, by=by, at=now, settings=settings, explanation=explanation)]
    released += [_release(tx, requests.locked(tx, twin), by=by, at=now, settings=settings) for twin in freed]
    holds.pass_on(tx, released, at=now, settings=settings)  # another hold of the person's data may bind them, too
    return requests.locked(tx, request_id)


def _release(
    tx: Session, request: ErasureRequest, *, by: UUID, at: datetime, settings: Settings, explanation: str | None = None
) -> ErasureRequest:
    _decide(tx, request, Kind.RELEASED, by=by, at=at, explanation=explanation)
    known = IdentityLevel(request.identity_level).reaches(settings.identity_needed)
    return _moved(tx, request, RequestStatus.RECEIVED if known else RequestStatus.AWAITING_IDENTITY, at=at)


def refuse(
    tx: Session, request_id: UUID, refusal: Refusal, *, by: UUID, now: datetime, settings: Settings
) -> ErasureRequest:
    """Refuse a request, or leave out what there is a ground for; refusing all of its models is refusing it.

    Raises:
        NotFound: No such request.
        Conflict: Its state does not allow it, or a model named has forgotten the person already.
        Invalid: The ground needs an explanation, or a model named is none of the request's.
    """
    check_refusal(refusal.ground, refusal.explanation)
    planning.hold_ledger(tx, exclusive=False)
    request = requests.locked(tx, request_id)
    _need_a_persons(request, "refused")
    if request.status not in CANCELLABLE:
        raise Conflict(f"the request is {request.status}; only one that nobody works on can be refused")
    left = _left(tx, request, refusal)
    begun = decisions.has_begun(tx, request_id)
    if begun and (not left or request.status != RequestStatus.NEEDS_ATTENTION):
        raise Conflict(_BEGUN if not left else f"{_BEGUN}; a new attempt is queued, wait for its end")
    named = refusal.models or None
    decision = {"ground": refusal.ground, "explanation": refusal.explanation, "data_class": refusal.data_class}
    _decide(tx, request, Kind.REFUSED, by=by, at=now, models=sorted(set(named)) if named else None, **decision)
    if not left:
        return _reject(tx, request, refusal, at=now, settings=settings)
    audit.enter(tx, "request.refused", at=now, request_id=request_id)
    decisions.leave_jobs(tx, [request_id], models=named or ())
    if request.status == RequestStatus.QUEUED and not requests.targets(tx, [request_id]):
        return _planned_anew(tx, request, at=now)
    if begun and left <= {row.name for row in requests.targets(tx, [request_id]) if row.result is not None}:
        ending.close(tx, request, at=now, settings=settings)
    return requests.locked(tx, request_id)


def _left(tx: Session, request: ErasureRequest, refusal: Refusal) -> set[str]:
    """Models that are still to forget the person after a refusal; none: the request as a whole is refused."""
    asked = set(request.models or [model.name for model in versions.models(tx)])
    named = set(refusal.models or ())
    if named - asked:
        raise Invalid("models", f"{len(named - asked)} of the models named are none of this request's")
    before = decisions.refused_models(tx, request.id)
    if named and named <= before:
        raise Conflict("the request is refused for these models already")
    targets = requests.targets(tx, [request.id])
    done = {row.name for row in targets if row.result is not None}
    if named & done:
        raise Conflict(f"{len(named & done)} of the models named have forgotten the person already")
    if decisions.has_begun(tx, request.id):
        running = {row.name for row in targets if row.status in JOB_OPEN and jobs.get(tx, row.id).fence > 0}
        if named & running:
            raise Conflict(f"{_BEGUN}; {len(named & running)} of the models named are being worked on")
    if not named and refusal.data_class is None:
        return set()
    # Without any model registered, a class of data is still a part only: "*" stands for the models to come.
    return (asked or {"*"}) - before - named


def _planned_anew(tx: Session, request: ErasureRequest, *, at: datetime) -> ErasureRequest:
    """No job is left, and yet a model: one that was registered since. The planner takes up what was released."""
    request = _moved(tx, request, RequestStatus.ON_HOLD, at=at, reason="refused for every model it was queued for")
    return _moved(tx, request, RequestStatus.RECEIVED, at=at)


def _reject(
    tx: Session, request: ErasureRequest, refusal: Refusal, *, at: datetime, settings: Settings
) -> ErasureRequest:
    end = moves.Ending(backups=settings.key_backups)
    return _moved(tx, request, RequestStatus.REJECTED, at=at, reason=f"refused: {refusal.ground}", ending=end)


def extend(
    tx: Session, request_id: UUID, extension: Extension, *, by: UUID, now: datetime, settings: Settings
) -> ErasureRequest:
    """Move a deadline by one or two months, once, while the first month lasts (Art. 12(3) GDPR).

    Raises:
        NotFound: No such request.
        Conflict: It has ended or is repeated, was extended before, its clock has not begun, or the month is over.
        Invalid: More than two months, or the person was told at a moment that can't be.
    """
    request = requests.locked(tx, request_id)
    if request.status in REQUEST_ENDED:
        raise Conflict(f"the request is {request.status}; its clock has stopped")
    _need_first_time(request, "extended")
    if decisions.was_extended(tx, request_id):
        raise Conflict("the deadline was extended before; Art. 12(3) GDPR allows it once")
    if request.status == RequestStatus.AWAITING_IDENTITY and settings.suspend_while_awaiting_identity:
        raise Conflict("the clock of this request begins when the person's identity is confirmed")
    since = request.clock_from or request.received_at
    if now > deadlines.due(since, settings.zone):
        raise Conflict("the first month is over; an extension is decided within it (Art. 12(3) GDPR)")
    told = extension.notified_at
    if told is not None and not request.received_at <= told <= now:
        raise Invalid("notified_at", "the person was told between receipt and now; leave it out if they were not")
    until = deadlines.extended(since, settings.zone, further_months=extension.further_months, decided_at=now)
    decision = {"ground": extension.reason, "explanation": extension.explanation, "notified_at": told}
    _decide(tx, request, Kind.EXTENDED, by=by, at=now, until=until, **decision)
    moves.extend(tx, request_id, due=until, at=now)
    return requests.locked(tx, request_id)


def cancel(
    tx: Session, request_id: UUID, *, by: UUID, now: datetime, settings: Settings, seen_by: UUID | None = None
) -> ErasureRequest:
    """Take a request back before anything is destroyed; cancelling twice is cancelling once.

    Raises:
        NotFound: The caller knows no such request.
        Conflict: The work has begun or is done.
    """
    request = requests.locked(tx, request_id, seen_by=seen_by)
    if request.status == RequestStatus.CANCELLED:
        return request
    if request.status not in CANCELLABLE:
        raise Conflict(f"the request is {request.status}; only one that still waits can be cancelled")
    need_untouched(tx, request, "cancelled")
    _decide(tx, request, Kind.CANCELLED, by=by, at=now)
    end = moves.Ending(backups=settings.key_backups)
    return _moved(tx, request, RequestStatus.CANCELLED, at=now, reason="cancelled by caller", ending=end)


def retry(tx: Session, request_id: UUID, *, by: UUID, now: datetime, settings: Settings) -> ErasureRequest:
    """Give a request that needs attention to new jobs; see :func:`app.planning.retry`.

    Raises:
        NotFound: No such request.
        Conflict: It does not need attention, or there is nothing to work on.
    """
    planning.retry(tx, request_id, now=now, settings=settings)
    request = requests.locked(tx, request_id)
    _decide(tx, request, Kind.RETRIED, by=by, at=now)
    return request


def each(tx: Session, request_ids: Sequence[UUID], act: Callable[[UUID], ErasureRequest]) -> list[Outcome]:
    """Decide about many requests in one transaction; one that can't be decided takes nothing from the others.

    First the ledger is locked, as by a hold, then the requests in order of arrival, whatever the caller's, as a job's
    are: so none of them deadlock.
    """
    planning.hold_ledger(tx, exclusive=True)
    requests.lock_with_twins(tx, request_ids)
    found = {request_id: _one(tx, request_id, act) for request_id in sorted(set(request_ids))}
    return [found[request_id] for request_id in dict.fromkeys(request_ids)]


def _one(tx: Session, request_id: UUID, act: Callable[[UUID], ErasureRequest]) -> Outcome:
    try:
        with tx.begin_nested():
            return Outcome(request_id, request=act(request_id))
    except ExpungeError as error:
        return Outcome(request_id, error=error)


def need_untouched(tx: Session, request: ErasureRequest, what: str) -> None:
    """Refuse what is only possible while nothing was destroyed for a request.

    Raises:
        Conflict: The log says that work on it began, or nobody asked for it but the service itself.
    """
    _need_a_persons(request, what)
    if decisions.has_begun(tx, request.id):
        raise Conflict(f"{_BEGUN}; it can't be {what}")


def _need_a_persons(request: ErasureRequest, what: str) -> None:
    _need_first_time(request, what)
    if request.origin == "suppression" and request.status not in REQUEST_ENDED:
        raise Conflict(f"{_OURS}; it can't be {what}")


def _need_first_time(request: ErasureRequest, what: str) -> None:
    if request.subject_key is None and request.status not in REQUEST_ENDED:
        raise Conflict(f"{_REPEATED}; it can't be {what}")


def _waiting(tx: Session, request_id: UUID, what: str) -> ErasureRequest:
    request = requests.locked(tx, request_id)
    if request.status not in WAITING:
        raise Conflict(f"the request is {request.status}; only one that waits can be {what}")
    need_untouched(tx, request, what)
    return request


def _decide(
    tx: Session,
    request: ErasureRequest,
    kind: Kind,
    *,
    by: UUID,
    at: datetime,
    **said: str | Sequence[str] | datetime | None,
) -> Decision:
    return decisions.add(tx, Decision(request_id=request.id, kind=kind, client_id=by, decided_at=at, **said))


def _moved(
    tx: Session,
    request: ErasureRequest,
    then: RequestStatus,
    *,
    at: datetime,
    reason: str | None = None,
    ending: moves.Ending | None = None,
) -> ErasureRequest:
    now = RequestStatus(request.status)
    moves.move_request(tx, request.id, now=now, then=then, at=at, reason=reason, ending=ending)
    return requests.locked(tx, request.id)
