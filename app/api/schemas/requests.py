"""Erasure requests as they go over the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field

from app.api.schemas.base import Incoming, ModelName
from app.domain.lifecycle import JobStatus, RequestStatus

REFERENCE = r"^[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?$"
"""A ticket number: printable ASCII, no space at either end."""


class ErasureRequestIn(Incoming):
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
