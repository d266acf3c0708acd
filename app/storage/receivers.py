"""How receivers have been answering, endpoints and the portals that callbacks lead to: who fails is spared.

A portal is the host and port of a URL, for one client. Its id is a keyed hash of them: where callbacks lead is the
portal's secret, and stays sealed with the callback.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import delete, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.domain.receiver import Failing
from app.storage.tables import CallbackReceiver, Client, PortalCallback, WebhookDelivery, WebhookEndpoint

Receiver = WebhookEndpoint | CallbackReceiver
MOST_ORIGINS: Final = 50
"""Of one client's callbacks, as it may have fifty endpoints; whatever else it names is one more receiver together."""


def kind_of(delivery: WebhookDelivery) -> type[Receiver]:
    """What receives a message."""
    return CallbackReceiver if delivery.endpoint_id is None else WebhookEndpoint


def of_origin(tx: Session, client_id: UUID, origin: UUID) -> UUID:
    """Who receives a client's callbacks to a host and port."""
    ids = set(tx.scalars(select(CallbackReceiver.id).where(CallbackReceiver.client_id == client_id)))
    receiver = origin if origin in ids or len(ids) < MOST_ORIGINS else client_id
    if receiver not in ids:
        added = insert(CallbackReceiver).values(id=receiver, client_id=client_id)
        tx.execute(added.on_conflict_do_nothing())
    return receiver


def held(tx: Session, delivery: WebhookDelivery) -> Receiver | None:
    """Who receives a message, until the transaction ends; promises to it go on meanwhile.

    None for callbacks that are older than this table.
    """
    table: Any = kind_of(delivery)  # Any: to mypy both are no more than tables
    found: Receiver | None = tx.get(
        table, delivery.receiver, with_for_update={"key_share": True}, populate_existing=True
    )
    return found


def series(receiver: Receiver) -> Failing | None:
    """The series of failures that a receiver is in."""
    if receiver.failing_since is None or receiver.failed_at is None:
        return None
    return Failing(receiver.failing_since, receiver.failed_at, receiver.failures)


def note_success(tx: Session, delivery: WebhookDelivery) -> None:
    """End a series of failures; writes nothing where there is none, so that attempts don't queue for the row."""
    table = kind_of(delivery)
    failing = (table.failures > 0) | table.throttled_until.is_not(None)
    fine = {"failures": 0, "failing_since": None, "failed_at": None, "throttled_until": None}
    tx.execute(update(table).where(table.id == delivery.receiver, failing).values(fine))


def note_failure(receiver: Receiver, failing: Failing) -> None:
    """Write a series of failures down; the caller holds the row."""
    receiver.failures, receiver.failing_since, receiver.failed_at = failing.failures, failing.since, failing.last


def forgive(receiver: Receiver) -> None:
    """Begin anew with a receiver that has changed."""
    receiver.failures = 0
    receiver.failing_since = receiver.failed_at = receiver.throttled_until = None


def throttle(tx: Session, delivery: WebhookDelivery, *, until: datetime) -> None:
    """Let a receiver rest; of two rests the longer counts."""
    table = kind_of(delivery)
    longer = func.greatest(table.throttled_until, until)
    tx.execute(update(table).where(table.id == delivery.receiver).values(throttled_until=longer))


def failing_portals(tx: Session, *, at: datetime, limit: int) -> Sequence[tuple[CallbackReceiver, str]]:
    """Portals that take no callbacks just now, with the names of their clients, the longest first."""
    failing = CallbackReceiver.failing_since.is_not(None) | (CallbackReceiver.throttled_until > at)
    named = select(CallbackReceiver, Client.name).join(Client, Client.id == CallbackReceiver.client_id)
    longest = named.where(failing).order_by(CallbackReceiver.failing_since, CallbackReceiver.id).limit(limit)
    return [(receiver, client) for receiver, client in tx.execute(longest)]


def drop_unused(tx: Session) -> None:
    """Forget how portals answered of whose deliveries nothing is left, and to which no callback leads any more."""
    used = or_(
        exists().where(WebhookDelivery.receiver == CallbackReceiver.id),
        exists().where(PortalCallback.receiver_id == CallbackReceiver.id, PortalCallback.sealed.is_not(None)),
    )
    tx.execute(delete(CallbackReceiver).where(CallbackReceiver.created_at < func.now() - timedelta(days=1), ~used))
