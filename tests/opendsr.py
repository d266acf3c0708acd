"""The other side of OpenDSR: a certificate authority for tests, and a controller that believes nothing it can't check.

Written from the specification and from what real clients do, with nothing of ours: the signature is checked over the
raw bytes before anything is parsed, the certificate's chain, dates and common name are checked, and the body must name
the URL that it came to.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

DOMAIN = "dsr.forget.example"


def name_of(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


class Authority:
    """Issues certificates that its own root vouches for."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(65537, 2048)
        self.root = self._certificate("Test Root", self.key.public_key(), days=365)

    def issue(
        self, directory: Path, common_name: str = DOMAIN, *, days: float = 90, bits: int = 2048
    ) -> tuple[Path, Path]:
        """Write a key and its certificate; returns where."""
        directory.mkdir(parents=True, exist_ok=True)
        key = rsa.generate_private_key(65537, bits)
        key_file, certificate_file = directory / "opendsr.key", directory / "opendsr.pem"
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        key_file.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
        certificate = self._certificate(common_name, key.public_key(), days=days)
        certificate_file.write_bytes(certificate.public_bytes(encoding))
        return key_file, certificate_file

    def _certificate(self, common_name: str, key: rsa.RSAPublicKey, *, days: float) -> x509.Certificate:
        began = datetime.now(UTC) - timedelta(days=1)
        builder = x509.CertificateBuilder().subject_name(name_of(common_name)).issuer_name(name_of("Test Root"))
        builder = builder.public_key(key).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(began).not_valid_after(datetime.now(UTC) + timedelta(days=days))
        return builder.sign(self.key, hashes.SHA256())


@dataclass
class Controller:
    """What a controller knows of a processor, and how it checks what comes from there."""

    root: x509.Certificate
    domain: str = DOMAIN
    name: str = "OpenDSR"
    controller_id: str = ""
    """What the receipt of its request called it."""

    def checked(self, headers: dict[str, str], body: bytes, *, pem: bytes) -> Any:
        """The body, once it is proven; every assertion is a reason to throw the message away."""
        lower = {key.lower(): value for key, value in headers.items()}
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.verify_directly_issued_by(self.root)
        assert certificate.not_valid_before_utc <= datetime.now(UTC) < certificate.not_valid_after_utc
        [common_name] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        said = lower[f"x-{self.name}-processor-domain".lower()]
        assert said == common_name.value == self.domain  # letter by letter
        signature = lower[f"x-{self.name}-signature".lower()]
        assert "\n" not in signature
        key = certificate.public_key()
        assert isinstance(key, rsa.RSAPublicKey)
        key.verify(base64.b64decode(signature, validate=True), body, padding.PKCS1v15(), hashes.SHA256())
        return json.loads(body)

    def heard(self, headers: dict[str, str], body: bytes, *, pem: bytes, url: str) -> dict[str, Any]:
        """A callback, once it is proven and turns out to be meant for us."""
        told: dict[str, Any] = self.checked(headers, body, pem=pem)
        assert told["status_callback_url"] == url
        assert told["controller_id"] == self.controller_id, "another client's request, under our number and to our URL"
        for field in ("controller_id", "subject_request_id", "request_status", "expected_completion_time"):
            assert isinstance(told[field], str)
        assert told["request_status"] in {"pending", "in_progress", "completed", "cancelled"}
        assert told["expected_completion_time"].endswith("Z")
        datetime.fromisoformat(told["expected_completion_time"])
        return told
