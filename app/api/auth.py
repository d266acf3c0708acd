"""Who is calling, and may they: bearer keys with scopes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    """What a caller may do. Without a word for everybody's, it is with its own client's requests and endpoints."""

    REQUESTS_WRITE = "requests:write"
    REQUESTS_READ = "requests:read"
    REQUESTS_READ_ALL = "requests:read_all"
    """Read every client's requests: an auditor's, an officer's."""
    REQUESTS_DECIDE = "requests:decide"
    """Approve, refuse, hold, extend, retry, whosever request it is: a data protection officer's."""
    MODELS_READ = "models:read"
    WEBHOOKS_WRITE = "webhooks:write"
    SUPPRESSIONS_READ = "suppressions:read"
    """Ask who must not be trained on: a training pipeline's."""
    METRICS_READ = "metrics:read"


_OFFICE = frozenset({Scope.REQUESTS_READ_ALL, Scope.REQUESTS_DECIDE})


@dataclass(frozen=True)
class Caller:
    """Who sent a request, and what it may do."""

    client_id: UUID
    scopes: frozenset[str]

    @property
    def sees(self) -> UUID | None:
        """Whose requests it sees: its own client's; none means everybody's."""
        return None if self.scopes & _OFFICE else self.client_id


_bearer = HTTPBearer(auto_error=False, description="An API key: `expunge keys create NAME --scope requests:write`")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


def needs(*any_of: Scope) -> Callable[[Transaction, Credentials], Caller]:
    """A dependency that admits callers with one of the scopes and tells who it is."""

    def caller(tx: Transaction, credentials: Credentials) -> Caller:
        if credentials is None or not identifiers.looks_like_api_key(credentials.credentials):
            raise Unauthenticated("send an API key as `Authorization: Bearer exk_…`")
        key = keys.known(tx, identifiers.api_key_digest(credentials.credentials))
        if key is None:
            raise Unauthenticated("this API key is unknown, expired or revoked")
        if not set(any_of) & set(key.scopes):
            raise Forbidden(f"this API key lacks the scope {' or '.join(any_of)}")
        return Caller(key.client_id, frozenset(key.scopes))

    return caller
