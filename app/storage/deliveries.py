"""Promised messages on their way: whose turn it is, who is at it, how it went, and what is sent once more.

Receivers take turns. Each has a few slots at most, one while it fails; all of one client share some, and so do all that
fail: so thousands of messages for one that hangs, or a client with fifty of these, hold up nobody else. A slot is a
ring that nobody has answered yet, or an attempt under its lease; a lost ring and a dead worker give it back by the
clock.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, delete, exists, func, select, text, true, update
from sqlalchemy.orm import Session

from app.domain.webhook import PING, Outcome
from app.errors import NotFound
from app.storage.tables import CallbackReceiver, WebhookAttempt, WebhookDelivery, WebhookEndpoint

SLOTS: Final = 4
"""Of one receiver that answers."""
_FAILING_SLOTS: Final = 8
"""Of all receivers that fail, together: half of what one worker has."""
CLIENT_SLOTS: Final = 8
"""Of all receivers of one client, together."""
_CLIENT_FAILING_SLOTS: Final = 4
"""Of those among them that fail: the others go on."""
ALL_SLOTS: Final = 16
"""What a worker attempts at once: whatever else is rung would only wait in the broker."""
RING: Final = timedelta(seconds=30)
"""How long a ring may go unanswered before the next."""
LEASE: Final = timedelta(seconds=60)
"""Twice what an attempt may take at most (``webhook_seconds``)."""
PARKED: Final = "endpoint disabled"
"""The outcome of what was undelivered when its endpoint was disabled."""
_FRONT: Final = 64
"""How far a queue is looked into for a message that need not wait for an older one about the same request: few must,
and whoever looked at all of thousands took 230 ms (measured)."""
_TIDY_AT_ONCE: Final = 10_000
MANY: Final = 1_000
"""Beyond this, how many messages wait is not counted for a page."""
_WAITING = text("""
SELECT r AS receiver, (
  SELECT count(*) FROM (
    SELECT FROM webhook_deliveries WHERE receiver = r AND next_attempt_at IS NOT NULL LIMIT :most) d) AS number
FROM unnest(CAST(:receivers AS uuid[])) r
""")

_NEED_NOT_WAIT = """NOT EXISTS (
      SELECT FROM webhook_deliveries o WHERE o.request_id = f.request_id AND o.number + 0 < f.number
        AND o.endpoint_id IS NOT DISTINCT FROM f.endpoint_id AND o.callback_id IS NOT DISTINCT FROM f.callback_id
        AND o.attempts = 0 AND o.next_attempt_at IS NOT NULL)"""
"""Of two messages about one request, the older sets out first."""
_RECEIVERS = """(
      SELECT id, client_id, failures, throttled_until, disabled_at, ended_at FROM webhook_endpoints UNION ALL
      SELECT id, client_id, failures, throttled_until, NULL, NULL FROM callback_receivers)"""
_TURNS = f"""
WITH RECURSIVE waiting (receiver) AS (
  (SELECT receiver FROM webhook_deliveries WHERE next_attempt_at IS NOT NULL ORDER BY receiver LIMIT 1)
  UNION ALL
  SELECT (SELECT d.receiver FROM webhook_deliveries d
          WHERE d.next_attempt_at IS NOT NULL AND d.receiver > w.receiver ORDER BY d.receiver LIMIT 1)
  FROM waiting w WHERE w.receiver IS NOT NULL
), slots AS (
  SELECT receiver, count(*) AS taken FROM webhook_deliveries
  WHERE (rung_at IS NOT NULL OR lease_until IS NOT NULL)
    AND (rung_at > now() - CAST(:ring AS interval) OR lease_until > now())
  GROUP BY receiver
), clients AS (
  SELECT coalesce(e.client_id, s.receiver) AS client, sum(s.taken) AS taken,
    coalesce(sum(s.taken) FILTER (WHERE e.failures > 0), 0) AS failing
  FROM slots s LEFT JOIN {_RECEIVERS} e ON e.id = s.receiver GROUP BY 1
), receivers AS (
  SELECT w.receiver, coalesce(e.client_id, w.receiver) AS client, coalesce(e.failures > 0, false) AS fails,
    e.disabled_at IS NOT NULL AS disabled, e.ended_at IS NOT NULL AS ended,
    CASE WHEN e.failures > 0 THEN 1 ELSE :slots END - coalesce(s.taken, 0) AS free
  FROM waiting w LEFT JOIN {_RECEIVERS} e ON e.id = w.receiver LEFT JOIN slots s ON s.receiver = w.receiver
  WHERE w.receiver IS NOT NULL AND (e.throttled_until IS NULL OR e.throttled_until <= now())
), picked AS (
  SELECT p.id, p.turn, p.next_attempt_at, r.client, r.fails,
    row_number() OVER (PARTITION BY r.client, r.fails ORDER BY p.turn, p.next_attempt_at) AS place
  FROM receivers r CROSS JOIN LATERAL (
    SELECT f.id, f.next_attempt_at, row_number() OVER (ORDER BY f.next_attempt_at, f.number) AS turn
    FROM (
      SELECT * FROM webhook_deliveries d
      WHERE d.receiver = r.receiver AND d.next_attempt_at <= now() AND r.free > 0
        AND (d.rung_at IS NULL OR d.rung_at <= now() - CAST(:ring AS interval))
        AND (d.lease_until IS NULL OR d.lease_until <= now())
        AND NOT r.ended AND (NOT r.disabled OR d.event = 'ping')
      ORDER BY d.next_attempt_at, d.number LIMIT :front
    ) AS f
    WHERE {_NEED_NOT_WAIT}
    ORDER BY f.next_attempt_at, f.number LIMIT greatest(r.free, 0)
  ) AS p
), of_client AS (
  SELECT p.id, p.next_attempt_at, p.fails, coalesce(c.taken, 0)
      + row_number() OVER (PARTITION BY p.client ORDER BY p.turn, p.next_attempt_at) AS slot
  FROM picked p LEFT JOIN clients c ON c.client = p.client
  WHERE NOT p.fails OR p.place <= :client_failing_slots - coalesce(c.failing, 0)
), fair AS (
  SELECT id, slot, next_attempt_at, fails,
    row_number() OVER (PARTITION BY fails ORDER BY slot, next_attempt_at) AS place
  FROM of_client WHERE slot <= :client_slots
)
UPDATE webhook_deliveries SET rung_at = now()
WHERE id IN (
    SELECT id FROM fair
    WHERE NOT fails OR place <= :failing_slots - (SELECT coalesce(sum(failing), 0) FROM clients)
    ORDER BY slot, next_attempt_at
    LIMIT greatest(0, least(:limit, :all_slots - (SELECT coalesce(sum(taken), 0) FROM clients))))
  AND (rung_at IS NULL OR rung_at <= now() - CAST(:ring AS interval))
