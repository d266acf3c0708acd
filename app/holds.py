"""Holds on a person's data: whichever request one was decided about, it binds the others for the same person, too.

Else a demand that is sent again, or by another portal, would destroy what has to be kept. A hold that is passed on is a
decision of nobody's; it ends with the one that it comes from, or by itself when that request has ended otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy.orm import Session

from app.domain import deadlines
from app.domain.decisions import HOLDS_OF_DATA, Kind
from app.domain.lifecycle import PLANNABLE, RequestStatus
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
        held, now = found[request.id], RequestStatus(request.status)
        same = {"ground": held.ground, "until": held.until}
        decisions.add(tx, Decision(request_id=request.id, kind=Kind.HELD, decided_at=at, **same))
        moves.move_request(tx, request.id, now=now, then=RequestStatus.ON_HOLD, at=at, reason=reason(held, settings))
    return {request.id for request in bound}


def bind_twins(tx: Session, request: ErasureRequest, *, at: datetime, settings: Settings) -> None:
    """Pass a hold on at once to what is queued or about to be; what waits for people is met when it goes on."""
    twins = requests.twins(tx, request, statuses=PLANNABLE | {RequestStatus.QUEUED})
    pass_on(tx, twins, at=at, settings=settings)


def need_free(tx: Session, request: ErasureRequest) -> None:
    """Refuse to let a request go on past a hold on the person's data that somebody decided about another one.

    Raises:
        Conflict: Names the request that holds it.
    """
    held = decisions.holds(tx, [request.id]).get(request.id)
    if held is not None and held.client_id is not None:
        raise Conflict(f"the person's data are on hold by request {held.request_id}; release that one")


def was_passed_on(tx: Session, request: ErasureRequest) -> bool:
    """Whether a request's newest hold is not one that somebody decided about it."""
    mine = decisions.last_hold(tx, request.id)
    return mine is not None and mine.client_id is None


def freed_with(tx: Session, request: ErasureRequest) -> Sequence[ErasureRequest]:
    """Requests that a hold was passed on to, and that no other one holds now that ``request`` is released."""
    mine = decisions.last_hold(tx, request.id)
    if mine is None or mine.ground not in HOLDS_OF_DATA:
        return ()
    passed = [t for t in requests.twins(tx, request, statuses={RequestStatus.ON_HOLD}) if was_passed_on(tx, t)]
    others = decisions.holds(tx, [twin.id for twin in passed])
    return [t for t in passed if (held := others.get(t.id)) is None or held.client_id is None]
