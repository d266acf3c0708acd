"""Erasure requests by the thousand: one call, one transaction, an outcome for each; a bad one stops no other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID, uuid4

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException

from app import intake, keyring
from app.api import auth, problems
from app.api.auth import Declared, Scope
from app.api.bare import Bare, IdempotencyKey, idempotency_key, is_json
from app.api.context import Context
from app.api.intake import demand_of
from app.api.problems import answers
from app.api.schemas import requests as schemas
from app.api.schemas.base import FieldProblem
from app.errors import Conflict, ExpungeError, Invalid
from app.intake import Batch, Demand, Filed, Filing
from app.settings import Settings
from app.storage import arrivals, keys
from app.storage.keys import Claim
from app.storage.sessions import transaction

router = APIRouter(prefix="/v1/erasure-requests", tags=["erasure requests"], route_class=Bare)
_LINES: Final = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})
_FOUR_EYES = 2
_ITEM = {"$ref": "#/components/schemas/ErasureRequestIn"}
_NDJSON = {"requestBody": {"content": {"application/x-ndjson": {"schema": _ITEM}}}}
Read = Demand | list[FieldProblem]
"""An item: what it asks for, or what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Call:
    """A bulk call as it came in."""

    claim: Claim
    content: bytes
    content_type: str | None
    idempotency_key: str | None


def _takes(_body: schemas.BatchIn, _caller: Declared, _key: IdempotencyKey = None) -> None:
    """For the OpenAPI document."""


@router.post(
    ":batch",
    response_model=schemas.BatchOut,
    dependencies=[Depends(_takes)],
    openapi_extra=_NDJSON,
    responses=answers(400, 401, 403, 409, 413, 415, 422, 503),
)
async def create_many(request: Request) -> Response:
    """Accept up to 10 000 demands, as JSON or as lines of JSON; each has its own outcome, in the order they came in."""
    headers = request.headers
    call = Call(auth.claimed(request), await request.body(), headers.get("content-type"), idempotency_key(request))
    told = await run_in_threadpool(file_many, request.app.state.context, call)
    return Response(told, media_type="application/json")


def file_many(context: Context, call: Call) -> str:
    """Accept all that can be, in one transaction; returns what the caller is told, as JSON."""
    with transaction(context.engine) as tx:
        [holder] = keys.callers(tx, [call.claim])
        client_id = auth.admit(holder, Scope.REQUESTS_WRITE).client_id
        if call.idempotency_key is None:
            return _accepted(tx, call, client_id, context.settings)
        return _once(tx, call, client_id, context.settings)


def _once(tx: Session, call: Call, client_id: UUID, settings: Settings) -> str:
    """The same Idempotency-Key and the same bytes are told the same."""
    key, index_key = (call.idempotency_key or "").encode(), settings.key("index_key")
    place = (client_id, keyring.fingerprint(index_key, b"idempotency", client_id.bytes, key))
    body_digest = keyring.fingerprint(index_key, b"bodies", key, call.content)
    earlier = arrivals.answers(tx, [place]).get(place)
    if earlier is None:
        told = _accepted(tx, call, client_id, settings)
        if not arrivals.bind_batch(tx, place, body_digest=body_digest, told=told):
            raise Conflict("a call with this Idempotency-Key has just been answered; send it again")
        return told
    if earlier.body_digest != body_digest or earlier.told is None:
        raise Invalid("Idempotency-Key", "this key was used for another body; use a new key for new demands")
    return json.dumps(earlier.told)


def _accepted(tx: Session, call: Call, client_id: UUID, settings: Settings) -> str:
    items = [_read(item) for item in _items(call.content, call.content_type)]
    batch = Batch(uuid4(), _FOUR_EYES if len(items) > settings.four_eyes_above else 0)
    filings = [Filing(item, client_id) for item in items if isinstance(item, Demand)]
    outcomes = iter(intake.accept_many(tx, filings, now=datetime.now(UTC), settings=settings, batch=batch))
    told = [_told(next(outcomes)) if isinstance(item, Demand) else _invalid(item) for item in items]
    counts = {outcome: sum(one.outcome == outcome for one in told) for outcome in schemas.Outcome}
    return schemas.BatchOut(batch_id=batch.id or uuid4(), counts=counts, items=told).model_dump_json()


def _items(content: bytes, content_type: str | None) -> Sequence[object]:
    """The items as JSON values; of lines, also what is none.

    Raises:
        Invalid: It has no items, or too many.
        HTTPException: It says that it is something else.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind in _LINES:
        items: object = [_line(line) for line in content.split(b"\n") if line.strip()]
    elif is_json(content_type):
        document = _document(content)
        if not isinstance(document, dict) or document.keys() != {"items"}:
            raise Invalid("body", 'send {"items": […]}, or one object a line as application/x-ndjson')
        items = document["items"]
    else:
        raise HTTPException(415)
    if not isinstance(items, list) or not 1 <= len(items) <= schemas.MOST_ITEMS:
        raise Invalid("items", f"send 1 to {schemas.MOST_ITEMS} items")
    return items


def _document(content: bytes) -> object:
    try:
        return problems.read_once(content)
    except Invalid:
        raise RequestValidationError([{"type": "json_invalid", "loc": ("body",)}]) from None


def _line(line: bytes) -> object:
    try:
        return problems.read_once(line)
    except ExpungeError as error:
        return error


def _read(item: object) -> Read:
    if isinstance(item, ExpungeError):
        return [FieldProblem(field="item", problem=str(item))]
    try:
        return demand_of(schemas.ErasureRequestIn.model_validate(item))
    except ValidationError as error:
        return problems.fields_of({**one, "loc": ("item", *one["loc"])} for one in error.errors(include_input=False))


def _told(outcome: Filed | ExpungeError) -> schemas.ItemOut:
    if isinstance(outcome, Filed):
        said = schemas.Outcome.ACCEPTED if outcome.created else schemas.Outcome.KNOWN
        return schemas.ItemOut(outcome=said, id=outcome.request.id)
    if isinstance(outcome, Invalid):
        return _invalid([FieldProblem(field=outcome.field, problem=str(outcome))])
    return schemas.ItemOut(outcome=schemas.Outcome.REFUSED, errors=[FieldProblem(field="item", problem=str(outcome))])


def _invalid(errors: Iterable[FieldProblem]) -> schemas.ItemOut:
    return schemas.ItemOut(outcome=schemas.Outcome.INVALID, errors=list(errors))
