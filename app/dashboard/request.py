"""The page of one request: where it stands and who must act, its history, each model, notices, what may be done."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from app import notices
from app.api.auth import PAGES as BASE
from app.dashboard import request_words, results, standing, timeline
from app.dashboard.actions import offered
from app.dashboard.visits import Reading, Visit
from app.domain import deadlines
from app.domain.decisions import EXPLAINED, ExtensionReason, Ground, HoldGround, Notice
from app.domain.lifecycle import RequestStatus
from app.storage import audit, request_story, requests
from app.storage import decisions as stored
from app.storage.tables import ErasureRequest

router = APIRouter(prefix=f"{BASE}/requests/{{request_id}}")


@router.get("")
def show(request_id: UUID, visit: Reading) -> HTMLResponse:
    """Everything about one request."""
    return visit.page("request.html", part="", **_said(visit, request_id))


@router.get("/progress")
def progress(request_id: UUID, visit: Reading, was: Annotated[str, Query(max_length=40)] = "") -> HTMLResponse:
    """The models, and where the state moved since, the rest of the page with them."""
    request = requests.get(visit.tx, request_id)
    if was == request.status:
        return visit.page("request_models.html", **_of_models(visit, request))
    return visit.page("request_moved.html", part="true", **_said(visit, request_id))


@router.get("/notices/{kind}")
def notice(
    request_id: UUID, kind: Notice, visit: Reading, language: Annotated[str, Query(max_length=8)] = ""
) -> HTMLResponse:
    """The text of a notice, to be read and copied."""
    request, chosen = requests.get(visit.tx, request_id), language or visit.settings.language
    written = notices.text_of(visit.tx, request, kind, chosen, visit.settings)
    found = next(one for one in notices.owed(visit.tx, request, visit.settings) if one.kind == kind)
    today = deadlines.day(visit.now, visit.settings.zone)
    return visit.page(
        "request_notice.html",
        erasure=request,
        owed=found,
        written=written,
        language=chosen,
        languages=notices.LANGUAGES,
        words=request_words,
        first=deadlines.day(request.received_at, visit.settings.zone),
        today=today,
    )


def _of_models(visit: Visit, request: ErasureRequest) -> dict[str, Any]:  # Any: what templates show
    work = request_story.work(visit.tx, request.id)
    reports = request_story.reports(visit.tx, results.wanted(work))
    return {
        "erasure": request,
        "work": work,
        "results": results.results(work, reports, now=visit.now),
        "is_live": RequestStatus(request.status) in results.LIVE,
        "words": request_words,
        "limit": results.LIMIT,
        "standing": standing,
    }


def _said(visit: Visit, request_id: UUID) -> dict[str, Any]:  # Any: as above
    tx, request = visit.tx, requests.get(visit.tx, request_id)
    models = _of_models(visit, request)
    told = _told(visit, request, [one.job_id for one in models["work"]])
    known = stored.known(tx, [request_id])[request_id]
    lines = timeline.merge(told)
    return models | {
        "state": request_words.STATES[request.status],
        "client": told.names.get(request.client_id) if request.client_id else None,
        "agreed": known.agreed(request.approvals_needed),
        "needs_others": known.needs_others(request.approvals_needed),
        "counted": _counted(visit, request, {one.kind for one in told.decisions}),
        "lines": lines,
        "log_waits": any(line.source == "log" and not line.is_public for line in lines),
        "notices": notices.owed(tx, request, visit.settings),
        "offer": offered(visit, request, models["work"]),
        "certified": request.closed_at is not None and bool(requests.certificates(tx, request_id)),
        **_forms(visit, request),
    }


def _told(visit: Visit, request: ErasureRequest, job_ids: list[UUID]) -> timeline.Told:
    tx = visit.tx
    events = request_story.events(tx, request.id, job_ids)
    decisions = stored.of_request(tx, request.id)
    asked = timeline.deciders(events, decisions) | ({request.client_id} if request.client_id else set())
    shown = audit.published(tx)
    return timeline.Told(
        events,
        decisions,
        request_story.entries(tx, request.id, job_ids),
        request_story.names(tx, asked),
        shown.size if shown else 0,
        visit.settings.zone,
    )


def _counted(visit: Visit, request: ErasureRequest, kinds: set[str]) -> str:
    """How the deadline came about."""
    zone = visit.settings.zone
    since = deadlines.day(request.clock_from or request.received_at, zone)
    begun = "the person's identity was confirmed" if request.clock_from else "it was received"
    length = "one month, extended" if "extended" in kinds else "one calendar month"
    return f"{length}, from {since}, when {begun}, to the end of the last day in {zone.key} (Art. 12(3) GDPR)"


def _forms(visit: Visit, request: ErasureRequest) -> dict[str, Any]:  # Any: as above
    """What the forms offer."""
    zone = visit.settings.zone
    since: datetime = request.clock_from or request.received_at
    return {
        "grounds": {ground: request_words.GROUNDS[ground] for ground in Ground},
        "explained": [request_words.GROUNDS[ground] for ground in Ground if ground in EXPLAINED],
        "hold_grounds": {ground: request_words.HOLDS[ground] for ground in HoldGround},
        "reasons": {reason: request_words.REASONS[reason] for reason in ExtensionReason},
        "first": deadlines.day(request.received_at, zone),
        "today": deadlines.day(visit.now, zone),
        "extended_to": {n: _extended(since, visit, n) for n in (1, 2)},
    }


def _extended(since: datetime, visit: Visit, months: int) -> str:
    """The day to which so many months move a deadline; decided at the beginning, since it is only shown."""
    until = deadlines.extended(since, visit.settings.zone, further_months=months, decided_at=since)
    return str(deadlines.day(until, visit.settings.zone))
