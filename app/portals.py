"""What a portal makes happen in its own dialect: demand, take back, be told; one function is one transaction.

The demand's bytes are never stored: a repeat is recognised by a keyed hash, and its answer is written from the repeat.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID, uuid4

from pydantic import SecretStr
from sqlalchemy.orm import Session

from app import decisions, intake, keyring, opendsr, tracing, transcend_token
from app.domain import addresses, identifiers
from app.domain.portals import known, reading, transcend
from app.domain.portals.base import Asked, Callback, Document, Hears, Knobs, Portal, Sent, Story
from app.errors import Conflict, Invalid, NotConfigured, NotFound
from app.settings import Settings
from app.storage import keys, portals, receivers
from app.storage.tables import PortalCallback, PortalRequest, WebhookDelivery

_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Answered:
    """What a portal's demand came to, and whether it is new."""

    story: Story
    created: bool


@dataclass(frozen=True)
class Outgoing:
    """One message to a portal, ready to be sent."""

    url: str = field(repr=False)
    method: str
    headers: dict[str, str] = field(repr=False)
    content: bytes = field(repr=False)


def accept(
    tx: Session, portal: Portal, asked: Asked, *, demand: Document, client_id: UUID, now: datetime, settings: Settings
) -> Answered:
    """Write a portal's demand down with its callbacks; the same demand under the same number is the same request.

    Args:
        tx: The caller's transaction.
        portal: Whose dialect it came in.
        asked: What it asks for.
        demand: The whole of it, as it came.
        client_id: Whose request it is.
        now: When it came.
        settings: Of this process.

    Raises:
        Invalid: It can't be met, a callback may not be called, or its number was used for another demand.
    """
    for callback in asked.callbacks:
        addresses.check_url(callback.url, settings.webhook_allow)
    digest = _digest(settings, client_id, asked.external_id, reading.canonical(demand))
    portals.hold(tx, client_id, portal.name, asked.external_id)
    row = portals.find(tx, client_id, portal.name, asked.external_id)
    if row is not None:
        return _repeated(tx, row, digest)
    trace = tracing.traceparent()
    wish = intake.Demand(user_id=asked.user_id, models=asked.models, reference=asked.reference, traceparent=trace)
    accepted = intake.accept(tx, wish, client_id=client_id, idempotency_key=None, now=now, settings=settings)
    row = PortalRequest(
        request_id=accepted.request.id,
        client_id=client_id,
        portal=portal.name,
        version=portal.version,
        external_id=asked.external_id,
        group_id=asked.group_id,
        body_digest=digest,
    )
    if not portals.add(tx, row):
        return _overtaken(tx, row, asked, digest, settings=settings)
    return _told(tx, row.request_id, asked, now=now, settings=settings)


def _told(tx: Session, request_id: UUID, asked: Asked, *, now: datetime, settings: Settings) -> Answered:
    """Creation is the first change that callbacks hear of."""
    row = _row(tx, request_id)
    _keep(tx, row, asked, settings=settings)
    portals.promise(tx, [request_id], status=portals.story(tx, row).state, at=now)
    return Answered(portals.story(tx, _row(tx, request_id)), created=True)


def _repeated(tx: Session, row: PortalRequest, digest: bytes) -> Answered:
    if row.body_digest is None:
        raise Invalid("id", "this number was used before, for a request that has ended; use a new one for a new demand")
    if row.body_digest != digest:
        raise Invalid("id", "this number was used for another demand; use a new one for a new demand")
    return Answered(portals.story(tx, row), created=False)


def _overtaken(tx: Session, row: PortalRequest, asked: Asked, digest: bytes, *, settings: Settings) -> Answered:
    """Somebody wrote this number, or this demand under another number, down before us."""
    same = portals.find(tx, row.client_id, row.portal, row.external_id)
    if same is not None:
        return _repeated(tx, same, digest)
    other = _row(tx, row.request_id)
    if other.portal != row.portal:
        raise Conflict("the same demand is open, sent by another portal of this client")
    _keep(tx, other, asked, settings=settings)  # Transcend gives each attempt its own nonce: it is told under both
    return Answered(portals.story(tx, other), created=False)


def cancel(
    tx: Session, portal: Portal, external_id: str, *, client_id: UUID, now: datetime, settings: Settings
) -> Story:
    """Take a request back, as long as nothing was destroyed for it.

    Raises:
        NotFound: The client has no such request.
        Conflict: The work has begun or is done.
    """
    row = portals.need(tx, client_id, portal.name, external_id)
    decisions.cancel(tx, row.request_id, by=client_id, seen_by=client_id, now=now, settings=settings)
    return portals.story(tx, _row(tx, row.request_id))


