"""The suppression list over HTTP, for training pipelines: a question, and a list to take along that names nobody."""

from __future__ import annotations

from datetime import datetime
from email.utils import format_datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.responses import StreamingResponse

from app import suppression
from app.api.auth import Caller, Scope, needs
from app.api.context import CurrentSettings, Now, Transaction
from app.api.problems import answers
from app.api.schemas import suppressions as schemas
from app.api.schemas.base import ModelName

router = APIRouter(prefix="/v1", tags=["suppression list"])
Pipeline = Annotated[Caller, Depends(needs(Scope.SUPPRESSIONS_READ))]
Model = Annotated[ModelName, Query(description="whose training data the list is for; it need not be registered yet")]
IfNoneMatch = Annotated[str | None, Header(max_length=200)]
Rate = Annotated[float, Query(ge=1e-9, le=0.01, description="share of people not listed who are taken for listed")]
_NEWER: dict[int | str, dict[str, Any]] = {304: {"description": "The list has not grown"}}  # Any: OpenAPI
_LINES: dict[int | str, dict[str, Any]] = {200: {"content": {"application/x-ndjson": {}}}}  # Any: OpenAPI
_FILTER: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}  # Any: OpenAPI


@router.post("/suppressions:check", responses=answers(400, 401, 403, 413, 422, 503))
def check(
    body: schemas.SuppressionCheckIn, tx: Transaction, _: Pipeline, settings: CurrentSettings
) -> schemas.SuppressionCheckOut:
    """Ask which of these people a model must not be trained on; registration asks the same."""
    found = suppression.barred(tx, body.user_ids, model=body.model, settings=settings)
    return schemas.SuppressionCheckOut(asked=len(body.user_ids), suppressed=found)


@router.post("/suppressions:tokens", responses=answers(400, 401, 403, 413, 422, 503))
def tokens(
    body: schemas.SuppressionTokensIn, caller: Pipeline, settings: CurrentSettings
) -> schemas.SuppressionTokensOut:
    """Ask by which tokens your lists know these people, to keep beside the samples in the place of user ids."""
    return schemas.SuppressionTokensOut(
        tokens=suppression.tokens(body.user_ids, reader=caller.client_id, settings=settings)
    )


@router.get(
    "/suppressions.ndjson",
    responses=answers(401, 403, 422, 503) | _LINES | _NEWER,
    response_class=StreamingResponse,
)
def as_lines(
    model: Model,
    tx: Transaction,
    caller: Pipeline,
    now: Now,
    settings: CurrentSettings,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Download the tokens of everybody listed when the day (UTC) began, one JSON object per line, in no order."""
    chosen = suppression.snapshot(tx, model=model, reader=caller.client_id, now=now)
    headers = _headers(chosen.tag("ndjson"), chosen.state.changed)
    if _has(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    pieces = suppression.portions(suppression.lines(tx, chosen, settings))
    return StreamingResponse(pieces, headers=headers, media_type="application/x-ndjson")


@router.get("/suppressions.bloom", responses=answers(401, 403, 422, 503) | _FILTER | _NEWER, response_class=Response)
def as_filter(
    model: Model,
    tx: Transaction,
    caller: Pipeline,
    now: Now,
    settings: CurrentSettings,
    false_positive_rate: Rate = 1e-6,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Download the same tokens as a Bloom filter (rbloom's format): 3.6 bytes a person at one error in a million."""
    chosen = suppression.snapshot(tx, model=model, reader=caller.client_id, now=now)
    headers = _headers(chosen.tag(f"bloom {false_positive_rate}"), chosen.state.changed)
    if _has(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    found = suppression.bloom(tx, chosen, settings, false_positive_rate=false_positive_rate)
    return Response(found, headers=headers, media_type="application/octet-stream")


def _headers(tag: str, changed: datetime | None) -> dict[str, str]:
    day = {"Last-Modified": format_datetime(changed, usegmt=True)} if changed else {}
    return {"ETag": f'"{tag}"', "Cache-Control": "private, no-cache", **day}


def _has(if_none_match: str | None, tag: str) -> bool:
    held = {part.strip().removeprefix("W/") for part in (if_none_match or "").split(",")}
    return tag in held
