"""Webhooks: every client's endpoints, how each is answering, what it was sent, and what may be done about it.

Where an endpoint is, is shown as its host alone, as in the API: path and query may be the receiver's secret.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlencode, urlsplit
from uuid import UUID

from fastapi import APIRouter, Form, Query
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import BaseModel, Field

from app import webhooks
from app.api import cursors
from app.api.auth import PAGES as BASE
from app.api.schemas.base import Line
from app.dashboard.visits import Hooking, Reading, Visit
from app.domain import webhook
from app.domain.addresses import MAX_URL_CHARACTERS
from app.domain.webhook import Scheme
from app.errors import Conflict, Invalid
from app.storage import deliveries, keys, receivers
from app.storage import webhooks as stored
from app.storage.deliveries import Seen
from app.storage.tables import WebhookDelivery, WebhookEndpoint

router = APIRouter(prefix=BASE)
_PAGE: Final = 50
_MOST_PORTALS: Final = 50
_MOST_CLIENTS: Final = 1000
"""In a list to choose from."""
_SWITCHED_OFF: Final = "switched off at the dashboard"
_STATES: Final = {"": "all", "fine": "answering", "failing": "failing or resting", "off": "switched off"}
_OUTCOMES: Final = {"": "all", "pending": "on their way", "delivered": "delivered", "failed": "failed"}
_EVENTS: Final = {event: event.partition(".")[2].replace("_", " ") for event in webhook.EVENTS}
State = Annotated[Literal["", "fine", "failing", "off"], Query()]
OutcomeWord = Annotated[Literal["", "pending", "delivered", "failed"], Query()]
Cursor = Annotated[str | None, Query(max_length=30)]


class EndpointForm(BaseModel):
    """What somebody types to have a client told."""

    client: UUID | Literal[""] = ""
    url: Annotated[Line, Field(max_length=MAX_URL_CHARACTERS)] = ""
    description: Annotated[Line, Field(max_length=200)] = ""
    events: Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=100)] = []
    """None: outcomes."""
    every_client: bool = False
    schemes: Annotated[list[Scheme], Field(max_length=2)] = []


class RotationForm(BaseModel):
    """How to change a secret."""

    scheme: Scheme = Scheme.V1
    overlap_hours: Annotated[float, Field(ge=0, le=72)] = 24


class ReplayForm(BaseModel):
    """What failed since when is sent once more."""

    since: Annotated[Line, Field(max_length=30)] = ""


@router.get("/webhooks")
def index(visit: Reading, state: State = "", after: UUID | None = None) -> HTMLResponse:
    """Every endpoint, and portals that take no callbacks."""
    tx, now = visit.tx, visit.now
    found = stored.every(tx, state=state or None, at=now, after=after, limit=_PAGE + 1)
    portals = receivers.failing_portals(tx, at=now, limit=_MOST_PORTALS) if after is None else []
    last = found[_PAGE - 1][0].id if len(found) > _PAGE else None
    return visit.page(
        "webhooks.html",
        endpoints=[(endpoint, host_of(endpoint), client) for endpoint, client in found[:_PAGE]],
        portals=portals,
        waiting=deliveries.waiting(tx, [*(row.id for row, _ in found[:_PAGE]), *(row.id for row, _ in portals)]),
        many=deliveries.MANY,
        states=_STATES,
        state=state,
        first=_address("/webhooks", state=state) if after else None,
        next=_address("/webhooks", state=state, after=last) if last else None,
    )


@router.get("/webhooks/new")
def ask(visit: Hooking) -> HTMLResponse:
    """The form for a new endpoint."""
    return _form(visit, EndpointForm(schemes=[Scheme.V1]))


@router.post("/webhooks/new")
def create(visit: Hooking, form: Annotated[EndpointForm, Form()]) -> HTMLResponse:
    """Register an endpoint for a client; the secret is on this page, and nowhere after it."""
    try:
        endpoint, made = _registered(visit, form)
    except (Invalid, Conflict) as error:
        return _form(visit, form, problem=error)
    _note(visit, "webhook.added", endpoint, every_client=endpoint.every_client, events=endpoint.events)
    return _hand_over(visit, endpoint, made)


def _registered(visit: Visit, form: EndpointForm) -> tuple[WebhookEndpoint, list[webhooks.NewSecret]]:
    client_id = _client(visit, form.client)
    if form.every_client and not keys.is_office(visit.tx, client_id):
        raise Invalid(
            "every_client", "this client may not read every client's requests; a key with requests:read_all may"
        )
    if not form.schemes:
        raise Invalid("schemes", "choose at least one way of signing")
    return webhooks.register(
        visit.tx,
        webhooks.Wanted(form.url, form.events or None, form.description or None),
        schemes=set(form.schemes),
        client_id=client_id,
        every_client=form.every_client,
        now=visit.now,
        settings=visit.settings,
    )


def _client(visit: Visit, chosen: UUID | str) -> UUID:
    if chosen not in {client.id for client in keys.choices(visit.tx, limit=_MOST_CLIENTS)}:
        raise Invalid("client", "choose the client whose requests it hears of")
    return UUID(str(chosen))


@router.get("/webhooks/deliveries/{delivery_id}")
def show_delivery(visit: Reading, delivery_id: UUID) -> HTMLResponse:
    """One message with every attempt at it."""
    delivery, endpoint = deliveries.of_endpoint(visit.tx, delivery_id)
    return visit.page(
        "webhooks_delivery.html",
        delivery=delivery,
        state=state_of(delivery),
        body=_readable(delivery.body),
        endpoint=endpoint,
        host=host_of(endpoint),
        attempts=deliveries.attempts(visit.tx, delivery_id),
    )


@router.post("/webhooks/deliveries/{delivery_id}/replay")
def replay_one(visit: Hooking, delivery_id: UUID) -> RedirectResponse:
    """Send one message once more."""
    _, endpoint = deliveries.of_endpoint(visit.tx, delivery_id)
    webhooks.replay_one(visit.tx, delivery_id, client_id=endpoint.client_id, every_client=True, now=visit.now)
    _note(visit, "webhook.replayed", endpoint, delivery=str(delivery_id))
    return visit.go(f"/webhooks/deliveries/{delivery_id}", done="replayed")


@router.get("/webhooks/{endpoint_id}")
def show(visit: Reading, endpoint_id: UUID, state: OutcomeWord = "", cursor: Cursor = None) -> HTMLResponse:
    """One endpoint: how it is answering, what signs, and the log of its deliveries."""
    tx = visit.tx
    endpoint, client = stored.with_client(tx, endpoint_id)
    seen = Seen(endpoint.client_id, endpoint_id=endpoint.id, state=state or None, every_client=True)
    page = deliveries.page(tx, seen, before=cursors.place("d", cursor), limit=_PAGE + 1)
    more = cursors.cursor("d", page[_PAGE - 1].number) if len(page) > _PAGE else None
    here = f"/webhooks/{endpoint.id}"
    return visit.page(
        "webhooks_endpoint.html",
        endpoint=endpoint,
        host=host_of(endpoint),
        client=client,
        events=_EVENTS,
        secrets=stored.secrets(tx, [endpoint.id], now=visit.now),
        schemes=list(Scheme),
        waiting=deliveries.waiting(tx, [endpoint.id])[endpoint.id],
        many=deliveries.MANY,
        since=(endpoint.failing_since or visit.now - timedelta(days=3)).astimezone(visit.settings.zone),
        deliveries=[(delivery, state_of(delivery)) for delivery in page[:_PAGE]],
        outcomes=_OUTCOMES,
        state=state,
        first=_address(here, state=state) if cursor else None,
        next=_address(here, state=state, cursor=more) if more else None,
    )


@router.post("/webhooks/{endpoint_id}/ping")
def ping(visit: Hooking, endpoint_id: UUID) -> RedirectResponse:
    """Have a message sent that is about nothing."""
    endpoint = _held(visit, endpoint_id)
    sent = webhooks.ping(visit.tx, endpoint, now=visit.now)
    _note(visit, "webhook.pinged", endpoint)
    return visit.go(f"/webhooks/deliveries/{sent.id}", done="pinged")


@router.post("/webhooks/{endpoint_id}/enable")
def enable(visit: Hooking, endpoint_id: UUID) -> RedirectResponse:
    """Send again."""
    endpoint = _held(visit, endpoint_id)
    resumed = webhooks.switch_on(visit.tx, endpoint, now=visit.now)
    _note(visit, "webhook.enabled", endpoint, resumed=resumed)
    return visit.go(f"/webhooks/{endpoint_id}", done="hook_on")


@router.post("/webhooks/{endpoint_id}/disable")
def disable(visit: Hooking, endpoint_id: UUID) -> RedirectResponse:
    """Send nothing until somebody switches it on."""
    endpoint = _held(visit, endpoint_id)
    webhooks.switch_off(visit.tx, endpoint, now=visit.now, because=_SWITCHED_OFF)
    _note(visit, "webhook.disabled", endpoint)
    return visit.go(f"/webhooks/{endpoint_id}", done="hook_off")


@router.post("/webhooks/{endpoint_id}/delete")
def end(visit: Hooking, endpoint_id: UUID) -> RedirectResponse:
    """Send nothing more to this endpoint, for good."""
    endpoint = _held(visit, endpoint_id)
    stored.end(visit.tx, endpoint, at=visit.now)
    _note(visit, "webhook.deleted", endpoint)
    return visit.go("/webhooks", done="deleted")


@router.post("/webhooks/{endpoint_id}/rotate")
def rotate(visit: Hooking, endpoint_id: UUID, form: Annotated[RotationForm, Form()]) -> HTMLResponse:
    """Make a new secret; it is on this page, and nowhere after it."""
    endpoint = _held(visit, endpoint_id)
    overlap = timedelta(hours=form.overlap_hours)
    new = webhooks.rotate(visit.tx, endpoint, form.scheme, overlap=overlap, now=visit.now, settings=visit.settings)
    _note(visit, "webhook.secret_rotated", endpoint, scheme=form.scheme, overlap_hours=form.overlap_hours)
    return _hand_over(visit, endpoint, [new])


@router.post("/webhooks/{endpoint_id}/replay")
def replay(visit: Hooking, endpoint_id: UUID, form: Annotated[ReplayForm, Form()]) -> RedirectResponse:
    """Send what failed once more, the oldest first; what was sent is no longer among it when somebody asks again."""
    endpoint = _held(visit, endpoint_id)
    seen = Seen(
        endpoint.client_id, endpoint_id=endpoint.id, state="failed", since=_since(visit, form), every_client=True
    )
    count, more = webhooks.replay(visit.tx, seen, after=0, limit=webhooks.MOST_REPLAYED, now=visit.now)
    _note(visit, "webhook.replayed", endpoint, messages=count)
    return visit.go(
        f"/webhooks/{endpoint_id}", done="replayed_some" if more else "replayed" if count else "replayed_none"
    )


def _since(visit: Visit, form: ReplayForm) -> datetime | None:
    if not form.since:
        return None
    try:
        found = datetime.fromisoformat(form.since)
    except ValueError:
        raise Invalid("since", "write a day and a time, such as 2027-01-31T08:00, or nothing for all") from None
    return found if found.tzinfo else found.replace(tzinfo=visit.settings.zone)


def host_of(endpoint: WebhookEndpoint) -> str:
    """Where an endpoint is, without what may be its receiver's secret."""
    return urlsplit(endpoint.url).netloc.rpartition("@")[2]


