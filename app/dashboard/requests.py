"""The list of requests: searched, filtered, sorted, taken along as a file; and who may, looks a person up."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import HTMLResponse

from app.api import exports
from app.api.auth import PAGES as BASE
from app.api.context import CurrentContext
from app.dashboard import filters
from app.dashboard.filters import Asked, Choice
from app.dashboard.visits import Exporting, LookingUp, Reading, Visit
from app.domain import identifiers
from app.domain.lifecycle import RequestStatus
from app.errors import Invalid
from app.storage import keys, request_list, suppressions, versions
from app.storage.request_list import Due, Order, Origin
from app.storage.suppressions import EVERY_MODEL

router = APIRouter(prefix=BASE)
ROWS: Final = 50
_MOST_CLIENTS: Final = 500
"""In the list to choose from; others are found by their name in a row."""
_MOST_OF_ONE_PERSON: Final = 100
Filters = Annotated[Asked, Query()]


@router.get("/requests")
def index(visit: Reading, asked: Filters) -> Response:
    """A page of the list; an id leads to its request."""
    choice = filters.read(visit, asked)
    with suppress(ValueError):
        wanted = UUID(asked.q.strip())
        if request_list.has(visit.tx, wanted):
            return visit.go(f"/requests/{wanted}")
    found = request_list.page(visit.tx, choice.wanted, after=choice.after, limit=ROWS + 1)
    more = filters.cursor(found[ROWS - 1].request, choice.wanted.order) if len(found) > ROWS else None
    return visit.page(
        "requests.html",
        rows=found[:ROWS],
        choice=choice,
        chips=list(choice.chips()),
        query=choice.query(**({"cursor": asked.cursor} if asked.cursor else {})),
        first=f"{BASE}/requests?{choice.query()}" if choice.after else None,
        next=f"{BASE}/requests?{choice.query(cursor=more)}" if more else None,
        **_to_choose(visit, choice),
    )


def _to_choose(visit: Visit, choice: Choice) -> dict[str, Any]:  # Any: what a template shows
    """What the form of the filters offers."""
    clients = {str(client.id): client.name for client in keys.choices(visit.tx, limit=_MOST_CLIENTS)}
    if choice.client is not None:
        clients[str(choice.wanted.client_id)] = choice.client
    return {
        "states": (*filters.GROUPS, *RequestStatus),
        "dues": list(Due),
        "orders": list(Order),
        "origins": list(Origin),
        "clients": clients,
        "models": [model.name for model in versions.models(visit.tx)],
    }


@router.get("/requests.csv")
def export(visit: Exporting, asked: Filters, context: CurrentContext) -> Response:
    """The whole list as a file; that somebody took it along is written down, and not what they searched for."""
    choice = filters.read(visit, asked)
    said = {name: [value for key, value in choice.pairs if key == name] for name, _ in choice.pairs if name != "q"}
    exports.take_place()
    visit.note("requests.exported", filters=said, searched=choice.wanted.words is not None)
    return exports.download(context.engine, visit.now, choice.wanted, client_id=visit.by, written=exports.Format.CSV)


@dataclass(frozen=True)
class Listed:
    """What the suppression list knows of a person."""

    days: Mapping[str, date]
    """Since when they must not come back, by model; ``*`` is every model."""
    spared: tuple[str, ...]
    """Models for which a demand was refused."""


async def _typed(request: Request) -> str:
    """The user id of a form; whatever else was sent is no id, and is looked up and written down as such."""
    try:
        form = await request.form()
    except UnicodeError:  # a part's charset is its sender's word, and some of Python's read nothing
        return ""
    typed = form.get("user_id")
    return typed if isinstance(typed, str) else ""


@router.post("/requests/look-up")
def look_up(visit: LookingUp, user_id: Annotated[str, Depends(_typed)]) -> HTMLResponse:
    """Which open requests are for a person, and whether they may come back; that somebody asked is written down."""
    try:
        identifiers.check_user_id(user_id)
    except Invalid as error:
        visit.note("request.looked_up", found=0)
        return visit.page("look_up.html", status=422, problem=str(error), rows=[], listed=None)
    index_key = visit.settings.key("index_key")
    subject = identifiers.subject_key(index_key, user_id)
    rows = request_list.of_person(visit.tx, subject, limit=_MOST_OF_ONE_PERSON)
    listed = suppressions.rows_of(visit.tx, identifiers.suppression_key(index_key, user_id))
    visit.note("request.looked_up", found=len(rows))
    return visit.page("look_up.html", problem=None, rows=rows, listed=_listed(listed))


def _listed(found: Mapping[str, datetime]) -> Listed | None:
    """Rows of the list in words; an exception counts for nothing beside a row of that model's own."""
    days = {model: since.astimezone(UTC).date() for model, since in found.items() if not model.startswith("!")}
    spared = [model[1:] for model in found if model.startswith("!")]
    if not days:
        return None
    return Listed(days, tuple(name for name in spared if name not in days) if EVERY_MODEL in days else ())
