"""Shapes on the wire: strict on the way in, explicit on the way out."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from app.domain import identifiers
from app.domain.lifecycle import JobStatus, RequestStatus

ModelName = Annotated[str, Field(pattern=identifiers.MODEL_NAME)]


REFERENCE = r"^[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?$"
"""A ticket number: printable ASCII, no space at either end."""


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ErasureRequestIn(_In):
    """A person's demand to be forgotten, as a portal passes it on."""

    user_id: str = Field(
        min_length=1,
        max_length=256,
        description="The id under which the training manifests know the person. Opaque, compared byte for byte; "
        "stored encrypted until the request ends.",
    )
    models: list[ModelName] | None = Field(
        default=None, min_length=1, max_length=100, description="Restrict to these models; default: all, now and later."
    )
    reference: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        pattern=REFERENCE,
        description="Your own ticket number. Don't put personal data here; it is kept as evidence.",
    )


class TargetOut(BaseModel):
    """How the request stands with one model."""

    model: str
    status: JobStatus
    result: str | None = Field(description="forgotten, no_data or already_forgotten; null while work is open")


class ErasureRequestOut(BaseModel):
    """An erasure request. The user id is never returned."""

    id: UUID
    status: RequestStatus
    reason: str | None
    reference: str | None
    origin: str
    received_at: datetime
    deadline: datetime = Field(description="Art. 12(3) GDPR: one calendar month from receipt")
    closed_at: datetime | None
    overdue: bool
    targets: list[TargetOut]


class ErasureRequestPage(BaseModel):
    """Requests in order of arrival."""

    items: list[ErasureRequestOut]
    next_cursor: str | None = Field(description="Pass as `cursor` to go on; null at the end")


class EventOut(BaseModel):
    """One step in a request's history."""

    at: datetime
    type: str
    detail: dict[str, Any]  # Any: JSON


class EventsOut(BaseModel):
    """A request's history, in order."""

    items: list[EventOut]


class VersionOut(BaseModel):
    """One version of a model."""

    number: int
    weights_sha256: str
    origin: str
    parent: int | None
    published_at: datetime
    retired_at: datetime | None


class ModelOut(BaseModel):
    """A registered model and its live version."""

    name: str
    recipe: str
    current: VersionOut | None


class ModelsOut(BaseModel):
    """All registered models."""

    items: list[ModelOut]


class VersionsOut(BaseModel):
    """A model's versions, newest first."""

    items: list[VersionOut]


class WebhookEndpointIn(_In):
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


class LogKeyOut(BaseModel):
    """A key that signs the log, or did."""

    vkey: str = Field(description="C2SP signed-note verifier key")
    since: datetime
    since_size: int


class LogOut(BaseModel):
    """The public log's name, keys, witnesses and retention."""

    origin: str
    keys: list[LogKeyOut]
    policy: str | None = Field(description="C2SP tlog-policy that checkpoints are published under")
    evidence_days: int = Field(description="how long the records behind commitments can be opened after the end")


class ProofOut(BaseModel):
    """A Merkle proof (RFC 6962)."""

    hashes: list[str] = Field(description="base64, in the order of the RFC")


class Ready(BaseModel):
    """Whether requests are accepted, and whether somebody works on them."""

    accepting: bool
    working: bool = Field(description="a consumer listens on every queue, and the public log takes entries")
    queues: dict[str, bool]
    oldest_open_seconds: float | None
    log_waits_seconds: float | None = Field(description="how long the oldest entry waits for the public log")


class Live(BaseModel):
    """The process answers."""

    live: bool = True
