"""Delivering webhooks: signed, retried on the published schedule, never to an address that must not be reached.

    claim (commit) ─► send, outside any transaction ─► settle and claim the receiver's next one (commit) ─► send …

A crash before the second commit leaves the message claimed until its lease is over; then it is sent again, with the
same ``webhook-id``. A worker goes on with one receiver for seconds at most and only while it is answered well, so that
receivers take turns.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy.orm import Session

from app import portals, webhooks
from app.domain import receiver, webhook
from app.domain.webhook import Outcome
from app.errors import ExpungeError, NotFound
from app.logs import log
from app.portals import Outgoing
from app.storage import deliveries, receivers, totals
from app.storage import portals as portal_callbacks
from app.storage import webhooks as stored
from app.storage.sessions import transaction
from app.storage.tables import WebhookDelivery, WebhookEndpoint
from workers import egress
from workers.context import Context

_JITTER = random.SystemRandom()
_TURN_SECONDS: Final = 2.0
_NO_ADDRESS: Final = (egress.RefusedName, egress.UnknownName)
"""Told apart by nothing that an owner sees: whoever registers names would learn which of them exist inside."""


@dataclass(frozen=True)
class Attempt:
    """What one attempt came to: a status, or the error that came instead."""

    at: datetime
    answer: int | Exception
    duration_ms: int
    retry_after: timedelta | None = None

    @property
    def outcome(self) -> Outcome:
        """What it means for the message."""
        if isinstance(self.answer, _NO_ADDRESS):
            return Outcome.RETRY
        lost = isinstance(self.answer, NotFound)  # where to send it was forgotten
        return Outcome.REFUSED if lost else webhook.outcome(self.answer)

    @property
    def was_made(self) -> bool:
        """Whether it says anything about the receiver; a message that we can't write does not."""
        return isinstance(self.answer, int | egress.Refused | egress.Undelivered)

    @property
    def rest(self) -> timedelta | None:
        """How long the receiver is to be left alone."""
        slow = timedelta(milliseconds=self.duration_ms) > receiver.SLOW
        slow |= isinstance(self.answer, egress.Undelivered) and self.answer.timed_out
        return receiver.rest_after(self.answer, slow=slow, asked=self.retry_after)

    @property
    def error(self) -> str | None:
        """Why no status came; what others than we raise could quote anything, so of that the class alone."""
        if isinstance(self.answer, int):
            return None
        if isinstance(self.answer, _NO_ADDRESS):
            return "address refused or unknown"
        return str(self.answer) if isinstance(self.answer, ExpungeError) else type(self.answer).__name__

    @property
    def told(self) -> str:
        """The same for people."""
        return self.error or f"status {self.answer}"


def deliver(ctx: Context, delivery_id: UUID) -> None:
    """Attempt one delivery, and then others to the same receiver while it answers; two rings send one message."""
    with transaction(ctx.engine) as tx:
        claimed = deliveries.claim(tx, delivery_id)
        message = _worded(ctx, tx, claimed) if claimed else None
    over = time.monotonic() + _TURN_SECONDS
    while claimed is not None and message is not None:
        attempt = _attempt(ctx, message)
        log.info("webhook", delivery=str(claimed.id), outcome=attempt.outcome.value)
        with transaction(ctx.engine) as tx:
            _settle(ctx, tx, claimed, attempt)
            goes_on = attempt.outcome is Outcome.DELIVERED and time.monotonic() < over
            claimed = deliveries.claim_next(tx, claimed.receiver) if goes_on else None
            message = _worded(ctx, tx, claimed) if claimed else None


def _worded(ctx: Context, tx: Session, delivery: WebhookDelivery) -> Outgoing | Exception:
    """The message as it is sent now, or why it can't be written: that is an attempt, too, or it would come for ever."""
    try:
        if delivery.callback_id is not None:
            return portals.outgoing(tx, delivery, settings=ctx.settings)
        endpoint = tx.get_one(WebhookEndpoint, delivery.endpoint_id)
        headers = webhooks.signed_headers(tx, endpoint, delivery, now=ctx.now(), settings=ctx.settings)
        return Outgoing(endpoint.url, "POST", headers, delivery.body)
    except Exception as error:  # noqa: BLE001 - another wrapping key, a portal's file that is gone: see the docstring
        log.error("a webhook can't be written", delivery=str(delivery.id), kind=type(error).__name__)
        return error


