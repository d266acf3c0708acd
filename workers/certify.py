"""What a job's end means for its requests: a result with this model each, and the loss of what names a person."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy.orm import Session

from app import ending, tracing
from app.settings import Settings
from app.storage import requests, samples, versions
from app.storage.tables import ErasureRequest, Job, ModelVersion, Target


def finish(tx: Session, job: Job, version: ModelVersion, *, at: datetime, settings: Settings) -> None:
    """Close the job's targets against ``version``, and every request for which this was the last one.

    Raises:
        StepFailed: EXPUNGE_LOG_ORIGIN is not the name of the log: a certificate would name another.
    """
    ending.need_our_log(tx, settings)
    for request, target in requests.of_job(tx, job.id):
        target.result = _result(tx, request, target, version)
        target.sample_ids = None
        if request.subject_key:
            if target.result != "no_data":
                requests.tell_twins(tx, request, job.id, job.model_id)
            _leave_tombstones(tx, job, request.subject_key, version, result=target.result)
            samples.forget_subjects(tx, [request.subject_key], model_id=job.model_id)
        tx.flush()
        if all(requests.results(tx, request.id)):
            with tracing.span("certificate", parents=[request.traceparent], request=str(request.id)):
                ending.close(tx, request, at=at, settings=settings)


def _result(tx: Session, request: ErasureRequest, target: Target, version: ModelVersion) -> str:
    if target.sample_ids:
        return "forgotten"
    if request.subject_key is None or requests.was_undone(tx, request.id, target.model_id):
        return "forgotten"  # once before; a rollback had undone it
    shared = samples.lookup(tx, version.manifest_id, request.subject_key).train
    return "already_forgotten" if shared or _went_with_another(tx, request, target) else "no_data"


def _went_with_another(tx: Session, request: ErasureRequest, target: Target) -> bool:
    """Whether another request for the same person has had the samples taken out, and with them the index rows."""
    if target.model_id in (request.gone_from or ()):
        return True
    if request.duplicate_of is None:
        return False
    older = requests.target(tx, request.duplicate_of, target.model_id)
    return older is not None and older.result in {"forgotten", "already_forgotten"}


def _leave_tombstones(tx: Session, job: Job, subject_key: UUID, version: ModelVersion, *, result: str) -> None:
    """Keep the person's samples in older manifests, nameless, so that a rollback to one forgets them again."""
    manifests = versions.other_manifests(tx, job.model_id, than=version.manifest_id)
    if result == "already_forgotten":  # the version's own manifest: the samples went with somebody else's request
        manifests = [*manifests, version.manifest_id]
    for manifest_id in manifests:
        found = samples.lookup(tx, manifest_id, subject_key).train
        versions.bury(tx, job_id=job.id, manifest_id=manifest_id, groups=[found])
