"""What webhooks tell, how a portal knows that a message is ours, and when we try again: Standard Webhooks.

    webhook-id          the same over all attempts and replays: the receiver's idempotency key
    webhook-timestamp   Unix seconds of this attempt
    webhook-signature   for each valid secret, separated by spaces, over "<id>.<timestamp>.<raw body>":
                        "v1,"  + base64(HMAC-SHA256(secret, …))   what is shared: whsec_…
                        "v1a," + base64(Ed25519(private key, …))  what is public: whpk_…; the other half never leaves us

Norm: github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md. While a secret is rotated, the old and
the new one both sign. Receivers must check the raw bytes they got, not JSON they wrote again.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Final

from app.domain.addresses import ForbiddenAddress
from app.domain.lifecycle import REQUEST_ENDED, RequestStatus
from app.errors import Unauthenticated

Signer = Callable[[bytes], bytes]
"""Signs with one Ed25519 key: this module has the standard library only, which knows no such keys."""

REOPENED: Final = "erasure_request.reopened"
"""A rollback undid the deletion; it is repeated."""
EXTENDED: Final = "erasure_request.deadline_extended"
PING: Final = "ping"
"""Sent when its owner asks for it, whatever the endpoint hears of."""
EVENTS: Final = (*(f"erasure_request.{status}" for status in RequestStatus), REOPENED, EXTENDED)
"""What an endpoint may hear of."""
OUTCOMES: Final = (
    *(event for status, event in zip(RequestStatus, EVENTS, strict=False) if status in REQUEST_ENDED),
    f"erasure_request.{RequestStatus.NEEDS_ATTENTION}",
    REOPENED,
)
"""What an endpoint hears of that does not say: ends, what takes an end back, and what waits for people."""

TOLERANCE_SECONDS: Final = 300
"""How far a receiver's clock may be from ours; an older message is a replay."""
MAX_BODY_BYTES: Final = 20_000
"""The norm's limit; our messages hold ids and states only."""
SCHEDULE: Final = (
    timedelta(0),
    timedelta(seconds=5),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
    timedelta(hours=14),
    timedelta(hours=20),
    timedelta(hours=24),
)
"""The pause before each attempt, as the norm proposes: ten attempts in 75.6 hours, so a long weekend is survived."""

_MARK: Final = "whsec_"
_PUBLIC_MARK: Final = "whpk_"
_PRIVATE_MARK: Final = "whsk_"
_MESSAGE_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")  # no full stop: it separates the signed parts
_EVENT_TYPE: Final = re.compile(r"[a-zA-Z0-9_]+(\.[a-zA-Z0-9_]+)*")
_SECONDS: Final = re.compile(r"[0-9]{1,12}")


class Scheme(StrEnum):
    """How messages are signed."""

    V1 = "v1"
    """HMAC-SHA256 with a secret that we share with the receiver."""
    V1A = "v1a"
    """Ed25519: the receiver holds nothing that could sign."""


class SignatureRefused(Unauthenticated):
    """A received message is not proven to be ours, or not fresh."""

    code = "signature-refused"


class Outcome(StrEnum):
    """What an attempt means for the message."""

    DELIVERED = "delivered"
    RETRY = "retry"
    GONE = "gone"
    """The receiver wants no more messages: its endpoint is switched off."""
    REFUSED = "refused"
    """We must not connect there; no later attempt can change that."""


def event_of(now: RequestStatus, then: RequestStatus) -> str:
    """What a move of a request is called.

    >>> event_of(RequestStatus.COMPLETED, RequestStatus.QUEUED), event_of(RequestStatus.RECEIVED, RequestStatus.QUEUED)
    ('erasure_request.reopened', 'erasure_request.queued')
    """
    return REOPENED if now in REQUEST_ENDED and then not in REQUEST_ENDED else f"erasure_request.{then}"


def new_secret(random_bytes: bytes) -> str:
    """Write the secret that a portal and we share; each endpoint has its own.

    Args:
        random_bytes: 24 to 64 bytes from ``secrets.token_bytes``.

    Raises:
        ValueError: Another number of bytes.
    """
    if not 24 <= len(random_bytes) <= 64:
        raise ValueError("a webhook secret takes 24 to 64 random bytes")
    return _MARK + base64.b64encode(random_bytes).decode()


