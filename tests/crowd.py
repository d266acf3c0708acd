"""A house after years: requests by the hundred thousand, a model with a thousand versions, deliveries, events.

Written by a few statements, all from one model version that a real job made, so that reports are as large as real ones.
"""

from __future__ import annotations

from rich.console import Console
from sqlalchemy import Engine, text

from app.storage.sessions import transaction
from tests.house import Installation
from tests.pipeline import is_published
from workers.context import Context
from workers.scribe import Scribe

_CLIENTS = "INSERT INTO clients (id, name) SELECT gen_random_uuid(), 'portal ' || n FROM generate_series(1, 20) n"
_REQUESTS = """
WITH c AS (SELECT array_agg(id) AS ids FROM clients),
s AS (SELECT n, random() AS r, now() - random() * interval '400 days' AS came FROM generate_series(1, :requests) n),
t AS (SELECT n, CASE WHEN r < 0.8 THEN came ELSE now() - random() * interval '33 days' END AS came,
  CASE WHEN r < .65 THEN 'completed' WHEN r < .73 THEN 'no_data' WHEN r < .77 THEN 'rejected'
       WHEN r < .8 THEN 'cancelled' WHEN r < .85 THEN 'pending' WHEN r < .88 THEN 'on_hold' WHEN r < .94 THEN 'queued'
       WHEN r < .97 THEN 'awaiting_identity' WHEN r < .99 THEN 'in_progress' ELSE 'needs_attention' END AS status
  FROM s)
INSERT INTO erasure_requests (id, ref, status, client_id, reference, received_at, deadline, closed_at, identity_level,
  subject_key, suppression_key, sealed_user_id)
SELECT gen_random_uuid(), md5(random()::text || n), status, c.ids[1 + n % array_length(c.ids, 1)], 'DSR-' || n, came,
  came + interval '30 days', CASE WHEN ended THEN came + random() * interval '28 days' END, 'low',
  CASE WHEN NOT ended THEN gen_random_uuid() END, CASE WHEN NOT ended THEN sha256(n::text::bytea) END,
  CASE WHEN NOT ended THEN sha256(n::text::bytea) END
FROM c, t, LATERAL (SELECT status IN ('completed', 'no_data', 'rejected', 'cancelled') AS ended) e
ORDER BY came
"""
_VERSIONS = """
WITH v AS (SELECT * FROM model_versions WHERE id = :version),
j AS (INSERT INTO jobs (id, model_id, status, created_at, fence, base_version_id, report, closed_at)
  SELECT gen_random_uuid(), v.model_id, 'certified', now() - (:versions - n) * interval '8 hours', 1, v.id, v.report,
    now() - (:versions - n) * interval '8 hours' + interval '5 minutes'
  FROM v, generate_series(1, :versions) n RETURNING id, created_at),
k AS (SELECT id, created_at, row_number() OVER (ORDER BY created_at) AS n FROM j)
INSERT INTO model_versions (id, model_id, number, weights, residual, manifest_id, job_id, recipe, origin, report,
  calibration, published_at, retired_at)
SELECT gen_random_uuid(), v.model_id, v.number + k.n, md5(k.n::text) || md5(k.n::text), v.residual, v.manifest_id, k.id,
  v.recipe, 'unlearned', v.report, v.calibration, k.created_at + interval '5 minutes', now()
FROM v, k
"""
_PARENTS = """
UPDATE model_versions v SET parent_id = p.id FROM model_versions p
WHERE p.model_id = v.model_id AND p.number = v.number - 1 AND v.number > :number
"""
_LIVE = """
WITH last AS (SELECT DISTINCT ON (model_id) model_id, id FROM model_versions ORDER BY model_id, number DESC),
live AS (UPDATE models m SET current_version_id = last.id FROM last WHERE last.model_id = m.id RETURNING m.id)
UPDATE model_versions v SET retired_at = NULL FROM last WHERE v.id = last.id
"""
_TARGETS = """
WITH j AS (SELECT array_agg(id ORDER BY created_at) AS ids, model_id FROM jobs
  WHERE status = 'certified' GROUP BY model_id)
INSERT INTO targets (request_id, model_id, job_id, result)
SELECT r.id, j.model_id, j.ids[1 + (r.sequence % array_length(j.ids, 1))], 'forgotten'
FROM erasure_requests r, j WHERE r.status = 'completed'
ON CONFLICT DO NOTHING
"""
_FORGOTTEN = """
INSERT INTO forgotten_samples (job_id, manifest_id, ordinal, sample_ids)
SELECT v.job_id, v.manifest_id, 1000, ARRAY[v.number::bigint] FROM model_versions v WHERE v.job_id IS NOT NULL
ON CONFLICT DO NOTHING
"""
_EVENTS = """
INSERT INTO events (at, type, request_id)
SELECT r.received_at + e.ordinality * interval '1 second', e.type, r.id
FROM erasure_requests r,
  unnest(ARRAY['request.received', 'request.queued', 'request.in_progress']) WITH ORDINALITY e(type)
"""
_JOB_EVENTS = """
INSERT INTO events (at, type, job_id, model_id)
SELECT j.created_at + e.ordinality * interval '20 seconds', e.type, j.id, j.model_id
FROM jobs j, unnest(ARRAY['job.queued', 'job.located', 'job.unlearned', 'job.verified', 'job.published',
  'job.certified']) WITH ORDINALITY e(type)
"""
_DELIVERIES = """
WITH e AS (INSERT INTO webhook_endpoints (id, client_id, url)
  SELECT gen_random_uuid(), id, 'https://portal.example/' || name FROM clients WHERE name LIKE 'portal %'
  RETURNING id, client_id)
INSERT INTO webhook_deliveries (id, endpoint_id, receiver, request_id, event, body, created_at, attempts,
  next_attempt_at, delivered_at, last_outcome)
SELECT gen_random_uuid(), e.id, e.id, r.id, 'request.completed', '{}', r.closed_at, 1, NULL, r.closed_at, 'delivered'
FROM erasure_requests r JOIN e USING (client_id) WHERE r.closed_at IS NOT NULL
"""
_ENTRIES = """
INSERT INTO audit_entries (type, at, request_id, fields)
SELECT 'request.received', received_at, id, jsonb_build_object('due', deadline) FROM erasure_requests r
WHERE NOT EXISTS (SELECT FROM audit_entries a WHERE a.request_id = r.id)
"""


