"""The buttons of one request: which of them its state and a person's rights allow, and what each of them does.

What is allowed is asked of the rules that the use cases follow, and never locked: a state that moves between the page
and the button is told by the use case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Annotated, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Form
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, BeforeValidator, Field
from sqlalchemy.orm import Session

from app import decisions, holds, notices
from app.api.auth import PAGES as BASE
from app.api.schemas.base import Line, Lines, ModelName
from app.dashboard.visits import Deciding, Retrying, Visit
from app.domain import deadlines
from app.domain.decisions import ExtensionReason, Ground, HoldGround, IdentityLevel, Notice
from app.domain.lifecycle import CANCELLABLE, JOB_OPEN, REQUEST_ENDED, WAITING, RequestStatus
from app.domain.people import Right
from app.errors import Conflict, Invalid
from app.storage import decisions as stored
from app.storage import request_story, requests, versions
from app.storage.request_story import Work
from app.storage.tables import ErasureRequest, Model

router = APIRouter(prefix=f"{BASE}/requests/{{request_id}}")
_TO_COME: Final = "*"
_FIRST, _LAST = date(2000, 1, 1), date(2199, 12, 31)


# --- what is allowed ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Offer:
    """What a person may do with a request as it stands."""

    actions: frozenset[str] = frozenset()
    models: tuple[str, ...] = ()
    """That a refusal may name."""
    is_whole: bool = False
    """Whether it may be refused as a whole: nothing was begun."""
    levels: tuple[IdentityLevel, ...] = ()
    """That may be confirmed."""

    def __contains__(self, action: str) -> bool:
        return action in self.actions


@dataclass(frozen=True)
class _Case:
    """A request with what the rules ask about it."""

    tx: Session
    request: ErasureRequest
    work: Sequence[Work]
    status: RequestStatus
    begun: bool
    refused: frozenset[str]
    models: Sequence[Model]

    @property
    def is_persons(self) -> bool:
        """Whether a person asked for it, and for the first time: the service's own demands nobody takes back."""
        return self.request.subject_key is not None and self.request.origin != "suppression"

    @property
    def left(self) -> set[str]:
        """Models asked for and not refused; where none is registered, the models to come."""
        return set(self.request.models or [model.name for model in self.models] or [_TO_COME]) - self.refused


def offered(visit: Visit, request: ErasureRequest, work: Sequence[Work] | None = None) -> Offer:
    """What a person may do with a request: exactly what the use cases accept from them."""
    if RequestStatus(request.status) in REQUEST_ENDED or not visit.rights & {Right.DECIDE, Right.RETRY}:
        return Offer()
    tx = visit.tx
    case = _Case(
        tx,
        request,
        request_story.work(tx, request.id) if work is None else work,
        RequestStatus(request.status),
        stored.has_begun(tx, request.id),
        frozenset(stored.refused_models(tx, request.id)),
        versions.models(tx),
    )
    found = {"retry"} if visit.may(Right.RETRY) and _may_retry(case) else set()
    if not visit.may(Right.DECIDE):
        return Offer(frozenset(found))
    found |= _undestroyed(case)
    found |= {"approve"} if _may_approve(case, by=visit.by) else set()
    found |= {"release"} if _may_release(case) else set()
    found |= {"extend"} if _may_extend(case, visit) else set()
    found |= {"refuse"} if _may_refuse(case) else set()
    found |= {"confirm-identity"} if case.status == RequestStatus.AWAITING_IDENTITY else set()
    levels = tuple(level for level in IdentityLevel if level.reaches(visit.settings.identity_needed))
    return Offer(frozenset(found), _nameable(case), not case.begun, levels)


def _undestroyed(case: _Case) -> set[str]:
    """What is possible as long as nothing was destroyed for a person's demand."""
    if not case.is_persons or case.begun:
        return set()
    found = {"cancel"} if case.status in CANCELLABLE else set()
    return found | ({"hold"} if case.status in WAITING - {RequestStatus.ON_HOLD} else set())


def _may_approve(case: _Case, *, by: UUID) -> bool:
    if case.status != RequestStatus.PENDING or by in stored.approvers(case.tx, case.request.id):
        return False
    known = stored.known(case.tx, [case.request.id])[case.request.id]
    return by != case.request.client_id or not known.needs_others(case.request.approvals_needed)


