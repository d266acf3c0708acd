"""Bearer tokens of the operator's identity provider: JWTs (RFC 7519, RFC 9068), checked against its published keys.

We issue none. A token says who it is about and what it asks for; what it may have at most stands with the client that
an operator registered for that subject (`expunge keys client`). Where a token says its key could be found (``jku``,
``x5u``, ``jwk``, ``x5c``) is never looked at, and nothing is fetched while a request waits: a task beside the requests
keeps the keys fresh.

People sign in at the dashboard by the same provider: then it sends an ID token (OpenID Connect Core 1.0), which is good
for that alone.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from joserfc import jws, jwt
from joserfc.errors import ExpiredTokenError, InvalidClaimError, JoseError, MissingClaimError, SecurityWarning
from joserfc.jwk import ECKey, JWKRegistry, OKPKey, RSAKey

from app.audit import inquiry
from app.domain.identifiers import MAX_SUBJECT_CHARACTERS
from app.errors import Misconfigured, Unauthenticated, Unavailable
from app.logs import log
from app.settings import Settings
from app.storage.keys import Claim

PublicKey = RSAKey | ECKey | OKPKey

_LONGEST_TOKEN: Final = 16 << 10
_ANSWER_SECONDS: Final = 5.0
_USUAL_SECONDS: Final = 300.0
"""How often the keys are read anyway: providers publish a new key well before they sign with it."""
_SOON_SECONDS: Final = 5.0
_LEAST_RSA_BITS: Final = 2048
_MOST_KEYS: Final = 200
_LONGEST_LIFE: Final = 24 * 3600
"""A token can't be revoked here."""
_OF_ID_TOKENS: Final = frozenset({"nonce", "at_hash", "c_hash"})
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})
_TYPES_OF_ID_TOKENS: Final = frozenset({"jwt"})
_OLDEST_ID_TOKEN_SECONDS: Final = 600
"""It was made when the code was exchanged, a moment ago."""
_WELL_KNOWN: Final = "/.well-known/openid-configuration"
_AGAIN: Final = "the identity provider's keys are being read; try again in a moment"

# RFC 9864 prefers "Ed25519" to "EdDSA"; providers write the old name, and a warning per process helps nobody.
warnings.filterwarnings("ignore", message="EdDSA is deprecated", category=SecurityWarning)


@dataclass(frozen=True)
class Keys:
    """The provider's keys by id, as read at a time."""

    by_id: Mapping[str, PublicKey] = field(default_factory=dict)
    read_at: float = float("-inf")


@dataclass(frozen=True)
class Places:
    """Where people sign in at the provider, as its discovery document says."""

    authorization: str
    token: str
    takes_basic: bool
    """Whether our secret goes into a header there, which is the rule; else into the form."""
    names_itself: bool
    """Whether it says who it is when it sends people back (RFC 9207)."""


@dataclass(frozen=True)
class Identity:
    """Whom the provider vouches for."""

    subject: str
    email: str | None
    """An address that the provider says it has checked."""


