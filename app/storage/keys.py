"""Clients and their API keys: only their SHA-256 is stored; 256 random bits need no slow hash."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, Text, cast, exists, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.orm import QueryableAttribute, Session

from app import keyring
from app.errors import Conflict, Misconfigured, NotFound
from app.settings import Settings
from app.storage.sessions import fetch
from app.storage.tables import ApiKey, Client, KeyCheck, Person


def add(tx: Session, key: ApiKey) -> ApiKey:
    """Store a new key's digest."""
    tx.add(key)
    tx.flush()
    return key


def need_unmade(tx: Session, key_id: UUID) -> None:
    """Let a form that is sent twice make one key; whoever is second waits for the first.

    Raises:
        Conflict: There is a key with this id.
    """
    tx.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(str(key_id), 7215007))))
    if tx.get(ApiKey, key_id) is not None:
        raise Conflict("this form was sent already; the key that it made was shown then, and is in the list")


def add_client(tx: Session, *, name: str, oidc_subject: str | None = None) -> Client:
    """Store a new client."""
    client = Client(name=name, oidc_subject=oidc_subject)
    tx.add(client)
    tx.flush()
    return client


def maybe_client(tx: Session, name: str) -> Client | None:
    """The client of this name or id, if there is one.

    Raises:
        Conflict: Several have this name.
    """
    with suppress(ValueError):
        return tx.get(Client, UUID(name))
    found = tx.scalars(select(Client).where(Client.name == name).limit(2)).all()
    if len(found) > 1:
        raise Conflict("several clients have this name; use the id that `expunge keys clients` shows")
    return found[0] if found else None


def client_of_subject(tx: Session, subject: str) -> Client | None:
    """The client whose tokens name this subject."""
    return tx.scalar(select(Client).where(Client.oidc_subject == subject))


def clients(tx: Session) -> Sequence[Client]:
    """All clients, oldest first."""
    return tx.scalars(select(Client).order_by(Client.created_at)).all()


def client_page(tx: Session, *, after: UUID | None, limit: int) -> Sequence[tuple[Client, bool]]:
    """Clients, newest first, and whether each is a person of the dashboard, who is left out while without a key."""
    person = exists().where(Person.client_id == Client.id)
    wanted = ~person | exists().where(ApiKey.client_id == Client.id)
    last = tx.get(Client, after) if after else None
    if last is not None:
        wanted &= tuple_(Client.created_at, Client.id) < tuple_(last.created_at, last.id)
    newest = select(Client, person).where(wanted).order_by(Client.created_at.desc(), Client.id.desc()).limit(limit)
    return [(client, is_person) for client, is_person in tx.execute(newest)]


def of_clients(tx: Session, client_ids: Sequence[UUID], *, at: datetime, ended: int) -> Sequence[ApiKey]:
    """The keys of these clients, newest first: all that are good, and of the others the newest few of each."""
    over = ApiKey.revoked_at.is_not(None) | func.coalesce(ApiKey.expires_at <= at, False)
    place = func.row_number().over(partition_by=(ApiKey.client_id, over), order_by=ApiKey.created_at.desc())
    ranked = select(ApiKey.id, over.label("over"), place.label("place"))
    ranks = ranked.where(ApiKey.client_id == func.any(list(client_ids))).subquery()
    shown = select(ApiKey).join(ranks, ranks.c.id == ApiKey.id).where(~ranks.c.over | (ranks.c.place <= ended))
    return tx.scalars(shown.order_by(ApiKey.created_at.desc(), ApiKey.id)).all()


def choices(tx: Session, *, limit: int) -> Sequence[Client]:
    """Clients that are no people of the dashboard, in order of their names."""
    others = select(Client).where(~exists().where(Person.client_id == Client.id))
    return tx.scalars(others.order_by(func.lower(Client.name), Client.id).limit(limit)).all()


def is_person(tx: Session, client_id: UUID) -> bool:
    """Whether a client stands for somebody who signs in at the dashboard."""
    return bool(tx.scalar(select(exists().where(Person.client_id == client_id))))


def is_office(tx: Session, client_id: UUID) -> bool:
    """Whether a client may read every client's requests just now."""
    return bool(tx.scalar(select(sees_everybody(Client.id)).where(Client.id == client_id)))


def locked(tx: Session, key_id: UUID) -> ApiKey:
    """A key, held until the transaction ends.

    Raises:
        NotFound: There is no such key.
    """
    key = tx.scalar(select(ApiKey).where(ApiKey.id == key_id).with_for_update())
    if key is None:
        raise NotFound("there is no API key with this id")
    return key


def client_named(tx: Session, name: str) -> Client | None:
    """The oldest client of this name."""
    return tx.scalar(select(Client).where(Client.name == name).order_by(Client.created_at).limit(1))


