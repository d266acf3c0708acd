"""Who looks at a page, and may they: a browser's session, and the rights that the person's roles give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, Final
from urllib.parse import quote
from uuid import UUID

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from sqlalchemy.orm import Session

from app import people
from app.api import auth
from app.api.auth import PAGES as BASE
from app.api.auth import SESSION_COOKIE as COOKIE
from app.api.context import CurrentSettings, Now, Transaction
from app.dashboard.rendering import render
from app.domain.people import Right, rights_of
from app.errors import Conflict, Forbidden, Invalid, Unauthenticated
from app.settings import Settings
from app.storage import people as stored
from app.storage.tables import Person


@dataclass(frozen=True)
class Visit:
    """One person's look at one page, in one transaction."""

    request: Request
    tx: Session
    person: Person
    now: datetime
    settings: Settings

    @property
    def by(self) -> UUID:
        """Under which decisions and requests of this person are filed."""
        return self.person.client_id

    @cached_property
    def rights(self) -> frozenset[Right]:
        """What the person may do."""
        return rights_of(self.person.roles)

    def may(self, right: str) -> bool:
        """Whether the person has a right; templates ask by its word."""
        return Right(right) in self.rights

    def page(self, template: str, *, status: int = 200, **said: Any) -> HTMLResponse:  # Any: what templates show
        """A page, or a part of one."""
        known = {"visit": self, "now": self.now, "zone": self.settings.zone}
        return HTMLResponse(render(template, self.request, **(known | said)), status)

    def form(self, template: str, *, problem: Invalid | Conflict | None, **said: Any) -> HTMLResponse:  # Any: as above
        """A form, with what was wrong when it was sent, and at which field."""
        field = problem.field if isinstance(problem, Invalid) else ""
        return self.page(template, status=problem.status if problem else 200, problem=problem, field=field, **said)

    def once(self, template: str, **said: Any) -> HTMLResponse:  # Any: what templates show
        """A page with a secret on it, that no browser keeps."""
        answer = self.page(template, **said)
        answer.headers["Cache-Control"] = "no-store"
        return answer

    def go(self, path: str, *, done: str = "") -> RedirectResponse:
        """To another page of the dashboard once something was done, which it says at the top.

        Args:
            path: Below the dashboard's, beginning with a slash.
            done: A key of :data:`DONE`, so that a link can't make the page say what it likes.
        """
        mark = f"{'&' if '?' in path else '?'}done={quote(done)}" if done else ""
        return RedirectResponse(f"{BASE}{path}{mark}", 303)

    @property
    def done(self) -> str | None:
        """What was just done, if the address says so."""
        return DONE.get(self.request.query_params.get("done", ""))

    def note(self, what: str, *, request_id: UUID | None = None, **detail: Any) -> None:  # Any: JSON
        """Write an entry of the internal log in the person's name; never a user id."""
        stored.enter(self.tx, what, at=self.now, person_id=self.person.id, request_id=request_id, detail=detail)


DONE: Final = {
    "approved": "Approved.",
    "refused": "Refused. Look at the notices: the person has to be told.",
    "held": "On hold; its clock runs on.",
    "released": "Released; it is planned anew.",
    "extended": "The deadline was extended. Look at the notices: the person has to be told.",
    "cancelled": "Taken back.",
    "retried": "Queued again.",
    "confirmed": "Identity confirmed.",
    "noted": "Noted that the person was told.",
    "created": "The request was made.",
    "known": "This demand is open already; here is its request.",
    "rolled_back": "Rolled back. Every deletion that this undid is queued again.",
    "saved": "Saved.",
    "password": "Your password is set. Sign in with it.",
    "signed_out": "You have signed out.",
    "enrolled": "Your second factor is set up.",
    "replayed": "It will be sent again.",
    "replayed_some": "A thousand messages will be sent again, the oldest; there are more: press again for the next.",
    "replayed_none": "Nothing failed in that time.",
    "hook_on": "Switched on; what was undelivered is sent again.",
    "hook_off": "Switched off; nothing is sent until somebody switches it on.",
    "pinged": "A ping is on its way.",
    "deleted": "Deleted.",
    "revoked": "Revoked; it is refused from now on.",
    "disabled": "Disabled; every session has ended.",
    "enabled": "Enabled.",
    "roles": "The roles are changed; they hold from the next click on.",
    "sessions_ended": "Every session of this person has ended; they may sign in again.",
    "others_ended": "Your sessions in all other browsers have ended.",
    "password_changed": "Your password is changed, and your sessions in all other browsers have ended.",
}


def seated(request: Request, tx: Transaction, now: Now, settings: CurrentSettings) -> Visit:
    """Whoever has signed in, whatever they may do.

    Raises:
        Unauthenticated: Nobody has, in this browser, or not lately.
    """
    request.scope[auth.ASKED] = True  # the door remembers who came with a good cookie
    cookie = request.cookies.get(COOKIE)
    person = people.visitor(tx, cookie, now=now, settings=settings) if cookie else None
    if cookie is None or person is None:
        raise Unauthenticated("sign in; a session ends when it is left alone")
    if "hx-request" not in request.headers:
        people.note_presence(tx, cookie, now=now)
    return Visit(request, tx, person, now, settings)


def visiting(right: Right) -> Callable[[Visit], Visit]:
    """A dependency that lets in who has a right and has set up what the house asks of them.

    Raises:
        Forbidden: They have not.
    """

    def visit(seat: Seat) -> Visit:
        if people.needs_second_factor(seat.person, seat.settings):
            raise Forbidden("set up your second factor first")
        if right not in seat.rights:
            raise Forbidden(f"none of your roles may do this ({right.replace('_', ' ')}); an admin gives roles")
        return seat

    return visit


Seat = Annotated[Visit, Depends(seated)]
Reading = Annotated[Visit, Depends(visiting(Right.READ))]
Deciding = Annotated[Visit, Depends(visiting(Right.DECIDE))]
LookingUp = Annotated[Visit, Depends(visiting(Right.LOOK_UP))]
Exporting = Annotated[Visit, Depends(visiting(Right.EXPORT))]
Retrying = Annotated[Visit, Depends(visiting(Right.RETRY))]
RollingBack = Annotated[Visit, Depends(visiting(Right.ROLL_BACK))]
Hooking = Annotated[Visit, Depends(visiting(Right.WEBHOOKS))]
Keying = Annotated[Visit, Depends(visiting(Right.KEYS))]
Peopling = Annotated[Visit, Depends(visiting(Right.PEOPLE))]
Auditing = Annotated[Visit, Depends(visiting(Right.AUDIT))]
