"""Webhook endpoints over HTTP, and the log of deliveries."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlsplit
from uuid import UUID

from fastapi import APIRouter, Depends

from app import callbacks
from app.api.auth import Caller, Scope, needs
from app.api.context import CurrentSettings, Transaction
from app.api.problems import answers
from app.api.schemas import webhooks as schemas
from app.storage import webhooks
from app.storage.tables import WebhookEndpoint

router = APIRouter(prefix="/v1", tags=["webhooks"])
Owner = Annotated[Caller, Depends(needs(Scope.WEBHOOKS_WRITE))]


@router.post("/webhook-endpoints", status_code=201, responses=answers(400, 401, 403, 413, 422, 503))
def create(
    body: schemas.WebhookEndpointIn, tx: Transaction, caller: Owner, settings: CurrentSettings
) -> schemas.WebhookEndpointCreated:
    """Register an endpoint; keep the secret, it is shown only now."""
    endpoint, secret = callbacks.register(
        tx, body.url, client_id=caller.client_id, every_client=caller.sees is None, settings=settings
    )
    return schemas.WebhookEndpointCreated(secret=secret, **_shown(endpoint))


@router.get("/webhook-endpoints", responses=answers(401, 403, 503))
def index(tx: Transaction, caller: Owner) -> schemas.WebhookEndpointsOut:
    """List endpoints."""
    found = [
        schemas.WebhookEndpointOut(**_shown(endpoint))
        for endpoint in webhooks.endpoints(tx, client_id=caller.client_id)
    ]
    return schemas.WebhookEndpointsOut(items=found)


@router.delete("/webhook-endpoints/{endpoint_id}", status_code=204, responses=answers(401, 403, 404, 422, 503))
def end(endpoint_id: UUID, tx: Transaction, caller: Owner) -> None:
    """Send nothing more to this endpoint."""
    callbacks.end(tx, endpoint_id, client_id=caller.client_id)


@router.get("/webhook-deliveries", responses=answers(401, 403, 422, 503))
def deliveries(tx: Transaction, caller: Owner, request_id: UUID | None = None) -> schemas.DeliveriesOut:
    """Read the delivery log, newest first."""
    found = webhooks.deliveries(tx, client_id=caller.client_id, request_id=request_id)
    return schemas.DeliveriesOut(items=[schemas.DeliveryOut.model_validate(d, from_attributes=True) for d in found])


def _shown(endpoint: WebhookEndpoint) -> dict[str, Any]:  # Any: the fields of WebhookEndpointOut
    return {
        "id": endpoint.id,
        "host": urlsplit(endpoint.url).hostname or "",
        "created_at": endpoint.created_at,
        "disabled_at": endpoint.disabled_at,
        "disabled_because": endpoint.disabled_because,
    }
