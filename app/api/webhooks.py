"""Webhook endpoints over HTTP, their secrets, and the log of deliveries with its replays."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any
from urllib.parse import urlsplit
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Response

from app import callbacks
from app.api.auth import Caller, Scope, needs
from app.api.context import CurrentSettings, Now, Transaction
from app.api.problems import answers
from app.api.schemas import webhooks as schemas
from app.domain import webhook
from app.errors import Forbidden, Invalid
from app.storage import deliveries, webhooks
from app.storage.deliveries import Seen
from app.storage.tables import WebhookDelivery, WebhookEndpoint

router = APIRouter(prefix="/v1", tags=["webhooks"])


def _owner(tx: Transaction, caller: Annotated[Caller, Depends(needs(Scope.WEBHOOKS_WRITE))]) -> Caller:
    """Whose endpoints these are; what hears of everybody is led elsewhere only by who may see everybody."""
    if caller.sees is not None and webhooks.hears_of_everybody(tx, caller.client_id):
        raise Forbidden("this client's endpoints hear of every client's requests: this needs requests:read_all, too")
    return caller


Owner = Annotated[Caller, Depends(_owner)]
_READING = answers(401, 403, 404, 422, 503)
_WRITING = answers(400, 401, 403, 404, 409, 413, 422, 503)


@router.post("/webhook-endpoints", status_code=201, responses=answers(400, 401, 403, 409, 413, 422, 503))
def create(
    body: schemas.WebhookEndpointIn, tx: Transaction, caller: Owner, now: Now, settings: CurrentSettings
) -> schemas.WebhookEndpointCreated:
    """Register an endpoint; keep the secret, it is shown only now."""
    endpoint, made = callbacks.register(
        tx,
        callbacks.Wanted(body.url, body.events, body.description),
        schemes=set(body.schemes),
        client_id=caller.client_id,
        every_client=caller.sees is None,
        now=now,
        settings=settings,
    )
    shared = next((new.shared for new in made if new.shared), None)
    public = next((new.row.public for new in made if new.row.public), None)
    return schemas.WebhookEndpointCreated(secret=shared, public_key=public, **_shown(tx, [endpoint], now)[0])


@router.get("/webhook-endpoints", responses=answers(401, 403, 503))
def index(tx: Transaction, caller: Owner, now: Now) -> schemas.WebhookEndpointsOut:
    """List endpoints."""
    found = _shown(tx, webhooks.of_client(tx, caller.client_id), now)
    return schemas.WebhookEndpointsOut(items=[schemas.WebhookEndpointOut(**endpoint) for endpoint in found])


@router.get("/webhook-endpoints/{endpoint_id}", responses=_READING)
def show(endpoint_id: UUID, tx: Transaction, caller: Owner, now: Now) -> schemas.WebhookEndpointOut:
    """Read one endpoint: what it hears of, how it has been answering, what signs."""
    endpoint = webhooks.need(tx, endpoint_id, client_id=caller.client_id)
    return schemas.WebhookEndpointOut(**_shown(tx, [endpoint], now)[0])


@router.patch("/webhook-endpoints/{endpoint_id}", responses=_WRITING)
def change(
    endpoint_id: UUID,
    body: schemas.WebhookEndpointPatch,
    tx: Transaction,
    caller: Owner,
    now: Now,
    settings: CurrentSettings,
) -> schemas.WebhookEndpointChanged:
    """Change an endpoint, or switch it off and on."""
    endpoint = webhooks.need(tx, endpoint_id, client_id=caller.client_id)
    callbacks.change(endpoint, _wanted(endpoint, body), settings=settings)
    tx.flush()
    resumed = callbacks.switch_on(tx, endpoint, now=now) if body.active else 0
    if body.active is False:
        callbacks.switch_off(tx, endpoint, now=now)
    return schemas.WebhookEndpointChanged(resumed=resumed, **_shown(tx, [endpoint], now)[0])


@router.delete("/webhook-endpoints/{endpoint_id}", status_code=204, responses=_READING)
def end(endpoint_id: UUID, tx: Transaction, caller: Owner, now: Now) -> None:
    """Send nothing more to this endpoint, for good."""
    webhooks.end(tx, webhooks.need(tx, endpoint_id, client_id=caller.client_id), at=now)


@router.post("/webhook-endpoints/{endpoint_id}/secrets:rotate", status_code=201, responses=_WRITING)
def rotate(
    endpoint_id: UUID,
    body: schemas.RotationIn,
    tx: Transaction,
    caller: Owner,
    now: Now,
    settings: CurrentSettings,
) -> schemas.SecretCreated:
    """Make a new secret, or the first of a scheme; until the overlap ends, the old one signs, too."""
    endpoint = webhooks.need(tx, endpoint_id, client_id=caller.client_id)
    overlap = timedelta(hours=body.overlap_hours)
    new = callbacks.rotate(tx, endpoint, body.scheme, overlap=overlap, now=now, settings=settings)
    return schemas.SecretCreated(secret=new.shared, **schemas.SecretOut.model_validate(new.row).model_dump())


@router.delete(
    "/webhook-endpoints/{endpoint_id}/secrets/{secret_id}", status_code=204, responses=_READING | answers(409)
)
def end_secret(endpoint_id: UUID, secret_id: UUID, tx: Transaction, caller: Owner, now: Now) -> None:
    """Let one secret sign no more, at once."""
    callbacks.end_secret(tx, webhooks.need(tx, endpoint_id, client_id=caller.client_id), secret_id, now=now)


@router.post("/webhook-endpoints/{endpoint_id}:ping", status_code=202, responses=_READING | answers(409))
def ping(endpoint_id: UUID, tx: Transaction, caller: Owner, now: Now, response: Response) -> schemas.DeliveryOut:
    """Have a `ping` sent, once, even to a disabled endpoint; how it went is at Location."""
    sent = callbacks.ping(tx, webhooks.need(tx, endpoint_id, client_id=caller.client_id), now=now)
    response.headers["Location"] = f"{router.prefix}/webhook-deliveries/{sent.id}"
    return schemas.DeliveryOut(**_told(deliveries.need(tx, sent.id, client_id=caller.client_id)))


@router.post("/webhook-endpoints/{endpoint_id}:replay", status_code=202, responses=_WRITING)
def replay(endpoint_id: UUID, body: schemas.ReplayIn, tx: Transaction, caller: Owner, now: Now) -> schemas.ReplayOut:
    """Send up to 1000 messages once more, under the ids they had: what failed, or what was delivered."""
    if body.state is schemas.State.PENDING:
        raise Invalid("state", "pending messages are on their way; ask for failed or delivered ones")
    seen = Seen(caller.client_id, endpoint_id, state=body.state, since=body.since, until=body.until)
    count, more = callbacks.replay(tx, seen, after=_place(body.cursor) or 0, limit=body.limit, now=now)
    return schemas.ReplayOut(replayed=count, next_cursor=f"d{more}" if more else None)


@router.get("/webhook-deliveries", responses=answers(401, 403, 422, 503))
def log(
    tx: Transaction,
    caller: Owner,
    endpoint_id: UUID | None = None,
    request_id: UUID | None = None,
    event: Annotated[str | None, Query(max_length=100)] = None,
    state: schemas.State | None = None,
    cursor: Annotated[str | None, Query(max_length=30)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> schemas.DeliveriesOut:
    """Read the delivery log, newest first."""
    seen = Seen(caller.client_id, endpoint_id, request_id, _known(event), state)
    page = deliveries.page(tx, seen, before=_place(cursor), limit=limit + 1)
    return schemas.DeliveriesOut(
        items=[schemas.DeliveryOut(**_told(delivery)) for delivery in page[:limit]],
        next_cursor=f"d{page[limit - 1].number}" if len(page) > limit else None,
    )


@router.get("/webhook-deliveries/{delivery_id}", responses=_READING)
def delivery_log(delivery_id: UUID, tx: Transaction, caller: Owner) -> schemas.DeliveryDetail:
    """Read one message's delivery, with every attempt."""
    delivery = deliveries.need(tx, delivery_id, client_id=caller.client_id)
    attempts = [schemas.AttemptOut.model_validate(attempt) for attempt in deliveries.attempts(tx, delivery_id)]
    return schemas.DeliveryDetail(log=attempts, **_told(delivery))


