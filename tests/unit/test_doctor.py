"""What `expunge doctor` says of portals and tokens, before the first call fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import SecretStr

from app import doctor
from app.settings import Settings


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "sombra.pem"
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    path.write_bytes(public.public_bytes(encoding, form))
    return path


def test_what_is_not_used_is_fine() -> None:
    assert doctor._transcend(Settings()).fine
    assert doctor._tokens(Settings()).fine


def test_half_a_transcend_is_named(key: Path, tmp_path: Path) -> None:
    whole = Settings(
        transcend_key=key,
        transcend_audience="acme",
        transcend_client="transcend",
        transcend_api_key=SecretStr("k"),
    )
    assert doctor._transcend(whole).fine
    for change, says in (
        ({"transcend_audience": ""}, "EXPUNGE_TRANSCEND_AUDIENCE"),
        ({"transcend_client": ""}, "EXPUNGE_TRANSCEND_CLIENT"),
        ({"transcend_key": tmp_path / "nowhere"}, "FileNotFoundError"),
        ({"transcend_api_key": SecretStr("")}, "EXPUNGE_TRANSCEND_API_KEY"),
    ):
        finding = doctor._transcend(whole.model_copy(update=change))
        assert not finding.fine
        assert says in finding.sentence


def test_half_an_identity_provider_is_named(tmp_path: Path) -> None:
    issuer, audience = {"oidc_issuer": "https://login.example"}, {"oidc_audience": "expunge"}
    assert doctor._tokens(Settings(**issuer, **audience)).fine
    for half in (issuer, audience):
        finding = doctor._tokens(Settings(**half))
        assert not finding.fine
        assert "EXPUNGE_OIDC_ISSUER and EXPUNGE_OIDC_AUDIENCE" in finding.sentence
    finding = doctor._tokens(Settings(**issuer, **audience, oidc_jwks=tmp_path / "nowhere"))
    assert not finding.fine
    assert "FileNotFoundError" in finding.sentence


def test_all_of_it_is_examined(key: Path) -> None:
    parts = {finding.part for finding in doctor.examine(Settings())}
    assert {"OpenDSR", "Transcend", "tokens"} <= parts
