"""Endpoints with their secrets, and the messages that are promised to them; how those fare is in deliveries.py."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, any_, delete, exists, func, insert, or_, select, true, tuple_, update
from sqlalchemy.orm import Session

from app.domain import webhook
from app.domain.webhook import Scheme
from app.errors import NotFound
from app.logs import log
from app.storage import audit, deliveries, keys, receivers, totals
from app.storage.deliveries import PARKED
from app.storage.tables import Client, ErasureRequest, Event, WebhookDelivery, WebhookEndpoint, WebhookSecret


def promise(tx: Session, request_ids: Collection[UUID], *, event: str, at: datetime) -> None:
    """Promise a message to every endpoint that hears of this, in the transaction that makes it true.

    The caller holds the requests' rows and has written the event down: the number of a request's events so far is the
    message's ``sequence``, by which a receiver tells older from newer. The body is thin: an id, a state, and the public
    log's checkpoint, of which every receiver becomes a witness. Whoever wants more asks the API, with a key.
    """
    told = _told(tx, request_ids, event)
    if not told:
        return
    note = audit.current_note(tx)
    rows = [
        {
            "endpoint_id": row.endpoint_id,
            "receiver": row.endpoint_id,
            "request_id": row.request_id,
            "event": event,
            "body": webhook.body(
                event,
                at,
                {"id": str(row.request_id), "status": row.status, "sequence": row.sequence, "checkpoint": note},
            ),
        }
        for row in told
    ]
    tx.execute(insert(WebhookDelivery), rows)


def _told(tx: Session, request_ids: Collection[UUID], event: str) -> Sequence[Any]:  # Any: rows of four columns
    """Who hears what of which request, in the order of the requests' arrival."""
    sequence = select(func.count()).where(Event.request_id == ErasureRequest.id).scalar_subquery()
    asked = any_(WebhookEndpoint.events) == event
    hears = or_(asked, WebhookEndpoint.events.is_(None)) if event in webhook.OUTCOMES else asked
    everybody = WebhookEndpoint.every_client & keys.sees_everybody(WebhookEndpoint.client_id)
    theirs = (WebhookEndpoint.client_id == ErasureRequest.client_id) | everybody
    return tx.execute(
        select(
            ErasureRequest.id.label("request_id"),
            ErasureRequest.status,
            WebhookEndpoint.id.label("endpoint_id"),
            sequence.label("sequence"),
        )
        .join(WebhookEndpoint, theirs & hears & _is_active())
        .where(ErasureRequest.id == func.any(list(request_ids)))
        .order_by(ErasureRequest.sequence)
    ).all()


def _is_active() -> Any:  # Any: a condition in SQL
    return WebhookEndpoint.disabled_at.is_(None) & WebhookEndpoint.ended_at.is_(None)


def add(tx: Session, endpoint: WebhookEndpoint) -> WebhookEndpoint:
    """Store a new endpoint."""
    tx.add(endpoint)
    tx.flush()
    return endpoint


def hold_count(tx: Session, client_id: UUID) -> None:
    """Wait until nobody else adds to this client's endpoints; until the transaction ends."""
    tx.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(str(client_id), 7215005))))


def how_many(tx: Session, client_id: UUID) -> tuple[int, int]:
    """A client's endpoints: those there are, and those that were ended."""
    ended = func.count(WebhookEndpoint.ended_at)
    row = tx.execute(select(func.count() - ended, ended).where(WebhookEndpoint.client_id == client_id)).one()
    return int(row[0]), int(row[1])


def need(tx: Session, endpoint_id: UUID, *, client_id: UUID, every_client: bool = False) -> WebhookEndpoint:
    """A client's endpoint; another's, and one that hears of everybody if the caller may not, is as good as none.

    Raises:
        NotFound: The client has no such endpoint.
    """
    return _found(tx, _theirs(client_id, every_client=every_client).where(WebhookEndpoint.id == endpoint_id))


