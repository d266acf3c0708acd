"""Models as people look at them: how versions came from each other, what gates measured over time, what waits.

Reports are large, so what is wanted of many versions is picked out of them by PostgreSQL, and of so many versions only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.domain.ledger import RETRAIN_BEYOND, Ledger
from app.domain.lifecycle import ERASED, JOB_OPEN, PLANNABLE, RequestStatus
from app.storage import versions
from app.storage.tables import Certificate, ErasureRequest, Manifest, Model, ModelVersion

CHARTED: Final = 200
"""Versions of which reports are looked into for a chart."""
_HISTORY: Final = 20
"""Publications that an estimate rests on at most."""
_WORST: Final = 4
_TRAINED: Final = ("registered", "retrained")


@dataclass(frozen=True)
class Overview:
    """One model and its live version."""

    id: UUID
    name: str
    recipe: str
    version_id: UUID | None
    number: int | None
    origin: str | None
    published_at: datetime | None
    calibration: Mapping[str, Any] | None  # Any: JSON
    people: int | None
    """In the manifest."""
    samples: int | None
    ledger: Ledger | None
    waiting: int
    """Requests that its open jobs serve."""
    unplanned: int
    """Requests that the planner will give to it."""

    @property
    def asked(self) -> int:
        """Requests that wait for it, in jobs or for the planner."""
        return self.waiting + self.unplanned

    @property
    def share(self) -> float:
        """How much of what may go before a retraining is gone."""
        return share_of_limit(self.ledger)

    @property
    def fit_share(self) -> float | None:
        """People forgotten since the fit, of those it was fitted on; none: not calibrated."""
        if self.ledger is None or not self.ledger.fitted_on:
            return None
        return self.ledger.forgotten_since_fit / self.ledger.fitted_on


@dataclass(frozen=True)
class OpenJob:
    """A job that has something to do, and how far it is."""

    id: UUID
    model: str
    status: str
    rung: int
    progress: float | None
    attempts: int
    not_before: datetime
    held: bool
    """Whether a worker has it."""
    error: str | None
    requests: int
    moved_at: datetime
    """When its present step could begin."""


@dataclass(frozen=True)
class Node:
    """A version in the picture: where it came from and how many people went with it."""

    number: int
    parent: int | None
    origin: str
    people: int
    users: int
    """People in its manifest."""


@dataclass(frozen=True)
class Standing:
    """What had gone from a version's line since its training, and how much may."""

    trained_on: int
    gone: int

    @property
    def limit(self) -> float:
        """Beyond so many people the next job retrains."""
        return RETRAIN_BEYOND * self.trained_on


@dataclass(frozen=True)
class Undoing:
    """What a rollback would do, by the rule by which it would be done."""

    people: int
    """Deletions that the version does not hold."""
    requests: int
    ended: int
    """Requests among them that had ended, and whose clocks would start anew."""
    certificates: int
    """That those have been given."""
    versions: Sequence[int]
    """Versions whose deletions are undone."""


@dataclass(frozen=True)
class Batch:
    """What the next job of a model would find, were it to begin now."""

    requests: int
    people: int
    """Of whom the live version's manifest has samples; deletions that a rollback undid included."""
    samples: int
    again: int
    """People whose deletion a rollback undid."""


@dataclass(frozen=True)
class Past:
    """What one earlier publication cost."""

    rung: str
    people: int
    work: float | None
    """Per-sample gradients; none where the owner's code did it."""
    retained: int | None
    seconds: float | None


@dataclass(frozen=True)
class Near:
    """A model and how near it is to a retraining."""

    name: str
    gone: int
    limit: float
    share: float


def share_of_limit(ledger: Ledger | None) -> float:
    """How much of what may go before a retraining is gone.

    >>> share_of_limit(Ledger(trained_on=400, forgotten_since=20))
    0.25
    """
    return ledger.forgotten_since / (RETRAIN_BEYOND * ledger.trained_on) if ledger and ledger.trained_on else 0.0


def every(tx: Session, *, name: str | None = None) -> list[Overview]:
    """All models by name, or the one of this name; three statements."""
    found = tx.execute(text(_MODELS), {"name": name}).mappings().all()
    counted = versions.ledgers(tx, [row["version_id"] for row in found if row["version_id"]])
    planned = tx.execute(text(_UNPLANNED)).all() if found else []
    return [
        Overview(
            **row,
            ledger=counted.get(row["version_id"]),
            unplanned=sum(some.times for some in planned if some.models is None or row["name"] in some.models),
        )
        for row in found
    ]


