"""A request made by hand, for a demand that came by letter or telephone; it goes in by the door that all go in by."""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Final

from fastapi import APIRouter, Form, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field

from app import intake, tracing
from app.api.auth import PAGES as BASE
from app.api.schemas.requests import REFERENCE
from app.dashboard.request_words import LEVELS
from app.dashboard.visits import Deciding, Visit
from app.domain.decisions import IdentityLevel
from app.domain.identifiers import MODEL_NAME, check_user_id
from app.errors import ExpungeError, Invalid, TooMany
from app.intake import Accepted, Demand
from app.storage import versions

router = APIRouter(prefix=f"{BASE}/requests/new")
_LONGEST_REFERENCE: Final = 200
_RULE: Final = f"at most {_LONGEST_REFERENCE} printable ASCII characters, no space at either end"
_SENT: Final = "this form was sent before for another demand; here is a fresh one"
_Word = Annotated[str, Field(max_length=1000)]


class DemandForm(BaseModel):
    """What somebody types; the key makes a form that is sent twice one request."""

    user_id: str = ""
    models: Annotated[list[_Word], Field(max_length=100)] = []
    reference: _Word = ""
    identity_level: _Word = ""
    key: Annotated[str, Field(max_length=100)] = ""


@router.get("")
def ask(visit: Deciding) -> HTMLResponse:
    """The form."""
    return _form(visit, DemandForm(identity_level=visit.settings.identity_assumed), {})


@router.post("")
def create(visit: Deciding, form: Annotated[DemandForm, Form()]) -> Response:
    """Make the request, or say beside each field what is wrong with it."""
    problems = _problems(form)
    if problems:
        return _form(visit, form, problems)
    try:
        accepted = _accepted(visit, form)
    except Invalid as error:
        return _form(visit, form, {"": _SENT} if error.field == "Idempotency-Key" else {error.field: str(error)})
    except TooMany as error:
        return _form(visit, form, {"": str(error)}, status=error.status)
    return visit.go(f"/requests/{accepted.request.id}", done="created" if accepted.created else "known")


def _accepted(visit: Visit, form: DemandForm) -> Accepted:
    demand = Demand(
        user_id=form.user_id,
        models=form.models or None,
        reference=form.reference or None,
        identity_level=IdentityLevel(form.identity_level) if form.identity_level else None,
        traceparent=tracing.traceparent(),
    )
    key = form.key or None
    return intake.accept(
        visit.tx, demand, client_id=visit.by, idempotency_key=key, now=visit.now, settings=visit.settings
    )


def _problems(form: DemandForm) -> dict[str, str]:
    """What is wrong with which field, before anything is looked up."""
    found: dict[str, str] = {}
    try:
        check_user_id(form.user_id)
    except ExpungeError as error:
        found["user_id"] = str(error)
    if form.reference and (len(form.reference) > _LONGEST_REFERENCE or not re.fullmatch(REFERENCE, form.reference)):
        found["reference"] = _RULE
    if form.identity_level not in {"", *IdentityLevel}:
        found["identity_level"] = f"choose one of {', '.join(IdentityLevel)}"
    if not all(re.fullmatch(MODEL_NAME, name) for name in form.models):
        found["models"] = "choose models of the list"
    return found


def _form(visit: Visit, form: DemandForm, problems: dict[str, str], *, status: int = 422) -> HTMLResponse:
    """The form as it was typed, but for the user id; what was wrong bound no key, so each form has its own."""
    return visit.page(
        "request_new.html",
        status=status if problems else 200,
        form=form.model_copy(update={"user_id": ""}),
        problems=problems,
        key=secrets.token_urlsafe(24),
        models=[model.name for model in versions.models(visit.tx)],
        levels=LEVELS,
        needed=LEVELS[visit.settings.identity_needed],
    )
