"""The account page: who I am here, what I may do, where I am signed in, and another password."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import BaseModel, Field

from app import people
from app.api.auth import PAGES as BASE
from app.api.auth import SESSION_COOKIE as COOKIE
from app.dashboard.people import MAY, ROLES
from app.dashboard.visits import Reading, Visit
from app.domain.people import Role
from app.errors import ExpungeError, Invalid
from app.storage import people as stored

router = APIRouter(prefix=BASE)
_Words = Annotated[str, Field(max_length=1024)]


class PasswordForm(BaseModel):
    """The password of now, and the next one twice."""

    old: _Words = ""
    new: _Words = ""
    again: _Words = ""


@router.get("/account")
def show(visit: Reading) -> HTMLResponse:
    """My own page."""
    return _page(visit, problem=None)


@router.post("/account/password")
def change_password(visit: Reading, form: Annotated[PasswordForm, Form()]) -> Response:
    """Set another password; wrong guesses count as at the sign-in."""
    cookie = visit.request.cookies[COOKIE]
    try:
        _need_the_same(form)
        problem = people.change_password(
            visit.tx, visit.person, old=form.old, new=form.new, cookie=cookie, now=visit.now, settings=visit.settings
        )
    except Invalid as error:
        problem = error
    return _page(visit, problem=problem) if problem else visit.go("/account", done="password_changed")


def _need_the_same(form: PasswordForm) -> None:
    if form.new != form.again:
        raise Invalid("again", "the two new passwords differ; type the same twice")


@router.post("/account/end-sessions")
def end_other_sessions(visit: Reading) -> RedirectResponse:
    """Sign out in every other browser."""
    people.end_other_sessions(visit.tx, visit.request.cookies[COOKIE], person=visit.person, now=visit.now)
    return visit.go("/account", done="others_ended")


def _page(visit: Visit, *, problem: ExpungeError | None) -> HTMLResponse:
    settings = visit.settings
    alive = {"seen_since": visit.now - settings.session_idle, "begun_since": visit.now - settings.session_life}
    return visit.page(
        "account.html",
        status=problem.status if problem else 200,
        roles={role: ROLES[Role(role)] for role in visit.person.roles},
        may=[said for right, said in MAY.items() if right in visit.rights],
        sessions=stored.sessions_of(visit.tx, visit.person.id, **alive),
        problem=problem,
    )