def near_limit(tx: Session, *, at_least: float = 0.5) -> list[Near]:
    """Models that have used so much of what may go before a retraining, the nearest first."""
    live = {row.id: row.name for row in tx.execute(text(_LIVE))}
    near = [
        Near(live[at], found.forgotten_since, RETRAIN_BEYOND * found.trained_on, share_of_limit(found))
        for at, found in versions.ledgers(tx, list(live)).items()
    ]
    return sorted((one for one in near if one.share >= at_least), key=lambda one: -one.share)


def open_jobs(tx: Session, *, model_id: UUID | None = None) -> list[OpenJob]:
    """Jobs with something left to do, oldest first."""
    return [OpenJob(**row) for row in tx.execute(text(_JOBS), {"model_id": model_id}).mappings()]


def page(tx: Session, model_id: UUID, *, before: int | None, limit: int) -> Sequence[Any]:  # Any: rows
    """Versions below a number, newest first, one more than asked for where there are more."""
    return tx.execute(text(_PAGE), {"model_id": model_id, "before": before, "limit": limit + 1}).all()


def nodes(tx: Session, model_id: UUID) -> list[Node]:
    """All versions of a model, oldest first, without their reports."""
    return [Node(**row) for row in tx.execute(text(_NODES), {"model_id": model_id}).mappings()]


def standings(found: Sequence[Node]) -> dict[int, Standing]:
    """How every version's line stood, by number: the same sums as :func:`app.storage.versions.ledger` makes for one."""
    gone: dict[int, int] = {}
    trained: dict[int, tuple[int, int]] = {}  # people trained on, people gone by then
    for node in found:  # parents come first
        gone[node.number] = (gone.get(node.parent, 0) if node.parent else 0) + node.people
        if node.origin in _TRAINED or node.parent is None:
            trained[node.number] = (node.users - gone[node.number], gone[node.number])
        else:
            trained[node.number] = trained[node.parent]
    return {number: Standing(on, gone[number] - then) for number, (on, then) in trained.items()}


def measured(tx: Session, model_id: UUID) -> Sequence[Any]:  # Any: rows
    """What gates G2 and G3 found of the last versions, oldest first: a few numbers of each."""
    return tx.execute(text(_MEASURED), {"model_id": model_id, "many": CHARTED}).all()


def worst_segments(tx: Session, model_id: UUID) -> dict[str, dict[int, float]]:
    """The classes or groups that came nearest to their margin: worsening as a share of it, by version."""
    found: dict[str, dict[int, float]] = {}
    for row in tx.execute(text(_WORST_SEGMENTS), {"model_id": model_id, "many": CHARTED, "worst": _WORST}):
        found.setdefault(row.name, {})[row.number] = row.share
    return found


def segments(tx: Session, version_id: UUID, *, limit: int) -> Sequence[Any]:  # Any: rows
    """Classes and groups as gate G2 judged them for one version, the nearest to its margin first."""
    return tx.execute(text(_SEGMENTS), {"version_id": version_id, "limit": limit}).all()


def fitted_at(tx: Session, model_id: UUID, number: int) -> datetime | None:
    """When what a version is calibrated with was fitted: by hand, or with the version of that number."""
    at: datetime | None = tx.scalar(text(_FITTED_AT), {"model_id": model_id, "number": number})
    return at


def manifest_of(tx: Session, version: ModelVersion) -> Manifest:
    """Which samples it was trained on."""
    return tx.get_one(Manifest, version.manifest_id)


def parent_of(tx: Session, version: ModelVersion) -> int | None:
    """The number of the version that it was computed from."""
    return tx.scalar(select(ModelVersion.number).where(ModelVersion.id == version.parent_id))


def live_number(tx: Session, model: Model) -> int | None:
    """The number of the live version."""
    return tx.scalar(select(ModelVersion.number).where(ModelVersion.id == model.current_version_id))


def people_of(tx: Session, version: ModelVersion) -> int:
    """How many people its job took out."""
    return tx.scalar(text(_PEOPLE), {"job_id": version.job_id, "manifest_id": version.manifest_id}) or 0