RETURNING id
"""  # noqa: S608 - our own words


_RING = text(_TURNS)
_CLAIM = f"""
UPDATE webhook_deliveries SET lease_until = now() + CAST(:lease AS interval), rung_at = NULL, fence = fence + 1
WHERE id = (
  SELECT d.id FROM webhook_deliveries d LEFT JOIN {_RECEIVERS} e ON e.id = d.receiver
  WHERE d.id {{wanted}} AND d.next_attempt_at IS NOT NULL AND (d.lease_until IS NULL OR d.lease_until <= now())
    AND (e.throttled_until IS NULL OR e.throttled_until <= now())
    AND e.ended_at IS NULL AND (e.disabled_at IS NULL OR d.event = 'ping')
  ORDER BY d.next_attempt_at, d.number LIMIT 1 FOR UPDATE OF d SKIP LOCKED)
RETURNING *
"""  # noqa: S608 - our own words
_NEXT = f"""= ANY (ARRAY(
    SELECT f.id FROM (
      SELECT * FROM webhook_deliveries WHERE receiver = :receiver AND next_attempt_at <= now()
        AND (rung_at IS NULL OR rung_at <= now() - CAST(:ring AS interval))
        AND (lease_until IS NULL OR lease_until <= now())
      ORDER BY next_attempt_at, number LIMIT :front
    ) AS f WHERE {_NEED_NOT_WAIT}
    ORDER BY next_attempt_at, number LIMIT 8))"""  # noqa: S608 - our own words
_WHOLE = select(WebhookDelivery)
_CLAIM_ONE = _WHOLE.from_statement(text(_CLAIM.format(wanted="= :id")))
_CLAIM_NEXT = _WHOLE.from_statement(text(_CLAIM.format(wanted=_NEXT)))
_SETTLE = text("""
WITH attempt AS (
  INSERT INTO webhook_attempts (delivery_id, at, outcome, status_code, error, duration_ms)
  VALUES (:id, :at, :outcome, :status_code, :error, :duration_ms)
)
UPDATE webhook_deliveries SET attempts = attempts + 1, lease_until = NULL, rung_at = NULL,
  delivered_at = CAST(:delivered_at AS timestamptz),
  last_outcome = CASE WHEN next_attempt_at IS NULL AND CAST(:delivered_at AS timestamptz) IS NULL
    THEN last_outcome ELSE :said END,
  next_attempt_at = CASE WHEN next_attempt_at IS NULL AND CAST(:delivered_at AS timestamptz) IS NULL
    THEN NULL ELSE CAST(:again_at AS timestamptz) END
