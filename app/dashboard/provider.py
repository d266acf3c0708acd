"""Sign-in by the operator's identity provider: OpenID Connect's authorization code with PKCE (RFC 9700 2.1.1).

What one sign-in must remember travels in the browser, sealed; so a code is taken only from the browser that was sent to
fetch it, and many people who begin and never come back leave nothing here.
"""

from __future__ import annotations

import hmac
import json
import secrets
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Final
from urllib.parse import quote_plus

from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.client import OAuth2Client
from authlib.oauth2.rfc6749.parameters import prepare_token_request
from cryptography.exceptions import InvalidTag
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, Field

from app import keyring, people
from app.api.auth import PAGES as BASE
from app.api.context import CurrentSettings, Now, Transaction
from app.api.tokens import Identity, Places, Provider
from app.audit import inquiry
from app.dashboard import sign_in
from app.errors import ExpungeError, Forbidden, NotFound, Unauthenticated, Unavailable
from app.settings import Settings

router = APIRouter(prefix=BASE)
COOKIE: Final = "__Host-expunge-provider"
_BACK: Final = f"{BASE}/sign-in/provider/callback"
_CONTEXT: Final = b"expunge/provider-sign-in/v1"
_LASTS: Final = timedelta(minutes=10)
_ANSWER_SECONDS: Final = 10.0
_FORM: Final = "application/x-www-form-urlencoded"
_Words = Annotated[str, Field(max_length=4096)]


@dataclass(frozen=True)
class Errand:
    """What a browser takes along to the provider, can't read, and shows when it comes back."""

    state: str
    nonce: str
    verifier: str
    next: str
    until: float
    """Seconds since 1970."""


class Brought(BaseModel):
    """What the provider gives a browser to bring us; all of it may be made up."""

    state: _Words = ""
    code: _Words = ""
    error: _Words = ""
    iss: _Words = ""


@router.get("/sign-in/provider")
async def leave(
    request: Request,
    settings: CurrentSettings,
    now: Now,
    wanted: Annotated[str, Query(alias="next", max_length=1024)] = "",
) -> Response:
    """Send somebody to the provider."""
    try:
        places = _provider(request, settings).places
    except Unavailable as error:
        return sign_in.form_page(request, settings, wanted=wanted, problem=str(error), status=error.status)
    state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
    errand = Errand(state, nonce, verifier, sign_in.safe(wanted), (now + _LASTS).timestamp())
    answer = RedirectResponse(_address(places, errand, settings), 303)
    answer.set_cookie(COOKIE, _sealed(errand, settings), max_age=int(_LASTS.total_seconds()), **_KEPT)
    return answer


async def returned(
    request: Request, brought: Annotated[Brought, Query()], settings: CurrentSettings, now: Now
) -> tuple[Errand, Identity] | ExpungeError:
    """Whom the provider vouches for, as it told us itself; asked before a transaction begins."""
    provider = _provider(request, settings)
    try:
        errand = _opened(request.cookies.get(COOKIE, ""), settings, now)
        _check(brought, errand, issuer=settings.oidc_issuer, names_itself=provider.places.names_itself)
        tokens = await _exchanged(brought.code, errand, places=provider.places, settings=settings)
        access_token = str(tokens.get("access_token", ""))
        return errand, provider.identify(str(tokens.get("id_token", "")), nonce=errand.nonce, access_token=access_token)
    except ExpungeError as error:
        return error


@router.get("/sign-in/provider/callback")
def come_back(
    request: Request,
    found: Annotated[tuple[Errand, Identity] | ExpungeError, Depends(returned)],
    tx: Transaction,
    now: Now,
    settings: CurrentSettings,
) -> Response:
    """Let somebody in, in a session that did not exist before."""
    if isinstance(found, ExpungeError):
        return _refused(request, settings, found)
    errand, identity = found
    come = people.sign_in_by_provider(tx, subject=identity.subject, email=identity.email, now=now, settings=settings)
    if isinstance(come, ExpungeError):
        return _refused(request, settings, come)
    answer = sign_in.seat(request, tx, cookie=come.cookie, wanted=errand.next)
    answer.delete_cookie(COOKIE, **_KEPT)
    return answer