def would_undo(tx: Session, to: ModelVersion) -> Undoing:
    """What a rollback to a version would undo; reads only, and holds nobody up."""
    people = _missing(tx, to)
    if not people:
        return Undoing(0, 0, 0, 0, [])
    rule = versions.served_without(to).with_only_columns(ErasureRequest.id, ErasureRequest.status)
    asked = rule.subquery()  # not as a CTE, which would be kept whole: 65 000 requests took 105 ms instead of 75
    ended = asked.c.status.in_(ERASED)
    papers = select(func.count()).select_from(Certificate).join(asked, asked.c.id == Certificate.request_id)
    counted = select(func.count(), func.count().filter(ended), papers.where(ended).scalar_subquery())
    requests, closed, certificates = tx.execute(counted.select_from(asked)).one()
    made = select(ModelVersion.number).where(ModelVersion.job_id.in_(versions.jobs_without(to)))
    mine = made.where(ModelVersion.model_id == to.model_id).order_by(ModelVersion.number)
    return Undoing(people, requests, closed, certificates, tx.scalars(mine).all())


def batch(tx: Session, live: ModelVersion, *, name: str, limit: int) -> Batch:
    """What waits for the model's next job: those who joined it, and who is planned next, as many as a job takes."""
    row = tx.execute(
        text(_BATCH),
        {"model_id": live.model_id, "manifest_id": live.manifest_id, "name": name, "limit": limit},
    ).one()
    again = _missing(tx, live)
    return Batch(row.requests, row.people + again, row.samples, again)


def history(tx: Session, model_id: UUID) -> list[Past]:
    """What the last publications cost, newest first."""
    return [Past(**row) for row in tx.execute(text(_PAST), {"model_id": model_id, "many": _HISTORY}).mappings()]


def _missing(tx: Session, at: ModelVersion) -> int:
    """How many deletions of its manifest a version does not hold: as many as :func:`versions.missing` lists."""
    return tx.scalar(text(_MISSING), {"version_id": at.id, "manifest_id": at.manifest_id}) or 0


def _words(words: Sequence[str]) -> str:
    return ", ".join(sorted(f"'{word}'" for word in words))


_OPEN: Final = _words([*JOB_OPEN])
_PLANNED: Final = _words([*PLANNABLE])
_QUEUED: Final = _words([RequestStatus.QUEUED, RequestStatus.IN_PROGRESS])

_LIVE = "SELECT current_version_id AS id, name FROM models WHERE current_version_id IS NOT NULL"
_MODELS = f"""
SELECT m.id, m.name, m.recipe, v.id AS version_id, v.number, v.origin, v.published_at, v.calibration,
  f.users AS people, f.samples, (
    SELECT count(*)::int FROM jobs j JOIN targets t ON t.job_id = j.id
    WHERE j.model_id = m.id AND j.status IN ({_OPEN}) AND t.result IS NULL) AS waiting
FROM models m LEFT JOIN model_versions v ON v.id = m.current_version_id LEFT JOIN manifests f ON f.id = v.manifest_id
WHERE CAST(:name AS text) IS NULL OR m.name = :name ORDER BY m.name
"""  # noqa: S608 - our own words
_UNPLANNED = f"""
SELECT models, count(*)::int AS times FROM erasure_requests WHERE status IN ({_PLANNED}) GROUP BY models
"""  # noqa: S608 - our own words
_JOBS = f"""
SELECT j.id, m.name AS model, j.status, j.rung, j.progress, j.attempts, j.not_before, j.error,
  coalesce(j.lease_until > now(), false) AS held,
  (SELECT count(*)::int FROM targets t WHERE t.job_id = j.id) AS requests,
  coalesce((SELECT max(e.at) FROM events e WHERE e.job_id = j.id), j.created_at) AS moved_at
FROM jobs j JOIN models m ON m.id = j.model_id
WHERE j.status IN ({_OPEN}) AND (CAST(:model_id AS uuid) IS NULL OR j.model_id = :model_id) ORDER BY j.created_at
"""  # noqa: S608 - our own words

