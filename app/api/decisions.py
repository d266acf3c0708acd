"""Decisions over HTTP: identity, approval, hold, refusal, extension, retry, alone and by the thousand; notices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Response

from app import decisions, notices
from app.api.auth import Caller, Owner, Reader, Scope, needs
from app.api.context import CurrentSettings, Now, Transaction
from app.api.problems import PLAIN, answers
from app.api.requests import shown
from app.api.schemas import decisions as schemas
from app.api.schemas.requests import ErasureRequestOut
from app.domain.decisions import Notice
from app.domain.lifecycle import RequestStatus
from app.storage import decisions as stored
from app.storage import requests
from app.storage.tables import Decision

router = APIRouter(prefix="/v1/erasure-requests", tags=["decisions"])
Decider = Annotated[Caller, Depends(needs(Scope.REQUESTS_DECIDE))]
_ANSWERS = answers(400, 401, 403, 404, 409, 413, 422, 503)
_READING = answers(401, 403, 404, 422, 503)


@router.post(":approve", responses=answers(400, 401, 403, 413, 422, 503))
def approve_many(body: schemas.ApproveManyIn, tx: Transaction, caller: Decider, now: Now) -> schemas.OutcomesOut:
    """Agree to up to 1000 requests; each has its own outcome."""
    act = partial(decisions.approve, tx, by=caller.client_id, now=now, explanation=body.explanation)
    return _outcomes(decisions.each(tx, body.ids, act))


@router.post(":refuse", responses=answers(400, 401, 403, 413, 422, 503))
def refuse_many(
    body: schemas.RefuseManyIn, tx: Transaction, caller: Decider, now: Now, settings: CurrentSettings
) -> schemas.OutcomesOut:
    """Refuse up to 1000 requests on one ground; each has its own outcome."""
    refusal = _refusal(body)
    return _outcomes(
        decisions.each(
            tx, body.ids, lambda i: decisions.refuse(tx, i, refusal, by=caller.client_id, now=now, settings=settings)
        )
    )


@router.post(":retry", responses=answers(400, 401, 403, 413, 422, 503))
def retry_many(
    body: schemas.RequestsIn, tx: Transaction, caller: Decider, now: Now, settings: CurrentSettings
) -> schemas.OutcomesOut:
    """Give up to 1000 requests that need attention to new jobs; each has its own outcome."""
    act = partial(decisions.retry, tx, by=caller.client_id, now=now, settings=settings)
    return _outcomes(decisions.each(tx, body.ids, act))


@router.post("/{request_id}:confirm-identity", responses=_ANSWERS)
def confirm_identity(
    request_id: UUID, body: schemas.IdentityIn, tx: Transaction, caller: Owner, now: Now, settings: CurrentSettings
) -> ErasureRequestOut:
    """Say that the portal knows the person now; the request goes on."""
    request = decisions.confirm_identity(
        tx, request_id, body.level, by=caller.client_id, seen_by=caller.acts_on, now=now, settings=settings
    )
    return shown(tx, [request], now)[0]


@router.post("/{request_id}:approve", responses=_ANSWERS)
def approve(
    request_id: UUID, tx: Transaction, caller: Decider, now: Now, body: schemas.RemarkIn | None = None
) -> ErasureRequestOut:
    """Agree to a pending request. Nobody counts twice; of two, and in a burst, none is the requester."""
    explanation = body.explanation if body else None
    return shown(tx, [decisions.approve(tx, request_id, by=caller.client_id, now=now, explanation=explanation)], now)[0]


@router.post("/{request_id}:hold", responses=_ANSWERS)
def hold(
    request_id: UUID, body: schemas.HoldIn, tx: Transaction, caller: Decider, now: Now, settings: CurrentSettings
) -> ErasureRequestOut:
    """Let a request wait; its clock runs on."""
    request = decisions.hold(
        tx,
        request_id,
        ground=body.ground,
        until=body.until,
        by=caller.client_id,
        now=now,
        settings=settings,
        explanation=body.explanation,
    )
    return shown(tx, [request], now)[0]


@router.post("/{request_id}:release", responses=_ANSWERS)
def release(
    request_id: UUID,
    tx: Transaction,
    caller: Decider,
    now: Now,
    settings: CurrentSettings,
    body: schemas.RemarkIn | None = None,
) -> ErasureRequestOut:
    """End a hold; the request is planned anew."""
    explanation = body.explanation if body else None
    request = decisions.release(
        tx, request_id, by=caller.client_id, now=now, settings=settings, explanation=explanation
    )
    return shown(tx, [request], now)[0]


@router.post("/{request_id}:refuse", responses=_ANSWERS)
def refuse(
    request_id: UUID, body: schemas.RefuseIn, tx: Transaction, caller: Decider, now: Now, settings: CurrentSettings
) -> ErasureRequestOut:
    """Refuse a request, or leave some models or a class of data out of it; see its notices for what to tell whom."""
    request = decisions.refuse(tx, request_id, _refusal(body), by=caller.client_id, now=now, settings=settings)
    return shown(tx, [request], now)[0]


@router.post("/{request_id}:extend", responses=_ANSWERS)
def extend(
    request_id: UUID, body: schemas.ExtendIn, tx: Transaction, caller: Decider, now: Now, settings: CurrentSettings
) -> ErasureRequestOut:
    """Move the deadline by one or two months, once (Art. 12(3) GDPR)."""
    extension = decisions.Extension(
        further_months=body.further_months,
        reason=body.reason,
        explanation=body.explanation,
        notified_at=body.notified_at,
    )
    request = decisions.extend(tx, request_id, extension, by=caller.client_id, now=now, settings=settings)
    return shown(tx, [request], now)[0]


@router.post("/{request_id}:retry", responses=_ANSWERS)
def retry(request_id: UUID, tx: Transaction, caller: Decider, now: Now, settings: CurrentSettings) -> ErasureRequestOut:
    """Give a request that needs attention to a new job."""
    return shown(tx, [decisions.retry(tx, request_id, by=caller.client_id, now=now, settings=settings)], now)[0]


@router.get("/{request_id}/decisions", responses=_READING)
def index(request_id: UUID, tx: Transaction, caller: Reader) -> schemas.DecisionsOut:
    """Read what was decided about a request, in order."""
    request = requests.get(tx, request_id, seen_by=caller.sees)
    return schemas.DecisionsOut(items=[_told(decision, caller) for decision in stored.of_request(tx, request.id)])


def _told(decision: Decision, caller: Caller) -> schemas.DecisionOut:
    """Who decided, only an office learns: else a hold that an officer decided differed from one that was passed on."""
    told = {name: getattr(decision, name) for name in schemas.DecisionOut.model_fields}
    hidden = caller.sees is not None and decision.client_id != caller.client_id
    return schemas.DecisionOut(**told | ({"client_id": None} if hidden else {}))


@router.get("/{request_id}/notices", responses=_READING)
def list_notices(request_id: UUID, tx: Transaction, caller: Reader, settings: CurrentSettings) -> schemas.NoticesOut:
    """Read which notices the person is owed by now, and which were sent."""
    return _notices(tx, requests.get(tx, request_id, seen_by=caller.sees).id, settings)


@router.get("/{request_id}/notices/{kind}", responses=_READING | PLAIN)
def notice(
    request_id: UUID,
    kind: Notice,
    tx: Transaction,
    caller: Reader,
    settings: CurrentSettings,
    language: Annotated[Literal["en", "de"] | None, Query()] = None,
) -> Response:
    """Read a notice as text to be sent; it does not say who the person is."""
    request = requests.get(tx, request_id, seen_by=caller.sees)
    written = notices.text_of(tx, request, kind, language or settings.language, settings)
    return Response(written, media_type="text/plain; charset=utf-8")


@router.post("/{request_id}/notices/{kind}:sent", responses=_ANSWERS)
def mark_sent(
    request_id: UUID,
    kind: Notice,
    tx: Transaction,
    caller: Owner,
    now: Now,
    settings: CurrentSettings,
    body: schemas.SentIn | None = None,
) -> schemas.NoticesOut:
    """Write down that the person was sent a notice; a second time changes nothing."""
    request = requests.locked(tx, request_id, seen_by=caller.acts_on)
    at = (body.sent_at if body else None) or now
    notices.note_sent(tx, request, kind, by=caller.client_id, at=at, now=now, settings=settings)
    return _notices(tx, request_id, settings)


def _notices(tx: Transaction, request_id: UUID, settings: CurrentSettings) -> schemas.NoticesOut:
    owed = notices.owed(tx, requests.get(tx, request_id), settings)
    items = [schemas.NoticeOut(kind=n.kind, due=n.due, sent_at=n.sent_at, problem=n.problem) for n in owed]
    return schemas.NoticesOut(items=items)


def _refusal(body: schemas.RefuseIn) -> decisions.Refusal:
    return decisions.Refusal(
        ground=body.ground, explanation=body.explanation, models=body.models, data_class=body.data_class
    )


def _outcomes(found: Sequence[decisions.Outcome]) -> schemas.OutcomesOut:
    items = [
        schemas.OutcomeOut(
            id=one.request_id,
            status=RequestStatus(one.request.status) if one.request else None,
            problem=str(one.error) if one.error else None,
        )
        for one in found
    ]
    return schemas.OutcomesOut(decided=sum(one.error is None for one in found), items=items)