def _may_release(case: _Case) -> bool:
    if case.status != RequestStatus.ON_HOLD:
        return False
    try:
        holds.need_own(case.tx, case.request)
    except Conflict:
        return False
    return True


def _may_extend(case: _Case, visit: Visit) -> bool:
    request, zone = case.request, visit.settings.zone
    if request.subject_key is None or stored.was_extended(case.tx, request.id):
        return False
    if case.status == RequestStatus.AWAITING_IDENTITY and visit.settings.suspend_while_awaiting_identity:
        return False
    return visit.now <= deadlines.due(request.clock_from or request.received_at, zone)


def _may_refuse(case: _Case) -> bool:
    if not case.is_persons or case.status not in CANCELLABLE:
        return False
    return not case.begun or (case.status == RequestStatus.NEEDS_ATTENTION and bool(case.left))


def _nameable(case: _Case) -> tuple[str, ...]:
    """Models that a refusal may name; of what was begun, something must be left."""
    done = {one.model for one in case.work if one.result is not None}
    running = {one.model for one in case.work if one.status in JOB_OPEN and one.fence > 0}
    found = case.left - done - (running if case.begun else set())
    return () if case.begun and len(case.left) == 1 else tuple(sorted(found - {_TO_COME}))


def _may_retry(case: _Case) -> bool:
    if case.status != RequestStatus.NEEDS_ATTENTION:
        return False
    if not case.begun and case.request.id in stored.holds(case.tx, [case.request.id]):
        return False
    served = {one.model for one in case.work}
    done = {one.model for one in case.work if one.result is not None or one.status in JOB_OPEN} | case.refused
    wanted = set(case.request.models) if case.request.models is not None else None
    live = {model.name for model in case.models if model.current_version_id is not None}
    live &= served if case.request.subject_key is None else live
    return bool((live if wanted is None else live & wanted) - done)


# --- what the buttons send ---------------------------------------------------------------------------------------


def _or_none(value: object) -> object:
    """A field that was left empty says nothing; browsers end lines by two characters."""
    if not isinstance(value, str):
        return value
    return value.replace("\r\n", "\n").strip() or None


Explanation = Annotated[Annotated[Lines, Field(max_length=4000)] | None, BeforeValidator(_or_none)]
DataClass = Annotated[Annotated[Line, Field(max_length=200)] | None, BeforeValidator(_or_none)]
Day = Annotated[date, Field(ge=_FIRST, le=_LAST)]
MaybeDay = Annotated[Day | None, BeforeValidator(_or_none)]


class RemarkForm(BaseModel):
    """A decision that needs no more than the will."""

    explanation: Explanation = None


class RefuseForm(RemarkForm):
    """What is refused, and why."""

    ground: Ground
    scope: Literal["whole", "models", "data"]
    models: list[ModelName] = Field(default=[], max_length=1000)
    data_class: DataClass = None


class HoldForm(RemarkForm):
    """Why it waits, and until when."""

    ground: HoldGround
    until: Day


class ExtendForm(RemarkForm):
    """How much longer it takes, and why."""

    months: Literal["1", "2"]
    reason: ExtensionReason
    told: MaybeDay = None


class CancelForm(BaseModel):
    """That it is meant."""

    sure: Literal["", "yes"] = ""


class IdentityForm(BaseModel):
    """How sure one is of the person."""

    level: IdentityLevel


class SentForm(BaseModel):
    """On which day the person was told."""

    day: Day


@router.post("/approve")
def approve(request_id: UUID, visit: Deciding, form: Annotated[RemarkForm, Form()]) -> RedirectResponse:
    """Agree to it."""
    decisions.approve(visit.tx, request_id, by=visit.by, now=visit.now, explanation=form.explanation)
    return _back(visit, request_id, done="approved")


@router.post("/refuse")
def refuse(request_id: UUID, visit: Deciding, form: Annotated[RefuseForm, Form()]) -> RedirectResponse:
    """Refuse it, some of its models, or a class of data."""
    models, data_class = _part(form)
    refusal = decisions.Refusal(ground=form.ground, explanation=form.explanation, models=models, data_class=data_class)
    decisions.refuse(visit.tx, request_id, refusal, by=visit.by, now=visit.now, settings=visit.settings)
    return _back(visit, request_id, done="refused")


