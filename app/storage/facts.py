"""How things stand, in numbers, for whoever watches: read from what is open, so that history costs nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from math import inf
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from app import queue
from app.domain.lifecycle import JOB_OPEN, PLANNABLE
from app.storage import audit, totals

DAYS: Final = (1, 3, 7, 14, 30)


@dataclass(frozen=True)
class OpenRequests:
    """Requests without an end, in one status."""

    status: str
    count: int
    overdue: int
    within_days: tuple[int, ...]
    """How many are due within so many days, overdue ones included; the bounds are ``DAYS``."""
    earliest_deadline: datetime


@dataclass(frozen=True)
class Facts:
    """Everything that metrics say about the house as a whole."""

    requests: list[OpenRequests]
    jobs: dict[str, int]
    """Open jobs by status."""
    queues: dict[str, float | None]
    """For how many seconds the oldest work of each queue could have begun already; none: nothing waits."""
    silent: dict[str, float]
    """For how many seconds no consumer of a queue has heard us."""
    log_waits: float | None
    """For how many seconds the oldest entry has waited for the public log."""
    deliveries: int
    """Messages that are promised and not delivered yet."""
    counted: dict[tuple[str, str], totals.Sum]


def read(tx: Session, *, now: datetime) -> Facts:
    """Count; a handful of statements over partial indexes."""
    one, waits = tx.execute(text(_STATE), {"now": now}).one(), audit.waiting_since(tx)
    return Facts(
        requests=_open_requests(tx, now),
        jobs=one.jobs or {},
        queues={"planning": one.planning, "unlearn": one.unlearn, "io": one.io},
        silent=_silent(one.silent or {}, busy=one.busy),
        log_waits=(now - waits).total_seconds() if waits else None,
        deliveries=one.deliveries,
        counted=totals.read(tx),
    )


def _open_requests(tx: Session, now: datetime) -> list[OpenRequests]:
    bounds = {f"bound_{place}": now + timedelta(days=days) for place, days in enumerate((0, *DAYS))}
    return [
        OpenRequests(row.status, row.number, row.before[0], tuple(row.before[1:]), row.earliest)
        for row in tx.execute(text(_REQUESTS), bounds)
    ]


def _silent(since: dict[str, float], *, busy: bool) -> dict[str, float]:
    """Every queue has a number: one that never was heard is silent for ever; a live lease is a sign of life."""
    heard = {name: since.get(name, inf) for name in queue.QUEUES}
    return {**heard, queue.UNLEARN: 0.0} if busy else heard


def _words(words: Iterable[StrEnum]) -> str:
    return ", ".join(sorted(f"'{word}'" for word in words))


# Bounds as numbers of their own: with `now + interval` in the filters it took more than twice the time.
_WITHIN = ", ".join(f"count(*) FILTER (WHERE deadline < :bound_{place})" for place in range(len(DAYS) + 1))
_REQUESTS = f"""
SELECT status, count(*)::int AS number, ARRAY[{_WITHIN}]::int[] AS before, min(deadline) AS earliest
FROM erasure_requests WHERE closed_at IS NULL GROUP BY status ORDER BY status
"""  # noqa: S608 - our own words
_STATE = f"""
SELECT
  (SELECT extract(epoch FROM now - received_at)::float8 FROM erasure_requests
   WHERE status IN ({_words(PLANNABLE)}) ORDER BY sequence LIMIT 1) AS planning,
  (SELECT extract(epoch FROM now - min(greatest(created_at, not_before)))::float8 FROM jobs
   WHERE status IN ({_words(JOB_OPEN)}) AND not_before <= now
     AND (lease_until IS NULL OR lease_until < now)) AS unlearn,
  (SELECT extract(epoch FROM now - min(next_attempt_at))::float8 FROM webhook_deliveries
   WHERE next_attempt_at IS NOT NULL AND next_attempt_at <= now) AS io,
  (SELECT jsonb_object_agg(status, times) FROM (
     SELECT status, count(*) AS times FROM jobs WHERE status IN ({_words(JOB_OPEN)}) GROUP BY status) AS open) AS jobs,
  (SELECT jsonb_object_agg(queue, extract(epoch FROM now - heard_at)) FROM pulses) AS silent,
  EXISTS (SELECT FROM jobs WHERE status IN ({_words(JOB_OPEN)}) AND lease_until > now) AS busy,
  (SELECT count(*)::int FROM webhook_deliveries WHERE next_attempt_at IS NOT NULL) AS deliveries
FROM (SELECT CAST(:now AS timestamptz) AS now) AS present
"""  # noqa: S608 - our own words
