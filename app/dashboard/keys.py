"""API keys: which client holds which, with what scopes; a new key is shown once, on the page that makes it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal
from uuid import UUID, uuid4

from fastapi import APIRouter, Form
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import BaseModel, Field

from app import keymaking
from app.api.auth import PAGES as BASE
from app.api.auth import Scope
from app.api.schemas.base import Line
from app.dashboard.visits import Keying, Reading, Visit
from app.domain import periods
from app.domain.identifiers import MAX_SUBJECT_CHARACTERS
from app.errors import Conflict, Invalid
from app.storage import keys
from app.storage.tables import ApiKey, Client

router = APIRouter(prefix=BASE)
_PAGE: Final = 50
"""Clients."""
_MOST_CLIENTS: Final = 1000
"""In a list to choose from."""
_ENDED: Final = 5
"""Keys of each client that are good no more, in the list; the newest."""
_ALL_ENDED: Final = 200
WORDS: Final = {
    Scope.REQUESTS_WRITE: "make erasure requests, and take its own back",
    Scope.REQUESTS_READ: "read its own requests and certificates",
    Scope.REQUESTS_READ_ALL: "read every client's requests",
    Scope.REQUESTS_DECIDE: "decide about every client's requests: approve, refuse, hold, extend, retry",
    Scope.MODELS_READ: "read models and their versions",
    Scope.WEBHOOKS_WRITE: "manage its own webhook endpoints",
    Scope.SUPPRESSIONS_READ: "ask who must not be trained on",
    Scope.METRICS_READ: "read metrics",
}
"""What a key may do, for people who give it out."""
Scopes = Annotated[list[Scope], Field(max_length=len(Scope))]


class KeyForm(BaseModel):
    """What somebody types to give out a key."""

    client: UUID | Literal[""] = ""
    """None: a new one of the key's name."""
    name: Annotated[Line, Field(max_length=200)] = ""
    scopes: Scopes = []
    expires: Annotated[Line, Field(max_length=10)] = ""
    as_id: UUID = Field(default_factory=uuid4)
    """Of the key to come: a form that is sent twice makes one."""


class RotationForm(BaseModel):
    """How long the old key is good beside the new one."""

    overlap_hours: Annotated[float, Field(ge=0, le=24 * 90)] = 168
    as_id: UUID = Field(default_factory=uuid4)


class ClientForm(BaseModel):
    """What is given about a client."""

    oidc_subject: Annotated[Line, Field(max_length=MAX_SUBJECT_CHARACTERS)] = ""
    token_scopes: Scopes = []
    daily_erasures: Annotated[int, Field(ge=0, le=10**9)] | Literal[""] = ""
    """None: as many as the setting says."""


@router.get("/keys")
def index(visit: Reading, after: UUID | None = None) -> HTMLResponse:
    """Clients with their keys."""
    found = keys.client_page(visit.tx, after=after, limit=_PAGE + 1)
    clients = found[:_PAGE]
    theirs: defaultdict[UUID, list[ApiKey]] = defaultdict(list)
    for key in keys.of_clients(visit.tx, [client.id for client, _ in clients], at=visit.now, ended=_ENDED):
        theirs[key.client_id].append(key)
    return visit.page(
        "keys.html",
        clients=[(client, is_person, theirs[client.id]) for client, is_person in clients],
        is_good=_is_good(visit.now),
        fresh=uuid4,
        first=f"{BASE}/keys" if after else None,
        next=f"{BASE}/keys?after={clients[-1][0].id}" if len(found) > _PAGE else None,
    )


@router.get("/keys/new")
def ask(visit: Keying, client: UUID | None = None) -> HTMLResponse:
    """The form for a new key."""
    return _form(visit, KeyForm(client=client or ""))


@router.post("/keys/new")
def create(visit: Keying, form: Annotated[KeyForm, Form()]) -> HTMLResponse:
    """Make a key; it is on this page, and nowhere after it."""
    try:
        made, secret = _made(visit, form)
    except (Invalid, Conflict) as error:
        return _form(visit, form, problem=error)
    _note(visit, "key.made", made)
    return _hand_over(visit, made, secret)


