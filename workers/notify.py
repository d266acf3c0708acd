"""Delivering webhooks: signed, retried on the published schedule, never to an address that must not be reached."""

from __future__ import annotations

import random
from datetime import timedelta
from uuid import UUID

from sqlalchemy.orm import Session

from app import callbacks
from app.domain import webhook
from app.logs import log
from app.storage import webhooks
from app.storage.sessions import transaction
from app.storage.tables import WebhookDelivery, WebhookEndpoint
from workers import egress
from workers.context import Context

_JITTER = random.SystemRandom()


def deliver(ctx: Context, delivery_id: UUID) -> None:
    """Attempt one delivery; the row is locked meanwhile, so two rings of it send one message.

    A crash after the receiver answered and before our commit sends it again, with the same ``webhook-id``.
    """
    with transaction(ctx.engine) as tx:
        pending = webhooks.pending(tx, delivery_id)
        if pending is not None:
            _attempt(ctx, tx, *pending)


def _attempt(ctx: Context, tx: Session, delivery: WebhookDelivery, endpoint: WebhookEndpoint) -> None:
    answer: int | Exception
    retry_after = None
    try:
        response = egress.post(
            endpoint.url,
            headers=_headers(ctx, delivery, endpoint),
            content=delivery.body,
            allowed_networks=ctx.settings.webhook_allow,
        )
        answer, retry_after = response.status_code, response.retry_after
    except (egress.Refused, egress.Undelivered) as error:
        answer = error
    outcome = webhook.outcome(answer)
    log.info("webhook", delivery=str(delivery.id), outcome=outcome.value)
    _settle(ctx, tx, delivery, outcome, told=_told(answer), retry_after=retry_after)


def _headers(ctx: Context, delivery: WebhookDelivery, endpoint: WebhookEndpoint) -> dict[str, str]:
    return webhook.headers(
        [callbacks.secret_of(endpoint, settings=ctx.settings)],
        str(delivery.id),
        timestamp_seconds=int(ctx.now().timestamp()),
        body=delivery.body,
    )


def _settle(
    ctx: Context,
    tx: Session,
    delivery: WebhookDelivery,
    outcome: webhook.Outcome,
    *,
    told: str,
    retry_after: timedelta | None,
) -> None:
    """Write the attempt down; the request that the message is about is never touched."""
    pause = None
    if outcome is webhook.Outcome.RETRY:
        pause = webhook.delay_before(delivery.attempts + 2, _JITTER.random(), asked=retry_after)
    webhooks.log_attempt(
        tx,
        delivery.id,
        outcome=told if outcome is not webhook.Outcome.RETRY or pause else f"given up: {told}",
        delivered=outcome is webhook.Outcome.DELIVERED,
        again_at=ctx.now() + pause if pause else None,
    )
    if outcome is webhook.Outcome.GONE:
        webhooks.disable(tx, delivery.endpoint_id, because="the receiver answered 410 Gone")


def _told(answer: int | Exception) -> str:
    return f"status {answer}" if isinstance(answer, int) else str(answer)
