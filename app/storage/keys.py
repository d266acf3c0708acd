"""Clients and their API keys: only their SHA-256 is stored; 256 random bits need no slow hash."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app import keyring
from app.errors import Misconfigured, NotFound
from app.settings import Settings
from app.storage.tables import ApiKey, Client, KeyCheck


def add(tx: Session, key: ApiKey) -> ApiKey:
    """Store a new key's digest."""
    tx.add(key)
    tx.flush()
    return key


def add_client(tx: Session, *, name: str, oidc_subject: str | None = None) -> Client:
    """Store a new client."""
    client = Client(name=name, oidc_subject=oidc_subject)
    tx.add(client)
    tx.flush()
    return client


def client_named(tx: Session, name: str) -> Client | None:
    """The oldest client of this name."""
    return tx.scalar(select(Client).where(Client.name == name).order_by(Client.created_at).limit(1))


def known(tx: Session, digest: bytes) -> ApiKey | None:
    """The key with this digest, if it is neither revoked nor expired; notes its use, at most once a minute."""
    lives = ApiKey.revoked_at.is_(None) & or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now())
    key = tx.scalar(select(ApiKey).where(ApiKey.digest == digest, lives))
    if key is not None:
        stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < func.now() - timedelta(minutes=1))
        tx.execute(update(ApiKey).where(ApiKey.id == key.id, stale).values(last_used_at=func.now()))
    return key


def every(tx: Session) -> Sequence[ApiKey]:
    """All keys, oldest first."""
    return tx.scalars(select(ApiKey).order_by(ApiKey.created_at)).all()


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
