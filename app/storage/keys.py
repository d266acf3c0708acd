"""API keys: only their SHA-256 is stored; 256 random bits need no slow hash."""

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
from app.storage.tables import ApiKey, KeyCheck


def add(tx: Session, *, name: str, hint: str, digest: bytes, scopes: Sequence[str]) -> ApiKey:
    """Store a new key's digest."""
    key = ApiKey(name=name, hint=hint, digest=digest, scopes=list(scopes))
    tx.add(key)
    tx.flush()
    return key


def known(tx: Session, digest: bytes) -> ApiKey | None:
    """The unrevoked key with this digest; notes its use, at most once a minute."""
    key = tx.scalar(select(ApiKey).where(ApiKey.digest == digest, ApiKey.revoked_at.is_(None)))
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
