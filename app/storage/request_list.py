"""Requests as people look through them: by what filters ask, in three orders, page by page from where a row stood.

A page begins behind the place of the last row seen, so that whatever comes in meanwhile moves nothing. Who a request
is for is never loaded here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, Select, any_, func, literal, or_, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session, defer

from app.domain.lifecycle import REQUEST_ENDED, RequestStatus
from app.errors import NotFound
from app.storage.tables import Client, ErasureRequest

OPEN: Final = frozenset(RequestStatus) - REQUEST_ENDED
SOON: Final = timedelta(days=7)
_PERSON: Final = (
    ErasureRequest.sealed_user_id,
    ErasureRequest.subject_key,
    ErasureRequest.suppression_key,
    ErasureRequest.dedupe_key,
)


class Order(StrEnum):
    """What comes first."""

    NEWEST = "newest"
    OLDEST = "oldest"
    DEADLINE = "deadline"


class Due(StrEnum):
    """Which open requests, by their deadline."""

    OVERDUE = "overdue"
    SOON = "soon"
    """Within a week."""


class Origin(StrEnum):
    """Who made a request."""

    PORTAL = "portal"
    SUPPRESSION = "suppression"
    """The service itself: a new version of a model was trained on somebody erased before."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which requests, in which order; all of them, the newest first, unless it says otherwise."""

    now: datetime
    words: str | None = None
    """The beginning of a reference, or at least eight hex digits that an id begins with."""
    statuses: frozenset[RequestStatus] = frozenset()
    due: Due | None = None
    client_id: UUID | None = None
    model: str | None = None
    """Requests that ask this model to forget, by its name or as one of all."""
    origin: Origin | None = None
    since: datetime | None = None
    before: datetime | None = None
    order: Order = Order.NEWEST

    def page(self, tx: Session, last: ErasureRequest | None, *, limit: int) -> Sequence[ErasureRequest]:
        """Requests behind the last one seen, or from the beginning."""
        return [row.request for row in page(tx, self, after=place(last, self.order) if last else None, limit=limit)]


@dataclass(frozen=True)
class Place:
    """Where a request stands in an order."""

    at: datetime
    sequence: int


@dataclass(frozen=True)
class Row:
    """A request, and the name of the client that made it."""

    request: ErasureRequest
    client: str | None


def place(request: ErasureRequest, order: Order) -> Place:
    """Where a request stands."""
    return Place(request.deadline if order is Order.DEADLINE else request.received_at, request.sequence)


def page(tx: Session, wanted: Wanted, *, after: Place | None, limit: int) -> Sequence[Row]:
    """Requests behind a place."""
    column = _column(wanted.order)
    here = tuple_(column, ErasureRequest.sequence)
    query = _shown().where(*_conditions(wanted)).limit(limit)
    if wanted.order is Order.NEWEST:
        query = query.order_by(column.desc(), ErasureRequest.sequence.desc())
        behind = here < tuple_(after.at, after.sequence) if after else None
    else:
        query = query.order_by(column, ErasureRequest.sequence)
        behind = here > tuple_(after.at, after.sequence) if after else None
    return _rows(tx, query if behind is None else query.where(behind))


def those(tx: Session, request_ids: Sequence[UUID]) -> Sequence[Row]:
    """These requests, in order of arrival; an id that is none is left out."""
    named = ErasureRequest.id == func.any(list(request_ids))
    return _rows(tx, _shown().where(named).order_by(ErasureRequest.sequence))


def of_person(tx: Session, subject_key: UUID, *, limit: int) -> Sequence[Row]:
    """The open requests for one person, in order of arrival; those that ended know nobody any more."""
    theirs = (ErasureRequest.subject_key == subject_key) & ErasureRequest.subject_key.is_not(None)
    return _rows(tx, _shown().where(theirs).order_by(ErasureRequest.sequence).limit(limit))


def has(tx: Session, request_id: UUID) -> bool:
    """Whether there is a request with this id."""
    return tx.scalar(select(ErasureRequest.sequence).where(ErasureRequest.id == request_id)) is not None


def client_name(tx: Session, client_id: UUID) -> str:
    """What a client is called.

    Raises:
        NotFound: There is none.
    """
    found = tx.scalar(select(Client.name).where(Client.id == client_id))
    if found is None:
        raise NotFound("there is no client with this id")
    return found


def _shown() -> Select[ErasureRequest, str | None]:
    # A subquery is computed for the rows of a page only; a join would be for all that are sorted.
    name = select(Client.name).where(Client.id == ErasureRequest.client_id).scalar_subquery()
    return select(ErasureRequest, name).options(*(defer(column, raiseload=True) for column in _PERSON))


def _rows(tx: Session, query: Select[ErasureRequest, str | None]) -> list[Row]:
    return [Row(row[0], row[1]) for row in tx.execute(query)]


def _column(order: Order) -> InstrumentedAttribute[datetime]:
    return ErasureRequest.deadline if order is Order.DEADLINE else ErasureRequest.received_at


def _conditions(wanted: Wanted) -> Iterator[ColumnElement[bool]]:
    """One condition for each filter that is on."""
    asked, models = ErasureRequest, ErasureRequest.models
    if wanted.words:
        yield _begins(wanted.words)
    if wanted.statuses:
        yield _stands(wanted.statuses)
    if wanted.due:
        yield _is_due(wanted.due, wanted.now)
    if wanted.client_id:
        yield asked.client_id == wanted.client_id
    if wanted.model:
        yield models.is_(None) | (literal(wanted.model) == any_(models))
    if wanted.origin:
        yield asked.origin == wanted.origin
    if wanted.since:
        yield asked.received_at >= wanted.since
    if wanted.before:
        yield asked.received_at < wanted.before


def _begins(words: str) -> ColumnElement[bool]:
    """References that begin so, and ids: both are ranges of an index."""
    escaped = words.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
    reference = ErasureRequest.reference.like(f"{escaped}%")
    digits = words.replace("-", "").lower()
    if not 8 <= len(digits) <= 32 or set(digits) - set("0123456789abcdef"):
        return reference
    ids = ErasureRequest.id.between(UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f")))
    return or_(reference, ids)


def _stands(statuses: frozenset[RequestStatus]) -> ColumnElement[bool]:
    """In one of these statuses; that it is open, where that follows, is said in the words of the indexes."""
    still_open = ErasureRequest.closed_at.is_(None)
    if statuses == OPEN:
        return still_open
    named = ErasureRequest.status.in_(sorted(statuses))
    return named & still_open if statuses < OPEN else named


def _is_due(due: Due, now: datetime) -> ColumnElement[bool]:
    still_open, deadline = ErasureRequest.closed_at.is_(None), ErasureRequest.deadline
    if due is Due.OVERDUE:
        return still_open & (deadline < now)
    return still_open & (deadline >= now) & (deadline < now + SOON)
