"""What an operator makes happen with clients, their API keys and their tokens; one function is one transaction."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy.orm import Session

from app.domain import identifiers
from app.errors import Conflict, Invalid, NotFound
from app.storage import keys
from app.storage.tables import ApiKey, Client

_OPERATOR = "operator at the command line"
_HINT = 10


def create(
    tx: Session,
    *,
    name: str,
    scopes: Sequence[str],
    client_id: UUID | None = None,
    expires_at: datetime | None = None,
    key_id: UUID | None = None,
) -> tuple[ApiKey, str]:
    """Make a key, of a client that is there or of a new one of the same name.

    Returns:
        Its row, and the key itself, which is stored nowhere.

    Raises:
        Conflict: The client is a person of the dashboard, or there is a key with the id that the new one was to have.
    """
    if client_id is not None:
        _need_no_person(tx, client_id)
    secret = identifiers.new_api_key(secrets.token_bytes(32))
    if key_id is not None:
        keys.need_unmade(tx, key_id)
    row = ApiKey(
        id=key_id or uuid4(),
        client_id=client_id or keys.add_client(tx, name=name).id,
        name=name,
        hint=secret[:_HINT],
        digest=identifiers.api_key_digest(secret),
        scopes=list(scopes),
        expires_at=expires_at,
    )
    return keys.add(tx, row), secret


def rotate(
    tx: Session,
    key_id: UUID,
    *,
    overlap: timedelta,
    now: datetime,
    expires_at: datetime | None = None,
    as_id: UUID | None = None,
) -> tuple[ApiKey, str]:
    """Make a key that takes another one's place: of the same client, with the same scopes and never with more.

    Both are good until the overlap ends; then the old one is not. A new key lives as long as the old one was meant to,
    if nothing else is said.

    Raises:
        NotFound: There is no such key.
        Conflict: It is revoked or has expired, so there is nothing to take over; or it is a person's.
    """
    old = keys.locked(tx, key_id)
    if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
        raise Conflict("this key is revoked or has expired; make a new one with `expunge keys create --client`")
    if expires_at is None and old.expires_at is not None:
        expires_at = now + (old.expires_at - old.created_at)
    made = create(tx, name=old.name, scopes=old.scopes, client_id=old.client_id, expires_at=expires_at, key_id=as_id)
    old.expires_at = min(old.expires_at or now + overlap, now + overlap)
    return made


def describe_client(
    tx: Session,
    name: str,
    *,
    oidc_subject: str | None = None,
    token_scopes: Sequence[str] | None = None,
    daily_erasures: int | None = None,
) -> Client:
    """Register a client, or change what is given about one that is there.

    Raises:
        Conflict: Another client has this subject, several have this name, or it is a person of the dashboard.
        Invalid: The subject is none that a token could name.
    """
    client = keys.maybe_client(tx, name) or keys.add_client(tx, name=name)
    if oidc_subject or token_scopes:
        _need_no_person(tx, client.id)
    if oidc_subject is not None:
        _need_free(tx, client, oidc_subject)
        client.oidc_subject = oidc_subject or None
    if token_scopes is not None:
        client.token_scopes = list(token_scopes)
    if daily_erasures is not None:
        client.daily_erasures = daily_erasures
    return client


def change_client(
    tx: Session, client_id: UUID, *, oidc_subject: str, token_scopes: Sequence[str], daily_erasures: int | None
) -> Client:
    """Let everything that is given about a client be so from now on.

    Args:
        tx: The transaction.
        client_id: Whose.
        oidc_subject: The subject of its tokens; empty: it has none.
        token_scopes: What those may have at most.
        daily_erasures: Requests it may make in a day; none: as many as the setting says.

    Raises:
        NotFound: There is no such client.
        Conflict, Invalid: As for :func:`describe_client`.
    """
    client = client_of(tx, str(client_id))
    describe_client(tx, str(client_id), oidc_subject=oidc_subject, token_scopes=token_scopes)
    client.daily_erasures = daily_erasures
    return client


def client_of(tx: Session, name: str) -> Client:
    """The client of this name or id.

    Raises:
        NotFound: There is none.
        Conflict: There are several.
    """
    found = keys.maybe_client(tx, name)
    if found is None:
        raise NotFound("there is no client of this name or id; `expunge keys clients` lists them")
    return found


def operator(tx: Session) -> UUID:
    """The client under which requests made at the command line are filed; it has no key."""
    known = keys.client_named(tx, _OPERATOR)
    return (known or keys.add_client(tx, name=_OPERATOR)).id


def _need_no_person(tx: Session, client_id: UUID) -> None:
    """A key or token of a person's client would decide in that person's name, without their password and factor."""
    if keys.is_person(tx, client_id):
        raise Conflict("this client is a person of the dashboard, who has no key; make a client of its own")


def _need_free(tx: Session, client: Client, subject: str) -> None:
    if subject and not (subject.isprintable() and len(subject) <= identifiers.MAX_SUBJECT_CHARACTERS):
        raise Invalid("oidc_subject", f"a subject has at most {identifiers.MAX_SUBJECT_CHARACTERS} characters")
    holder = keys.client_of_subject(tx, subject)
    if holder is not None and holder.id != client.id:
        raise Conflict(f"the client {holder.id} has this subject already")
