"""Webhook endpoints over HTTP, their secrets, and the log of deliveries with its replays."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any
from urllib.parse import urlsplit
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Response

from app import webhooks
from app.api import cursors
from app.api.auth import Caller, Scope, needs
from app.api.context import CurrentSettings, Now, Transaction
from app.api.problems import answers
from app.api.schemas import webhooks as schemas
from app.domain import webhook
from app.errors import Forbidden, Invalid
from app.storage import deliveries
from app.storage import webhooks as stored
from app.storage.deliveries import Seen
from app.storage.tables import WebhookDelivery, WebhookEndpoint

router = APIRouter(prefix="/v1", tags=["webhooks"])


Owner = Annotated[Caller, Depends(needs(Scope.WEBHOOKS_WRITE))]
_READING = answers(401, 403, 404, 422, 503)
_WRITING = answers(400, 401, 403, 404, 409, 413, 422, 503)


@router.post("/webhook-endpoints", status_code=201, responses=answers(400, 401, 403, 409, 413, 422, 503))
def create(
    body: schemas.WebhookEndpointIn, tx: Transaction, caller: Owner, now: Now, settings: CurrentSettings
) -> schemas.WebhookEndpointCreated:
    """Register an endpoint; keep the secret, it is shown only now."""
    if body.every_client and caller.sees is not None:
        raise Forbidden("every_client: this needs the scope requests:read_all or requests:decide")
    endpoint, made = webhooks.register(
        tx,
        webhooks.Wanted(body.url, body.events, body.description),
        schemes=set(body.schemes),
        client_id=caller.client_id,
        every_client=body.every_client,
        now=now,
        settings=settings,
    )
    shared = next((new.shared for new in made if new.shared), None)
    public = next((new.row.public for new in made if new.row.public), None)
    return schemas.WebhookEndpointCreated(secret=shared, public_key=public, **_shown(tx, [endpoint], now)[0])


@router.get("/webhook-endpoints", responses=answers(401, 403, 503))
def index(tx: Transaction, caller: Owner, now: Now) -> schemas.WebhookEndpointsOut:
    """List endpoints."""
    found = _shown(tx, stored.of_client(tx, **_mine(caller)), now)
    return schemas.WebhookEndpointsOut(items=[schemas.WebhookEndpointOut(**endpoint) for endpoint in found])


@router.get("/webhook-endpoints/{endpoint_id}", responses=_READING)
def show(endpoint_id: UUID, tx: Transaction, caller: Owner, now: Now) -> schemas.WebhookEndpointOut:
    """Read one endpoint: what it hears of, how it has been answering, what signs."""
    endpoint = stored.need(tx, endpoint_id, **_mine(caller))
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
    endpoint = stored.need_held(tx, endpoint_id, **_mine(caller))
    webhooks.change(endpoint, _wanted(endpoint, body), settings=settings)
    tx.flush()
    resumed = webhooks.switch_on(tx, endpoint, now=now) if body.active else 0
    if body.active is False:
        webhooks.switch_off(tx, endpoint, now=now)
    return schemas.WebhookEndpointChanged(resumed=resumed, **_shown(tx, [endpoint], now)[0])


@router.delete("/webhook-endpoints/{endpoint_id}", status_code=204, responses=_READING)
def end(endpoint_id: UUID, tx: Transaction, caller: Owner, now: Now) -> None:
    """Send nothing more to this endpoint, for good."""
    stored.end(tx, stored.need_held(tx, endpoint_id, **_mine(caller)), at=now)


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
    endpoint = stored.need_held(tx, endpoint_id, **_mine(caller))
    overlap = timedelta(hours=body.overlap_hours)
    new = webhooks.rotate(tx, endpoint, body.scheme, overlap=overlap, now=now, settings=settings)
    return schemas.SecretCreated(secret=new.shared, **schemas.SecretOut.model_validate(new.row).model_dump())


@router.delete(
    "/webhook-endpoints/{endpoint_id}/secrets/{secret_id}", status_code=204, responses=_READING | answers(409)
)
def end_secret(endpoint_id: UUID, secret_id: UUID, tx: Transaction, caller: Owner, now: Now) -> None:
    """Let one secret sign no more, at once."""
    webhooks.end_secret(tx, stored.need_held(tx, endpoint_id, **_mine(caller)), secret_id, now=now)


@router.post("/webhook-endpoints/{endpoint_id}:ping", status_code=202, responses=_READING | answers(409))
def ping(endpoint_id: UUID, tx: Transaction, caller: Owner, now: Now, response: Response) -> schemas.DeliveryOut:
    """Have a `ping` sent, once, even to a disabled endpoint; how it went is at Location."""
    sent = webhooks.ping(tx, stored.need_held(tx, endpoint_id, **_mine(caller)), now=now)
    response.headers["Location"] = f"{router.prefix}/webhook-deliveries/{sent.id}"
    return schemas.DeliveryOut(**_told(deliveries.need(tx, sent.id, **_mine(caller))))


@router.post("/webhook-endpoints/{endpoint_id}:replay", status_code=202, responses=_WRITING)
def replay(endpoint_id: UUID, body: schemas.ReplayIn, tx: Transaction, caller: Owner, now: Now) -> schemas.ReplayOut:
    """Send up to 1000 messages once more, under the ids they had: what failed, or what was delivered."""
    if body.state is schemas.State.PENDING:
        raise Invalid("state", "pending messages are on their way; ask for failed or delivered ones")
    seen = Seen(**_mine(caller), endpoint_id=endpoint_id, state=body.state, since=body.since, until=body.until)
    count, more = webhooks.replay(tx, seen, after=cursors.place("d", body.cursor) or 0, limit=body.limit, now=now)
    return schemas.ReplayOut(replayed=count, next_cursor=cursors.cursor("d", more) if more else None)


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
    seen = Seen(**_mine(caller), endpoint_id=endpoint_id, request_id=request_id, event=_known(event), state=state)
    page = deliveries.page(tx, seen, before=cursors.place("d", cursor), limit=limit + 1)
    return schemas.DeliveriesOut(
        items=[schemas.DeliveryOut(**_told(delivery)) for delivery in page[:limit]],
        next_cursor=cursors.cursor("d", page[limit - 1].number) if len(page) > limit else None,
    )


@router.get("/webhook-deliveries/{delivery_id}", responses=_READING)
def delivery_log(delivery_id: UUID, tx: Transaction, caller: Owner) -> schemas.DeliveryDetail:
    """Read one message's delivery, with every attempt."""
    delivery = deliveries.need(tx, delivery_id, **_mine(caller))
    attempts = [schemas.AttemptOut.model_validate(attempt) for attempt in deliveries.attempts(tx, delivery_id)]
    return schemas.DeliveryDetail(log=attempts, **_told(delivery))


