"""Coming and going: sign in with password and second factor, set a first password, set up the factor, sign out."""

from __future__ import annotations

import io
import re
from typing import Annotated, Final
from urllib.parse import unquote

import segno
from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from markupsafe import Markup
from pydantic import BaseModel, Field

from app import passwords, people
from app.api.auth import PAGES as BASE
from app.api.auth import SESSION_COOKIE as COOKIE
from app.api.auth import is_page
from app.api.context import CurrentSettings, Now, Transaction
from app.dashboard.rendering import render
from app.dashboard.visits import DONE, Seat
from app.errors import ExpungeError, Invalid

router = APIRouter(prefix=BASE)
_HOME: Final = BASE
_PLAIN: Final = re.compile(r"[!-\[\]-~]*")
"""Printable ASCII without the backslash."""
_Words = Annotated[str, Field(max_length=1024)]


class SignInForm(BaseModel):
    """What somebody types to come in."""

    login: _Words = ""
    password: _Words = ""
    code: _Words = ""
    next: _Words = ""


class SetUpForm(BaseModel):
    """What somebody types to set their first password."""

    login: _Words = ""
    code: _Words = ""
    password: _Words = ""
    again: _Words = ""


class FactorForm(BaseModel):
    """The secret that was shown, and a code that the device made of it."""

    secret: Annotated[str, Field(pattern="^[A-Z2-7]{32}$")]
    code: _Words = ""


@router.get("/sign-in")
def ask(
    request: Request,
    settings: CurrentSettings,
    wanted: Annotated[str, Query(alias="next", max_length=1024)] = "",
    done: Annotated[str, Query(max_length=40)] = "",
) -> HTMLResponse:
    """The form."""
    return form_page(request, settings, wanted=wanted, said=DONE.get(done))


@router.post("/sign-in")
def sign_in(
    request: Request, form: Annotated[SignInForm, Form()], tx: Transaction, now: Now, settings: CurrentSettings
) -> Response:
    """Let somebody in, in a session that did not exist before."""
    found = people.sign_in(tx, login=form.login, password=form.password, code=form.code, now=now, settings=settings)
    if isinstance(found, ExpungeError):
        return form_page(request, settings, wanted=form.next, problem=str(found), status=found.status)
    wanted = f"{BASE}/second-factor" if people.needs_second_factor(found.person, settings) else form.next
    return seat(request, tx, cookie=found.cookie, wanted=wanted)


def seat(request: Request, tx: Transaction, *, cookie: str, wanted: str) -> Response:
    """Give a browser its session, which ends with it, instead of the one that it showed; and lead it on."""
    old = request.cookies.get(COOKIE)
    if old:
        people.end_session(tx, old)
    answer = RedirectResponse(safe(wanted), 303)
    answer.set_cookie(COOKIE, cookie, path="/", secure=True, httponly=True, samesite="lax")
    return answer


@router.post("/sign-out")
def sign_out(visit: Seat) -> Response:
    """End this browser's session, here and there."""
    people.sign_out(visit.tx, visit.request.cookies[COOKIE], person=visit.person, now=visit.now)
    answer = visit.go("/sign-in", done="signed_out")
    answer.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="lax")
    answer.headers["Clear-Site-Data"] = '"cache"'
    return answer


@router.get("/set-up")
def ask_set_up(request: Request) -> HTMLResponse:
    """The form for a first password."""
    return HTMLResponse(render("set_up.html", request, problem=None, login=""))


@router.post("/set-up")
def set_up(
    request: Request, form: Annotated[SetUpForm, Form()], tx: Transaction, now: Now, settings: CurrentSettings
) -> Response:
    """Set a first password with the code of an invitation."""
    try:
        _need_the_same(form)
        problem = people.set_up(
            tx, login=form.login, code=form.code, password=form.password, now=now, settings=settings
        )
    except Invalid as error:
        problem = str(error)
    if problem is None:
        return RedirectResponse(f"{BASE}/sign-in?done=password", 303)
    return HTMLResponse(render("set_up.html", request, problem=problem, login=form.login), 422)


def _need_the_same(form: SetUpForm) -> None:
    if form.password != form.again:
        raise Invalid("again", "the two passwords differ; type the same twice")


@router.get("/second-factor")
def ask_factor(visit: Seat) -> Response:
    """A fresh secret, as a code to read with a device; nothing is kept before the device has shown that it knows it."""
    if visit.person.totp is not None:
        return visit.go("")
    return _factor(visit, passwords.new_secret(), problem=None)


@router.post("/second-factor")
def set_factor(visit: Seat, form: Annotated[FactorForm, Form()]) -> Response:
    """Set up the second factor."""
    try:
        people.enrol(
            visit.tx, visit.person.id, secret=form.secret, code=form.code, now=visit.now, settings=visit.settings
        )
    except Invalid as error:
        return _factor(visit, form.secret, problem=str(error))
    return visit.go("", done="enrolled")


def _factor(visit: Seat, secret: str, *, problem: str | None) -> HTMLResponse:
    address = passwords.address_of(secret, login=visit.person.login, issuer="Expunge")
    drawn = io.BytesIO()
    segno.make(address, error="m").save(drawn, kind="svg", scale=5, border=3, xmldecl=False, svgns=True, light="#fff")
    code = Markup(drawn.getvalue().decode())  # noqa: S704 - drawn by segno from our own address
    status = 422 if problem else 200
    return visit.page("second_factor.html", status=status, secret=secret, code=code, problem=problem)


def form_page(
    request: Request,
    settings: CurrentSettings,
    *,
    wanted: str,
    said: str | None = None,
    problem: str | None = None,
    status: int = 200,
) -> HTMLResponse:
    """The form, and what there is to say above it."""
    shown = {"next": safe(wanted), "said": said, "problem": problem, "provider": bool(settings.oidc_sign_in_client)}
    return HTMLResponse(render("sign_in.html", request, safe_origin=_keeps_cookies(request), **shown), status)


def safe(wanted: str) -> str:
    r"""Where to go afterwards, if that is a page of ours; else somebody's link could send people to another site.

    Browsers take ``\`` for ``/``, leave out tabs and line ends, and follow ``..`` also where it is encoded.
    """
    path = wanted.partition("?")[0].partition("#")[0]
    plain = _PLAIN.fullmatch(wanted) and "//" not in wanted and {".", ".."}.isdisjoint(unquote(path).split("/"))
    return wanted if plain and is_page(path) else _HOME


def _keeps_cookies(request: Request) -> bool:
    """Whether this browser will keep our cookie, which travels by TLS only, or to the machine itself."""
    peers = request.app.state.doorkeeper.peers
    return peers.by_tls(request.scope) or request.url.hostname in {"localhost", "127.0.0.1", "::1"}
