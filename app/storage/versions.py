"""Models and their versions: which one is live (compare-and-set), and what each line of versions has forgotten."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, insert, select, text, update
from sqlalchemy.orm import Session, aliased

from app.domain.ledger import Ledger
from app.domain.lifecycle import RequestStatus
from app.errors import BaseMoved, NotFound
from app.storage import audit
from app.storage.tables import ErasureRequest, Forgotten, Job, Manifest, Model, ModelVersion, Target

_TRAINED = ("registered", "retrained")
_FORGOTTEN = ("forgotten", "already_forgotten")
_ENTRIES = {"registered": "model.registered", "rolled_back": "model.rolled_back"}


def models(tx: Session) -> Sequence[Model]:
    """All models by name."""
    return tx.scalars(select(Model).order_by(Model.name)).all()


def model(tx: Session, name: str) -> Model:
    """One model.

    Raises:
        NotFound: No model of this name is registered.
    """
    found = find(tx, name)
    if found is None:
        raise NotFound("no model of this name is registered")
    return found


def find(tx: Session, name: str) -> Model | None:
    """The model of this name, if there is one."""
    return tx.scalar(select(Model).where(Model.name == name).execution_options(populate_existing=True))


def hold(tx: Session, model_id: UUID) -> Model:
    """One model by id, read anew and held until the transaction ends: nobody publishes meanwhile."""
    return tx.get_one(Model, model_id, with_for_update=True, populate_existing=True)


def unknown(tx: Session, names: Iterable[str]) -> list[str]:
    """Those names that no model has."""
    wanted = set(names)
    return sorted(wanted - set(tx.scalars(select(Model.name).where(Model.name.in_(wanted))).all()))


def live(tx: Session, names: Sequence[str] | None) -> Sequence[Model]:
    """Models with a live version; all of them, or those named."""
    query = select(Model).where(Model.current_version_id.is_not(None)).order_by(Model.name)
    return tx.scalars(query.where(Model.name.in_(names)) if names else query).all()


def versions(tx: Session, model_id: UUID) -> Sequence[ModelVersion]:
    """A model's versions, newest first."""
    return tx.scalars(
        select(ModelVersion).where(ModelVersion.model_id == model_id).order_by(ModelVersion.number.desc())
    ).all()


def version(tx: Session, version_id: UUID) -> ModelVersion:
    """One version."""
    return tx.get_one(ModelVersion, version_id)


def numbered(tx: Session, model_id: UUID, number: int) -> ModelVersion:
    """The version with this number.

    Raises:
        NotFound: The model has no such version.
    """
    found = tx.scalar(select(ModelVersion).where(ModelVersion.model_id == model_id, ModelVersion.number == number))
    if found is None:
        raise NotFound(f"the model has no version {number}")
    return found


def publish(tx: Session, made: ModelVersion, *, base_id: UUID | None, at: datetime) -> ModelVersion:
    """Make new weights the live version, if ``base_id`` still is, retire that, and tell the log; numbers the version.

    Raises:
        BaseMoved: Somebody else published meanwhile; publishing now would undo their deletion. Nothing was written.
    """
    unmoved = Model.current_version_id == base_id if base_id else Model.current_version_id.is_(None)
    won = tx.scalar(select(Model.id).where(Model.id == made.model_id, unmoved).with_for_update())
    if won is None:
        raise BaseMoved("the model has a newer version than the one this was computed from")
    # The row lock orders all publishers of this model: nobody else takes the next number.
    latest = tx.scalar(select(func.max(ModelVersion.number)).where(ModelVersion.model_id == made.model_id))
    made.number = (latest or 0) + 1
    tx.add(made)
    tx.flush()
    tx.execute(update(Model).where(Model.id == made.model_id).values(current_version_id=made.id))
    retired = tx.scalar(
        update(ModelVersion)
        .where(ModelVersion.id == base_id)
        .values(retired_at=func.now())
        .returning(ModelVersion.weights)
    )
    _tell(tx, made, retired, at=at)
    return made


def _tell(tx: Session, made: ModelVersion, retired: str | None, *, at: datetime) -> None:
    """Enter the new live version into the log, and the old one as retired."""
    kind, to = _ENTRIES.get(made.origin, "model.promoted"), digest_of(made.weights)
    change = {"to": to} if kind == "model.registered" or retired is None else {"from": digest_of(retired), "to": to}
    audit.enter(tx, kind, {"model": change}, at=at, job_id=made.job_id)
    if retired is not None:
        audit.enter(tx, "model.retired", {"model": {"from": digest_of(retired)}}, at=at, job_id=made.job_id)