_KEPT: Final[dict[str, Any]] = {
    "path": "/",
    "secure": True,
    "httponly": True,
    "samesite": "lax",
}  # Any: as Starlette has it
"""Lax, since it is another site that sends the browser back."""


def _refused(request: Request, settings: Settings, error: ExpungeError) -> Response:
    return sign_in.form_page(request, settings, wanted="", problem=str(error), status=error.status)


def _provider(request: Request, settings: Settings) -> Provider:
    if not settings.oidc_sign_in_client:
        raise NotFound("people sign in by password here")
    found: Provider = request.app.state.doorkeeper.provider
    return found


def _address(places: Places, errand: Errand, settings: Settings) -> str:
    """Where the provider asks somebody who they are."""
    client = OAuth2Client(
        None,
        client_id=settings.oidc_sign_in_client,
        scope="openid email",
        redirect_uri=_our_address(settings),
        code_challenge_method="S256",
    )
    address: str
    address, _ = client.create_authorization_url(
        places.authorization, state=errand.state, code_verifier=errand.verifier, nonce=errand.nonce
    )
    return address


def _our_address(settings: Settings) -> str:
    return settings.dashboard_url.removesuffix("/") + _BACK


def _sealed(errand: Errand, settings: Settings) -> str:
    return keyring.seal(settings.key("wrapping_key"), json.dumps(asdict(errand)).encode(), context=_CONTEXT).hex()


def _opened(cookie: str, settings: Settings, now: datetime) -> Errand:
    """What we sealed.

    Raises:
        Unauthenticated: We did not, or too long ago.
    """
    try:
        plain = keyring.unseal(settings.key("wrapping_key"), bytes.fromhex(cookie), context=_CONTEXT)
    except (ValueError, InvalidTag):
        raise Unauthenticated(_BEGIN_AGAIN) from None
    errand = Errand(**json.loads(plain))
    if now.timestamp() >= errand.until:
        raise Unauthenticated(_BEGIN_AGAIN)
    return errand


_BEGIN_AGAIN: Final = "this sign-in began in another browser, or more than ten minutes ago; begin again"


def _check(brought: Brought, errand: Errand, *, issuer: str, names_itself: bool) -> None:
    """Whether this is the provider's answer to this errand; nothing of its own words is repeated.

    Raises:
        Unauthenticated: It belongs to another sign-in, or comes from another provider.
        Forbidden: The provider says no.
    """
    if not hmac.compare_digest(brought.state.encode(), errand.state.encode()):
        raise Unauthenticated(_BEGIN_AGAIN)
    if (brought.iss or names_itself) and brought.iss != issuer:  # RFC 9207 2.4
        raise Unauthenticated("this answer does not come from our identity provider; begin again")
    if brought.error == "access_denied":
        raise Forbidden("the identity provider did not let you in, or you turned back there")
    if brought.error or not brought.code:
        raise Forbidden("the identity provider could not sign you in; try again, or ask who runs it")


async def _exchanged(code: str, errand: Errand, *, places: Places, settings: Settings) -> dict[str, Any]:  # Any: JSON
    """What the provider gives for a code, asked on our own line to it.

    Raises:
        Unavailable: It gives nothing that can be used.
    """
    headers, body = _question(code, errand, places=places, settings=settings)
    try:
        answer = await inquiry.ask(places.token, body.encode(), kind=_FORM, seconds=_ANSWER_SECONDS, headers=headers)
        found = json.loads(answer.body) if answer.status == 200 else None
    except (Unavailable, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Unavailable("the identity provider did not answer as expected; begin again")
    return found


def _question(code: str, errand: Errand, *, places: Places, settings: Settings) -> tuple[dict[str, str], str]:
    """Headers and body, with our secret where the provider wants it (RFC 6749 2.3.1)."""
    body = prepare_token_request(
        "authorization_code", redirect_uri=_our_address(settings), code=code, code_verifier=errand.verifier
    )
    client, secret = settings.oidc_sign_in_client, settings.oidc_sign_in_secret.get_secret_value()
    if secret and places.takes_basic:
        auth = ClientAuth(quote_plus(client), quote_plus(secret), "client_secret_basic")
    else:
        auth = ClientAuth(client, secret, "client_secret_post" if secret else "none")
    headers: dict[str, str]
    _, headers, body = auth.prepare("POST", places.token, {"Accept": "application/json"}, body)
    return headers, body