@router.post("/webhook-deliveries/{delivery_id}:replay", status_code=202, responses=_READING | answers(409))
def replay_one(delivery_id: UUID, tx: Transaction, caller: Owner, now: Now) -> schemas.DeliveryOut:
    """Send one message once more, under the id that it had."""
    return schemas.DeliveryOut(**_told(webhooks.replay_one(tx, delivery_id, **_mine(caller), now=now)))


def _mine(caller: Caller) -> dict[str, Any]:  # Any: what the storage wants to know of an owner
    """Its endpoints; what hears of everybody is there only for who may see everybody."""
    return {"client_id": caller.client_id, "every_client": caller.sees is None}


def _wanted(endpoint: WebhookEndpoint, body: schemas.WebhookEndpointPatch) -> webhooks.Wanted:
    """The endpoint as it is, but for what the body names; null takes events and description back."""
    said = body.model_fields_set
    return webhooks.Wanted(
        url=body.url or endpoint.url,
        events=body.events if "events" in said else endpoint.events,
        description=body.description if "description" in said else endpoint.description,
    )


def _known(event: str | None) -> str | None:
    if event is not None and event not in (*webhook.EVENTS, webhook.PING):
        raise Invalid("event", f"use one of {', '.join(webhook.EVENTS)}, {webhook.PING}")
    return event


def _shown(
    tx: Transaction, endpoints: Sequence[WebhookEndpoint], now: datetime
) -> list[dict[str, Any]]:  # Any: the fields of WebhookEndpointOut
    signing: dict[UUID, list[schemas.SecretOut]] = {endpoint.id: [] for endpoint in endpoints}
    for row in stored.secrets(tx, list(signing), now=now):
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