def private_key(seed: bytes) -> str:
    """Write the 32 bytes of an Ed25519 private key."""
    return _PRIVATE_MARK + base64.b64encode(seed).decode()


def seed_of(private: str) -> bytes:
    """Read what :func:`private_key` wrote.

    >>> seed_of(private_key(bytes(32))) == bytes(32)
    True
    """
    return base64.b64decode(private.removeprefix(_PRIVATE_MARK), validate=True)


def public_key(raw: bytes) -> str:
    """Write the 32 bytes of an Ed25519 public key, which is what a receiver is given."""
    return _PUBLIC_MARK + base64.b64encode(raw).decode()


def body(event_type: str, occurred_at: datetime, data: Mapping[str, object]) -> bytes:
    """Write the message: sorted, compact JSON, so that one fact has one byte string.

    >>> body("erasure.completed", datetime(2027, 2, 3, tzinfo=UTC), {"sequence": 4, "id": "7"})
    b'{"data":{"id":"7","sequence":4},"timestamp":"2027-02-03T00:00:00Z","type":"erasure.completed"}'

    Args:
        event_type: Words joined by full stops.
        occurred_at: When the fact came to be (not when it is sent), aware.
        data: Ids and states; never anything about the person.

    Raises:
        ValueError: The type is malformed, the time has no zone, or the message is over 20 kB.
    """
    if not _EVENT_TYPE.fullmatch(event_type):
        raise ValueError("an event type is words joined by full stops")
    if occurred_at.utcoffset() is None:
        raise ValueError("occurred_at has no time zone")
    timestamp = occurred_at.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"
    message = {"type": event_type, "timestamp": timestamp, "data": data}
    text = json.dumps(message, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    if len(text) > MAX_BODY_BYTES:
        raise ValueError(f"a webhook message of {len(text)} bytes is over {MAX_BODY_BYTES}")
    return text


def sign(
    secrets: Sequence[str], message_id: str, *, timestamp_seconds: int, body: bytes, signers: Sequence[Signer] = ()
) -> str:
    """Write the ``webhook-signature`` header.

    Args:
        secrets: Every secret that the receiver may hold just now.
        message_id: Letters, digits, ``_`` and ``-``.
        timestamp_seconds: Unix time of this attempt.
        body: Exactly the bytes that are sent.
        signers: One for each Ed25519 key that the receiver may know just now.

    Raises:
        ValueError: The id or a secret is malformed, or there is nothing to sign with.
    """
    if not _MESSAGE_ID.fullmatch(message_id):
        raise ValueError("a message id has 1 to 64 letters, digits, _ and -")
    if not secrets and not signers:
        raise ValueError("a message needs at least one secret")
    signed = f"{message_id}.{timestamp_seconds}.".encode() + body
    public = (f"v1a,{base64.b64encode(signer(signed)).decode()}" for signer in signers)
    return " ".join([*(_signature(secret, signed) for secret in secrets), *public])


def headers(
    secrets: Sequence[str], message_id: str, *, timestamp_seconds: int, body: bytes, signers: Sequence[Signer] = ()
) -> dict[str, str]:
    """Write all headers of one attempt; arguments and errors as in :func:`sign`."""
    signature = sign(secrets, message_id, timestamp_seconds=timestamp_seconds, body=body, signers=signers)
    return {
        "content-type": "application/json",
        "user-agent": "Expunge-Webhooks/1",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_seconds),
        "webhook-signature": signature,
    }


def verify(secrets: Sequence[str], headers: Mapping[str, str], *, body: bytes, now_seconds: float) -> None:
    """Check a received message as its receiver does: fresh, unaltered, signed with one of the secrets.

    Args:
        secrets: What the receiver holds; any one is enough.
        headers: As received; names in any case.
        body: The raw bytes, before any parsing.
        now_seconds: The receiver's Unix time.

    Raises:
        SignatureRefused: A header is missing or malformed, the message is older or newer than five minutes, or no
            signature fits.
        ValueError: A secret is malformed.
    """
    message_id, timestamp, signatures = _received(headers)
    if abs(now_seconds - timestamp) > TOLERANCE_SECONDS:
        raise SignatureRefused(f"the message's time is more than {TOLERANCE_SECONDS} s away from now")
    given = signatures.encode("utf-8", "surrogatepass").split(b" ")
    expected = sign(secrets, message_id, timestamp_seconds=timestamp, body=body).encode().split(b" ")
    if not any(hmac.compare_digest(one, other) for one in expected for other in given):
        raise SignatureRefused("no signature fits the message")