class Provider:
    """Reads tokens of one issuer.

    Args:
        settings: Those that begin with ``oidc_``; without an issuer every token is refused.
        clock: Seconds since 1970.

    Raises:
        Misconfigured: The settings would accept what they should not, or can't be followed.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self._settings, self._clock = settings, clock
        self._wanted = asyncio.Event()
        self._asked_at = float("-inf")
        self._keys = Keys()
        self._places: Places | None = None
        _check(settings)
        if settings.oidc_jwks:
            self._keys = Keys(_understood(_json(settings.oidc_jwks.read_bytes())), float("inf"))
        self._registry = jws.JWSRegistry(algorithms=settings.oidc_algorithms, strict_check_header=False)
        self._registry.max_header_length = 4096  # providers put certificates there; nobody reads them
        self._registry.max_payload_length = _LONGEST_TOKEN

    def read(self, token: str) -> Claim:
        """Who a token is about, and what it asks for; asks nobody.

        Raises:
            Unauthenticated: It is not one of ours, or not now; says which rule it breaks and nothing of what it says.
            Unavailable: Its key is not known yet.
        """
        if not (self._settings.oidc_issuer and self._settings.oidc_audience):
            raise Unauthenticated("tokens are not accepted here; send an API key as `Authorization: Bearer exk_…`")
        try:
            return self._claim(self._verified(token))
        except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
            # The last four: no list has all that a stranger's bytes can raise in a parser.
            raise _refused(_sentence(error)) from None

    def identify(self, token: str, *, nonce: str, access_token: str) -> Identity:
        """Whom an ID token is about that was sent for one sign-in of ours (OpenID Connect Core 3.1.3.7).

        Args:
            token: The ID token.
            nonce: The one that this sign-in began with.
            access_token: The one that came with it; it is used for nothing.

        Raises:
            Unauthenticated: It is for somebody else, for another sign-in, or not to be believed.
            Unavailable: Its key is not known yet.
        """
        try:
            return self._identity(token, nonce, access_token)
        except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:  # as above
            raise _refused(_sentence(error)) from None

    @property
    def places(self) -> Places:
        """Where people sign in.

        Raises:
            Unavailable: The provider has not said so yet.
        """
        if self._places is None:
            raise Unavailable("the identity provider can't be reached just now; try again in a minute")
        return self._places

    async def keep_places(self) -> None:
        """Read for ever where people sign in."""
        while self._settings.oidc_sign_in_client:
            try:
                self._places = _places(await self._discovered())
            except Exception as error:  # noqa: BLE001 - somebody else's bytes; without this task nobody could ever sign in
                log.warning("where people sign in can't be read", kind=type(error).__name__)
            await asyncio.sleep(_USUAL_SECONDS if self._places else _SOON_SECONDS)

    async def keep_keys(self) -> None:
        """Read the provider's keys for ever: now and then, and soon after a token named one that we don't know."""
        while self._settings.oidc_issuer and not self._settings.oidc_jwks:
            self._asked_at = self._clock()
            try:
                self._keys = Keys(await self._fetched(), self._clock())
            except Exception as error:  # noqa: BLE001 - somebody else's bytes; without this task no token is ever read again
                log.warning("the identity provider's keys can't be read", kind=type(error).__name__)
            self._wanted.clear()
            await asyncio.sleep(min(_SOON_SECONDS, self._settings.oidc_refetch_seconds))  # whoever asks, and how often
            with suppress(TimeoutError):
                async with asyncio.timeout(_USUAL_SECONDS if self._fresh() else _SOON_SECONDS):
                    await self._wanted.wait()

    def _verified(self, token: str) -> dict[str, Any]:  # Any: JSON
        _, claims = self._signed(token, _TYPES)
        self._rules(self._settings.oidc_audience).validate(claims)
        if claims["exp"] - self._clock() > _LONGEST_LIFE + self._settings.oidc_leeway_seconds:
            raise _refused("it lives longer than a day")
        if not _OF_ID_TOKENS.isdisjoint(claims):
            raise _refused("it is an ID token; send an access token")
        return claims

    def _identity(self, token: str, nonce: str, access_token: str) -> Identity:
        algorithm, claims = self._signed(token, _TYPES_OF_ID_TOKENS)
        ours = self._settings.oidc_sign_in_client
        self._rules(ours, "iat", "nonce", "sub").validate(claims)
        if not _is_for(ours, claims):
            raise _refused("it was made for somebody else, too")
        if self._clock() - claims["iat"] > _OLDEST_ID_TOKEN_SECONDS + self._settings.oidc_leeway_seconds:
            raise _refused("it is old")
        if not _same(claims["nonce"], nonce):
            raise _refused("it belongs to another sign-in")
        if "at_hash" in claims and not _same(claims["at_hash"], _half_hash(access_token, algorithm)):
            raise _refused("it belongs to another access token")
        subject, email = claims["sub"], claims.get("email")
        if not subject.isprintable() or len(subject) > MAX_SUBJECT_CHARACTERS:
            raise _refused("its sub does not name a person")
        checked = isinstance(email, str) and claims.get("email_verified") is True
        return Identity(subject, email if checked else None)

    def _signed(self, token: str, types: Collection[str]) -> tuple[str, dict[str, Any]]:  # Any: JSON
        """By which algorithm it is signed, and what it says; nothing of that is checked yet."""
        if len(token) > _LONGEST_TOKEN:
            raise _refused("it is too long")
        header = jws.extract_compact(token.encode("ascii"), registry=self._registry).headers()
        if str(header.get("typ") or "jwt").lower() not in types:
            raise _refused("it is of another type")
        if header.get("alg") not in self._settings.oidc_algorithms:  # before a key is looked for
            raise _refused("its signature is of a kind that is not accepted")
        if "crit" in header:  # RFC 7515 4.1.11: refuse what must be understood and is not
            raise _refused("it sets a condition that is not known here")
        return header["alg"], jwt.decode(token, self._key(header.get("kid")), registry=self._registry).claims

    def _rules(self, audience: str, *needed: str) -> jwt.JWTClaimsRegistry:
        also: dict[str, jwt.ClaimsOption] = {name: {"essential": True} for name in needed}
        return jwt.JWTClaimsRegistry(
            now=int(self._clock()),
            leeway=self._settings.oidc_leeway_seconds,
            iss={"essential": True, "value": self._settings.oidc_issuer},
            aud={"essential": True, "value": audience},
            exp={"essential": True},
            **also,
        )

    def _key(self, key_id: object) -> PublicKey:
        known = self._keys.by_id
        if not self._fresh():
            self._wanted.set()
            raise Unavailable(_AGAIN)
        if key_id is None and len(known) == 1:
            return next(iter(known.values()))
        if not isinstance(key_id, str):
            raise _refused("it does not say by which key it is signed")
        if key_id not in known:
            self._ask_anew()
            raise _refused("it is signed by a key that the identity provider does not publish")
        return known[key_id]

    def _ask_anew(self) -> None:
        """A new key id may mean new keys; a made-up one must not make us a nuisance to the provider.

        Raises:
            Unavailable: We are asking.
        """
        if self._clock() - self._asked_at >= self._settings.oidc_refetch_seconds and not self._settings.oidc_jwks:
            self._wanted.set()
            raise Unavailable(_AGAIN)

    def _fresh(self) -> bool:
        return self._clock() - self._keys.read_at < self._settings.oidc_keys_hours * 3600

    def _claim(self, claims: Mapping[str, object]) -> Claim:
        subject = claims.get(self._settings.oidc_client_claim)
        if not isinstance(subject, str) or not subject.isprintable() or not 0 < len(subject) <= MAX_SUBJECT_CHARACTERS:
            raise _refused(f"its {self._settings.oidc_client_claim} does not name a client")
        if claims.get("sub", subject) != subject and not _says_no_person_is_behind(claims):
            raise _refused("it is about somebody else than the client")
        asked = frozenset(word for name in ("scope", "scp", "roles") for word in _words(claims.get(name)))
        return Claim(subject=subject, scopes=asked)

    async def _fetched(self) -> dict[str, PublicKey]:
        url = self._settings.oidc_jwks_url or _address(await self._discovered(), "jwks_uri")
        return _understood(await _document(url))

    async def _discovered(self) -> dict[str, Any]:  # Any: JSON
        """The discovery document; it must be the issuer's own (OIDC Discovery 4.3)."""
        issuer = self._settings.oidc_issuer
        document = await _document(issuer.rstrip("/") + _WELL_KNOWN)
        if document.get("issuer") != issuer:
            raise Unavailable("the discovery document is not the issuer's")
        return document


