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


def register(tx: Session, url: str, *, settings: Settings) -> tuple[WebhookEndpoint, str]:
    """Store an endpoint; returns it with its secret, which is shown only now.

    Raises:
        Invalid: The URL is not https, or names an address that callbacks may not reach.
    """
    addresses.check_url(url, settings.webhook_allow)
    endpoint_id, secret = uuid4(), webhook.new_secret(os.urandom(32))
    sealed = keyring.seal(settings.key("wrapping_key"), secret.encode(), context=endpoint_id.bytes)
    return webhooks.add_endpoint(tx, endpoint_id, url=url, sealed_secret=sealed), secret


def secret_of(endpoint: WebhookEndpoint, *, settings: Settings) -> str:
    """The endpoint's signing secret."""
    return keyring.unseal(settings.key("wrapping_key"), endpoint.sealed_secret, context=endpoint.id.bytes).decode()


def end(tx: Session, endpoint_id: UUID) -> None:
    """Send nothing more to an endpoint.

    Raises:
        NotFound: No such endpoint.
    """
    webhooks.disable(tx, endpoint_id, because="ended by its owner")