def manifest_digest(tx: Session, at: ModelVersion) -> str:
    """SHA-256 of the manifest that a version was trained by."""
    return tx.get_one(Manifest, at.manifest_id).digest


def digest_of(weights: str) -> str:
    """A digest as the log and certificates write it."""
    return f"sha256:{weights}"


def calibrate(tx: Session, at: ModelVersion, calibration: dict[str, Any]) -> None:  # Any: JSON
    """Write down what a version was calibrated with, if it still is the live one.

    Raises:
        BaseMoved: Somebody published meanwhile; nothing was written.
    """
    if hold(tx, at.model_id).current_version_id != at.id:
        raise BaseMoved(f"version {at.number} is no longer live, another was published meanwhile: calibrate again")
    tx.execute(update(ModelVersion).where(ModelVersion.id == at.id).values(calibration=calibration))


def live_ids(tx: Session) -> set[UUID]:
    """Every model's live version."""
    return set(tx.scalars(select(Model.current_version_id).where(Model.current_version_id.is_not(None))))


def references(tx: Session, *, live: bool) -> set[str]:
    """Digests of the references that live versions are calibrated with, or those that are not live."""
    digest = ModelVersion.calibration["references"].astext
    mine = ModelVersion.id.in_(live_ids(tx)) if live else ModelVersion.id.not_in(live_ids(tx))
    return set(tx.scalars(select(digest).where(mine, digest.is_not(None))))


def ledger(tx: Session, at: ModelVersion, *, leaving: int) -> Ledger:
    """Count what the version's line has lost since its training and its fit; ``leaving`` people are about to go."""
    tx.flush()
    found = ledgers(tx, [at.id])[at.id]
    since, since_fit = found.forgotten_since + leaving, found.forgotten_since_fit + leaving
    return replace(found, forgotten_since=since, forgotten_since_fit=since_fit)


def ledgers(tx: Session, version_ids: Collection[UUID]) -> dict[UUID, Ledger]:
    """The same for several versions in one statement, nobody leaving; of reports it reads a few at each end."""
    rows = tx.execute(text(_LEDGERS), {"ids": list(version_ids), "trained": list(_TRAINED)})
    return {
        row.at: Ledger(
            trained_on=row.users - row.gone + row.since,
            forgotten_since=row.since,
            fitted_on=row.fitted_on,
            forgotten_since_fit=row.since_fit,
            failures=row.failures,
        )
        for row in rows
    }


# LIMIT 1: for many versions the planner would read the whole table for every step back, a second for a thousand.
# `doubted` walks back only while reports have "earlier": they are large, and a line may be a thousand versions long.
_LEDGERS = """
WITH RECURSIVE line AS (
  SELECT id AS at, id, parent_id, job_id, origin, number, manifest_id FROM model_versions
  WHERE id = ANY (CAST(:ids AS uuid[]))
  UNION ALL
  SELECT line.at, p.id, p.parent_id, p.job_id, p.origin, p.number, line.manifest_id
  FROM line CROSS JOIN LATERAL (SELECT * FROM model_versions WHERE id = line.parent_id LIMIT 1) AS p
), doubted AS (
  SELECT id AS at, parent_id FROM model_versions WHERE id = ANY (CAST(:ids AS uuid[])) AND report ? 'earlier'
  UNION ALL
  SELECT doubted.at, p.parent_id FROM doubted JOIN model_versions p ON p.id = doubted.parent_id
  WHERE p.report ? 'earlier'
), trained AS (
  SELECT at, max(number) AS number FROM line WHERE origin = ANY (CAST(:trained AS text[])) GROUP BY at
), sums AS (
  SELECT line.at, coalesce(sum(people), 0)::int AS gone,
    coalesce(sum(people) FILTER (WHERE line.number > trained.number), 0)::int AS since,
    coalesce(sum(people) FILTER (
      WHERE line.number > coalesce((v.calibration ->> 'fitted_at_version')::int, 0)), 0)::int AS since_fit
  FROM line JOIN trained ON trained.at = line.at JOIN model_versions v ON v.id = line.at
  CROSS JOIN LATERAL (
    SELECT count(*) AS people FROM forgotten_samples f
    WHERE f.job_id = line.job_id AND f.manifest_id = line.manifest_id) AS lost
  GROUP BY line.at
)
SELECT sums.*, manifests.users, (v.calibration ->> 'users_at')::int AS fitted_on,
  (SELECT count(*)::int FROM doubted WHERE doubted.at = sums.at) AS failures
FROM sums JOIN model_versions v ON v.id = sums.at JOIN manifests ON manifests.id = v.manifest_id
"""