def _attempt(ctx: Context, message: Outgoing | Exception) -> Attempt:
    at = ctx.now()
    if isinstance(message, Exception):
        return Attempt(at, message, 0)
    began = time.monotonic()
    try:
        response = egress.send(
            message.url,
            method=message.method,
            headers=message.headers,
            content=message.content,
            allowed_networks=ctx.settings.webhook_allow,
            timeout_seconds=ctx.settings.webhook_seconds,
        )
    except (egress.Refused, egress.Undelivered) as error:
        return Attempt(at, error, round(1000 * (time.monotonic() - began)))
    return Attempt(at, response.status_code, response.elapsed_ms, response.retry_after)


def _settle(ctx: Context, tx: Session, delivery: WebhookDelivery, attempt: Attempt) -> None:
    """Write the attempt down; the request that the message is about is never touched.

    The receiver's row first, here and wherever both are written, or two workers could wait for each other.
    """
    now = ctx.now()
    enough = _note(tx, delivery, attempt, now=now)
    pause = _pause(delivery, attempt)
    given_up = attempt.outcome is Outcome.RETRY and pause is None
    settled = deliveries.Settled(
        at=attempt.at,
        outcome=attempt.outcome,
        status_code=attempt.answer if isinstance(attempt.answer, int) else None,
        error=attempt.error,
        duration_ms=attempt.duration_ms,
        said=f"given up: {attempt.told}" if given_up else attempt.told,
        delivered_at=now if attempt.outcome is Outcome.DELIVERED else None,
        again_at=now + pause if pause is not None else None,
    )
    deliveries.settle(tx, delivery, settled)
    totals.count(tx, "webhook", attempt.outcome.value)
    if enough:
        _end(tx, delivery, attempt, because=enough, at=now)


def _pause(delivery: WebhookDelivery, attempt: Attempt) -> timedelta | None:
    """How long until the next attempt; none: there is none."""
    if attempt.outcome is not Outcome.RETRY or delivery.event == webhook.PING:
        return None
    pause = webhook.delay_before(delivery.attempts + 2, _JITTER.random(), asked=attempt.retry_after)
    return max(pause, attempt.rest or timedelta(0)) if pause is not None else None


def _note(tx: Session, delivery: WebhookDelivery, attempt: Attempt, *, now: datetime) -> str | None:
    """What an answer says about its receiver: it is well, it needs rest, or (a sentence) why nothing more is sent."""
    if attempt.outcome is Outcome.DELIVERED:
        receivers.note_success(tx, delivery)
        if attempt.rest is not None:
            receivers.throttle(tx, delivery, until=now + attempt.rest)
        return None
    found = receivers.held(tx, delivery)
    if attempt.outcome is Outcome.GONE:
        return "the receiver answered 410 Gone"
    if attempt.rest is not None:
        receivers.throttle(tx, delivery, until=now + attempt.rest)
    if found is None or delivery.event == webhook.PING or not attempt.was_made:
        return None
    failing = receiver.failed_again(receivers.series(found), now)
    receivers.note_failure(found, failing)
    if not receiver.is_hopeless(failing):
        return None
    return f"every attempt since {failing.since:%Y-%m-%d %H:%M} UTC failed, {failing.failures} of them"


def _end(tx: Session, delivery: WebhookDelivery, attempt: Attempt, *, because: str, at: datetime) -> None:
    """Send nothing more: to an endpoint, until its owner switches it on; to a portal, of what waits.

    A portal has no switch. What it is promised later is attempted once, as long as nothing succeeds; a URL that is gone
    is gone for one request, since the next one names its own.
    """
    if delivery.endpoint_id is not None:
        stored.disable(tx, delivery.endpoint_id, because=because, at=at)
    elif delivery.callback_id is not None and attempt.outcome is Outcome.GONE:
        portal_callbacks.end_callback(tx, delivery.callback_id, because=because, at=at)
    else:
        deliveries.stop(tx, WebhookDelivery.receiver == delivery.receiver, said=f"given up: {because}")
    if delivery.endpoint_id is None:
        log.warning("callbacks to a portal given up", delivery=str(delivery.id), reason=because)