def outgoing(tx: Session, delivery: WebhookDelivery, *, settings: Settings) -> Outgoing:
    """Word one promised message: the story as it was kept, in the portal's dialect, to where it wanted to be told.

    Raises:
        NotFound: Where that was has been forgotten, since the request is over.
        NotConfigured: This process lacks what the dialect needs, such as the signing key.
    """
    assert delivery.callback_id is not None
    kept = portals.callback(tx, delivery.callback_id)
    row, callback = _row(tx, kept.request_id), _opened(kept, settings=settings)
    portal = known(row.portal, row.version)
    message = portal.tell(portals.kept_story(delivery.body), callback, knobs(portal, settings))
    headers = {"content-type": "application/json", "user-agent": "Expunge-Portals/1", **message.headers}
    if message.signed_as:
        headers |= opendsr.load(settings).headers(message.content, message.signed_as)
    return Outgoing(callback.url, message.method, headers, message.content)


def knobs(portal: Portal, settings: Settings) -> Knobs:
    """What the operator set for a portal."""
    found = {knob: getattr(settings, name) for knob, name in portal.knobs.items()}
    return {knob: set_.get_secret_value() if isinstance(set_, SecretStr) else set_ for knob, set_ in found.items()}


def transcend_job(sent: Sent, *, settings: Settings, now: datetime) -> Sent:
    """A call of Transcend, proven: with the identifier that its token vouches for and a number for the job.

    Raises:
        Unauthenticated: The token is not good.
        Invalid: There is no nonce.
        NotConfigured: Transcend is not set up.
    """
    value = transcend_token.vouched_for(sent.headers.get("x-sombra-token", ""), settings=settings, now=now)
    nonce = transcend.nonce(sent.headers).encode()
    job = keyring.fingerprint(settings.key("index_key"), b"transcend job", sha256(nonce).digest()).hex()[:32]
    return Sent(document=sent.document, headers=sent.headers, knobs={**sent.knobs, "value": value, "job": job})


def transcend_client(tx: Session, settings: Settings) -> UUID:
    """Whose requests Transcend's are: its calls carry no key of ours.

    Raises:
        NotConfigured: There is no client of the name that the operator set.
    """
    client = keys.client_named(tx, settings.transcend_client)
    if client is None:
        raise NotConfigured("not configured: there is no client of the name in EXPUNGE_TRANSCEND_CLIENT")
    return client.id


def is_known(tx: Session, user_id: str, *, settings: Settings) -> bool:
    """Whether any model may know the person; the request goes its way in any case."""
    return portals.knows(tx, identifiers.subject_key(settings.key("index_key"), user_id))


def _row(tx: Session, request_id: UUID) -> PortalRequest:
    row = portals.of_request(tx, request_id)
    assert row is not None
    return row


def _digest(settings: Settings, client_id: UUID, external_id: str, body: bytes) -> bytes:
    return keyring.fingerprint(settings.key("index_key"), b"portal demand", client_id.bytes, external_id.encode(), body)


def _keep(tx: Session, row: PortalRequest, asked: Asked, *, settings: Settings) -> None:
    """Store callbacks, those to one portal together: two demands that name two new portals must not wait crosswise."""
    origins = [(_origin(settings, row.client_id, callback.url), callback) for callback in asked.callbacks]
    for origin, callback in sorted(origins, key=lambda pair: pair[0]):
        receiver_id = receivers.of_origin(tx, row.client_id, origin)
        kept = PortalCallback(id=uuid4(), request_id=row.request_id, receiver_id=receiver_id, hears=callback.hears)
        secret = {"url": callback.url, "headers": dict(callback.headers), "remarks": dict(callback.remarks)}
        kept.sealed = keyring.seal(settings.key("wrapping_key"), json.dumps(secret).encode(), context=kept.id.bytes)
        portals.add_callback(tx, kept)


def _origin(settings: Settings, client_id: UUID, url: str) -> UUID:
    """Which portal a URL leads to, by a keyed hash: a URL is the portal's secret."""
    found = urlsplit(url)
    named = f"{found.scheme}://{found.hostname}:{found.port or _PORTS[found.scheme]}".encode()
    return UUID(bytes=keyring.fingerprint(settings.key("index_key"), b"callbacks to", client_id.bytes, named)[:16])


def _opened(row: PortalCallback, *, settings: Settings) -> Callback:
    if row.sealed is None:
        raise NotFound("where this was to be told has been forgotten, since the request is over")
    opened = json.loads(keyring.unseal(settings.key("wrapping_key"), row.sealed, context=row.id.bytes))
    return Callback(hears=Hears(row.hears), **opened)