def settle(engine: Engine, *, requests: int, versions: int) -> None:
    """Write so many requests and versions of the model that is there, with what belongs to them, and ANALYZE."""
    with transaction(engine) as tx:
        live = tx.execute(text("SELECT current_version_id AS id FROM models LIMIT 1")).one().id
        number = tx.execute(text("SELECT number FROM model_versions WHERE id = :id"), {"id": live}).scalar_one()
        tx.execute(text(_CLIENTS))
        tx.execute(text(_REQUESTS), {"requests": requests})
        tx.execute(text(_VERSIONS), {"version": live, "versions": versions})
        tx.execute(text(_PARENTS), {"number": number})
        for statement in (_LIVE, _TARGETS, _FORGOTTEN, _EVENTS, _JOB_EVENTS, _DELIVERIES):
            tx.execute(text(statement))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))


def file(house: Installation, console: Console) -> None:
    """Give the public log an entry for each request, and let it be sequenced and signed as dispatch does."""
    context = Context(settings=house.settings, engine=house.engine)
    with transaction(house.engine) as tx:
        tx.execute(text(_ENTRIES))
    scribe = Scribe(house.settings)
    with console.status("sequencing the public log"):
        while not is_published(house.engine):
            scribe.sequence(context)
    with transaction(house.engine) as tx:
        tx.execute(text("ANALYZE"))