def _places(document: Mapping[str, Any]) -> Places:  # Any: JSON
    ways = document.get("token_endpoint_auth_methods_supported")
    return Places(
        authorization=_address(document, "authorization_endpoint"),
        token=_address(document, "token_endpoint"),
        takes_basic=not isinstance(ways, list)
        or "client_secret_basic" in ways,  # Discovery 3: where it says nothing, it does
        names_itself=document.get("authorization_response_iss_parameter_supported") is True,
    )


def _address(document: Mapping[str, Any], name: str) -> str:  # Any: JSON
    url = document.get(name)
    if not isinstance(url, str) or not _private_enough(url):
        raise Unavailable("the discovery document names no address that can be used")
    return url


def _is_for(client: str, claims: Mapping[str, object]) -> bool:
    """Whether we are who asked: a token for several must say so."""
    alone = claims["aud"] in (client, [client])
    return claims.get("azp", client if alone else None) == client


def _same(said: object, expected: str) -> bool:
    return isinstance(said, str) and hmac.compare_digest(said.encode(), expected.encode())


def _half_hash(access_token: str, algorithm: str) -> str:
    """OpenID Connect Core 3.1.3.6: the left half of the hash that the signature uses; Ed25519 uses SHA-512."""
    digest = hashlib.sha512 if algorithm.startswith("Ed") else hashlib.sha256
    hashed = digest(access_token.encode("ascii")).digest()
    return base64.urlsafe_b64encode(hashed[: len(hashed) // 2]).rstrip(b"=").decode()


def _check(settings: Settings) -> None:
    _check_sign_in(settings)
    if not settings.oidc_issuer:
        return
    if not (settings.oidc_audience or settings.oidc_sign_in_client):
        raise Misconfigured("EXPUNGE_OIDC_AUDIENCE must be set: without it tokens for other services would do here")
    if not settings.oidc_algorithms:
        raise Misconfigured("EXPUNGE_OIDC_ALGORITHMS must name a kind of signature, such as RS256")
    for name in ("oidc_issuer", "oidc_jwks_url"):
        url = getattr(settings, name)
        if url and not _private_enough(url):
            raise Misconfigured(f"EXPUNGE_{name.upper()} must be an https address")


def _check_sign_in(settings: Settings) -> None:
    if settings.oidc_sign_in_client and not settings.oidc_issuer:
        raise Misconfigured("EXPUNGE_OIDC_SIGN_IN_CLIENT needs EXPUNGE_OIDC_ISSUER: by whom do people sign in?")
    if settings.oidc_sign_in_secret.get_secret_value() and not settings.oidc_sign_in_client:
        raise Misconfigured("EXPUNGE_OIDC_SIGN_IN_SECRET needs EXPUNGE_OIDC_SIGN_IN_CLIENT, to whom it belongs")
    if settings.oidc_sign_in_client and not settings.dashboard_url:
        raise Misconfigured("EXPUNGE_DASHBOARD_URL must be set: the identity provider sends people back there")
    if settings.dashboard_url and not _is_site(settings.dashboard_url):
        raise Misconfigured("EXPUNGE_DASHBOARD_URL must be an https address without a path: https://erasure.example")


def _is_site(url: str) -> bool:
    """Browsers keep our cookies there: by TLS, or on the machine itself."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # read: it may be none
    except ValueError:
        return False
    whole = f"{parts.scheme}://{parts.netloc}" == url.removesuffix("/") and "@" not in parts.netloc
    return whole and (_private_enough(url) or (parts.scheme, parts.hostname) == ("http", "localhost"))


def _private_enough(url: str) -> bool:
    """Whoever can change the keys on their way to us can write any token."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    if parts.scheme == "http":
        with suppress(ValueError):
            return ip_address(parts.hostname or "").is_loopback
    return parts.scheme == "https" and bool(parts.hostname)


async def _document(url: str) -> dict[str, Any]:  # Any: JSON
    answer = await inquiry.read(url, seconds=_ANSWER_SECONDS)
    if answer.status != 200:
        raise Unavailable(f"the identity provider answered {answer.status}")
    return _json(answer.body)


def _json(raw: bytes) -> dict[str, Any]:  # Any: JSON
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise Unavailable("what the identity provider sent is not a JSON object")
    return document


def _understood(document: Mapping[str, Any]) -> dict[str, PublicKey]:  # Any: JSON
    """The keys that may sign tokens; others, such as for encryption, are not our business (RFC 7517 5).

    Raises:
        Unavailable: There is none.
    """
    listed = document.get("keys")
    found = [key for entry in (listed if isinstance(listed, list) else [])[:_MOST_KEYS] if (key := _public_key(entry))]
    if not found:
        raise Unavailable("the identity provider published no key that can be used")
    return {str(key.kid): key for key in reversed(found)}  # of two with one id the first counts


def _public_key(entry: object) -> PublicKey | None:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig" or entry.get("kty") == "oct":
        return None
    try:
        with warnings.catch_warnings(action="ignore"):  # small RSA keys, which are dropped below
            key = JWKRegistry.import_key({name: value for name, value in entry.items() if name not in _SECRET_PARTS})
        key.ensure_kid()
    except Exception:  # noqa: BLE001 - somebody else's bytes in somebody else's parser; the other keys are still good
        return None
    if isinstance(key, RSAKey) and key.raw_value.key_size < _LEAST_RSA_BITS:
        return None
    return key if isinstance(key, PublicKey) and isinstance(key.kid, str) else None


_SECRET_PARTS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth"})


def _says_no_person_is_behind(claims: Mapping[str, object]) -> bool:
    """Auth0 and Entra ID give a client's own token another subject, and say so (RFC 9068 2.2 asks for the same one)."""
    return claims.get("gty") == "client-credentials" or claims.get("idtyp") == "app"


def _words(value: object) -> Iterable[str]:
    """Scopes as RFC 8693 writes them, in one string, or as lists, as others do."""
    if isinstance(value, str):
        return value.split()
    return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []


def _refused(sentence: str) -> Unauthenticated:
    return Unauthenticated(f"this token can't be accepted: {sentence}")


def _sentence(error: Exception) -> str:
    """What is wrong, in words of ours: an error of the library's may quote the token."""
    match error:
        case ExpiredTokenError():
            return "it has expired"
        case MissingClaimError() | InvalidClaimError() if error.claim in {"iss", "aud", "exp", "nbf", "iat"}:
            return f"its {error.claim} is missing or not the one needed here"
    return "it is malformed, or its signature is wrong"