OFFICE: Final = frozenset({"requests:read_all", "requests:decide"})
"""Each of these scopes shows every client's requests."""


@dataclass(frozen=True)
class Claim:
    """Who a caller says it is, before anybody has looked it up: the holder of a key, or the subject of a token."""

    key_digest: bytes = b""
    subject: str = ""
    scopes: frozenset[str] = frozenset()
    """What the token asks for."""

    @cached_property
    def name(self) -> str:
        """A name to count its calls by."""
        return self.subject or self.key_digest.hex()


@dataclass(frozen=True)
class Holder:
    """Who a claim belongs to, and what it may do."""

    client_id: UUID | None
    """None: a good token of a subject for whom no client is registered."""
    scopes: frozenset[str]


_LOOK_UP = """
    WITH known AS (
        SELECT id, digest, client_id, scopes, last_used_at FROM api_keys
        WHERE digest = ANY(CAST(%(digests)s AS bytea[]))
          AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
    ), stale AS (
        SELECT id FROM api_keys WHERE id IN (
            SELECT id FROM known WHERE last_used_at IS NULL OR last_used_at < now() - interval '1 minute')
        FOR NO KEY UPDATE SKIP LOCKED
    ), used AS (
        UPDATE api_keys SET last_used_at = now() WHERE id IN (SELECT id FROM stale)
    )
    SELECT digest, client_id, scopes FROM known
"""
"""One statement for any number; a use is noted at most once a minute, and by nobody who would have to wait for it."""


def callers(tx: Session, claims: Sequence[Claim]) -> list[Holder | None]:
    """Whose each claim is; none where the key is unknown, expired or revoked."""
    digests = list({claim.key_digest for claim in claims if claim.key_digest})
    rows = fetch(tx, _LOOK_UP, {"digests": digests}) if digests else []
    holders = {digest: Holder(client_id, frozenset(scopes)) for digest, client_id, scopes in rows}
    subjects = _subjects(tx, [claim.subject for claim in claims if claim.subject])
    return [_held(claim, subjects) if claim.subject else holders.get(claim.key_digest) for claim in claims]


def _subjects(tx: Session, names: list[str]) -> dict[str | None, Client]:
    if not names:
        return {}
    return {client.oidc_subject: client for client in tx.scalars(select(Client).where(Client.oidc_subject.in_(names)))}


def _held(claim: Claim, subjects: dict[str | None, Client]) -> Holder:
    """A token gets what it asks for, as far as its client may have it."""
    client = subjects.get(claim.subject)
    return Holder(client.id, claim.scopes & set(client.token_scopes)) if client else Holder(None, frozenset())


def sees_everybody(client_id: ColumnElement[UUID] | QueryableAttribute[UUID]) -> ColumnElement[bool]:
    """Whether a client may read every client's requests just now: by a live key, or by its tokens."""
    office = cast(list(OFFICE), ARRAY(Text))
    live = ApiKey.revoked_at.is_(None) & (ApiKey.expires_at.is_(None) | (ApiKey.expires_at > func.now()))
    by_key = exists().where(ApiKey.client_id == client_id, live, cast(ApiKey.scopes, ARRAY(Text)).overlap(office))
    by_token = Client.oidc_subject.is_not(None) & cast(Client.token_scopes, ARRAY(Text)).overlap(office)
    return by_key | exists().where(Client.id == client_id, by_token)


def every(tx: Session) -> Sequence[tuple[ApiKey, Client]]:
    """All keys with their clients, oldest first."""
    joined = select(ApiKey, Client).join(Client, Client.id == ApiKey.client_id)
    return [(key, client) for key, client in tx.execute(joined.order_by(ApiKey.created_at))]


def revoke(tx: Session, key_id: UUID) -> None:
    """End a key at once.

    Raises:
        NotFound: No such key, or it is revoked already.
    """
    revoked = tx.scalar(
        update(ApiKey)
        .where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
        .values(revoked_at=func.now())
        .returning(ApiKey.id)
    )
    if revoked is None:
        raise NotFound("there is no active API key with this id")


def check_secrets(tx: Session, settings: Settings) -> None:
    """Compare this process's secrets with those that the database was begun with; the first process sets them.

    Raises:
        Misconfigured: A secret is another one: people would not be found, and their requests would end as ``no_data``.
    """
    for name in ("index_key", "wrapping_key"):
        fingerprint = keyring.fingerprint(settings.key(name), b"which key is this")
        tx.execute(insert(KeyCheck).values(name=name, fingerprint=fingerprint).on_conflict_do_nothing())
        if tx.scalar(select(KeyCheck.fingerprint).where(KeyCheck.name == name)) != fingerprint:
            raise Misconfigured(f"EXPUNGE_{name.upper()} is not the key that this database was begun with")