def _part(form: RefuseForm) -> tuple[list[str] | None, str | None]:
    """The models and the data that a refusal is about; neither: the whole request.

    Raises:
        Invalid: A part was chosen and not said which.
    """
    if form.scope == "models" and not form.models:
        raise Invalid("models", "choose the models that are left as they are, or refuse the whole request")
    if form.scope == "data" and not form.data_class:
        raise Invalid("data_class", "say which data stay, such as invoices")
    return form.models if form.scope == "models" else None, form.data_class if form.scope == "data" else None


@router.post("/hold")
def hold(request_id: UUID, visit: Deciding, form: Annotated[HoldForm, Form()]) -> RedirectResponse:
    """Let it wait until a day of review."""
    until = deadlines.end_of(form.until, visit.settings.zone)
    decisions.hold(
        visit.tx,
        request_id,
        ground=form.ground,
        until=until,
        by=visit.by,
        now=visit.now,
        settings=visit.settings,
        explanation=form.explanation,
    )
    return _back(visit, request_id, done="held")


@router.post("/release")
def release(request_id: UUID, visit: Deciding, form: Annotated[RemarkForm, Form()]) -> RedirectResponse:
    """End a hold."""
    decisions.release(
        visit.tx, request_id, by=visit.by, now=visit.now, settings=visit.settings, explanation=form.explanation
    )
    return _back(visit, request_id, done="released")


@router.post("/extend")
def extend(request_id: UUID, visit: Deciding, form: Annotated[ExtendForm, Form()]) -> RedirectResponse:
    """Move the deadline."""
    extension = decisions.Extension(
        further_months=int(form.months),
        reason=form.reason,
        explanation=form.explanation,
        notified_at=_moment(form.told, visit) if form.told else None,
    )
    decisions.extend(visit.tx, request_id, extension, by=visit.by, now=visit.now, settings=visit.settings)
    return _back(visit, request_id, done="extended")


@router.post("/cancel")
def cancel(request_id: UUID, visit: Deciding, form: Annotated[CancelForm, Form()]) -> RedirectResponse:
    """Take it back."""
    if not form.sure:
        raise Invalid("sure", "tick the box: a request that was taken back can't be opened again")
    decisions.cancel(visit.tx, request_id, by=visit.by, now=visit.now, settings=visit.settings)
    return _back(visit, request_id, done="cancelled")


@router.post("/retry")
def retry(request_id: UUID, visit: Retrying) -> RedirectResponse:
    """Try again."""
    decisions.retry(visit.tx, request_id, by=visit.by, now=visit.now, settings=visit.settings)
    return _back(visit, request_id, done="retried")


@router.post("/confirm-identity")
def confirm_identity(request_id: UUID, visit: Deciding, form: Annotated[IdentityForm, Form()]) -> RedirectResponse:
    """Say that the person is known now."""
    decisions.confirm_identity(
        visit.tx, request_id, form.level, by=visit.by, seen_by=None, now=visit.now, settings=visit.settings
    )
    return _back(visit, request_id, done="confirmed")


@router.post("/notices/{kind}/sent")
def mark_sent(request_id: UUID, kind: Notice, visit: Deciding, form: Annotated[SentForm, Form()]) -> RedirectResponse:
    """Write down that the person was told."""
    request = requests.locked(visit.tx, request_id)
    at = _moment(form.day, visit)
    notices.note_sent(visit.tx, request, kind, by=visit.by, at=at, now=visit.now, settings=visit.settings)
    return _back(visit, request_id, done="noted")


def _moment(day: date, visit: Visit) -> datetime:
    """The moment that a day stands for: its end, and today now."""
    today = deadlines.day(visit.now, visit.settings.zone)
    return visit.now if day == today else deadlines.end_of(day, visit.settings.zone)


def _back(visit: Visit, request_id: UUID, *, done: str) -> RedirectResponse:
    return visit.go(f"/requests/{request_id}", done=done)