_PAGE = """
SELECT v.number, v.origin, p.number AS parent, v.published_at, v.retired_at, v.recipe,
  v.report #>> '{verdict,level}' AS level, v.report #>> '{update,method}' AS method,
  f.people, f.samples
FROM model_versions v LEFT JOIN model_versions p ON p.id = v.parent_id CROSS JOIN LATERAL (
  SELECT count(*)::int AS people, coalesce(sum(cardinality(sample_ids)), 0)::int AS samples
  FROM forgotten_samples WHERE job_id = v.job_id AND manifest_id = v.manifest_id) AS f
WHERE v.model_id = :model_id AND (CAST(:before AS int) IS NULL OR v.number < :before)
ORDER BY v.number DESC LIMIT :limit
"""
_NODES = """
SELECT v.number, p.number AS parent, v.origin, m.users, (
  SELECT count(*)::int FROM forgotten_samples f
  WHERE f.job_id = v.job_id AND f.manifest_id = v.manifest_id) AS people
FROM model_versions v JOIN manifests m ON m.id = v.manifest_id
LEFT JOIN model_versions p ON p.id = v.parent_id
WHERE v.model_id = :model_id ORDER BY v.number
"""
_PEOPLE = "SELECT count(*)::int FROM forgotten_samples WHERE job_id = :job_id AND manifest_id = :manifest_id"

# OFFSET 0 keeps the planner from reading a report once for every number that is wanted of it.
_REPORTS = """
  SELECT v.number, x.gates FROM (
    SELECT number, report FROM model_versions WHERE model_id = :model_id ORDER BY number DESC LIMIT :many) AS v
  CROSS JOIN LATERAL (SELECT v.report #> '{verdict,gates}' AS gates OFFSET 0) AS x
"""
_GATE = """jsonb_path_query_first({gates}, '$[*] ? (@.name == "{name}")')"""
_G2 = _GATE.format(gates="r.gates", name="G2 utility")
_G3 = _GATE.format(gates="r.gates", name="G3 forgetting")
_MEDIAN = """
(SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY p::float8) FROM jsonb_array_elements_text(g3 -> '{name}') AS p)
"""
_MEASURED = f"""
SELECT number, (g2 ->> 'loss_scale')::float8 AS loss, {_MEDIAN.format(name="p_before")} AS p_before,
  {_MEDIAN.format(name="p_remembered")} AS p_after,
  (SELECT min(p::float8) FROM jsonb_array_elements_text(g3 -> 'p_remembered') AS p) AS p_least,
  (g3 ->> 'power_on_members')::float8 AS power, (g3 ->> 'alpha_each_tail')::float8 AS level,
  (SELECT max((value ->> 'upper_bound')::float8 / nullif((value ->> 'margin')::float8, 0))
   FROM jsonb_each(g2 -> 'checks')) AS of_margin,
  (SELECT sum((s ->> 'pairs')::float8 * (s -> 'accuracy' ->> 1)::float8) / nullif(sum((s ->> 'pairs')::float8), 0)
   FROM jsonb_array_elements(g2 -> 'segments') AS s
   WHERE s ->> 'name' LIKE 'class %, strangers' AND jsonb_typeof(s -> 'accuracy') = 'array') AS accuracy
FROM ({_REPORTS}) AS r CROSS JOIN LATERAL (SELECT {_G2} AS g2, {_G3} AS g3 OFFSET 0) AS g ORDER BY number
"""  # noqa: S608 - our own text
_WORST_SEGMENTS = f"""
WITH all_of_them AS MATERIALIZED (
  SELECT r.number, s ->> 'name' AS name,
    (s ->> 'worsening')::float8 / nullif((s ->> 'margin')::float8, 0) AS share
  FROM ({_REPORTS}) AS r CROSS JOIN LATERAL jsonb_array_elements({_G2} -> 'segments') AS s
), worst AS (
  SELECT name, max(share) AS most FROM all_of_them GROUP BY name ORDER BY most DESC NULLS LAST, name LIMIT :worst
)
SELECT name, number, share FROM all_of_them JOIN worst USING (name) WHERE share IS NOT NULL
ORDER BY most DESC, name, number
"""  # noqa: S608 - our own text
_SEGMENTS = f"""
SELECT s ->> 'name' AS name, (s ->> 'pairs')::int AS pairs, s ->> 'outcome' AS outcome,
  (s ->> 'worsening')::float8 AS worsening, (s ->> 'error')::float8 AS error, (s ->> 'margin')::float8 AS margin,
  (s -> 'accuracy' ->> 0)::float8 AS accuracy_before, (s -> 'accuracy' ->> 1)::float8 AS accuracy_after,
  (s -> 'loss' ->> 0)::float8 AS loss_before, (s -> 'loss' ->> 1)::float8 AS loss_after, count(*) OVER () AS all
FROM (SELECT report #> '{{verdict,gates}}' AS gates FROM model_versions WHERE id = :version_id) AS r
CROSS JOIN LATERAL jsonb_array_elements({_G2} -> 'segments') AS s
ORDER BY (s ->> 'worsening')::float8 / nullif((s ->> 'margin')::float8, 0) DESC NULLS LAST, 1 LIMIT :limit
"""  # noqa: S608 - our own text
_FITTED_AT = """
SELECT coalesce(
  (SELECT max(at) FROM events WHERE model_id = :model_id AND type = 'model.calibrated'
     AND (detail ->> 'version')::int = :number),
  (SELECT published_at FROM model_versions WHERE model_id = :model_id AND number = :number))
"""