def need_held(tx: Session, endpoint_id: UUID, *, client_id: UUID, every_client: bool = False) -> WebhookEndpoint:
    """The same, held until the transaction ends.

    Raises:
        NotFound: The client has no such endpoint.
    """
    wanted = _theirs(client_id, every_client=every_client).where(WebhookEndpoint.id == endpoint_id)
    return _found(tx, wanted.with_for_update(key_share=True))


def of_client(tx: Session, client_id: UUID, *, every_client: bool = False) -> Sequence[WebhookEndpoint]:
    """A client's endpoints, newest first; with those that hear of every client's requests, or without."""
    theirs = _theirs(client_id, every_client=every_client)
    return tx.scalars(theirs.order_by(WebhookEndpoint.created_at.desc())).all()


def every(
    tx: Session, *, state: str | None, at: datetime, after: UUID | None, limit: int
) -> Sequence[tuple[WebhookEndpoint, str]]:
    """Every client's endpoints with the names of their clients, newest first.

    Args:
        tx: The transaction.
        state: ``fine``, ``failing`` (or resting) or ``off``; none: whichever.
        at: The clock.
        after: The last one of the page before.
        limit: So many at most.
    """
    wanted = WebhookEndpoint.ended_at.is_(None) & _state(state, at)
    last = tx.get(WebhookEndpoint, after) if after else None
    if last is not None:
        wanted &= tuple_(WebhookEndpoint.created_at, WebhookEndpoint.id) < tuple_(last.created_at, last.id)
    newest = _named().where(wanted).order_by(WebhookEndpoint.created_at.desc(), WebhookEndpoint.id.desc())
    return [(endpoint, client) for endpoint, client in tx.execute(newest.limit(limit))]


def _state(word: str | None, at: datetime) -> ColumnElement[bool]:
    off = WebhookEndpoint.disabled_at.is_not(None)
    failing = WebhookEndpoint.failing_since.is_not(None) | func.coalesce(WebhookEndpoint.throttled_until > at, False)
    return {None: true(), "off": off, "failing": ~off & failing, "fine": ~off & ~failing}[word]


def with_client(tx: Session, endpoint_id: UUID) -> tuple[WebhookEndpoint, str]:
    """Any client's endpoint with its client's name, a deleted one, too, while its log is kept.

    Raises:
        NotFound: There is none.
    """
    found = tx.execute(_named().where(WebhookEndpoint.id == endpoint_id)).one_or_none()
    if found is None:
        raise NotFound("there is no such webhook endpoint")
    return found[0], found[1]


def _named() -> Select[WebhookEndpoint, str]:
    return select(WebhookEndpoint, Client.name).join(Client, Client.id == WebhookEndpoint.client_id)


def _theirs(client_id: UUID, *, every_client: bool) -> Select[WebhookEndpoint]:
    theirs = select(WebhookEndpoint).where(WebhookEndpoint.client_id == client_id, WebhookEndpoint.ended_at.is_(None))
    return theirs if every_client else theirs.where(~WebhookEndpoint.every_client)


def _found(tx: Session, wanted: Select[WebhookEndpoint]) -> WebhookEndpoint:
    found = tx.scalar(wanted)
    if found is None:
        raise NotFound("there is no such webhook endpoint")
    return found


def end(tx: Session, endpoint: WebhookEndpoint, *, at: datetime) -> None:
    """Send nothing more to an endpoint, for good; its secrets go, the log of its deliveries stays."""
    endpoint.ended_at = at
    tx.execute(delete(WebhookSecret).where(WebhookSecret.endpoint_id == endpoint.id))
    _park(tx, endpoint.id)


