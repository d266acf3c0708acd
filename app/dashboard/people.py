"""The people pages: who has which roles and what these may do; an admin lets people in, out, and in again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Form
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import BaseModel, Field

from app import people
from app.api.auth import PAGES as BASE
from app.dashboard.visits import Peopling, Reading, Visit
from app.domain.people import RIGHTS, Right, Role
from app.errors import Conflict, Invalid
from app.storage import people as stored
from app.storage.tables import Person

router = APIRouter(prefix=BASE)

MAY: Final[Mapping[Right, str]] = {
    Right.READ: "read every page but the internal log",
    Right.DECIDE: "make requests by hand; approve, refuse, hold, extend and take them back",
    Right.LOOK_UP: "search by user id; each search is written down",
    Right.EXPORT: "export the list of requests",
    Right.RETRY: "try failed work again",
    Right.ROLL_BACK: "take a model back to an earlier version",
    Right.WEBHOOKS: "set up webhooks",
    Right.KEYS: "make and revoke API keys",
    Right.PEOPLE: "let people in, keep them out, give them roles",
    Right.AUDIT: "read the internal log, open the records behind the public one",
}
"""Rights in words; the page prints who has them from the same table that the server asks."""
ROLES: Final[Mapping[Role, str]] = {
    Role.VIEWER: "sees, and changes nothing",
    Role.OFFICER: "decides about requests",
    Role.ENGINEER: "looks after models and webhooks",
    Role.AUDITOR: "checks what the others did",
    Role.ADMIN: "lets people and programs in, and decides about nobody's request",
}


class NewPerson(BaseModel):
    """Somebody to let in."""

    login: Annotated[str, Field(max_length=1024)] = ""
    name: Annotated[str, Field(max_length=1024)] = ""
    roles: list[Role] = []
    by_provider: bool = False


class RolesForm(BaseModel):
    """What somebody may be from now on."""

    roles: list[Role] = []


@dataclass(frozen=True)
class Row:
    """A person of the list, with what only admins see."""

    person: Person
    state: str
    tone: str
    sessions: int


@router.get("/people")
def show(visit: Reading) -> HTMLResponse:
    """Everybody, and their roles."""
    open_sessions = stored.sessions(visit.tx) if visit.may(Right.PEOPLE) else {}
    rows = [
        Row(person, *_state(visit, person), open_sessions[person.id][0] if person.id in open_sessions else 0)
        for person in stored.every(visit.tx)
    ]
    return visit.page("people.html", rows=rows, roles=ROLES, may=MAY, rights=RIGHTS)


def _state(visit: Visit, person: Person) -> tuple[str, str]:
    """How far somebody is from coming in, in words, and the tone of that."""
    if person.disabled_at is not None:
        return "kept out", "bad"
    if person.by_provider:
        return "comes by the identity provider", "good"
    if person.password is not None:
        return ("may sign in", "good") if person.totp else ("may sign in, no second factor yet", "warn")
    if person.setup_expires_at is not None and visit.now < person.setup_expires_at:
        return "has not used their code yet", "warn"
    return "their code is too old; make a new one", "bad"


@router.get("/people/new")
def ask(visit: Peopling) -> HTMLResponse:
    """The form."""
    return _form(visit, NewPerson(), problem=None)


@router.post("/people/new")
def add(visit: Peopling, form: Annotated[NewPerson, Form()]) -> HTMLResponse:
    """Let somebody in; the answer shows their code, which is shown nowhere else."""
    try:
        _need_provider(visit, form)
        person, code = people.add(
            visit.tx,
            login=form.login,
            name=form.name,
            roles=form.roles,
            now=visit.now,
            by=visit.person.id,
            by_provider=form.by_provider,
        )
    except (Invalid, Conflict) as error:  # each is found before anything is written
        return _form(visit, form, problem=error)
    return _invitation(visit, person, code)


def _need_provider(visit: Visit, form: NewPerson) -> None:
    if form.by_provider and not visit.settings.oidc_sign_in_client:
        raise Invalid("by_provider", "no identity provider is set up: EXPUNGE_OIDC_SIGN_IN_CLIENT names ours there")


@router.post("/people/{person_id}/roles")
def give_roles(visit: Peopling, person_id: UUID, form: Annotated[RolesForm, Form()]) -> RedirectResponse:
    """Change what somebody may do."""
    people.give_roles(visit.tx, person_id, roles=form.roles, now=visit.now, by=visit.person.id)
    return visit.go("/people", done="roles")


@router.post("/people/{person_id}/disable")
def disable(visit: Peopling, person_id: UUID) -> RedirectResponse:
    """Keep somebody out."""
    people.disable(visit.tx, person_id, now=visit.now, by=visit.person.id)
    return visit.go("/people", done="disabled")


@router.post("/people/{person_id}/enable")
def enable(visit: Peopling, person_id: UUID) -> RedirectResponse:
    """Let somebody in again."""
    people.enable(visit.tx, person_id, now=visit.now, by=visit.person.id)
    return visit.go("/people", done="enabled")


@router.post("/people/{person_id}/invite-again")
def invite_again(visit: Peopling, person_id: UUID) -> HTMLResponse:
    """Make somebody a new code, which this answer alone shows."""
    code = people.invite_again(visit.tx, person_id, now=visit.now, by=visit.person.id)
    return _invitation(visit, stored.locked(visit.tx, person_id), code)


@router.post("/people/{person_id}/end-sessions")
def end_sessions(visit: Peopling, person_id: UUID) -> RedirectResponse:
    """End somebody's sessions everywhere."""
    people.end_sessions(visit.tx, person_id, now=visit.now, by=visit.person.id)
    return visit.go("/people", done="sessions_ended")


def _form(visit: Visit, form: NewPerson, *, problem: Invalid | Conflict | None) -> HTMLResponse:
    return visit.form(
        "people_new.html",
        form=form,
        problem=problem,
        roles=ROLES,
        may=MAY,
        rights=RIGHTS,
        provider=bool(visit.settings.oidc_sign_in_client),
    )


def _invitation(visit: Visit, person: Person, code: str | None) -> HTMLResponse:
    where = visit.settings.dashboard_url or str(visit.request.base_url)
    return visit.once("people_invited.html", person=person, code=code, where=where.rstrip("/") + BASE)
