"""Who is calling, and may they: bearer keys and tokens with scopes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from app.api.context import Context, Transaction
from app.api.tokens import Provider
from app.domain import identifiers
from app.errors import ExpungeError, Forbidden, Unauthenticated
from app.storage import keys
from app.storage.keys import Claim, Holder
from app.storage.sessions import transaction


def is_page(path: str) -> bool:
    """Whether a path is the dashboard's."""
    return path == PAGES or path.startswith(f"{PAGES}/")


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


@dataclass(frozen=True)
class Caller:
    """Who sent a request, and what it may do."""

    client_id: UUID
    scopes: frozenset[str]

    @property
    def sees(self) -> UUID | None:
        """Whose requests it sees: its own client's; none means everybody's."""
        return None if self.scopes & keys.OFFICE else self.client_id

    @property
    def acts_on(self) -> UUID | None:
        """Whose requests it may change: its own client's; who only reads everybody's changes nobody else's."""
        return None if Scope.REQUESTS_DECIDE in self.scopes else self.client_id


_bearer = HTTPBearer(
    auto_error=False,
    description="An API key (`expunge keys create NAME --scope requests:write`), or a token of the operator's identity"
    " provider for a registered client (`expunge keys client NAME --oidc-subject …`)",
)
Declared = Annotated[object, Depends(_bearer)]
"""Says in the OpenAPI document what :func:`identify` reads."""
CLAIM = "expunge.claim"
"""Where in the ASGI scope the door leaves a :class:`Claim`, or the error that the header is."""
SESSION = "expunge.session"
"""Where the door leaves the claim of a browser's session, for the dashboard's pages: never where a route of the API
would take it for a key."""
SESSION_COOKIE = "__Host-expunge"
"""The prefix binds it to this host, TLS and the path ``/`` (RFC 6265bis 4.1.3)."""
PAGES = "/admin"
"""Below which the dashboard is served; nothing else is."""
ASKED = "expunge.asked"
"""Where :func:`claimed` leaves word that a route wanted to know."""
_KEY_PREFIX = "exk_"


def identify(authorization: str, provider: Provider) -> Claim:
    """Who a caller says it is, from the Authorization header alone: no look-up for what can't be a key or a token.

    Raises:
        Unauthenticated: There is nothing in it that looks like a key, or a token that is not to be believed.
        Unavailable: The token's key is not known yet.
    """
    scheme, _, credentials = authorization.partition(" ")
    credentials = credentials.strip()
    if scheme.lower() != "bearer":
        raise Unauthenticated(_SEND)
    if credentials.count(".") == 2 and not credentials.startswith(_KEY_PREFIX):
        return provider.read(credentials)
    if not identifiers.looks_like_api_key(credentials):
        raise Unauthenticated(_UNKNOWN)
    return Claim(key_digest=identifiers.api_key_digest(credentials))


def claimed(request: Request) -> Claim:
    """Who this call says it is; the door has read it.

    Raises:
        Unauthenticated: It says nothing, or nothing to be believed.
        Unavailable: The token's key is not known yet.
    """
    request.scope[ASKED] = True
    found: Claim | ExpungeError | None = request.scope.get(CLAIM)
    if found is None:
        raise Unauthenticated(_SEND)
    if isinstance(found, ExpungeError):
        raise found
    return found


def admit(holder: Holder | None, *any_of: Scope) -> Caller:
    """Who a claim turned out to be, if it has one of the scopes.

    Raises:
        Unauthenticated: Nobody we know.
        Forbidden: A token of somebody who was not registered, or a caller without the scopes.
    """
    if holder is None:
        raise Unauthenticated(_UNKNOWN)
    if holder.client_id is None:
        raise Forbidden("no client is registered for this token's subject; `expunge keys client` does that")
    if holder.scopes.isdisjoint(any_of):
        raise Forbidden(f"this needs the scope {' or '.join(any_of)}")
    return Caller(holder.client_id, holder.scopes)


def look_up(context: Context, claim: Claim, *any_of: Scope) -> Caller:
    """Who a claim turns out to be, in a transaction of its own.

    Raises:
        Unauthenticated: Nobody we know.
        Forbidden: Somebody without the scopes.
    """
    with transaction(context.engine) as tx:
        return admit(keys.callers(tx, [claim])[0], *any_of)


def needs(*any_of: Scope) -> Callable[[Request, Transaction, Declared], Caller]:
    """A dependency that admits callers with one of the scopes and tells who it is."""

    def caller(request: Request, tx: Transaction, _: Declared) -> Caller:
        [holder] = keys.callers(tx, [claimed(request)])
        return admit(holder, *any_of)

    return caller


Writer = Annotated[Caller, Depends(needs(Scope.REQUESTS_WRITE))]
Owner = Annotated[Caller, Depends(needs(Scope.REQUESTS_WRITE, Scope.REQUESTS_DECIDE))]
"""Whoever speaks for the person of a request: the portal that it came from, or an officer, for every portal's."""
Reader = Annotated[Caller, Depends(needs(Scope.REQUESTS_READ, Scope.REQUESTS_READ_ALL, Scope.REQUESTS_DECIDE))]
"""Whoever may read requests: who decides about them must see them."""
_SEND = "send an API key or a token as `Authorization: Bearer …`"
# One sentence for all: which of them it is would tell a thief what the find is worth. What cannot be a key by its own
# checksum is not looked up and so answered sooner, which says no more than anybody can compute from the key itself.
_UNKNOWN = "this API key is unknown, expired or revoked"