def disable(tx: Session, endpoint_id: UUID, *, because: str, at: datetime) -> None:
    """Send nothing more until its owner switches it on again; the owner is told by event, log, metric and API."""
    disabled = tx.scalar(
        update(WebhookEndpoint)
        .where(WebhookEndpoint.id == endpoint_id, _is_active())
        .values(disabled_at=at, disabled_because=because)
        .returning(WebhookEndpoint.id)
    )
    if disabled is None:
        return
    _park(tx, endpoint_id)
    tx.execute(insert(Event).values(type="webhook.disabled", detail={"endpoint": str(endpoint_id), "reason": because}))
    totals.count(tx, "webhook_endpoint_disabled")
    log.warning("webhook endpoint disabled", endpoint=str(endpoint_id), reason=because)


def _park(tx: Session, endpoint_id: UUID) -> None:
    deliveries.stop(tx, WebhookDelivery.endpoint_id == endpoint_id, said=PARKED)


def enable(tx: Session, endpoint: WebhookEndpoint, *, since: datetime, limit: int, at: datetime) -> int:
    """Send again, and what was undelivered when it was disabled; returns how many messages that are.

    Args:
        tx: The caller's transaction.
        endpoint: Held by it.
        since: What was promised earlier stays undelivered: old news would only confuse.
        limit: So many at most, the newest.
        at: When.
    """
    endpoint.disabled_at = endpoint.disabled_because = None
    receivers.forgive(endpoint)
    undelivered = (WebhookDelivery.endpoint_id == endpoint.id) & (WebhookDelivery.last_outcome == PARKED)
    found = select(WebhookDelivery.id).where(undelivered, WebhookDelivery.created_at >= since)
    found = found.order_by(WebhookDelivery.number.desc()).limit(limit)
    again = {"next_attempt_at": at, "attempts": 0, "last_outcome": None}
    resumed = update(WebhookDelivery).where(WebhookDelivery.id.in_(found)).values(again)
    return len(tx.scalars(resumed.returning(WebhookDelivery.id)).all())


def add_secret(
    tx: Session, endpoint_id: UUID, *, scheme: Scheme, sealed: bytes, public: str | None, at: datetime
) -> WebhookSecret:
    """Store what signs for an endpoint from now on."""
    row = WebhookSecret(endpoint_id=endpoint_id, scheme=scheme, sealed=sealed, public=public, created_at=at)
    tx.add(row)
    tx.flush()
    return row


def secrets(tx: Session, endpoint_ids: Collection[UUID], *, now: datetime) -> Sequence[WebhookSecret]:
    """What signs for these endpoints just now, newest first."""
    live = or_(WebhookSecret.expires_at.is_(None), WebhookSecret.expires_at > now)
    theirs = select(WebhookSecret).where(WebhookSecret.endpoint_id == func.any(list(endpoint_ids)), live)
    return tx.scalars(theirs.order_by(WebhookSecret.created_at.desc(), WebhookSecret.id)).all()


def retire_secrets(tx: Session, endpoint_id: UUID, *, scheme: Scheme, at: datetime) -> None:
    """Let the secrets of a scheme sign until a moment, and no longer than they would have."""
    theirs = (WebhookSecret.endpoint_id == endpoint_id) & (WebhookSecret.scheme == scheme)
    sooner = func.least(WebhookSecret.expires_at, at)
    tx.execute(update(WebhookSecret).where(theirs).values(expires_at=sooner))


def end_secret(tx: Session, secret_id: UUID) -> None:
    """Delete one secret."""
    tx.execute(delete(WebhookSecret).where(WebhookSecret.id == secret_id))


def drop_ended(tx: Session) -> None:
    """Forget ended endpoints of whose deliveries nothing is left."""
    logged = exists().where(WebhookDelivery.receiver == WebhookEndpoint.id)
    tx.execute(delete(WebhookEndpoint).where(WebhookEndpoint.ended_at < func.now() - timedelta(days=1), ~logged))


def drop_expired_secrets(tx: Session) -> None:
    """Delete what no longer signs."""
    tx.execute(delete(WebhookSecret).where(WebhookSecret.expires_at <= func.now()))