@router.post("/webhook-deliveries/{delivery_id}:replay", status_code=202, responses=_READING | answers(409))
def replay_one(delivery_id: UUID, tx: Transaction, caller: Owner, now: Now) -> schemas.DeliveryOut:
    """Send one message once more, under the id that it had."""
    return schemas.DeliveryOut(**_told(callbacks.replay_one(tx, delivery_id, client_id=caller.client_id, now=now)))


def _wanted(endpoint: WebhookEndpoint, body: schemas.WebhookEndpointPatch) -> callbacks.Wanted:
    """The endpoint as it is, but for what the body names; null takes events and description back."""
    said = body.model_fields_set
    return callbacks.Wanted(
        url=body.url or endpoint.url,
        events=body.events if "events" in said else endpoint.events,
        description=body.description if "description" in said else endpoint.description,
    )


def _place(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not (cursor[:1] == "d" and cursor[1:].isascii() and cursor[1:].isdigit() and len(cursor) < 20):
        raise Invalid("cursor", "use the next_cursor of an earlier page, or none to begin")
    return int(cursor[1:])


def _known(event: str | None) -> str | None:
    if event is not None and event not in (*webhook.EVENTS, webhook.PING):
        raise Invalid("event", f"use one of {', '.join(webhook.EVENTS)}, {webhook.PING}")
    return event


def _shown(
    tx: Transaction, endpoints: Sequence[WebhookEndpoint], now: datetime
) -> list[dict[str, Any]]:  # Any: the fields of WebhookEndpointOut
    signing: dict[UUID, list[schemas.SecretOut]] = {endpoint.id: [] for endpoint in endpoints}
    for row in webhooks.secrets(tx, list(signing), now=now):
        signing[row.endpoint_id].append(schemas.SecretOut.model_validate(row))
    copied = set(schemas.WebhookEndpointOut.model_fields) - {"host", "secrets"}
    return [
        {name: getattr(endpoint, name) for name in copied}
        | {"host": urlsplit(endpoint.url).hostname or "", "secrets": signing[endpoint.id]}
        for endpoint in endpoints
    ]


def _told(delivery: WebhookDelivery) -> dict[str, Any]:  # Any: the fields of DeliveryOut
    waits, done = delivery.next_attempt_at is not None, delivery.delivered_at is not None
    state = schemas.State.PENDING if waits else schemas.State.DELIVERED if done else schemas.State.FAILED
    copied = set(schemas.DeliveryOut.model_fields) - {"state"}
    return {name: getattr(delivery, name) for name in copied} | {"state": state}
