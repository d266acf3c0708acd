"""Erasure requests by the thousand: one call, one transaction, an outcome for each; a bad one stops no other."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from io import BytesIO
from itertools import islice
from typing import Final, TypeVar
from uuid import UUID, uuid4

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException

from app import intake
from app.api import auth, problems
from app.api.auth import Declared, Scope
from app.api.bare import Bare, IdempotencyKey, idempotency_key, is_json
from app.api.context import Context
from app.api.intake import demand_of
from app.api.problems import answers
from app.api.schemas import requests as schemas
from app.api.schemas.base import FieldProblem
from app.errors import ExpungeError, Invalid
from app.idempotency import once
from app.intake import Batch, Demand, Filed, Filing
from app.settings import Settings
from app.storage import intake_counts, keys
from app.storage.keys import Claim
from app.storage.sessions import transaction

router = APIRouter(prefix="/v1/erasure-requests", tags=["erasure requests"], route_class=Bare)
_LINES: Final = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})
_FOUR_EYES = 2
_FOUR_EYES_OVER: Final = timedelta(hours=24)
_MOST_MISTAKES: Final = 10
"""That are told of one item."""
_ITEM = {"$ref": "#/components/schemas/ErasureRequestIn"}
_NDJSON = {"requestBody": {"content": {"application/x-ndjson": {"schema": _ITEM}}}}
Read = Demand | list[FieldProblem]
"""An item: what it asks for, or what is wrong with it."""
Item = TypeVar("Item")


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
    """Accept all that can be, in one transaction; returns what the caller is told, as JSON.

    Reading takes seconds: nobody's connection waits for it, and a stranger's body is not read at all.
    """
    auth.look_up(context, call.claim, Scope.REQUESTS_WRITE)
    items = _items(call.content, call.content_type)
    with transaction(context.engine) as tx:
        [holder] = keys.callers(tx, [call.claim])
        client_id = auth.admit(holder, Scope.REQUESTS_WRITE).client_id
        # one bulk call of a client after the other: together, too, they keep its day and need people
        intake_counts.hold(tx, [client_id])
        answer = partial(_accepted, tx, items, client_id=client_id, settings=context.settings)
        return once(tx, call.idempotency_key, call.content, answer, client_id=client_id, settings=context.settings)


def _accepted(tx: Session, items: Sequence[Read], *, client_id: UUID, settings: Settings) -> str:
    now = datetime.now(UTC)
    batch = Batch(uuid4(), _people_needed(tx, len(items), client_id, now=now, settings=settings))
    filings = [Filing(item, client_id) for item in items if isinstance(item, Demand)]
    outcomes = iter(intake.accept_many(tx, filings, now=now, settings=settings, batch=batch))
    told = [_told(next(outcomes)) if isinstance(item, Demand) else _invalid(item) for item in items]
    counts = {outcome: sum(one.outcome == outcome for one in told) for outcome in schemas.Outcome}
    return schemas.BatchOut(batch_id=batch.id or uuid4(), counts=counts, items=told).model_dump_json()


def _people_needed(tx: Session, asked: int, client_id: UUID, *, now: datetime, settings: Settings) -> int:
    """How many people must agree, by what the client asked for in bulk of late: many small calls are a large one."""
    free = settings.four_eyes_above - asked
    return _FOUR_EYES if intake_counts.in_bulk(tx, client_id, since=now - _FOUR_EYES_OVER, beyond=free) > free else 0


def _items(content: bytes, content_type: str | None) -> list[Read]:
    """What is asked for, item by item; what reads like no item keeps its place.

    Raises:
        Invalid: There are no items, or too many.
        HTTPException: It says that it is something else.
    """
    kind, content = (content_type or "").partition(";")[0].strip().lower(), content.removeprefix(BOM_UTF8)
    if kind in _LINES:
        return [_line(line) for line in _counted(filter(bytes.strip, BytesIO(content)))]
    if is_json(content_type):
        return [_read(item) for item in _counted(_listed(_document(content)))]
    raise HTTPException(415)


def _counted(items: Iterable[Item]) -> list[Item]:
    """The items, if they are as many as a call may have; counted before anything is made of them."""
    found = list(islice(items, schemas.MOST_ITEMS + 1))
    if not 1 <= len(found) <= schemas.MOST_ITEMS:
        raise Invalid("items", f"send 1 to {schemas.MOST_ITEMS} items")
    return found


def _listed(document: object) -> list[object]:
    if not isinstance(document, dict) or document.keys() != {"items"}:
        raise Invalid("body", 'send {"items": […]}, or one object a line as application/x-ndjson')
    items = document["items"]
    return items if isinstance(items, list) else []


def _document(content: bytes) -> object:
    try:
        return problems.read_once(content)
    except Invalid:
        if _has_long_number(content):
            raise Invalid("items", "a number is too long to be read; ids are strings, in quotes") from None
        raise RequestValidationError([{"type": "json_invalid", "loc": ("body",)}]) from None


def _has_long_number(content: bytes) -> bool:
    """Whether it is JSON as far as a number that Python refuses to read."""
    try:
        json.loads(content)
    except ValueError as error:
        return not isinstance(error, json.JSONDecodeError | UnicodeError)
    except RecursionError:
        return False
    return False


def _line(line: bytes) -> Read:
    try:
        return _read(problems.read_once(line))
    except ExpungeError as error:
        return [FieldProblem(field="item", problem=str(error))]


def _read(item: object) -> Read:
    try:
        return demand_of(schemas.ErasureRequestIn.model_validate(item))
    except ValidationError as error:
        if error.error_count() > _MOST_MISTAKES:
            return [FieldProblem(field="item", problem=f"more than {_MOST_MISTAKES} things are wrong with this item")]
        found = error.errors(include_url=False, include_input=False)
        return problems.fields_of({**one, "loc": ("item", *one["loc"])} for one in found)


def _told(outcome: Filed | ExpungeError) -> schemas.ItemOut:
    if isinstance(outcome, Filed):
        said = schemas.Outcome.ACCEPTED if outcome.created else schemas.Outcome.KNOWN
        return schemas.ItemOut(outcome=said, id=outcome.request.id)
    if isinstance(outcome, Invalid):
        return _invalid([FieldProblem(field=outcome.field, problem=str(outcome))])
    return schemas.ItemOut(outcome=schemas.Outcome.REFUSED, errors=[FieldProblem(field="item", problem=str(outcome))])


def _invalid(errors: Iterable[FieldProblem]) -> schemas.ItemOut:
    return schemas.ItemOut(outcome=schemas.Outcome.INVALID, errors=list(errors))
