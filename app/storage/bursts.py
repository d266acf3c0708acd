"""How many people a day's demands take out of each model: mass erasure is a way to ruin one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session


class Leaving(NamedTuple):
    """What some waiting requests would do to one model, together with the day's others."""

    model_id: UUID
    users: int
    """People behind the training samples of its live version."""
    people: int
    """Of whom so many would be gone."""
    request_ids: Sequence[UUID]
    """The waiting requests that have a part in it."""


def leaving(tx: Session, request_ids: Sequence[UUID], *, since: datetime, needed: int) -> list[Leaving]:
    """Count, for each model, the people of these requests, of open jobs and of jobs that ended since: one statement.

    Nobody counts twice (what has ended is linked to the oldest demand for its person), nor do people whose going
    ``needed`` others than the requester agreed to, whom the service itself found again, or who had gone before a
    rollback.
    """
    rows = tx.execute(text(_LEAVING), {"ids": list(request_ids), "since": since, "needed": needed})
    return [Leaving(row.model_id, row.users, row.people, row.request_ids) for row in rows]


def collected(tx: Session, model_ids: Collection[UUID], *, needed: int) -> list[UUID]:
    """Queued requests of whom these models' collecting jobs would take somebody out; locked, and their jobs, too.

    A worker claims a job by changing its row, so it waits for us, and then finds nobody.
    """
    tx.execute(text(_HOLD_JOBS), {"models": list(model_ids)})
    return list(tx.scalars(text(_COLLECTED), {"models": list(model_ids), "needed": needed}))


_UNASKED = """
r.origin <> 'suppression' AND :needed > (
  SELECT count(DISTINCT d.client_id) FROM decisions d WHERE d.request_id = r.id AND d.kind = 'approved'
    AND d.client_id IS DISTINCT FROM r.client_id)
"""
_LEAVING = f"""
WITH live AS (
  SELECT m.id, m.name, v.manifest_id, f.users FROM models m
  JOIN model_versions v ON v.id = m.current_version_id JOIN manifests f ON f.id = v.manifest_id
), asked AS (
  SELECT l.id AS model_id, r.subject_key, r.id AS request_id
  FROM erasure_requests r JOIN live l ON r.models IS NULL OR l.name = ANY (r.models)
  WHERE r.id = ANY (CAST(:ids AS uuid[]))
  UNION ALL
  SELECT j.model_id, r.subject_key, NULL
  FROM jobs j JOIN targets t ON t.job_id = j.id JOIN erasure_requests r ON r.id = t.request_id
  WHERE j.closed_at IS NULL AND t.result IS NULL AND r.closed_at IS NULL AND {_UNASKED}
), going AS (
  SELECT l.id AS model_id, l.users, count(DISTINCT asked.subject_key) AS people,
    array_agg(asked.request_id) FILTER (WHERE asked.request_id IS NOT NULL) AS request_ids
  FROM asked JOIN live l ON l.id = asked.model_id
  JOIN postings p ON p.manifest_id = l.manifest_id AND p.subject_key = asked.subject_key AND p.split = 'train'
  GROUP BY l.id, l.users
)
SELECT model_id, users, request_ids, people + (
  SELECT count(DISTINCT coalesce(r.duplicate_of, r.id))
  FROM jobs j JOIN targets t ON t.job_id = j.id JOIN erasure_requests r ON r.id = t.request_id
  WHERE j.model_id = going.model_id AND j.closed_at > :since AND t.result = 'forgotten'
    AND (SELECT count(*) FROM certificates c WHERE c.request_id = r.id) < 2 AND {_UNASKED}
) AS people
FROM going WHERE request_ids IS NOT NULL
"""  # noqa: S608 - our own text, twice
_HOLD_JOBS = """
SELECT id FROM jobs WHERE model_id = ANY (CAST(:models AS uuid[])) AND status = 'queued' AND fence = 0
ORDER BY id FOR UPDATE
"""
_COLLECTED = f"""
SELECT r.id FROM erasure_requests r
WHERE r.status = 'queued' AND r.subject_key IS NOT NULL AND {_UNASKED}
  AND NOT EXISTS (SELECT FROM audit_entries a WHERE a.request_id = r.id AND a.type = 'erasure.started')
  AND r.id IN (
    SELECT t.request_id FROM jobs j JOIN targets t ON t.job_id = j.id AND t.result IS NULL
    JOIN models m ON m.id = j.model_id JOIN model_versions v ON v.id = m.current_version_id
    WHERE j.model_id = ANY (CAST(:models AS uuid[])) AND j.status = 'queued' AND j.fence = 0
      AND EXISTS (SELECT FROM postings p WHERE p.manifest_id = v.manifest_id AND p.split = 'train'
        AND p.subject_key = (SELECT q.subject_key FROM erasure_requests q WHERE q.id = t.request_id)))
ORDER BY r.sequence FOR UPDATE SKIP LOCKED
"""  # noqa: S608 - our own text
