"""Who we are to OpenDSR clients: what openssl, Node and a strict controller accept, and what we refuse to be."""

from __future__ import annotations

import base64
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app import opendsr
from app.errors import NotConfigured
from app.settings import Settings
from tests.opendsr import DOMAIN, Authority, Controller

BODY = '{"subject_request_id": "5b0d6c1e", "note": "ä"}\n'.encode()
pytestmark = pytest.mark.slow  # RSA keys take their time
NODE = shutil.which("node")
NODES_CHECK = """
const { createVerify, X509Certificate } = require('node:crypto'); const fs = require('node:fs');
const [pem, body, signature] = process.argv.slice(1);
const verify = createVerify('SHA256'); verify.update(fs.readFileSync(body));
const key = new X509Certificate(fs.readFileSync(pem)).publicKey;
process.exit(verify.verify(key, fs.readFileSync(signature, 'utf8'), 'base64') ? 0 : 1);
"""


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def settings(key: Path | None, certificate: Path | None, domain: str = DOMAIN) -> Settings:
    return Settings(opendsr_domain=domain, opendsr_key=key, opendsr_certificate=certificate)


@pytest.fixture
def ours(authority: Authority, tmp_path: Path) -> Settings:
    return settings(*authority.issue(tmp_path))


def test_a_strict_controller_believes_what_we_sign_and_nothing_else(ours: Settings, authority: Authority) -> None:
    signer = opendsr.load(ours)
    for name in ("OpenDSR", "OpenGDPR"):
        headers = signer.headers(BODY, name)
        assert Controller(authority.root, name=name).checked(headers, BODY, pem=signer.pem)
        with pytest.raises(InvalidSignature):
            Controller(authority.root, name=name).checked(headers, BODY + b" ", pem=signer.pem)


def test_openssl_verifies_the_signature_over_the_raw_bytes(ours: Settings, tmp_path: Path) -> None:
    signer = opendsr.load(ours)
    (tmp_path / "body").write_bytes(BODY)
    (tmp_path / "signature").write_bytes(base64.b64decode(signer.signature(BODY)))
    (tmp_path / "published.pem").write_bytes(signer.pem)
    public = subprocess.run(
        ["openssl", "x509", "-in", tmp_path / "published.pem", "-pubkey", "-noout"], capture_output=True, check=True
    )
    (tmp_path / "public.pem").write_bytes(public.stdout)
    check = ["openssl", "dgst", "-sha256", "-verify", tmp_path / "public.pem", "-signature", tmp_path / "signature"]
    assert subprocess.run([*check, tmp_path / "body"], capture_output=True, check=False).returncode == 0
    (tmp_path / "body").write_bytes(BODY + b" ")
    assert subprocess.run([*check, tmp_path / "body"], capture_output=True, check=False).returncode != 0


@pytest.mark.skipif(NODE is None, reason="node is not installed; the real client of mParticle's dialect runs on it")
def test_node_verifies_the_signature_as_the_real_client_does(ours: Settings, tmp_path: Path) -> None:
    signer = opendsr.load(ours)
    (tmp_path / "published.pem").write_bytes(signer.pem)
    (tmp_path / "signature").write_text(signer.signature(BODY))
    for content, status in ((BODY, 0), (BODY + b" ", 1)):
        (tmp_path / "body").write_bytes(content)
        files = [tmp_path / "published.pem", tmp_path / "body", tmp_path / "signature"]
        assert subprocess.run([str(NODE), "-e", NODES_CHECK, *files], check=False).returncode == status


def test_a_private_key_left_in_the_certificates_file_is_not_published(authority: Authority, tmp_path: Path) -> None:
    key, certificate = authority.issue(tmp_path)
    certificate.write_bytes(certificate.read_bytes() + key.read_bytes())
    assert b"PRIVATE" not in opendsr.load(settings(key, certificate)).pem


def test_a_certificate_for_another_name_or_key_is_not_used(authority: Authority, tmp_path: Path) -> None:
    key, certificate = authority.issue(tmp_path / "one")
    other_key, _ = authority.issue(tmp_path / "other")
    with pytest.raises(NotConfigured, match="is not that of"):
        opendsr.load(settings(other_key, certificate))
    for domain in (DOMAIN.upper(), f"{DOMAIN}.", "forget.example"):
        with pytest.raises(NotConfigured, match="common name"):
            opendsr.load(settings(key, certificate, domain))


def test_what_is_missing_or_no_rsa_key_is_named(authority: Authority, tmp_path: Path) -> None:
    key, certificate = authority.issue(tmp_path)
    small, of_small = authority.issue(tmp_path / "small", bits=1024)
    curve = tmp_path / "curve.key"
    form = serialization.PrivateFormat.PKCS8
    curve.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, form, serialization.NoEncryption()
        )
    )
    for broken, says in (
        (settings(None, certificate), "EXPUNGE_OPENDSR_KEY"),
        (settings(key, None), "EXPUNGE_OPENDSR_CERTIFICATE"),
        (settings(key, certificate, ""), "EXPUNGE_OPENDSR_DOMAIN"),
        (settings(tmp_path / "nowhere", certificate), "FileNotFoundError"),
        (settings(certificate, certificate), "EXPUNGE_OPENDSR_KEY"),
        (settings(key, key), "EXPUNGE_OPENDSR_CERTIFICATE"),
        (settings(curve, certificate), "must be RSA"),
        (settings(small, of_small), "2048"),
    ):
        with pytest.raises(NotConfigured, match="not configured") as refused:
            opendsr.load(broken)
        assert says in str(refused.value)


def test_the_doctor_hears_of_a_wrong_name_and_of_an_end_that_comes_near(authority: Authority, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    assert opendsr.complaint(Settings(), now=now) is None
    fine = settings(*authority.issue(tmp_path / "fine"))
    assert opendsr.complaint(fine, now=now) is None
    assert "ends on" in (opendsr.complaint(fine, now=now + timedelta(days=70)) or "")
    elsewhere = settings(*authority.issue(tmp_path / "elsewhere", "other.example"))
    assert "common name" in (opendsr.complaint(elsewhere, now=now) or "")
    itself = settings(*authority.issue(tmp_path / "itself", "Test Root"), domain="Test Root")
    assert "self-signed" in (opendsr.complaint(itself, now=now) or "")


def test_a_renewed_certificate_is_used_without_a_restart(authority: Authority, tmp_path: Path) -> None:
    ours = settings(*authority.issue(tmp_path, days=1))
    before = opendsr.load(ours)
    authority.issue(tmp_path, days=90)
    assert opendsr.load(ours).expires > before.expires
