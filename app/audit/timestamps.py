"""RFC 3161 time stamps: an authority's word that a checkpoint or a certificate existed at a time.

Our own clock proves nothing to others. Checkpoints are stamped once a day, certificates each.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Final

import httpx
from cryptography import x509
from rfc3161_client import (
    TimeStampRequest,
    TimestampRequestBuilder,
    TimeStampResponse,
    VerificationError,
    VerifierBuilder,
    decode_timestamp_response,
)

from app.audit.inquiry import ask
from app.errors import Misconfigured, Unavailable
from app.settings import Settings

_SECONDS: Final = 10.0


def fetch(message: bytes, settings: Settings) -> bytes:
    """A token over ``message`` from the authority in the settings, checked if its roots are configured.

    Raises:
        Unavailable: The authority does not answer, or what it answers is no token over this message.
        Misconfigured: The roots can't be read.
    """
    request = TimestampRequestBuilder().data(message).nonce(nonce=True).cert_request(cert_request=True).build()
    question = ask(settings.timestamp_url, request.as_bytes(), kind="application/timestamp-query", seconds=_SECONDS)
    answer = asyncio.run(question)
    if answer.status != httpx.codes.OK:
        raise Unavailable(f"the time stamp authority answered {answer.status}")
    token = _read(answer.body, request)
    if settings.timestamp_roots:
        check(token, message, settings.timestamp_roots)
    return token.as_bytes()


def _read(reply: bytes, request: TimeStampRequest) -> TimeStampResponse:
    """The token in a reply; a refusal has none, and says so only when it is looked at."""
    try:
        token = decode_timestamp_response(reply)
        stamped, nonce = token.tst_info.message_imprint, token.tst_info.nonce
    except ValueError:
        raise Unavailable("the time stamp authority gave no token") from None
    if (stamped.hash_algorithm, stamped.message, nonce) != (
        request.message_imprint.hash_algorithm,
        request.message_imprint.message,
        request.nonce,
    ):
        raise Unavailable("the time stamp authority stamped something else")
    return token


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
    try:
        VerifierBuilder(roots=certificates).build().verify_message(token, message)
    except (VerificationError, ValueError) as error:
        raise Unavailable(f"the time stamp can't be trusted: {type(error).__name__}") from None
    return token.tst_info.gen_time
