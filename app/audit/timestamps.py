"""RFC 3161 time stamps: an authority's word that a checkpoint or a certificate existed at a time.

Our own clock proves nothing to others. Checkpoints are stamped once a day, certificates each.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Final

import httpx
from cryptography import x509
from rfc3161_client import (
    TimestampRequestBuilder,
    TimeStampResponse,
    VerificationError,
    VerifierBuilder,
    decode_timestamp_response,
)

from app.errors import Misconfigured, Unavailable
from app.settings import Settings

_TIMEOUT_SECONDS: Final = 10.0
_MOST_BYTES: Final = 64 << 10


def fetch(message: bytes, settings: Settings) -> bytes:
    """A token over ``message`` from the authority in the settings, checked if its roots are configured.

    Raises:
        Unavailable: The authority does not answer, or what it answers is no token over this message.
    """
    request = TimestampRequestBuilder().data(message).nonce(nonce=True).cert_request(cert_request=True).build()
    try:
        answer = httpx.post(
            settings.timestamp_url,
            content=request.as_bytes(),
            headers={"Content-Type": "application/timestamp-query"},
            timeout=_TIMEOUT_SECONDS,
            trust_env=False,
        )
        answer.raise_for_status()
        token = decode_timestamp_response(answer.content[:_MOST_BYTES])
    except (httpx.HTTPError, ValueError) as error:
        raise Unavailable(f"the time stamp authority gave no token ({type(error).__name__})") from None
    if token.tst_info.message_imprint.message != hashlib.sha512(message).digest():
        raise Unavailable("the time stamp authority stamped something else")
    if settings.timestamp_roots:
        check(token, message, settings.timestamp_roots)
    return token.as_bytes()


def check(token: TimeStampResponse, message: bytes, roots: Path) -> datetime:
    """When the authority says it saw ``message``.

    Raises:
        Unavailable: The token is not by an authority under these roots, or over something else.
        Misconfigured: The roots can't be read.
    """
    try:
        certificates = x509.load_pem_x509_certificates(roots.read_bytes())
    except (OSError, ValueError) as error:
        raise Misconfigured(f"EXPUNGE_TIMESTAMP_ROOTS can't be read ({type(error).__name__})") from None
    builder = VerifierBuilder()
    for certificate in certificates:
        builder = builder.add_root_certificate(certificate)
    try:
        builder.build().verify_message(token, message)
    except (VerificationError, ValueError) as error:
        raise Unavailable(f"the time stamp can't be trusted: {type(error).__name__}") from None
    return token.tst_info.gen_time
