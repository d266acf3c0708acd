"""What an operator makes happen with clients and their API keys; one function is one transaction."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy.orm import Session

from app.domain import identifiers
from app.storage import keys
from app.storage.tables import ApiKey

_OPERATOR = "operator at the command line"
_HINT = 10


def create(
    tx: Session,
    *,
    name: str,
    scopes: Sequence[str],
    client_id: UUID | None = None,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Make a key, of a client that is there or of a new one of the same name.

    Returns:
        Its row, and the key itself, which is stored nowhere.
    """
    secret = identifiers.new_api_key(secrets.token_bytes(32))
    row = ApiKey(
        client_id=client_id or keys.add_client(tx, name=name).id,
        name=name,
        hint=secret[:_HINT],
        digest=identifiers.api_key_digest(secret),
        scopes=list(scopes),
        expires_at=expires_at,
    )
    return keys.add(tx, row), secret


def operator(tx: Session) -> UUID:
    """The client under which requests made at the command line are filed; it has no key."""
    known = keys.client_named(tx, _OPERATOR)
    return (known or keys.add_client(tx, name=_OPERATOR)).id
