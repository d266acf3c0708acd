"""Many requests decided at once: first what would happen is shown, then it happens, and each says how it went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Form
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field

from app import decisions
from app.api.auth import PAGES as BASE
from app.api.schemas.base import Lines
from app.dashboard.request_words import GROUNDS
from app.dashboard.visits import Deciding, Reading, Retrying, Visit
from app.decisions import Outcome, Refusal
from app.domain.decisions import Ground, check_refusal
from app.domain.lifecycle import CANCELLABLE, RequestStatus
from app.domain.people import Right
from app.errors import Forbidden, Invalid
from app.storage import request_list

router = APIRouter(prefix=f"{BASE}/requests/bulk")
MOST: Final = 200
"""Requests at once: what one person can answer for, and holds the planner up for less than a second."""
_STAYS: Final = "stay as they are: this is not possible in their state"


class Action(StrEnum):
    """What can be done with many requests."""

    APPROVE = "approve"
    REFUSE = "refuse"
    RETRY = "retry"


@dataclass(frozen=True)
class _Rule:
    """Who may do it, with which requests, and what becomes of those."""

    right: Right
    statuses: frozenset[RequestStatus]
    follows: str


_RULES: Final = {
    Action.APPROVE: _Rule(
        Right.DECIDE,
        frozenset({RequestStatus.PENDING}),
        "you agree to them; each goes on once all have agreed who must",
    ),
    Action.REFUSE: _Rule(Right.DECIDE, CANCELLABLE, "are refused, unless work on them has begun"),
    Action.RETRY: _Rule(Right.RETRY, frozenset({RequestStatus.NEEDS_ATTENTION}), "are given to new jobs"),
}
_Ids = Annotated[list[UUID], Field(max_length=1000)]


class ChoiceForm(BaseModel):
    """What somebody marked in the list."""

    requests: _Ids = []
    shown: _Ids = []
    whole: bool = False
    action: Action


class DecisionForm(BaseModel):
    """Which requests, and why."""

    requests: _Ids = []
    ground: Ground | None = None
    explanation: Annotated[Lines, Field(max_length=4000)] = ""


@dataclass(frozen=True)
class Part:
    """Requests in one state, and what becomes of them."""

    status: str
    count: int
    follows: str
    moves: bool


@router.post("")
def ask(visit: Reading, form: Annotated[ChoiceForm, Form()]) -> HTMLResponse:
    """Say what would happen."""
    rule = _RULES[form.action]
    if not visit.may(rule.right):
        raise Forbidden(f"none of your roles may do this ({rule.right}); an admin gives roles")
    chosen = _few(form.shown if form.whole else form.requests)
    return _confirm(visit, form.action, chosen, DecisionForm(requests=chosen))


@router.post("/approve")
def approve(visit: Deciding, form: Annotated[DecisionForm, Form()]) -> HTMLResponse:
    """Agree to them."""
    act = partial(decisions.approve, visit.tx, by=visit.by, now=visit.now, explanation=_explained(form))
    return _outcomes(visit, Action.APPROVE, decisions.each(visit.tx, _few(form.requests), act))


@router.post("/refuse")
def refuse(visit: Deciding, form: Annotated[DecisionForm, Form()]) -> HTMLResponse:
    """Refuse them, all on one ground."""
    chosen = _few(form.requests)
    try:
        refusal = _refusal(form)
    except Invalid as error:
        return _confirm(visit, Action.REFUSE, chosen, form, problem=error)
    by, now, settings = visit.by, visit.now, visit.settings
    found = decisions.each(
        visit.tx, chosen, lambda one: decisions.refuse(visit.tx, one, refusal, by=by, now=now, settings=settings)
    )
    return _outcomes(visit, Action.REFUSE, found)


@router.post("/retry")
def retry(visit: Retrying, form: Annotated[DecisionForm, Form()]) -> HTMLResponse:
    """Give them to new jobs."""
    act = partial(decisions.retry, visit.tx, by=visit.by, now=visit.now, settings=visit.settings)
    return _outcomes(visit, Action.RETRY, decisions.each(visit.tx, _few(form.requests), act))


def _few(chosen: Sequence[UUID]) -> list[UUID]:
    """Those that were chosen, each once.

    Raises:
        Invalid: There are none, or too many.
    """
    found = list(dict.fromkeys(chosen))
    if not found:
        raise Invalid("requests", "none was chosen; go back and mark at least one")
    if len(found) > MOST:
        raise Invalid("requests", f"{len(found)} are chosen; at most {MOST} are decided at once")
    return found


def _explained(form: DecisionForm) -> str | None:
    return form.explanation.replace("\r\n", "\n").strip() or None


def _refusal(form: DecisionForm) -> Refusal:
    if form.ground is None:
        raise Invalid("ground", "choose the ground; the person has to be told it")
    check_refusal(form.ground, _explained(form))
    return Refusal(ground=form.ground, explanation=_explained(form))


def _confirm(
    visit: Visit, action: Action, chosen: Sequence[UUID], form: DecisionForm, *, problem: Invalid | None = None
) -> HTMLResponse:
    rows = request_list.those(visit.tx, chosen)
    counted = Counter(RequestStatus(row.request.status) for row in rows)
    parts = [_part(action, status, counted[status]) for status in RequestStatus if status in counted]
    return visit.page(
        "bulk.html",
        status=422 if problem else 200,
        action=action,
        chosen=[row.request.id for row in rows],
        parts=parts,
        moving=sum(part.count for part in parts if part.moves),
        form=form,
        problem=problem,
        grounds=GROUNDS,
        back=_back(visit),
    )


def _part(action: Action, status: RequestStatus, count: int) -> Part:
    rule = _RULES[action]
    moves = status in rule.statuses
    return Part(status, count, rule.follows if moves else _STAYS, moves)


def _outcomes(visit: Visit, action: Action, found: Sequence[Outcome]) -> HTMLResponse:
    """How each of them went; what could not be done took nothing from the others."""
    rows = {row.request.id: row.request for row in request_list.those(visit.tx, [one.request_id for one in found])}
    return visit.page(
        "bulk_done.html",
        action=action,
        outcomes=[(one, rows.get(one.request_id)) for one in found],
        done=sum(one.error is None for one in found),
        back=_back(visit),
    )


def _back(visit: Visit) -> str:
    """The filters of the list that was come from, as they stand behind this address."""
    return visit.request.url.query
