"""Decisions about requests as they go over the wire, and the notices that they make necessary."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, Field

from app.api.schemas.base import Incoming, Line, Lines, ModelName, Moment
from app.domain.decisions import ExtensionReason, Ground, HoldGround, IdentityLevel, Kind, Notice
from app.domain.lifecycle import RequestStatus

# A body is read from JSON before it is checked, so a strict enum, UUID or time would refuse its own text.
Explanation = Annotated[
    Lines | None,
    Field(
        default=None,
        min_length=1,
        max_length=4000,
        description="In your words. Becomes part of the notice to the person and is kept as evidence: name nobody.",
    ),
]


class IdentityIn(Incoming):
    """How sure the portal is of the person now."""

    level: IdentityLevel = Field(strict=False)


class RemarkIn(Incoming):
    """A decision that needs no more than the will."""

    explanation: Explanation


class HoldIn(Incoming):
    """Why a request has to wait, and when people look at it again."""

    ground: HoldGround = Field(strict=False)
    until: Moment = Field(description="The day of the next review; the hold does not end by itself.")
    explanation: Explanation


class RefuseIn(Incoming):
    """What is not erased and why; without models and data class, the whole request."""

    ground: Ground = Field(strict=False)
    explanation: Explanation
    models: list[ModelName] | None = Field(default=None, min_length=1, max_length=100)
    data_class: Line | None = Field(
        default=None, min_length=1, max_length=200, description="Your name for the data that stay, such as `invoices`."
    )


class ExtendIn(Incoming):
    """How much longer a request takes, why, and when the person was told."""

    further_months: int = Field(ge=1, le=2)
    reason: ExtensionReason = Field(strict=False)
    explanation: Explanation
    notified_at: Moment | None = Field(default=None, description="Without it the extension is shown as not lawful yet.")


Ids = Annotated[list[Annotated[UUID, Field(strict=False)]], Field(min_length=1, max_length=1000)]


class RequestsIn(Incoming):
    """Which requests."""

    ids: Ids


class ApproveManyIn(RemarkIn):
    """Which requests are agreed to."""

    ids: Ids


class RefuseManyIn(RefuseIn):
    """Which requests are refused, all on one ground."""

    ids: Ids


class OutcomeOut(BaseModel):
    """How one of many decisions went."""

    id: UUID
    status: RequestStatus | None = Field(description="Where the request stands now; null if nothing was decided")
    problem: str | None = Field(description="Why nothing was decided about it")


class OutcomesOut(BaseModel):
    """How many decisions went, in the order of the ids."""

    decided: int
    items: list[OutcomeOut]


class DecisionOut(BaseModel):
    """What was decided about a request."""

    kind: Kind
    client_id: UUID | None = Field(
        description="Who decided; null: the service, or another client, which only an office learns"
    )
    decided_at: datetime
    models: list[str] | None
    data_class: str | None
    ground: str | None
    explanation: str | None
    until: datetime | None = Field(description="When a hold is looked at again, or what a deadline was moved to")
    notified_at: datetime | None


class DecisionsOut(BaseModel):
    """What was decided about a request, in order."""

    items: list[DecisionOut]


class NoticeOut(BaseModel):
    """A notice that the person is owed."""

    kind: Notice
    due: datetime | None = Field(description="The last moment that the law leaves for it; null: without undue delay")
    sent_at: datetime | None
    problem: str | None = Field(description="What is wrong: not sent where lawfulness hangs on it, or sent too late")


class NoticesOut(BaseModel):
    """The notices that the person is owed by now."""

    items: list[NoticeOut]


class SentIn(Incoming):
    """When the person was told."""

    sent_at: Moment | None = Field(default=None, description="Default: now.")
