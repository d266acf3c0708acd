"""Who is calling, and may they: bearer keys with scopes."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.api.context import Transaction
from app.domain import identifiers
from app.errors import Forbidden, Unauthenticated
from app.storage import keys


class Scope(StrEnum):
    """What a key may do."""

    REQUESTS_WRITE = "requests:write"
    REQUESTS_READ = "requests:read"
    MODELS_READ = "models:read"
    WEBHOOKS_WRITE = "webhooks:write"


_bearer = HTTPBearer(auto_error=False, description="An API key: `expunge keys create NAME --scope requests:write`")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


def needs(scope: Scope) -> Callable[[Transaction, Credentials], UUID]:
    """A dependency that admits keys with ``scope`` and gives their id."""

    def caller(tx: Transaction, credentials: Credentials) -> UUID:
        if credentials is None or not identifiers.looks_like_api_key(credentials.credentials):
            raise Unauthenticated("send an API key as `Authorization: Bearer exk_…`")
        key = keys.known(tx, identifiers.api_key_digest(credentials.credentials))
        if key is None:
            raise Unauthenticated("this API key is unknown or revoked")
        if scope not in key.scopes:
            raise Forbidden(f"this API key lacks the scope {scope}")
        return key.id

    return caller
