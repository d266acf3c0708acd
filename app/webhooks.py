"""What a portal makes happen with webhooks: endpoints, what they hear of, their secrets, pings and replays."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID, uuid4

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.orm import Session

from app import keyring
from app.domain import addresses, webhook
from app.domain.webhook import Scheme
from app.errors import Conflict, Invalid, NotFound
from app.settings import Settings
from app.storage import deliveries, receivers, webhooks
from app.storage.deliveries import Seen
from app.storage.tables import WebhookDelivery, WebhookEndpoint, WebhookSecret

MOST_ENDPOINTS: Final = 50
"""Of one client: every fact is told to each of them."""
MOST_ENDED: Final = 500
"""Of one client, until the log of their deliveries is past its retention."""
MOST_SECRETS: Final = 4
"""Of one endpoint and scheme, while they overlap: each adds a signature to the header."""
MOST_REPLAYED: Final = 1000
_RESUMED_SINCE: Final = timedelta(days=14)
"""What is older is not sent when an endpoint is switched on again; a replay sends it."""


@dataclass(frozen=True)
class NewSecret:
    """A secret when it is made: what the receiver needs is shown now, and for a shared secret only now."""

    row: WebhookSecret
    shared: str | None = field(repr=False)


@dataclass(frozen=True)
class Wanted:
    """What an owner wants of an endpoint."""

    url: str = field(repr=False)
    events: Sequence[str] | None = None
    description: str | None = None


def register(
    tx: Session,
    wanted: Wanted,
    *,
    schemes: Collection[Scheme],
    client_id: UUID,
    every_client: bool,
    now: datetime,
    settings: Settings,
) -> tuple[WebhookEndpoint, list[NewSecret]]:
    """Store an endpoint that hears of the client's requests, or of every client's, and make its secrets.

    Raises:
        Invalid: The URL is not https, or names an address that callbacks may not reach; or an event is unknown.
        Conflict: The client has too many endpoints.
    """
    addresses.check_url(wanted.url, settings.webhook_allow)
    _need_room(tx, client_id)
    endpoint = webhooks.add(
        tx,
        WebhookEndpoint(
            id=uuid4(),
            client_id=client_id,
            every_client=every_client,
            url=wanted.url,
            events=known(wanted.events),
            description=wanted.description,
        ),
    )
    return endpoint, [_new_secret(tx, endpoint.id, scheme, at=now, settings=settings) for scheme in sorted(schemes)]


def _need_room(tx: Session, client_id: UUID) -> None:
    webhooks.hold_count(tx, client_id)
    there, ended = webhooks.how_many(tx, client_id)
    if there >= MOST_ENDPOINTS:
        raise Conflict(f"a client has at most {MOST_ENDPOINTS} endpoints; delete one first")
    if ended >= MOST_ENDED:
        raise Conflict(f"{ended} endpoints were deleted lately; change the URL of one that there is instead")


def known(events: Sequence[str] | None) -> list[str] | None:
    """The events, each once and in our order.

    Raises:
        Invalid: One is none of ours; says which there are.
    """
    if events is None:
        return None
    if not events or set(events) - set(webhook.EVENTS):
        raise Invalid(
            "events", f"an endpoint hears of one or more of {', '.join(webhook.EVENTS)}, or null for outcomes"
        )
    return [event for event in webhook.EVENTS if event in set(events)]


def change(endpoint: WebhookEndpoint, wanted: Wanted, *, settings: Settings) -> None:
    """Let an endpoint be as its owner wants it from now on; what it was promised before goes to the new URL, too.

    Only another host begins anew: else ``?a`` and ``?b`` by turns would escape every rest.

    Raises:
        Invalid: As for :func:`register`.
    """
    addresses.check_url(wanted.url, settings.webhook_allow)
    if urlsplit(wanted.url).hostname != urlsplit(endpoint.url).hostname:
        receivers.forgive(endpoint)
    endpoint.url, endpoint.events, endpoint.description = wanted.url, known(wanted.events), wanted.description


def switch_on(tx: Session, endpoint: WebhookEndpoint, *, now: datetime) -> int:
    """Send to a disabled endpoint again; returns how many undelivered messages that brings back."""
    if endpoint.disabled_at is None:
        return 0
    return webhooks.enable(tx, endpoint, since=now - _RESUMED_SINCE, limit=MOST_REPLAYED, at=now)


def switch_off(
    tx: Session, endpoint: WebhookEndpoint, *, now: datetime, because: str = "switched off by its owner"
) -> None:
    """Send nothing to an endpoint until somebody switches it on."""
    webhooks.disable(tx, endpoint.id, because=because, at=now)
    tx.refresh(endpoint)


def rotate(
    tx: Session, endpoint: WebhookEndpoint, scheme: Scheme, *, overlap: timedelta, now: datetime, settings: Settings
) -> NewSecret:
    """Make a new secret; the old ones of its scheme sign with it until the overlap ends, or no more at all.

    Raises:
        Conflict: Too many overlap already.
    """
    live = [row for row in webhooks.secrets(tx, [endpoint.id], now=now) if row.scheme == scheme]
    if overlap and len(live) >= MOST_SECRETS:
        raise Conflict(f"{len(live)} secrets of this scheme sign already; wait until one expires, or end them at once")
    webhooks.retire_secrets(tx, endpoint.id, scheme=scheme, at=now + overlap)
    return _new_secret(tx, endpoint.id, scheme, at=now, settings=settings)


def end_secret(tx: Session, endpoint: WebhookEndpoint, secret_id: UUID, *, now: datetime) -> None:
    """Let one secret sign no more, at once.

    Raises:
        NotFound: The endpoint has no such secret.
        Conflict: Nothing else would sign.
    """
    live = webhooks.secrets(tx, [endpoint.id], now=now)
    if secret_id not in {row.id for row in live}:
        raise NotFound("there is no such secret")
    if not [row for row in live if row.id != secret_id and row.expires_at is None]:
        raise Conflict("this is the last secret; rotate it instead")
    webhooks.end_secret(tx, secret_id)


def _new_secret(tx: Session, endpoint_id: UUID, scheme: Scheme, *, at: datetime, settings: Settings) -> NewSecret:
    secret, public = _made(scheme)
    sealed = keyring.seal(settings.key("wrapping_key"), secret.encode(), context=endpoint_id.bytes)
    row = webhooks.add_secret(tx, endpoint_id, scheme=scheme, sealed=sealed, public=public, at=at)
    return NewSecret(row, shared=secret if scheme is Scheme.V1 else None)


def _made(scheme: Scheme) -> tuple[str, str | None]:
    """A secret and, where it has one, its public half."""
    if scheme is Scheme.V1:
        return webhook.new_secret(os.urandom(32)), None
    seed = os.urandom(32)
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    return webhook.private_key(seed), webhook.public_key(public.public_bytes_raw())


def signed_headers(
    tx: Session, endpoint: WebhookEndpoint, delivery: WebhookDelivery, *, now: datetime, settings: Settings
) -> dict[str, str]:
    """The headers of one attempt, with a signature by every secret that the receiver may hold just now."""
    key = settings.key("wrapping_key")
    shared: list[str] = []
    signers: list[webhook.Signer] = []
    for row in webhooks.secrets(tx, [endpoint.id], now=now):
        secret = keyring.unseal(key, row.sealed, context=endpoint.id.bytes).decode()
        if row.scheme == Scheme.V1:
            shared.append(secret)
        else:
            signers.append(Ed25519PrivateKey.from_private_bytes(webhook.seed_of(secret)).sign)
    return webhook.headers(
        shared, str(delivery.id), timestamp_seconds=int(now.timestamp()), body=delivery.body, signers=signers
    )


def ping(tx: Session, endpoint: WebhookEndpoint, *, now: datetime) -> WebhookDelivery:
    """Have a message sent that is about nothing, once, even to a disabled endpoint.

    Raises:
        Conflict: One is under way; it goes to a machine that may not even be the caller's.
    """
    if deliveries.has_ping_under_way(tx, endpoint.id):
        raise Conflict("a ping is under way; look at its delivery first")
    body = webhook.body(webhook.PING, now, {"endpoint_id": str(endpoint.id)})
    promised = WebhookDelivery(
        id=uuid4(), endpoint_id=endpoint.id, receiver=endpoint.id, event=webhook.PING, body=body, next_attempt_at=now
    )
    return deliveries.add(tx, promised)


def replay(tx: Session, seen: Seen, *, after: int, limit: int, now: datetime) -> tuple[int, int | None]:
    """Send an endpoint's settled messages once more, with the ids that they had; returns how many, and where to go on.

    Raises:
        NotFound: The client has no such endpoint.
        Conflict: It is disabled.
    """
    assert seen.endpoint_id is not None
    _need_active(webhooks.need_held(tx, seen.endpoint_id, client_id=seen.client_id, every_client=seen.every_client))
    return deliveries.replay(tx, seen, after=after, limit=limit, at=now)


def replay_one(
    tx: Session, delivery_id: UUID, *, client_id: UUID, every_client: bool = False, now: datetime
) -> WebhookDelivery:
    """Send one message once more, with the id that it had.

    Raises:
        NotFound: The client has no such delivery.
        Conflict: It is on its way, its endpoint takes none, or it was no endpoint's.
    """
    delivery = deliveries.need(tx, delivery_id, client_id=client_id, every_client=every_client)
    if delivery.endpoint_id is None or delivery.event == webhook.PING:
        raise Conflict("only messages to endpoints about requests can be sent again")
    _need_active(webhooks.need_held(tx, delivery.endpoint_id, client_id=client_id, every_client=every_client))
    if delivery.next_attempt_at is not None:
        raise Conflict("this message is still on its way")
    deliveries.replay_one(tx, delivery_id, at=now)
    return deliveries.need(tx, delivery_id, client_id=client_id, every_client=every_client)


def _need_active(endpoint: WebhookEndpoint) -> None:
    if endpoint.disabled_at is not None:
        raise Conflict("the endpoint is disabled; switch it on first")


def tidy(tx: Session, *, settings: Settings) -> None:
    """What dispatch clears away: old deliveries, secrets that no longer sign, promises to closed endpoints."""
    deliveries.park_stragglers(tx)
    deliveries.drop_old(tx, keep=timedelta(days=settings.webhook_days))
    webhooks.drop_ended(tx)
    receivers.drop_unused(tx)
    webhooks.drop_expired_secrets(tx)
