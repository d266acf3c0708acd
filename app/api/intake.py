"""Demands coming in over HTTP, one at a time: they gather, and are on disk before anybody is answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError

from app import intake, tracing
from app.api import auth
from app.api.auth import Declared, Scope
from app.api.bare import Bare, IdempotencyKey, idempotency_key, read
from app.api.context import Context
from app.api.group_commit import GroupCommit
from app.api.problems import answers
from app.api.requests import shown, told
from app.api.schemas import requests as schemas
from app.errors import ExpungeError
from app.intake import Demand, Filed, Filing
from app.storage import keys
from app.storage.arrivals import Arrival
from app.storage.keys import Claim, Holder
from app.storage.sessions import transaction
from app.storage.tables import ErasureRequest

router = APIRouter(prefix="/v1/erasure-requests", tags=["erasure requests"], route_class=Bare)


@dataclass(frozen=True, slots=True)
class Submission:
    """What one call hands in."""

    claim: Claim
    demand: Demand
    idempotency_key: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What it is told."""

    request: schemas.ErasureRequestOut
    created: bool


Intake = GroupCommit[Submission, Answer]


def _takes(_body: schemas.ErasureRequestIn, _caller: Declared, _key: IdempotencyKey = None) -> None:
    """For the OpenAPI document."""


@router.post(
    "",
    status_code=202,
    response_model=schemas.ErasureRequestOut,
    dependencies=[Depends(_takes)],
    responses=answers(400, 401, 403, 409, 413, 422, 429, 503)
    | {200: {"model": schemas.ErasureRequestOut, "description": "The same demand was accepted before"}},
)
async def create(request: Request) -> Response:
    """Accept a demand to be forgotten: 202 if new, 200 if we have it already. It is on disk when you read this."""
    claim = auth.claimed(request)
    try:
        body = read(schemas.ErasureRequestIn, await request.body(), content_type=request.headers.get("content-type"))
        key = idempotency_key(request)
    except RequestValidationError:
        # Strangers learn nothing of our shapes.
        await run_in_threadpool(auth.look_up, request.app.state.context, claim, Scope.REQUESTS_WRITE)
        raise
    group: Intake = request.app.state.intake
    answer = await group.submit(Submission(claim, demand_of(body), key))
    return Response(
        answer.request.model_dump_json(),
        202 if answer.created else 200,
        media_type="application/json",
        headers={"Location": f"{router.prefix}/{answer.request.id}"},
    )


def demand_of(body: schemas.ErasureRequestIn) -> Demand:
    """What a body asks for."""
    return Demand(
        user_id=body.user_id,
        models=body.models,
        reference=body.reference,
        identity_level=body.identity_level,
        traceparent=tracing.traceparent(),
    )


def file(context: Context, submissions: Sequence[Submission]) -> list[Answer | ExpungeError]:
    """Accept what many callers hand in, in one transaction; each gets its own answer, after COMMIT."""
    now = datetime.now(UTC)
    with transaction(context.engine) as tx:
        holders = keys.callers(tx, [one.claim for one in submissions])
        filings = [_filing(one, holder) for one, holder in zip(submissions, holders, strict=True)]
        good = [one for one in filings if isinstance(one, Filing)]
        outcomes = iter(intake.accept_many(tx, good, now=now, settings=context.settings))
        filed = [next(outcomes) if isinstance(one, Filing) else one for one in filings]
        old = [one.request for one in filed if isinstance(one, Filed) and isinstance(one.request, ErasureRequest)]
        views = {view.id: view for view in (shown(tx, old, now) if old else ())}
        return [_answer(one, views, now) for one in filed]


def _filing(submission: Submission, holder: Holder | None) -> Filing | ExpungeError:
    try:
        caller = auth.admit(holder, Scope.REQUESTS_WRITE)
    except ExpungeError as error:
        return error
    return Filing(submission.demand, caller.client_id, submission.idempotency_key)


def _answer(
    filed: Filed | ExpungeError, views: dict[UUID, schemas.ErasureRequestOut], now: datetime
) -> Answer | ExpungeError:
    if isinstance(filed, ExpungeError):
        return filed
    found = filed.request
    return Answer(told(found, now) if isinstance(found, Arrival) else views[found.id], filed.created)
