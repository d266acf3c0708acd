"""What a portal makes happen with webhooks: register an endpoint, end it."""

from __future__ import annotations

import os
from uuid import UUID, uuid4

from sqlalchemy.orm import Session

from app import keyring
from app.domain import addresses, webhook
from app.settings import Settings
from app.storage import webhooks
from app.storage.tables import WebhookEndpoint


def register(
    tx: Session, url: str, *, client_id: UUID, every_client: bool, settings: Settings
) -> tuple[WebhookEndpoint, str]:
    """Store an endpoint that hears of the client's requests, or of every client's.

    Returns:
        It, and its secret, which is shown only now.

    Raises:
        Invalid: The URL is not https, or names an address that callbacks may not reach.
    """
    addresses.check_url(url, settings.webhook_allow)
    endpoint_id, secret = uuid4(), webhook.new_secret(os.urandom(32))
    sealed = keyring.seal(settings.key("wrapping_key"), secret.encode(), context=endpoint_id.bytes)
    endpoint = WebhookEndpoint(
        id=endpoint_id, client_id=client_id, every_client=every_client, url=url, sealed_secret=sealed
    )
    return webhooks.add_endpoint(tx, endpoint), secret


def secret_of(endpoint: WebhookEndpoint, *, settings: Settings) -> str:
    """The endpoint's signing secret."""
    return keyring.unseal(settings.key("wrapping_key"), endpoint.sealed_secret, context=endpoint.id.bytes).decode()


def end(tx: Session, endpoint_id: UUID, *, client_id: UUID) -> None:
    """Send nothing more to an endpoint.

    Raises:
        NotFound: The client has no such endpoint.
    """
    webhooks.need(tx, endpoint_id, client_id=client_id)
    webhooks.disable(tx, endpoint_id, because="ended by its owner")
