"""Whether a call is Transcend's: the token that its gateway, Sombra, signed with ES384.

Norm: docs.transcend.io, "Verify webhook signature". The gateway is shared by many organisations, so a token counts only
if it is made out to ours; and it vouches for one identifier, not for the rest of the body.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from app.errors import NotConfigured, Unauthenticated
from app.settings import Settings

_ALGORITHM = "ES384"
_CURVE = "P-384"
_CLOCKS_DIFFER_SECONDS = 60
_LONGEST = 16_000
_CANT_RESOLVE = "io workers need EXPUNGE_TRANSCEND_API_KEY: without it no job is ever resolved"
_REFUSED = "the x-sombra-token is missing, malformed, expired, or not signed by your Sombra for your organisation"


def vouched_for(token: str, *, settings: Settings, now: datetime) -> str:
    """The core identifier that a token vouches for.

    Raises:
        NotConfigured: A setting is missing.
        Unauthenticated: The token is not Sombra's, not for us, not fresh, or about something else.
    """
    if len(token) > _LONGEST:
        raise Unauthenticated(_REFUSED)
    try:
        claims = jwt.decode(token, _key(settings), algorithms=[_ALGORITHM]).claims
        _registry(settings, now).validate(claims)
    except (JoseError, ValueError, TypeError):  # JSON that is not an object, bytes that are no base64
        raise Unauthenticated(_REFUSED) from None
    value = _value(claims)
    if value is None:
        raise Unauthenticated(_REFUSED)
    return value


def complaint(settings: Settings) -> str | None:
    """What an operator should know about Transcend; none if it works, or is not used at all."""
    if not (settings.transcend_key or settings.transcend_audience or settings.transcend_client):
        return None
    try:
        _key(settings)
    except NotConfigured as error:
        return str(error)
    return None if settings.transcend_api_key.get_secret_value() else _CANT_RESOLVE


def _registry(settings: Settings, now: datetime) -> jwt.JWTClaimsRegistry:
    return jwt.JWTClaimsRegistry(
        now=int(now.timestamp()),
        leeway=_CLOCKS_DIFFER_SECONDS,
        aud={"essential": True, "value": settings.transcend_audience},
        scope={"essential": True, "value": "coreIdentifier"},
        exp={"essential": True},
    )


def _value(claims: Mapping[str, object]) -> str | None:
    value = claims.get("value")
    return value if isinstance(value, str) and value else None


def _key(settings: Settings) -> ECKey:
    path = settings.transcend_key
    if not (path and settings.transcend_audience and settings.transcend_client):
        names = "EXPUNGE_TRANSCEND_KEY, EXPUNGE_TRANSCEND_AUDIENCE and EXPUNGE_TRANSCEND_CLIENT"
        raise NotConfigured(f"not configured: Transcend needs {names}")
    try:
        return _read(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise NotConfigured(f"not configured: {type(error).__name__} at EXPUNGE_TRANSCEND_KEY") from None


@lru_cache(maxsize=4)
def _read(path: Path, _: int) -> ECKey:
    try:
        key = ECKey.import_key(path.read_bytes())
    except (JoseError, ValueError, TypeError):
        raise NotConfigured("not configured: EXPUNGE_TRANSCEND_KEY is not a PEM file of a public key") from None
    if key.curve_name != _CURVE or key.is_private:
        raise NotConfigured("not configured: EXPUNGE_TRANSCEND_KEY must be a public key on the curve P-384")
    return key