def _line(version_id: UUID) -> Any:  # Any: a CTE, whose type SQLAlchemy doesn't name
    line = (
        select(ModelVersion.id, ModelVersion.parent_id, ModelVersion.job_id)
        .where(ModelVersion.id == version_id)
        .cte("line", recursive=True)
    )
    parent = aliased(ModelVersion)
    return line.union_all(select(parent.id, parent.parent_id, parent.job_id).join(line, parent.id == line.c.parent_id))


def forgotten(tx: Session, at: ModelVersion) -> set[int]:
    """Samples of the version's manifest that its line of deletions has taken out."""
    line = _line(at.id)
    rows = tx.scalars(
        select(Forgotten.sample_ids)
        .join(line, line.c.job_id == Forgotten.job_id)
        .where(Forgotten.manifest_id == at.manifest_id)
    )
    return {sample_id for ids in rows for sample_id in ids}


def missing(tx: Session, at: ModelVersion) -> list[list[int]]:
    """Deletions made in this version's manifest that the version does not hold: what a rollback undid."""
    gone = forgotten(tx, at)
    rows = tx.scalars(
        select(Forgotten.sample_ids)
        .where(Forgotten.manifest_id == at.manifest_id)
        .order_by(Forgotten.job_id, Forgotten.ordinal)
    )
    return [ids for ids in rows if not gone.issuperset(ids)]


def undone(tx: Session, model: Model) -> bool:
    """Whether the live version lacks a deletion that was made in its manifest."""
    return model.current_version_id is not None and bool(missing(tx, version(tx, model.current_version_id)))


def bury(tx: Session, *, job_id: UUID, manifest_id: UUID, groups: Iterable[Sequence[int]]) -> None:
    """Keep what a job took out of a manifest, one group per person, in an order that says nothing about requests."""
    first = tx.scalar(
        select(func.coalesce(func.max(Forgotten.ordinal) + 1, 0)).where(
            Forgotten.job_id == job_id, Forgotten.manifest_id == manifest_id
        )
    )
    for ordinal, group in enumerate(sorted(sorted(g) for g in groups if g), start=first or 0):
        tx.execute(insert(Forgotten).values(job_id=job_id, manifest_id=manifest_id, ordinal=ordinal, sample_ids=group))


def other_manifests(tx: Session, model_id: UUID, *, than: UUID) -> Sequence[UUID]:
    """Manifests of earlier versions, to which a rollback could go."""
    return tx.scalars(select(Manifest.id).where(Manifest.model_id == model_id, Manifest.id != than)).all()


def undone_by(tx: Session, to: ModelVersion) -> Sequence[ErasureRequest]:
    """Requests that had a deletion made which the version ``to`` does not hold, whatever else they wait for; locked."""
    return tx.scalars(served_without(to).order_by(ErasureRequest.sequence).with_for_update(of=ErasureRequest)).all()


def served_without(to: ModelVersion) -> Select[ErasureRequest]:
    """The rule by which a rollback knows whom it undoes: who was served by :func:`jobs_without`."""
    return (
        select(ErasureRequest)
        .join(Target, Target.request_id == ErasureRequest.id)
        .where(
            Target.job_id.in_(jobs_without(to)),
            Target.model_id == to.model_id,
            Target.result.in_(_FORGOTTEN),
            ErasureRequest.status.not_in((RequestStatus.NO_DATA, RequestStatus.CANCELLED, RequestStatus.REJECTED)),
        )
    )


def jobs_without(to: ModelVersion) -> Select[UUID]:
    """Jobs that took somebody out of the version's manifest, and that are not on its line."""
    line = _line(to.id)
    return (
        select(Forgotten.job_id)
        .join(Job, Job.id == Forgotten.job_id)
        .where(
            Forgotten.manifest_id == to.manifest_id,
            Forgotten.job_id.not_in(select(line.c.job_id).where(line.c.job_id.is_not(None))),
        )
    )


def made_by(tx: Session, job_id: UUID) -> ModelVersion | None:
    """The version that a job published, if it did."""
    return tx.scalar(select(ModelVersion).where(ModelVersion.job_id == job_id))


def base_of(tx: Session, job: Job) -> ModelVersion:
    """The version that a job began from."""
    assert job.base_version_id is not None  # set by its first step
    return version(tx, job.base_version_id)


def of_job(tx: Session, job_id: UUID) -> ModelVersion:
    """The version that a published job made."""
    return tx.scalars(select(ModelVersion).where(ModelVersion.job_id == job_id)).one()
