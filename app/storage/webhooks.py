"""Endpoints, promised deliveries and the log of their attempts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from app.domain import webhook
from app.domain.lifecycle import RequestStatus
from app.errors import NotFound
from app.storage import audit
from app.storage.tables import ErasureRequest, WebhookDelivery, WebhookEndpoint


def promise(tx: Session, request_id: UUID, *, status: RequestStatus, at: datetime) -> None:
    """Promise every active endpoint that hears of this request a message, in the transaction that makes it true.

    The body is thin: an id, a state, and the public log's checkpoint, of which every receiver becomes a witness.
    Whoever wants more asks the API, with a key.
    """
    sequence, client_id = tx.execute(
        select(ErasureRequest.sequence, ErasureRequest.client_id).where(ErasureRequest.id == request_id)
    ).one()
    body = webhook.body(
        f"erasure_request.{status}",
        at,
        {"id": str(request_id), "status": str(status), "sequence": sequence, "checkpoint": audit.current_note(tx)},
    )
    hears = WebhookEndpoint.every_client | (WebhookEndpoint.client_id == client_id)
    endpoints = tx.scalars(select(WebhookEndpoint.id).where(WebhookEndpoint.disabled_at.is_(None), hears)).all()
    for endpoint_id in endpoints:
        tx.execute(insert(WebhookDelivery).values(endpoint_id=endpoint_id, request_id=request_id, body=body))


def due(tx: Session, *, limit: int) -> Sequence[UUID]:
    """Deliveries to ring for, oldest first; each is put off so that it isn't rung again at once."""
    ids = (
        select(WebhookDelivery.id)
        .where(WebhookDelivery.next_attempt_at <= func.now())
        .order_by(WebhookDelivery.next_attempt_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return tx.scalars(
        update(WebhookDelivery)
        .where(WebhookDelivery.id.in_(ids))
        .values(next_attempt_at=func.now() + timedelta(seconds=60))
        .returning(WebhookDelivery.id)
    ).all()


def pending(tx: Session, delivery_id: UUID) -> tuple[WebhookDelivery, WebhookEndpoint] | None:
    """A delivery that still has to be made and its endpoint; none if delivered, given up or disabled.

    The row stays locked while the attempt runs: two rings of one delivery send one message.
    """
    row = tx.execute(
        select(WebhookDelivery, WebhookEndpoint)
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(WebhookDelivery.id == delivery_id, WebhookDelivery.next_attempt_at.is_not(None))
        .with_for_update(skip_locked=True, of=WebhookDelivery)
    ).first()
    return (row[0], row[1]) if row else None


def log_attempt(tx: Session, delivery_id: UUID, *, outcome: str, delivered: bool, again_at: datetime | None) -> None:
    """Write what an attempt came to and when the next one is due."""
    tx.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.id == delivery_id)
        .values(
            attempts=WebhookDelivery.attempts + 1,
            last_outcome=outcome,
            delivered_at=func.now() if delivered else None,
            next_attempt_at=again_at,
        )
    )


def add_endpoint(tx: Session, endpoint: WebhookEndpoint) -> WebhookEndpoint:
    """Store a new endpoint."""
    tx.add(endpoint)
    tx.flush()
    return endpoint


def need(tx: Session, endpoint_id: UUID, *, client_id: UUID) -> WebhookEndpoint:
    """A client's endpoint; another's is as good as none.

    Raises:
        NotFound: The client has no such endpoint.
    """
    endpoint = tx.get(WebhookEndpoint, endpoint_id)
    if endpoint is None or endpoint.client_id != client_id:
        raise NotFound("there is no such webhook endpoint")
    return endpoint


def disable(tx: Session, endpoint_id: UUID, *, because: str) -> None:
    """Send nothing more to this endpoint and drop what was promised to it.

    Raises:
        NotFound: No such endpoint.
    """
    disabled = tx.scalar(
        update(WebhookEndpoint)
        .where(WebhookEndpoint.id == endpoint_id)
        .values(
            disabled_at=func.coalesce(WebhookEndpoint.disabled_at, func.now()),
            disabled_because=func.coalesce(WebhookEndpoint.disabled_because, because),
        )
        .returning(WebhookEndpoint.id)
    )
    if disabled is None:
        raise NotFound("there is no such webhook endpoint")
    tx.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.endpoint_id == endpoint_id, WebhookDelivery.next_attempt_at.is_not(None))
        .values(next_attempt_at=None, last_outcome="endpoint disabled")
    )


def endpoints(tx: Session, *, client_id: UUID) -> Sequence[WebhookEndpoint]:
    """A client's endpoints, newest first."""
    theirs = select(WebhookEndpoint).where(WebhookEndpoint.client_id == client_id)
    return tx.scalars(theirs.order_by(WebhookEndpoint.created_at.desc())).all()


def deliveries(
    tx: Session, *, client_id: UUID, request_id: UUID | None = None, limit: int = 100
) -> Sequence[WebhookDelivery]:
    """The delivery log of a client's endpoints, newest first."""
    theirs = select(WebhookEndpoint.id).where(WebhookEndpoint.client_id == client_id)
    query = select(WebhookDelivery).where(WebhookDelivery.endpoint_id.in_(theirs))
    query = query.order_by(WebhookDelivery.created_at.desc()).limit(limit)
    return tx.scalars(query.where(WebhookDelivery.request_id == request_id) if request_id else query).all()