def delay_before(attempt: int, jitter: float, *, asked: timedelta | None = None) -> timedelta | None:
    """Tell how long to wait before an attempt, or None to give up.

    >>> delay_before(2, 0.5), delay_before(11, 0.5)
    (datetime.timedelta(seconds=5), None)
    >>> delay_before(2, 0.5, asked=timedelta(hours=1))
    datetime.timedelta(seconds=10)

    Args:
        attempt: The attempt to come; the first is 1.
        jitter: Uniform in [0, 1), from ``random.random()``; spreads the pause over ±20 %, so that messages that failed
            together don't come back together.
        asked: What the receiver's Retry-After asked for. It may stretch the pause up to twofold but not shorten it,
            or one receiver could set our clock.

    Raises:
        ValueError: An attempt before the first, or a jitter outside [0, 1].
    """
    if attempt < 1 or not 0 <= jitter <= 1:
        raise ValueError("attempts count from 1, jitter lies in [0, 1]")
    if attempt > len(SCHEDULE):
        return None
    base = SCHEDULE[attempt - 1]
    return base * (0.8 + 0.4 * jitter) if asked is None else min(max(asked, base), 2 * base)


def asked_wait(retry_after: str | None, date: str | None) -> timedelta | None:
    """Read a Retry-After header in either form of RFC 9110, or None if it is absent or unreadable.

    >>> asked_wait("120", None)
    datetime.timedelta(seconds=120)

    Args:
        retry_after: Seconds, or a date. A date is compared with the answer's own Date header, so that the clocks of
            two machines don't matter.
        date: That Date header.
    """
    if retry_after is None:
        return None
    if _SECONDS.fullmatch(retry_after):
        return timedelta(seconds=min(int(retry_after), 10**9))
    try:
        return parsedate_to_datetime(retry_after) - parsedate_to_datetime(date or "")
    except (ValueError, TypeError, OverflowError):  # TypeError: one date has a zone, the other has none
        return None


def outcome(answer: int | Exception) -> Outcome:
    """Tell what follows from a status code, or from the error that came instead of one.

    >>> outcome(204).value, outcome(302).value, outcome(410).value, outcome(TimeoutError()).value
    ('delivered', 'retry', 'gone', 'retry')

    Redirects are failures: following one would leave the checked address.
    """
    if isinstance(answer, Exception):
        return Outcome.REFUSED if isinstance(answer, ForbiddenAddress) else Outcome.RETRY
    if 200 <= answer < 300:
        return Outcome.DELIVERED
    return Outcome.GONE if answer == 410 else Outcome.RETRY


def _received(headers: Mapping[str, str]) -> tuple[str, int, str]:
    lower = {name.lower(): value for name, value in headers.items()}
    message_id, timestamp, signatures = (lower.get(f"webhook-{n}", "") for n in ("id", "timestamp", "signature"))
    if not _MESSAGE_ID.fullmatch(message_id):
        raise SignatureRefused("webhook-id is missing or malformed")
    if not _SECONDS.fullmatch(timestamp):
        raise SignatureRefused("webhook-timestamp is missing or not in Unix seconds")
    if not any(part.startswith("v1,") for part in signatures.split(" ")):
        raise SignatureRefused("webhook-signature is missing or has no v1 signature")
    return message_id, int(timestamp), signatures


def _signature(secret: str, signed: bytes) -> str:
    return "v1," + base64.b64encode(hmac.digest(_key(secret), signed, "sha256")).decode()


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_MARK), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(_MARK) or not 24 <= len(key) <= 64:
        raise ValueError("a webhook secret is whsec_ and 24 to 64 bytes in base64")
    return key