_ON_LINE = """
WITH RECURSIVE line AS (
  SELECT id, parent_id, job_id FROM model_versions WHERE id = :version_id
  UNION ALL SELECT p.id, p.parent_id, p.job_id FROM line
    CROSS JOIN LATERAL (SELECT * FROM model_versions WHERE id = line.parent_id LIMIT 1) AS p
)
"""
_MISSING = f"""
{_ON_LINE}
SELECT count(*)::int FROM forgotten_samples f
WHERE f.manifest_id = :manifest_id AND f.job_id NOT IN (SELECT job_id FROM line WHERE job_id IS NOT NULL)
  AND EXISTS (
    SELECT FROM unnest(f.sample_ids) AS id WHERE id NOT IN (
      SELECT unnest(held.sample_ids) FROM forgotten_samples held
      WHERE held.manifest_id = :manifest_id AND held.job_id IN (SELECT job_id FROM line)))
"""  # noqa: S608 - our own text
_BATCH = f"""
WITH joined AS (
  SELECT r.id, r.subject_key
  FROM jobs j JOIN targets t ON t.job_id = j.id JOIN erasure_requests r ON r.id = t.request_id
  WHERE j.model_id = :model_id AND j.status = 'queued' AND r.status IN ({_QUEUED}) LIMIT :limit
), next AS (
  SELECT id, subject_key FROM erasure_requests
  WHERE status IN ({_PLANNED}) AND (models IS NULL OR :name = ANY (models))
  ORDER BY sequence LIMIT greatest(0, :limit - (SELECT count(*) FROM joined))
), asked AS (
  SELECT * FROM joined UNION SELECT * FROM next
), found AS (
  SELECT p.subject_key, p.sample_ids FROM (SELECT DISTINCT subject_key FROM asked WHERE subject_key IS NOT NULL) AS a
  JOIN postings p ON p.manifest_id = :manifest_id AND p.subject_key = a.subject_key AND p.split = 'train'
)
SELECT (SELECT count(*)::int FROM asked) AS requests, count(*)::int AS people,
  coalesce((SELECT count(DISTINCT id)::int FROM found f, unnest(f.sample_ids) AS id), 0) AS samples
FROM found
"""  # noqa: S608 - our own words
_PAST = """
SELECT v.report ->> 'rung' AS rung, f.people,
  (v.report #>> '{update,forward_backwards}')::float8 AS work,
  (v.report #>> '{update,retained_samples}')::int AS retained,
  extract(epoch FROM e.published - e.located)::float8 AS seconds
FROM (
  SELECT job_id, manifest_id, report, number FROM model_versions
  WHERE model_id = :model_id AND job_id IS NOT NULL ORDER BY number DESC LIMIT :many
) AS v CROSS JOIN LATERAL (
  SELECT min(at) FILTER (WHERE type = 'job.located') AS located, max(at) FILTER (WHERE type = 'job.published')
    AS published FROM events WHERE job_id = v.job_id
) AS e CROSS JOIN LATERAL (
  SELECT count(*)::int AS people FROM forgotten_samples WHERE job_id = v.job_id AND manifest_id = v.manifest_id
) AS f ORDER BY v.number DESC
"""