WHERE id = :id AND fence = :fence
""")


@dataclass(frozen=True)
class Seen:
    """Which deliveries somebody wants to see; none of a field means whichever."""

    client_id: UUID
    """Its endpoints' and its portals'; never another client's."""
    endpoint_id: UUID | None = None
    request_id: UUID | None = None
    event: str | None = None
    state: str | None = None
    """``delivered``, ``pending`` or ``failed``."""
    since: datetime | None = None
    until: datetime | None = None
    every_client: bool = False
    """Whether those of endpoints that hear of every client's requests are among them."""


def to_ring(tx: Session, *, limit: int) -> Sequence[UUID]:
    """Deliveries whose turn it is, noted as rung; one that nobody answers is rung again after :data:`RING`."""
    slots = {"slots": SLOTS, "failing_slots": _FAILING_SLOTS}
    slots |= {"client_slots": CLIENT_SLOTS, "client_failing_slots": _CLIENT_FAILING_SLOTS, "all_slots": ALL_SLOTS}
    return tx.scalars(_RING, {"ring": RING, "limit": limit, "front": _FRONT, **slots}).all()


def claim(tx: Session, delivery_id: UUID) -> WebhookDelivery | None:
    """Take a delivery for one attempt; none if it is over, somebody is at it, or its receiver is to be spared."""
    claimed: WebhookDelivery | None = tx.scalar(_CLAIM_ONE, {"id": delivery_id, "lease": LEASE})
    return claimed


def claim_next(tx: Session, receiver: UUID) -> WebhookDelivery | None:
    """Take the receiver's next delivery: a worker that was answered goes on without waiting to be rung."""
    wanted = {"receiver": receiver, "lease": LEASE, "ring": RING, "front": _FRONT}
    claimed: WebhookDelivery | None = tx.scalar(_CLAIM_NEXT, wanted)
    return claimed


@dataclass(frozen=True)
class Settled:
    """What an attempt came to, and what follows from it for the message."""

    at: datetime
    outcome: Outcome
    status_code: int | None
    error: str | None
    duration_ms: int
    said: str
    """The outcome for people."""
    delivered_at: datetime | None
    again_at: datetime | None


def settle(tx: Session, delivery: WebhookDelivery, settled: Settled) -> None:
    """Log a claimed attempt and write what it came to, unless somebody else claimed it since, whose word counts.

    What was parked meanwhile stays so, unless it was delivered after all.
    """
    tx.execute(_SETTLE, {"id": delivery.id, "fence": delivery.fence, **vars(settled), "outcome": settled.outcome.value})


def add(tx: Session, delivery: WebhookDelivery) -> WebhookDelivery:
    """Promise a message by itself."""
    tx.add(delivery)
    tx.flush()
    return delivery


def has_ping_under_way(tx: Session, endpoint_id: UUID) -> bool:
    """Whether a ping of this endpoint has not been attempted yet."""
    ping = (WebhookDelivery.receiver == endpoint_id) & (WebhookDelivery.event == PING)
    return bool(tx.scalar(select(exists().where(ping, WebhookDelivery.next_attempt_at.is_not(None)))))


def need(tx: Session, delivery_id: UUID, *, client_id: UUID, every_client: bool = False) -> WebhookDelivery:
    """One delivery that the client may see; of an endpoint that hears of everybody only if it may see everybody.

    Raises:
        NotFound: There is none.
    """
    theirs = _matches(Seen(client_id, every_client=every_client)) & (WebhookDelivery.id == delivery_id)
    found = tx.scalar(select(WebhookDelivery).where(theirs).execution_options(populate_existing=True))
    if found is None:
        raise NotFound("there is no such delivery")
    return found


def of_endpoint(tx: Session, delivery_id: UUID) -> tuple[WebhookDelivery, WebhookEndpoint]:
    """Any endpoint's delivery with its endpoint; callbacks of portals are none: their bodies are the portals' own.

    Raises:
        NotFound: There is none.
    """
    found = tx.execute(
        select(WebhookDelivery, WebhookEndpoint)
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(WebhookDelivery.id == delivery_id)
    ).one_or_none()
    if found is None:
        raise NotFound("there is no such delivery")
    return found[0], found[1]


def waiting(tx: Session, receivers: Collection[UUID]) -> dict[UUID, int]:
    """How many messages are on their way to each; counted up to :data:`MANY` only, which is told by one more."""
    found = tx.execute(_WAITING, {"receivers": list(receivers), "most": MANY + 1}) if receivers else ()
    return {row.receiver: row.number for row in found}


