"""What the home page shows beyond the facts that metrics have: the past by day, the oldest, and what fails."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.storage.tables import Client, ErasureRequest, WebhookEndpoint

_CLOSED = """
SELECT CAST(closed_at AT TIME ZONE :zone AS date) AS day, count(*)::int AS number
FROM erasure_requests
WHERE closed_at >= CAST(CAST(:since AS date) AS timestamp) AT TIME ZONE :zone
GROUP BY 1
"""


def closed_by_day(tx: Session, *, until: date, days: int, zone: str) -> list[tuple[date, int]]:
    """How many requests ended on each of so many days, the last of them ``until``; days of the controller's zone."""
    since = until - timedelta(days=days - 1)
    found = {row.day: row.number for row in tx.execute(text(_CLOSED), {"since": since, "zone": zone})}
    return [(day, found.get(day, 0)) for day in (since + timedelta(days=n) for n in range(days))]


def oldest_open(tx: Session, *, limit: int) -> Sequence[ErasureRequest]:
    """The open requests that have waited longest."""
    still_open = select(ErasureRequest).where(ErasureRequest.closed_at.is_(None))
    return tx.scalars(still_open.order_by(ErasureRequest.received_at).limit(limit)).all()


def failing_endpoints(tx: Session) -> Sequence[tuple[WebhookEndpoint, str]]:
    """Endpoints that were switched off or have been failing, with the names of their clients, the longest first."""
    broken = WebhookEndpoint.ended_at.is_(None) & (
        WebhookEndpoint.disabled_at.is_not(None) | WebhookEndpoint.failing_since.is_not(None)
    )
    found = select(WebhookEndpoint, Client.name).join(Client, Client.id == WebhookEndpoint.client_id).where(broken)
    return [(row[0], row[1]) for row in tx.execute(found.order_by(WebhookEndpoint.failing_since).limit(20))]