def _made(visit: Visit, form: KeyForm) -> tuple[ApiKey, str]:
    name, tx = form.name.strip(), visit.tx
    if not name:
        raise Invalid("name", "a key needs a name by which people know it")
    if not form.scopes:
        raise Invalid("scopes", "choose at least one; a key without any may do nothing")
    if form.client == "" and keys.client_named(tx, name) is not None:
        raise Invalid("name", "a client or a person has this name; choose the client above, or use another name")
    return keymaking.create(
        tx,
        name=name,
        scopes=[scope for scope in Scope if scope in form.scopes],
        client_id=keymaking.client_of(tx, str(form.client)).id if form.client else None,
        expires_at=periods.moment(form.expires, visit.now, field="expires") if form.expires else None,
        key_id=form.as_id,
    )


@router.post("/keys/{key_id}/rotate")
def rotate(visit: Keying, key_id: UUID, form: Annotated[RotationForm, Form()]) -> HTMLResponse:
    """Make a key that takes another one's place; it is on this page, and nowhere after it."""
    overlap = timedelta(hours=form.overlap_hours)
    made, secret = keymaking.rotate(visit.tx, key_id, overlap=overlap, now=visit.now, as_id=form.as_id)
    _note(visit, "key.rotated", made, instead_of=str(key_id), overlap_hours=form.overlap_hours)
    return _hand_over(visit, made, secret)


@router.post("/keys/{key_id}/revoke")
def revoke(visit: Keying, key_id: UUID) -> RedirectResponse:
    """End a key at once."""
    key = keys.locked(visit.tx, key_id)
    keys.revoke(visit.tx, key_id)
    _note(visit, "key.revoked", key)
    return visit.go("/keys", done="revoked")


@router.get("/keys/clients/{client_id}")
def show_client(visit: Reading, client_id: UUID) -> HTMLResponse:
    """One client: what is given about it, and all its keys."""
    client = keymaking.client_of(visit.tx, str(client_id))
    kept = ClientForm.model_construct(
        oidc_subject=client.oidc_subject or "",
        token_scopes=[Scope(scope) for scope in client.token_scopes],
        daily_erasures="" if client.daily_erasures is None else client.daily_erasures,
    )
    return _client(visit, client, kept)


@router.post("/keys/clients/{client_id}")
def change_client(visit: Keying, client_id: UUID, form: Annotated[ClientForm, Form()]) -> Response:
    """Let everything that is given about a client be so from now on."""
    client = keymaking.client_of(visit.tx, str(client_id))
    scopes = [scope for scope in Scope if scope in form.token_scopes]
    cap = None if form.daily_erasures == "" else form.daily_erasures
    try:
        keymaking.change_client(
            visit.tx, client_id, oidc_subject=form.oidc_subject.strip(), token_scopes=scopes, daily_erasures=cap
        )
    except (Invalid, Conflict) as error:
        return _client(visit, client, form, problem=error)
    has_tokens = bool(client.oidc_subject)
    visit.note("client.changed", client=str(client_id), token_scopes=scopes, daily_erasures=cap, has_tokens=has_tokens)
    return visit.go(f"/keys/clients/{client_id}", done="saved")


def _client(
    visit: Visit, client: Client, form: ClientForm, *, problem: Invalid | Conflict | None = None
) -> HTMLResponse:
    return visit.form(
        "keys_client.html",
        client=client,
        is_person=keys.is_person(visit.tx, client.id),
        keys=keys.of_clients(visit.tx, [client.id], at=visit.now, ended=_ALL_ENDED),
        is_good=_is_good(visit.now),
        fresh=uuid4,
        form=form,
        problem=problem,
        words=WORDS,
    )


def _form(visit: Visit, form: KeyForm, *, problem: Invalid | Conflict | None = None) -> HTMLResponse:
    return visit.form(
        "keys_new.html",
        form=form,
        problem=problem,
        clients=keys.choices(visit.tx, limit=_MOST_CLIENTS),
        words=WORDS,
    )


def _hand_over(visit: Visit, made: ApiKey, secret: str) -> HTMLResponse:
    client = keymaking.client_of(visit.tx, str(made.client_id))
    return visit.once("keys_made.html", key=made, client=client, secret=secret, words=WORDS)


def _note(visit: Visit, what: str, key: ApiKey, **detail: Any) -> None:  # Any: JSON
    """Who gave what to whom, in the internal log; never the key."""
    ends = key.expires_at.isoformat() if key.expires_at else None
    visit.note(what, key=str(key.id), client=str(key.client_id), scopes=list(key.scopes), expires_at=ends, **detail)


def _is_good(now: datetime) -> Callable[[ApiKey], bool]:
    """Tells of a key whether it is accepted just now."""
    return lambda key: key.revoked_at is None and (key.expires_at is None or key.expires_at > now)
