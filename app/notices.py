"""What the person has to be told, by when, and whether they were; the portal tells it, in our words or the operator's.

A notice is a text template (Jinja2) per kind and language. It says dates, models, grounds in plain words and the
controller's remarks, never the user id: whoever sends it knows the person, we do not.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined, TemplateError
from sqlalchemy.orm import Session

from app.domain import deadlines
from app.domain.decisions import Kind, Notice
from app.domain.lifecycle import RequestStatus
from app.errors import Invalid, Misconfigured, NotFound
from app.settings import Settings
from app.storage import decisions, moves, requests
from app.storage.tables import Decision, ErasureRequest

LANGUAGES: Final = ("en", "de")
_ENDS: Final = {
    RequestStatus.COMPLETED: Notice.COMPLETION,
    RequestStatus.PARTIALLY_COMPLETED: Notice.PARTIAL,
    RequestStatus.NO_DATA: Notice.NO_DATA,
}
_KINDS: Final = {Notice.EXTENSION: Kind.EXTENDED, Notice.REFUSAL: Kind.REFUSED}
"""Notices without which a decision is not lawful."""
_REASONS_WHY: Final = {
    Notice.EXTENSION: "the extension is not lawful until the person is told of it and its reason (Art. 12(3) GDPR)",
    Notice.REFUSAL: "the refusal is not lawful until the person is told its reasons and remedies (Art. 12(4) GDPR)",
}


@dataclass(frozen=True)
class Owed:
    """A notice that a request owes the person."""

    kind: Notice
    due: datetime | None
    """The last moment that the law leaves for it; none: no later than is decent."""
    sent_at: datetime | None
    problem: str | None
    """What is wrong as long as it was not sent, or because it was sent too late."""


def owed(tx: Session, request: ErasureRequest, settings: Settings) -> list[Owed]:
    """Every notice that a request owes by now; none for the service's own, of which nobody waits for an answer."""
    if request.origin != "portal":
        return []
    month = deadlines.due(request.clock_from or request.received_at, settings.zone)
    sent = decisions.sent_notices(tx, request.id)
    told = {kind: decisions.of_request(tx, request.id, kind=_KINDS[kind]) for kind in _KINDS}
    due: dict[Notice, datetime | None] = {Notice.RECEIPT: None}
    if request.status == RequestStatus.AWAITING_IDENTITY or Notice.IDENTITY in sent:
        due[Notice.IDENTITY] = None
    due |= dict.fromkeys((kind for kind in _KINDS if told[kind]), month)
    if end := _ENDS.get(RequestStatus(request.status)):
        due[end] = request.deadline
    return [_owed(kind, last, _sent_at(kind, sent, told.get(kind, ()))) for kind, last in due.items()]


def _sent_at(kind: Notice, sent: dict[str, datetime], about: Collection[Decision]) -> datetime | None:
    """When it was sent; a notice about decisions was sent when the last of them was told."""
    if not about:
        return sent.get(kind)
    moments = [decision.notified_at for decision in about]
    return None if None in moments else max(moment for moment in moments if moment)


def _owed(kind: Notice, due: datetime | None, sent_at: datetime | None) -> Owed:
    problem = None
    if sent_at is None:
        problem = _REASONS_WHY.get(kind)
    elif due is not None and sent_at > due:
        problem = "it was sent after the last day that the law leaves for it"
    return Owed(kind, due, sent_at, problem)


def text_of(tx: Session, request: ErasureRequest, kind: Notice, language: str, settings: Settings) -> str:
    """A notice as text.

    Raises:
        NotFound: The request owes no such notice.
        Invalid: There are no templates in this language.
        Misconfigured: The operator's template can't be used.
    """
    if language not in LANGUAGES:
        raise Invalid("language", f"notices are written in {' and '.join(LANGUAGES)}")
    _need_owed(tx, request, kind, settings)
    name = f"{language}/{kind}.txt"
    try:
        written = _templates(settings).get_template(name).render(_said(tx, request, settings))
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise Misconfigured(f"the template {name} of the notices can't be used ({type(error).__name__})") from None
    return written.strip() + "\n"


def note_sent(
    tx: Session, request: ErasureRequest, kind: Notice, *, by: UUID, at: datetime, now: datetime, settings: Settings
) -> None:
    """Write down that the person was told, and who says so; what was written down before keeps its time.

    Raises:
        NotFound: The request owes no such notice.
        Invalid: It was told in the future, or before there was a request.
    """
    if not request.received_at <= at <= now:
        raise Invalid("sent_at", "a notice was sent between the receipt of the request and now")
    if _need_owed(tx, request, kind, settings).sent_at is not None:
        return
    if kind in _KINDS:
        decisions.notify(tx, request.id, _KINDS[kind], at=at)
    detail: dict[str, str | int] = {"notice": kind.value, "sent_at": at.isoformat(), "said_by": str(by)}
    moves.record(tx, "notice.sent", request_id=request.id, detail=detail)


def _need_owed(tx: Session, request: ErasureRequest, kind: Notice, settings: Settings) -> Owed:
    found = {one.kind: one for one in owed(tx, request, settings)}
    if kind not in found:
        has = f"it owes {', '.join(found)}" if found else "it owes none"
        raise NotFound(f"the request owes no notice of {kind} as it stands; {has}")
    return found[kind]


def _templates(settings: Settings) -> Environment:
    ours = PackageLoader("app", "templates/notices")
    theirs = [FileSystemLoader(settings.notices)] if settings.notices else []
    return Environment(  # noqa: S701 - plain text: escapes for HTML would be shown to the reader
        loader=ChoiceLoader([*theirs, ours]), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _said(tx: Session, request: ErasureRequest, settings: Settings) -> dict[str, Any]:  # Any: what templates show
    def day(moment: datetime | None) -> Any:  # Any: a date or none
        return deadlines.day(moment, settings.zone) if moment else None

    refusals = decisions.of_request(tx, request.id, kind=Kind.REFUSED)
    extensions = decisions.of_request(tx, request.id, kind=Kind.EXTENDED)
    return {
        "controller": settings.controller,
        "processor": settings.processor,
        "contact": settings.contact,
        "authority": settings.authority,
        "request_id": request.id,
        "reference": request.reference,
        "received": day(request.received_at),
        "deadline": day(request.deadline),
        "closed": day(request.closed_at),
        "models": request.models,
        "whole": request.status == RequestStatus.REJECTED,
        "targets": [
            {"model": row.name, "result": row.result} for row in requests.targets(tx, [request.id]) if row.result
        ],
        "refusals": [_of(refusal) for refusal in refusals],
        "extension": next(({**_of(one), "reason": one.ground, "until": day(one.until)} for one in extensions), None),
    }


def _of(decision: Decision) -> dict[str, Any]:  # Any: as above
    names = ("ground", "explanation", "models", "data_class")
    return {name: getattr(decision, name) for name in names}
