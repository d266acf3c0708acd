"""What an operator makes happen with API keys; one function is one transaction."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.orm import Session

from app.domain import identifiers
from app.storage import keys
from app.storage.tables import ApiKey

_OPERATOR = "operator at the command line"
_HINT = 10


def create(tx: Session, *, name: str, scopes: Sequence[str]) -> tuple[ApiKey, str]:
    """Make a key; returns its row and the key itself, which is stored nowhere."""
    secret = identifiers.new_api_key(secrets.token_bytes(32))
    digest = identifiers.api_key_digest(secret)
    return keys.add(tx, name=name, hint=secret[:_HINT], digest=digest, scopes=scopes), secret


def operator(tx: Session) -> UUID:
    """The client id under which requests made at the command line are filed; its key opens nothing."""
    for key in keys.every(tx):
        if key.name == _OPERATOR:
            return key.id
    return create(tx, name=_OPERATOR, scopes=[])[0].id
