"""Portals that call by webhook: Ketch Forwarder, Transcend, Fides; each is answered at once and told the end later."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from http import HTTPStatus
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from app import portals
from app.api.auth import Writer
from app.api.context import Body, CurrentSettings, Now, Transaction
from app.api.problems import FROM_THE_DOOR, answers
from app.api.schemas import portals as schemas
from app.domain.portals import fides, ketch, reading, transcend
from app.domain.portals.base import Portal, Sent
from app.settings import Settings

_KETCH, _TRANSCEND, _FIDES = ketch.PORTALS[0], transcend.PORTALS[0], fides.PORTALS[0]
_IN_KETCHS_SHAPE: dict[int | str, dict[str, Any]] = {  # Any: OpenAPI
    code: {"description": HTTPStatus(code).phrase, "model": schemas.KetchErrorOut}
    for code in sorted({401, 403, 503, *FROM_THE_DOOR})
}
_A_JSON_OBJECT = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
}
_KNOWN: dict[int | str, dict[str, Any]] = {  # Any: OpenAPI
    200: {"description": "Accepted", "content": {"application/json": {"schema": {"type": "object"}}}},
    204: {"description": "No model knows the person; the request is kept all the same"},
}
router = APIRouter(prefix="/portals", tags=["portals"])


@router.post("/ketch", responses=_IN_KETCHS_SHAPE | {200: {"model": schemas.KetchOut}}, openapi_extra=_A_JSON_OBJECT)
def from_ketch(
    request: Request, body: Body, tx: Transaction, client: Writer, now: Now, settings: CurrentSettings
) -> Response:
    """Accept a DeleteRequest of Ketch Forwarder; events follow to its callbacks until the end."""
    sent = _sent(_KETCH, request, body, settings)
    return _accepted(tx, _KETCH, sent, client_id=client.client_id, now=now, settings=settings)


@router.post("/transcend", responses=answers(400, 401, 404, 413, 422, 503) | _KNOWN, openapi_extra=_A_JSON_OBJECT)
def from_transcend(request: Request, body: Body, tx: Transaction, now: Now, settings: CurrentSettings) -> Response:
    """Accept a job of Transcend's server webhook, proven by its x-sombra-token; the job is resolved at the end."""
    sent = portals.transcend_job(_sent(_TRANSCEND, request, body, settings), settings=settings, now=now)
    asked, client_id = _TRANSCEND.read(sent), portals.transcend_client(tx, settings)
    known = portals.is_known(tx, asked.user_id, settings=settings)
    if not known:  # to Transcend the job is done with this answer
        asked = replace(asked, callbacks=())
    portals.accept(tx, _TRANSCEND, asked, demand=sent.document, client_id=client_id, now=now, settings=settings)
    return JSONResponse({}) if known else Response(status_code=HTTPStatus.NO_CONTENT)


@router.post(
    "/fides",
    responses=answers(400, 401, 403, 413, 422, 503) | {200: {"model": schemas.FidesOut}},
    openapi_extra=_A_JSON_OBJECT,
)
def from_fides(
    request: Request, body: Body, tx: Transaction, client: Writer, now: Now, settings: CurrentSettings
) -> Response:
    """Accept a call of Fides' policy webhook; Fides waits if it can, and is resumed at the end."""
    sent = _sent(_FIDES, request, body, settings)
    if not fides.is_ours(sent.document):
        return JSONResponse({"halt": False})
    return _accepted(tx, _FIDES, sent, client_id=client.client_id, now=now, settings=settings)


def _accepted(
    tx: Session, portal: Portal, sent: Sent, *, client_id: UUID, now: datetime, settings: Settings
) -> Response:
    asked = portal.read(sent)
    done = portals.accept(tx, portal, asked, demand=sent.document, client_id=client_id, now=now, settings=settings)
    return JSONResponse(portal.answer(sent, done.story))


def _sent(portal: Portal, request: Request, body: bytes, settings: Settings) -> Sent:
    headers = {name.lower(): value for name, value in request.headers.items()}
    return Sent(document=reading.document(body), headers=headers, knobs=portals.knobs(portal, settings))
