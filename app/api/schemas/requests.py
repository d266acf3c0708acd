"""Erasure requests as they go over the wire."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field

from app.api.schemas.base import FieldProblem, Incoming, ModelName
from app.domain.decisions import IdentityLevel
from app.domain.lifecycle import JobStatus, RequestStatus

REFERENCE = r"^[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?$"
"""A ticket number: printable ASCII, no space at either end."""
MOST_ITEMS = 10_000
"""In one bulk call."""


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
    identity_level: IdentityLevel | None = Field(
        default=None,
        strict=False,
        description="How sure you are who the person is; default: what the operator set as EXPUNGE_IDENTITY_ASSUMED.",
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
    batch_id: UUID | None = Field(description="The bulk call that it came with")
    received_at: datetime
    clock_from: datetime | None = Field(description="Where the month is counted from, if not from receipt")
    deadline: datetime = Field(description="Art. 12(3) GDPR: one calendar month, and what an extension added to it")
    identity_level: IdentityLevel
    approvals_needed: int = Field(description="How many people must agree before work begins")
    duplicate_of: UUID | None = Field(description="Your other request for the same person, whose work serves this")
    closed_at: datetime | None
    overdue: bool
    targets: list[TargetOut]


class ErasureRequestPage(BaseModel):
    """Requests in order of arrival."""

    items: list[ErasureRequestOut]
    next_cursor: str | None = Field(description="Pass as `cursor` to go on; null at the end")


class BatchIn(Incoming):
    """Many demands in one call."""

    items: list[ErasureRequestIn] = Field(min_length=1, max_length=MOST_ITEMS)


class Outcome(StrEnum):
    """What became of one item of a bulk call."""

    ACCEPTED = "accepted"
    KNOWN = "known"
    INVALID = "invalid"
    REFUSED = "refused"


class ItemOut(BaseModel):
    """What became of one item; ``invalid`` ones must be changed, ``refused`` ones sent another time."""

    outcome: Outcome
    id: UUID | None = Field(default=None, description="The request, if it is accepted or known")
    errors: list[FieldProblem] = []


class BatchOut(BaseModel):
    """What became of each item, in the order they came in."""

    batch_id: UUID
    counts: dict[Outcome, int]
    items: list[ItemOut]


class EventOut(BaseModel):
    """One step in a request's history."""

    at: datetime
    type: str
    detail: dict[str, Any]  # Any: JSON


class EventsOut(BaseModel):
    """A request's history, in order."""

    items: list[EventOut]
