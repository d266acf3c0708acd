"""Webhook endpoints, their secrets and deliveries as they go over the wire."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from app.api.schemas.base import Incoming, Line, Moment
from app.domain.webhook import EVENTS, OUTCOMES, Outcome, Scheme

_URL = "https URL; private addresses are refused"
_EVENTS = f"What to tell; one or more of {', '.join(EVENTS)}. null: {', '.join(OUTCOMES)}."
Url = Annotated[str, Field(min_length=1, max_length=2000, description=_URL)]
Events = Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=100, description=_EVENTS)]
Description = Annotated[Line, Field(max_length=200, description="For people; don't name any")]
Signing = Annotated[Scheme, Field(strict=False, description="v1: HMAC-SHA256, whsec_…; v1a: Ed25519, whpk_…")]


class State(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class WebhookEndpointIn(Incoming):
    """Where to send callbacks, of what, and how they are signed."""

    url: Url
    events: Events | None = Field(default=None, description=_EVENTS)
    description: Description | None = None
    every_client: bool = Field(
        default=False, description="Hear of every client's requests: needs requests:read_all or requests:decide"
    )
    schemes: list[Signing] = Field(default=[Scheme.V1], min_length=1, max_length=2)


class WebhookEndpointPatch(Incoming):
    """What is to change; what is left out stays."""

    url: Url | None = None
    events: Events | None = Field(default=None, description=_EVENTS)
    description: Description | None = None
    active: bool | None = Field(default=None, description="true: send again, after what was wrong is mended")


class SecretOut(BaseModel):
    """What signs for an endpoint; a shared secret itself is never shown again."""

    model_config = ConfigDict(from_attributes=True)
    id: UUID
    scheme: Scheme
    public: str | None = Field(description="`whpk_…`, by which v1a signatures are checked")
    created_at: datetime
    expires_at: datetime | None = Field(description="while secrets overlap: when this one signs no more")


class WebhookEndpointOut(BaseModel):
    """A registered endpoint."""

    id: UUID
    host: str
    description: str | None
    events: list[str] | None
    every_client: bool = Field(description="hears of every client's requests, while its client may see them")
    created_at: datetime
    disabled_at: datetime | None
    disabled_because: str | None
    failing_since: datetime | None = Field(description="the first failure since the last success")
    failures: int
    throttled_until: datetime | None = Field(description="it hung or asked for less: nothing is sent until then")
    secrets: list[SecretOut]


class WebhookEndpointCreated(WebhookEndpointOut):
    """The new endpoint with what its receiver needs to check signatures."""

    secret: str | None = Field(description="`whsec_…`, Standard Webhooks v1; shown only now")
    public_key: str | None = Field(description="`whpk_…`, Standard Webhooks v1a")


class WebhookEndpointChanged(WebhookEndpointOut):
    """The endpoint as it is now."""

    resumed: int = Field(description="undelivered messages that are sent again, since it was switched on")


class WebhookEndpointsOut(BaseModel):
    """All endpoints."""

    items: list[WebhookEndpointOut]


class RotationIn(Incoming):
    """How to change a secret."""

    scheme: Signing = Scheme.V1
    overlap_hours: float = Field(
        default=24, ge=0, le=72, description="How long the old secret signs, too; 0: it leaked, and signs no more"
    )


class SecretCreated(SecretOut):
    """The new secret."""

    secret: str | None = Field(description="`whsec_…`; shown only now")


class ReplayIn(Incoming):
    """Which messages to send once more, oldest first."""

    since: Moment | None = None
    until: Moment | None = None
    state: State = Field(default=State.FAILED, strict=False, description="delivered or failed ones")
    cursor: str | None = Field(default=None, max_length=30, description="next_cursor of an earlier replay")
    limit: int = Field(default=1000, ge=1, le=1000)


class ReplayOut(BaseModel):
    """How many messages are sent once more."""

    replayed: int
    next_cursor: str | None = Field(description="there are more: pass it as `cursor`")


class AttemptOut(BaseModel):
    """One attempt; of what was answered only the status is kept."""

    model_config = ConfigDict(from_attributes=True)
    at: datetime
    outcome: Outcome
    status_code: int | None
    error: str | None
    duration_ms: int


class DeliveryOut(BaseModel):
    """One promised message and how its attempts went."""

    id: UUID = Field(description="the webhook-id of every attempt")
    endpoint_id: UUID | None = Field(description="null: a callback that a portal asked for in its own dialect")
    request_id: UUID | None = Field(description="null: a ping")
    event: str
    state: State
    created_at: datetime
    attempts: int
    delivered_at: datetime | None
    next_attempt_at: datetime | None
    last_outcome: str | None


class DeliveryDetail(DeliveryOut):
    """One message with the log of its attempts."""

    log: list[AttemptOut]


class DeliveriesOut(BaseModel):
    """The delivery log, newest first."""

    items: list[DeliveryOut]
    next_cursor: str | None = Field(description="Pass as `cursor` to go on; null at the end")
