"""Who we are to OpenDSR clients: a domain, its certificate and the RSA key that signs for it.

Clients compare the certificate's common name with the domain letter by letter, and check RSA PKCS #1 v1.5 with SHA-256
over the raw bytes. Whatever they would refuse, we don't send.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from app.errors import NotConfigured
from app.settings import Settings

EXPIRES_SOON: Final = timedelta(days=30)
_LEAST_BITS: Final = 2048


@dataclass(frozen=True)
class Processor:
    """A domain that can prove what it says."""

    domain: str
    key: RSAPrivateKey = field(repr=False)
    chain: tuple[x509.Certificate, ...] = field(repr=False)

    def signature(self, content: bytes) -> str:
        """The signature over these very bytes, base64 on one line."""
        return base64.b64encode(self.key.sign(content, PKCS1v15(), SHA256())).decode()

    def headers(self, content: bytes, name: str) -> dict[str, str]:
        """The headers of a signed message; ``name`` is OpenDSR, or OpenGDPR for those who still call it so."""
        return {f"X-{name}-Processor-Domain": self.domain, f"X-{name}-Signature": self.signature(content)}

    @property
    def pem(self) -> bytes:
        """The certificates as they are published: written anew, so that a key left in the file stays where it is."""
        return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in self.chain)

    @property
    def expires(self) -> datetime:
        """When clients stop believing us."""
        return self.chain[0].not_valid_after_utc


def load(settings: Settings) -> Processor:
    """Read key and certificate; a renewed file is read again without a restart.

    Raises:
        NotConfigured: A setting is missing, a file can't be used, or the certificate is for another name or key.
    """
    domain, key, certificate = settings.opendsr_domain, settings.opendsr_key, settings.opendsr_certificate
    if not (domain and key and certificate):
        names = "EXPUNGE_OPENDSR_DOMAIN, EXPUNGE_OPENDSR_KEY and EXPUNGE_OPENDSR_CERTIFICATE"
        raise NotConfigured(f"not configured: OpenDSR needs {names}")
    try:
        return _read(domain, key, key.stat().st_mtime_ns, certificate, certificate.stat().st_mtime_ns)
    except OSError as error:
        raise NotConfigured(f"not configured: {type(error).__name__} at OpenDSR's key or certificate") from None


@lru_cache(maxsize=4)  # checking an RSA key takes tens of milliseconds
def _read(domain: str, key_path: Path, _: int, certificate_path: Path, __: int) -> Processor:
    try:
        key = load_pem_private_key(key_path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it has a password
        raise NotConfigured("not configured: EXPUNGE_OPENDSR_KEY is not a PEM file of a key without password") from None
    if not isinstance(key, RSAPrivateKey) or key.key_size < _LEAST_BITS:
        raise NotConfigured(f"not configured: EXPUNGE_OPENDSR_KEY must be RSA with at least {_LEAST_BITS} bits")
    try:
        chain = tuple(x509.load_pem_x509_certificates(certificate_path.read_bytes()))
    except ValueError:
        raise NotConfigured("not configured: EXPUNGE_OPENDSR_CERTIFICATE is not a PEM file of certificates") from None
    if chain[0].public_key() != key.public_key():
        raise NotConfigured("not configured: the first OpenDSR certificate is not that of EXPUNGE_OPENDSR_KEY")
    if _common_names(chain[0]) != [domain]:
        raise NotConfigured("not configured: the OpenDSR certificate's common name is not EXPUNGE_OPENDSR_DOMAIN")
    return Processor(domain, key, chain)


def _common_names(certificate: x509.Certificate) -> list[str | bytes]:
    return [attribute.value for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]


def complaint(settings: Settings, *, now: datetime) -> str | None:
    """What an operator should know about OpenDSR; none if it works, or is not used at all."""
    if not (settings.opendsr_domain or settings.opendsr_key or settings.opendsr_certificate):
        return None
    try:
        processor = load(settings)
    except NotConfigured as error:
        return str(error)
    if processor.expires < now + EXPIRES_SOON:
        return f"the OpenDSR certificate ends on {processor.expires:%F}; put a new one in its place"
    if processor.chain[0].issuer == processor.chain[0].subject:
        return "the OpenDSR certificate is self-signed, which the specification forbids and clients refuse"
    return None