def page(tx: Session, seen: Seen, *, before: int | None, limit: int) -> Sequence[WebhookDelivery]:
    """The log of deliveries, newest first, from the cursor ``before`` on."""
    query = select(WebhookDelivery).where(_matches(seen), WebhookDelivery.number < before if before else true())
    return tx.scalars(query.order_by(WebhookDelivery.number.desc()).limit(limit)).all()


def attempts(tx: Session, delivery_id: UUID) -> Sequence[WebhookAttempt]:
    """Every attempt at a delivery, in order."""
    mine = select(WebhookAttempt).where(WebhookAttempt.delivery_id == delivery_id)
    return tx.scalars(mine.order_by(WebhookAttempt.id)).all()


def replay(tx: Session, seen: Seen, *, after: int, limit: int, at: datetime) -> tuple[int, int | None]:
    """Send settled messages once more, oldest first, as if they had just been promised.

    Returns:
        How many, and the cursor to go on from if there are more.
    """
    wanted = _matches(seen) & WebhookDelivery.endpoint_id.is_not(None) & WebhookDelivery.next_attempt_at.is_(None)
    wanted &= (WebhookDelivery.number > after) & (WebhookDelivery.event != PING)
    numbers = select(WebhookDelivery.number).where(wanted).order_by(WebhookDelivery.number).limit(limit + 1)
    found = tx.scalars(numbers).all()
    again = {"next_attempt_at": at, "attempts": 0, "delivered_at": None, "rung_at": None}
    chosen = WebhookDelivery.number == func.any(list(found[:limit]))
    tx.execute(update(WebhookDelivery).where(chosen).values(again))
    return len(found[:limit]), found[limit - 1] if len(found) > limit else None


def replay_one(tx: Session, delivery_id: UUID, *, at: datetime) -> None:
    """Send one settled message once more."""
    again = {"next_attempt_at": at, "attempts": 0, "delivered_at": None, "rung_at": None}
    tx.execute(update(WebhookDelivery).where(WebhookDelivery.id == delivery_id).values(again))


def _matches(seen: Seen) -> ColumnElement[bool]:
    theirs = select(WebhookEndpoint.id).where(WebhookEndpoint.client_id == seen.client_id)
    if not seen.every_client:
        theirs = theirs.where(~WebhookEndpoint.every_client)
    portals = select(CallbackReceiver.id).where(CallbackReceiver.client_id == seen.client_id)
    found = WebhookDelivery.receiver.in_(theirs.union_all(portals)) | (WebhookDelivery.receiver == seen.client_id)
    wanted = {"endpoint_id": seen.endpoint_id, "request_id": seen.request_id, "event": seen.event}
    if seen.endpoint_id is not None:  # said once more by the column that the log is indexed by
        found &= WebhookDelivery.receiver == seen.endpoint_id
    for name, value in wanted.items():
        found &= (getattr(WebhookDelivery, name) == value) if value is not None else true()
    if seen.since is not None:
        found &= WebhookDelivery.created_at >= seen.since
    if seen.until is not None:
        found &= WebhookDelivery.created_at < seen.until
    return found & _state(seen.state)


def _state(word: str | None) -> ColumnElement[bool]:
    waits, done = WebhookDelivery.next_attempt_at.is_not(None), WebhookDelivery.delivered_at.is_not(None)
    return {None: true(), "pending": waits, "delivered": ~waits & done, "failed": ~waits & ~done}[word]


def stop(tx: Session, theirs: ColumnElement[bool], *, said: str) -> None:
    """Make no further attempt at these messages."""
    waiting = theirs & WebhookDelivery.next_attempt_at.is_not(None)
    stopped = {"next_attempt_at": None, "rung_at": None, "last_outcome": said}
    tx.execute(update(WebhookDelivery).where(waiting).values(stopped))


def park_stragglers(tx: Session) -> None:
    """Give up what was promised to an endpoint in the moment in which it was closed."""
    closed = exists().where(
        WebhookEndpoint.id == WebhookDelivery.endpoint_id,
        WebhookEndpoint.disabled_at.is_not(None) | WebhookEndpoint.ended_at.is_not(None),
    )
    waiting = WebhookDelivery.next_attempt_at.is_not(None) & (WebhookDelivery.event != PING)
    tx.execute(update(WebhookDelivery).where(waiting, closed).values(next_attempt_at=None, last_outcome=PARKED))


def drop_old(tx: Session, *, keep: timedelta) -> None:
    """Forget settled deliveries and their attempts past their retention, some at a time."""
    old = WebhookDelivery.next_attempt_at.is_(None) & (WebhookDelivery.created_at < func.now() - keep)
    some = select(WebhookDelivery.id).where(old).limit(_TIDY_AT_ONCE)
    tx.execute(delete(WebhookDelivery).where(WebhookDelivery.id.in_(some)))