def state_of(delivery: WebhookDelivery) -> str:
    """Where a delivery stands, in the words of the API."""
    return "pending" if delivery.next_attempt_at else "delivered" if delivery.delivered_at else "failed"


def _held(visit: Visit, endpoint_id: UUID) -> WebhookEndpoint:
    """An endpoint that there is, whoever owns it, until the transaction ends."""
    endpoint, _ = stored.with_client(visit.tx, endpoint_id)
    return stored.need_held(visit.tx, endpoint_id, client_id=endpoint.client_id, every_client=True)


def _note(visit: Visit, what: str, endpoint: WebhookEndpoint, **detail: Any) -> None:  # Any: JSON
    """Of an endpoint its id and its client's, never where it is: that may be a secret."""
    visit.note(what, endpoint=str(endpoint.id), client=str(endpoint.client_id), **detail)


def _hand_over(visit: Visit, endpoint: WebhookEndpoint, made: list[webhooks.NewSecret]) -> HTMLResponse:
    return visit.once("webhooks_secret.html", endpoint=endpoint, host=host_of(endpoint), made=made)


def _form(visit: Visit, form: EndpointForm, *, problem: Invalid | Conflict | None = None) -> HTMLResponse:
    return visit.form(
        "webhooks_new.html",
        form=form,
        problem=problem,
        clients=keys.choices(visit.tx, limit=_MOST_CLIENTS),
        events=_EVENTS,
        outcomes=webhook.OUTCOMES,
        allowed=visit.settings.webhook_allow,
    )


def _readable(body: bytes) -> str:
    """A message as people read it; one that is none as it is."""
    text = body.decode(errors="replace")
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except ValueError:
        return text


def _address(path: str, **query: object) -> str:
    said = urlencode({name: value for name, value in query.items() if value})
    return f"{BASE}{path}?{said}" if said else f"{BASE}{path}"
