"""Holds on a person's data: whichever request one was decided about, it binds the others for the same person, too.

Else a demand that is sent again, or by another portal, would destroy what has to be kept. A hold that is passed on is a
decision of nobody's that names the one it comes from, and is released with it. Where the request that was held has been
withdrawn, those that it bound stay on hold; releasing one of them releases all.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy.orm import Session

from app.domain import deadlines
from app.domain.decisions import Kind
from app.domain.lifecycle import WAITING, RequestStatus
from app.errors import Conflict
from app.settings import Settings
from app.storage import decisions, moves, requests
from app.storage.tables import Decision, ErasureRequest


def reason(held: Decision, settings: Settings) -> str:
    """Why a request is on hold, as its history says it: the same words whether or not the hold was passed on."""
    assert held.until is not None
    return f"{held.ground}, to be reviewed on {deadlines.day(held.until, settings.zone)}"


def pass_on(tx: Session, waiting: Sequence[ErasureRequest], *, at: datetime, settings: Settings) -> set[UUID]:
    """Put those on hold whose person's data are on hold by another request; returns which.

    What was begun can't be stopped any more, and what the service asks of itself repeats what was done before.
    """
    ours = [request for request in waiting if request.origin != "suppression"]
    found = decisions.holds(tx, [request.id for request in ours])
    bound = [r for r in ours if r.id in found and not decisions.has_begun(tx, r.id)]
    for request in bound:
        first, now = found[request.id], RequestStatus(request.status)
        same = {"ground": first.ground, "until": first.until, "passed_from": first.id}
        decisions.add(tx, Decision(request_id=request.id, kind=Kind.HELD, decided_at=at, **same))
        moves.move_request(tx, request.id, now=now, then=RequestStatus.ON_HOLD, at=at, reason=reason(first, settings))
    return {request.id for request in bound}


def bind_twins(tx: Session, request: ErasureRequest, *, at: datetime, settings: Settings) -> None:
    """Pass a hold on at once to all that wait or are queued; what comes in later is met by the planner."""
    statuses = (WAITING - {RequestStatus.ON_HOLD}) | {RequestStatus.QUEUED}
    pass_on(tx, requests.twins(tx, request, statuses=statuses), at=at, settings=settings)


def need_free(tx: Session, request: ErasureRequest) -> None:
    """Refuse to let a request go on past a hold on the person's data.

    Raises:
        Conflict: Names the request that was held.
    """
    held = decisions.holds(tx, [request.id]).get(request.id)
    if held is not None:
        raise _held_by(held)


def need_own(tx: Session, request: ErasureRequest) -> None:
    """Refuse to release a request on its own while the one that its hold was decided about is on hold, too.

    Raises:
        Conflict: Names that one.
    """
    mine = decisions.last_hold(tx, request.id)
    if mine is None or mine.passed_from is None:
        return
    first = tx.get_one(Decision, mine.passed_from)
    newest = decisions.last_hold(tx, first.request_id)
    lasts = requests.get(tx, first.request_id).status == RequestStatus.ON_HOLD
    if lasts and newest is not None and newest.id == first.id:
        raise _held_by(first)


def freed_with(tx: Session, request: ErasureRequest) -> Sequence[UUID]:
    """Requests that are on hold by the hold that ``request`` is released from."""
    mine = decisions.last_hold(tx, request.id)
    return decisions.bound_by(tx, mine.passed_from or mine.id) if mine else ()


def _held_by(held: Decision) -> Conflict:
    return Conflict(f"the person's data are on hold by request {held.request_id}; release that one")
