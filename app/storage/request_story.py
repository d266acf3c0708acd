"""What the page of one request reads besides its row: its models with jobs and versions, its history, its certificate.

By indexes alone: a condition "of the request or of one of its jobs" that asks for the jobs in the same statement would
read everybody's history.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, or_, select, text
from sqlalchemy.orm import Session, aliased

from app.storage import requests
from app.storage.tables import AuditEntry, Client, Event, Job, Model, ModelVersion, Target

Json = dict[str, Any]  # Any: JSON


@dataclass(frozen=True)
class Work:
    """One model of a request: the job that serves it, and the version that came of it."""

    model: str
    result: str | None
    job_id: UUID
    status: str
    fence: int
    rung: int
    attempts: int
    progress: float | None
    error: str | None
    not_before: datetime
    lease_until: datetime | None
    moved_at: datetime
    """When the job made its last step."""
    base_number: int | None
    version_id: UUID | None
    number: int | None
    earlier: str | None
    """What was found about the method that was tried before."""


def work(tx: Session, request_id: UUID) -> list[Work]:
    """A request's models by name; no report is read."""
    base, made = aliased(ModelVersion), aliased(ModelVersion)
    moved = select(func.max(Event.at)).where(Event.job_id == Job.id).scalar_subquery()
    job = (Job.status, Job.fence, Job.rung, Job.attempts, Job.progress, Job.error, Job.not_before, Job.lease_until)
    rows = tx.execute(
        select(Model.name, Target.result, Job.id, *job, func.coalesce(moved, Job.created_at), base.number)
        .add_columns(made.id, made.number, Job.report["earlier"]["verdict"]["sentence"].astext)
        .join_from(Target, Model, Model.id == Target.model_id)
        .join(Job, Job.id == Target.job_id)
        .outerjoin(base, base.id == Job.base_version_id)
        .outerjoin(made, made.job_id == Job.id)
        .where(Target.request_id == request_id)
        .order_by(Model.name)
    )
    return [Work(*row) for row in rows]


@dataclass(frozen=True)
class Report:
    """What a version's report says of how it was made and found."""

    verdict: Json
    update: Json
    rung: str | None
    earlier: str | None
    """What was found about the method that was tried before."""


def reports(tx: Session, version_ids: Collection[UUID]) -> dict[UUID, Report]:
    """The reports of some versions."""
    said = ModelVersion.report
    rows = tx.execute(
        select(ModelVersion.id, said["verdict"], said["update"], said["rung"].astext)
        .add_columns(said["earlier"]["verdict"]["sentence"].astext)
        .where(ModelVersion.id == func.any(list(version_ids)))
    )
    return {row[0]: Report(row[1] or {}, row[2] or {}, row[3], row[4]) for row in rows}


def events(tx: Session, request_id: UUID, job_ids: Collection[UUID]) -> list[tuple[Event, str | None]]:
    """What happened to a request and to these jobs, in order, with the model that it is about."""
    about = requests.told_of(request_id, job_ids)
    named = select(Event, Model.name).outerjoin(Model, Model.id == Event.model_id)
    return [(row[0], row[1]) for row in tx.execute(named.where(about).order_by(Event.id))]


def entries(tx: Session, request_id: UUID, job_ids: Collection[UUID]) -> Sequence[AuditEntry]:
    """What was entered into the public log about a request and these jobs, in the order in which it was written."""
    about = or_(AuditEntry.request_id == request_id, AuditEntry.job_id == func.any(list(job_ids)))
    return tx.scalars(select(AuditEntry).where(about).order_by(AuditEntry.id)).all()


def names(tx: Session, client_ids: Collection[UUID]) -> dict[UUID, str]:
    """What clients are called."""
    rows = tx.execute(select(Client.id, Client.name).where(Client.id == func.any(list(client_ids))))
    return {row.id: row.name for row in rows}


def issued(tx: Session, request_id: UUID) -> dict[str, int | None]:
    """Digests of the certificates that the log says were issued for a request, with the entry's place if it has one."""
    rows = tx.execute(
        select(AuditEntry.fields["cert"].astext, AuditEntry.leaf_index).where(
            AuditEntry.request_id == request_id, AuditEntry.type == "certificate.issued"
        )
    )
    return {row[0]: row[1] for row in rows}


@dataclass(frozen=True)
class Live:
    """Which version of a model is live, and how it stands to certain weights."""

    number: int
    weights: str
    descends: bool
    """Whether the weights are its own or those of a version that it was computed from."""


def live(tx: Session, weights: dict[str, str]) -> dict[str, Live]:
    """For models by name with weights (sha256) each: what is live now; a model that is not registered is left out."""
    asked = {"names": list(weights), "weights": list(weights.values())}
    return {row.name: Live(row.number, row.weights, row.descends) for row in tx.execute(text(_LIVE), asked)}


_LIVE = """
WITH RECURSIVE asked AS (
  SELECT n.name, n.weights, m.current_version_id
  FROM unnest(CAST(:names AS text[]), CAST(:weights AS text[])) AS n (name, weights) JOIN models m ON m.name = n.name
), line AS (
  SELECT a.name, a.weights AS wanted, v.id, v.parent_id, v.weights FROM asked a
  JOIN model_versions v ON v.id = a.current_version_id
  UNION ALL
  SELECT l.name, l.wanted, v.id, v.parent_id, v.weights FROM line l JOIN model_versions v ON v.id = l.parent_id
)
SELECT a.name, v.number, v.weights,
  EXISTS (SELECT FROM line l WHERE l.name = a.name AND l.weights = l.wanted) AS descends
FROM asked a JOIN model_versions v ON v.id = a.current_version_id
"""
