"""Which requests somebody wants to see: an address says it, a form writes it, and each filter can be taken off."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import Annotated, Final, TypeVar
from urllib.parse import urlencode
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import BaseModel, Field

from app.api import cursors
from app.dashboard.rendering import words
from app.dashboard.visits import Visit
from app.domain.identifiers import MODEL_NAME
from app.domain.lifecycle import REQUEST_ENDED, RequestStatus
from app.errors import Invalid, NotFound
from app.storage import request_list, versions
from app.storage.request_list import OPEN, Due, Order, Origin, Place, Wanted
from app.storage.tables import ErasureRequest

GROUPS: Final = {"open": OPEN, "ended": REQUEST_ENDED}
"""Words for several statuses at once."""
_DAY: Final = re.compile(r"2\d{3}-\d\d-\d\d")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_LABELS: Final = {"q": "search", "from": "received from", "to": "received to"}
_Word = Annotated[str, Field(max_length=200)]
Words = TypeVar("Words", bound=StrEnum)


class Asked(BaseModel):
    """The address of a list, as it was typed; an empty word is no filter."""

    q: _Word = ""
    state: Annotated[list[_Word], Field(max_length=30)] = []
    due: _Word = ""
    client: _Word = ""
    model: _Word = ""
    origin: _Word = ""
    since: Annotated[_Word, Field(alias="from")] = ""
    until: Annotated[_Word, Field(alias="to")] = ""
    sort: _Word = ""
    cursor: Annotated[str, Field(max_length=60)] = ""


@dataclass(frozen=True)
class Chip:
    """A filter that is on, and the address of the list without it."""

    name: str
    value: str
    without: str


@dataclass(frozen=True)
class Choice:
    """What is asked for: as a query, and as words of an address."""

    wanted: Wanted
    after: Place | None
    pairs: tuple[tuple[str, str], ...]
    client: str | None
    """The name of the client that is asked for."""

    def query(self, **more: str) -> str:
        """The filters as part of an address, with more words behind them; without a cursor of their own."""
        return urlencode([*self.pairs, *more.items()])

    def chips(self) -> Iterator[Chip]:
        """The filters that are on."""
        for pair in self.pairs:
            name, value = pair
            if name != "sort":
                without = urlencode([other for other in self.pairs if other != pair])
                shown = (self.client or "") if name == "client" else value
                yield Chip(_LABELS.get(name, name), words(shown) if name in {"state", "due"} else shown, without)

    def has(self, name: str, value: str) -> bool:
        """Whether a filter says so, for the form that shows it."""
        return (name, value) in self.pairs

    def value(self, name: str) -> str:
        """What a filter that is said once says."""
        return dict(self.pairs).get(name, "")


def read(visit: Visit, asked: Asked) -> Choice:
    """Understand an address.

    Raises:
        Invalid: A word is unknown; says of which filter.
    """
    zone, client = visit.settings.zone, _client(visit, asked.client)
    wanted = Wanted(
        now=visit.now,
        words=_search(asked.q),
        statuses=_statuses(asked.state),
        due=_one_of(Due, "due", asked.due),
        client_id=client[0] if client else None,
        model=_model(visit, asked.model),
        origin=_one_of(Origin, "origin", asked.origin),
        since=_day("from", asked.since, zone),
        before=_after(_day("to", asked.until, zone)),
        order=_one_of(Order, "sort", asked.sort) or Order.NEWEST,
    )
    if wanted.since and wanted.before and wanted.since >= wanted.before:
        raise Invalid("to", "the last day lies before the first")
    return Choice(wanted, _place(asked.cursor), _pairs(asked), client[1] if client else None)


def cursor(request: ErasureRequest, order: Order) -> str:
    """Where the next page begins, behind this request."""
    stands = request_list.place(request, order)
    return cursors.cursor("t", (stands.at - _EPOCH) // timedelta(microseconds=1)) + cursors.cursor("s", stands.sequence)


def _place(sent: str) -> Place | None:
    if not sent:
        return None
    at, _, sequence = sent.partition("s")
    micros, number = cursors.place("t", at), cursors.place("s", f"s{sequence}")
    assert micros is not None  # as it were if nothing was sent
    assert number is not None
    try:
        return Place(_EPOCH + timedelta(microseconds=micros), number)
    except OverflowError:
        raise Invalid("cursor", "use a link of the list, or begin it anew") from None


def _pairs(asked: Asked) -> tuple[tuple[str, str], ...]:
    """The words that say something, each once."""
    said = asked.model_dump(by_alias=True, exclude={"cursor", "state"})
    pairs = [("state", word) for word in asked.state] + [(name, str(value).strip()) for name, value in said.items()]
    return tuple(dict.fromkeys(pair for pair in pairs if pair[1]))


def _search(typed: str) -> str | None:
    if _CONTROL.search(typed):
        raise Invalid("q", "search for a request's id or reference; control characters are in neither")
    return typed.strip() or None


def _statuses(typed: Sequence[str]) -> frozenset[RequestStatus]:
    found: set[RequestStatus] = set()
    for word in filter(None, typed):
        if word not in {*GROUPS, *RequestStatus}:
            raise Invalid("state", f"there is no such state; use {', '.join((*GROUPS, *RequestStatus))}")
        found |= GROUPS.get(word) or {RequestStatus(word)}
    return frozenset(found)


def _one_of(kind: type[Words], field: str, typed: str) -> Words | None:
    if typed and typed not in set(kind):
        raise Invalid(field, f"there is no such word; use {', '.join(kind)}")
    return kind(typed) if typed else None


def _client(visit: Visit, typed: str) -> tuple[UUID, str] | None:
    if not typed:
        return None
    try:
        client_id = UUID(typed)
        return client_id, request_list.client_name(visit.tx, client_id)
    except (ValueError, NotFound):
        raise Invalid("client", "there is no client with this id; choose one of the list") from None


def _model(visit: Visit, typed: str) -> str | None:
    if typed and (not re.fullmatch(MODEL_NAME, typed) or versions.unknown(visit.tx, [typed])):
        raise Invalid("model", "there is no model of this name; choose one of the list")
    return typed or None


def _day(field: str, typed: str, zone: ZoneInfo) -> datetime | None:
    """The beginning of a day where the controller is."""
    if not typed:
        return None
    try:
        day = date.fromisoformat(typed if _DAY.fullmatch(typed) else "")
    except ValueError:
        raise Invalid(field, "write a day as 2026-03-31") from None
    return datetime.combine(day, time(), zone)


def _after(day: datetime | None) -> datetime | None:
    """The beginning of the next day: a day of a clock change has 23 or 25 hours, so days are counted, not hours."""
    return day + timedelta(days=1) if day else None
