"""Webhook endpoints and deliveries as they go over the wire."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, Field

from app.api.schemas.base import Incoming


class WebhookEndpointIn(Incoming):
    """Where to send callbacks."""

    url: str = Field(min_length=1, max_length=2000, description="https URL; private addresses are refused")


class WebhookEndpointOut(BaseModel):
    """A registered endpoint; the secret is shown once, on creation."""

    id: UUID
    host: str
    created_at: datetime
    disabled_at: datetime | None
    disabled_because: str | None


class WebhookEndpointCreated(WebhookEndpointOut):
    """The new endpoint with its signing secret."""

    secret: str = Field(description="`whsec_…`, Standard Webhooks v1; shown only now")


class WebhookEndpointsOut(BaseModel):
    """All endpoints."""

    items: list[WebhookEndpointOut]


class DeliveryOut(BaseModel):
    """One promised message and how its attempts went."""

    id: UUID
    endpoint_id: UUID
    request_id: UUID
    created_at: datetime
    attempts: int
    delivered_at: datetime | None
    next_attempt_at: datetime | None
    last_outcome: str | None


class DeliveriesOut(BaseModel):
    """The delivery log, newest first."""

    items: list[DeliveryOut]
