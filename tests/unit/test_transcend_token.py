"""Whether a call is Transcend's: real tokens pass, forged ones don't."""

from __future__ import annotations

import base64
import hmac
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from app import transcend_token
from app.errors import NotConfigured, Unauthenticated
from app.settings import Settings
from tests.sombra import es384, part

NOW = datetime(2027, 2, 3, 9, 12, tzinfo=UTC)
SECONDS = int(NOW.timestamp())
GOOD = {"value": "u-48213", "scope": "coreIdentifier", "aud": "acme", "iat": SECONDS, "exp": SECONDS + 600}


KEY = ec.generate_private_key(ec.SECP384R1())
PEM = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    path: Path = tmp_path_factory.mktemp("sombra") / "sombra.pem"
    path.write_bytes(PEM)
    return Settings(transcend_key=path, transcend_audience="acme", transcend_client="transcend")


def vouched_for(settings: Settings, token: str) -> str:
    return transcend_token.vouched_for(token, settings=settings, now=NOW)


def test_a_token_of_our_sombra_vouches_for_its_value(settings: Settings) -> None:
    assert vouched_for(settings, es384(KEY, GOOD)) == "u-48213"
    least = {name: GOOD[name] for name in ("value", "scope", "aud", "exp")}
    assert vouched_for(settings, es384(KEY, least)) == "u-48213"


def unsigned(_: Settings) -> str:
    return (part({"alg": "none"}) + b"." + part(GOOD) + b".").decode()


def by_the_public_key(_: Settings) -> str:
    """The classic: the public key, which everybody has, taken for the secret of HS256."""
    signed = part({"alg": "HS256", "typ": "JWT"}) + b"." + part(GOOD)
    mac = base64.urlsafe_b64encode(hmac.digest(PEM, signed, "sha256")).rstrip(b"=")
    return (signed + b"." + mac).decode()


def by_somebody_else(_: Settings) -> str:
    return es384(ec.generate_private_key(ec.SECP384R1()), GOOD)


def with_a_key_of_its_own(_: Settings) -> str:
    other = ec.generate_private_key(ec.SECP384R1())
    numbers = other.public_key().public_numbers()
    coordinates = {n: base64.urlsafe_b64encode(v.to_bytes(48)).decode().rstrip("=") for n, v in vars_of(numbers)}
    jwk = {"kty": "EC", "crv": "P-384", **coordinates}
    return es384(other, GOOD, {"alg": "ES384", "jwk": jwk})


def vars_of(numbers: ec.EllipticCurvePublicNumbers) -> list[tuple[str, int]]:
    return [("x", numbers.x), ("y", numbers.y)]


def altered(_: Settings) -> str:
    head, _, tail = es384(KEY, GOOD).split(".")
    return ".".join([head, part({**GOOD, "value": "u-1"}).decode(), tail])


@pytest.mark.parametrize("forge", [unsigned, by_the_public_key, by_somebody_else, with_a_key_of_its_own, altered])
def test_a_forged_token_is_refused(settings: Settings, forge: Any) -> None:
    with pytest.raises(Unauthenticated):
        vouched_for(settings, forge(settings))


@pytest.mark.parametrize(
    "claims",
    [
        {**GOOD, "aud": "another organisation"},
        {name: value for name, value in GOOD.items() if name != "aud"},
        {**GOOD, "exp": SECONDS - 3600},
        {**GOOD, "exp": "soon"},
        {name: value for name, value in GOOD.items() if name != "exp"},
        {**GOOD, "nbf": SECONDS + 3600},
        {**GOOD, "iat": SECONDS + 3600},
        {**GOOD, "scope": "enrichment"},
        {name: value for name, value in GOOD.items() if name != "scope"},
        {name: value for name, value in GOOD.items() if name != "value"},
        {**GOOD, "value": ["u-48213"]},
        {**GOOD, "value": ""},
        [GOOD],
        "u-48213",
    ],
)
def test_a_good_signature_over_something_else_is_refused(settings: Settings, claims: Any) -> None:
    with pytest.raises(Unauthenticated):
        vouched_for(settings, es384(KEY, claims))


@given(st.text() | st.from_regex(r"[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}", fullmatch=True))
def test_whatever_is_sent_as_a_token_is_refused_in_one_way(settings: Settings, token: str) -> None:
    with pytest.raises(Unauthenticated):
        vouched_for(settings, token)


def test_a_long_token_is_not_read(settings: Settings) -> None:
    with pytest.raises(Unauthenticated):
        vouched_for(settings, es384(KEY, {**GOOD, "padding": "x" * 20_000}))


def test_without_an_audience_nobody_is_believed(settings: Settings, tmp_path: Path) -> None:
    """Sombra is shared by many organisations: any of them could have a token signed for any value."""
    token = es384(KEY, GOOD)
    for change in ({"transcend_audience": ""}, {"transcend_key": None}, {"transcend_client": ""}):
        with pytest.raises(NotConfigured, match="EXPUNGE_TRANSCEND_AUDIENCE"):
            vouched_for(settings.model_copy(update=change), token)
    private = tmp_path / "private.pem"
    form = serialization.PrivateFormat.PKCS8
    private.write_bytes(KEY.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no key")
    for path in (private, garbage, tmp_path / "nowhere"):
        with pytest.raises(NotConfigured, match="EXPUNGE_TRANSCEND_KEY"):
            vouched_for(settings.model_copy(update={"transcend_key": path}), token)
