"""The end of a request: its result with each model, its certificate, and the loss of everything that names a person."""

from __future__ import annotations

from datetime import datetime
from importlib.metadata import version as installed_version
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.orm import Session

from app import certificates
from app.domain.lifecycle import RequestStatus
from app.settings import Settings
from app.storage import jobs, moves, requests, samples, versions
from app.storage.tables import Certificate, ErasureRequest, Job, ModelVersion, Target

Json = dict[str, Any]  # Any: JSON
_WITHOUT = {
    "forgotten": "none: the live version holds the deletion already",
    "already_forgotten": "none: all samples of the person went with an earlier request, which shared them",
    "no_data": "none: the index of the live version's training data knows no sample of the person",
}
_STRENGTH = {"unlearned": "approximate-unlearning", "retrained": "exact-retrain"}


def finish(tx: Session, job: Job, version: ModelVersion, *, at: datetime, settings: Settings) -> None:
    """Close the job's targets against ``version``, and every request for which this was the last one."""
    for request, target in requests.of_job(tx, job.id):
        target.result = _result(tx, request, target, version)
        target.sample_ids = None
        if request.subject_key:
            _leave_tombstones(tx, job, request.subject_key, version, result=target.result)
            samples.forget_subjects(tx, [request.subject_key], model_id=job.model_id)
        tx.flush()
        if all(requests.results(tx, request.id)):
            _close(tx, request, at=at, settings=settings)


def _result(tx: Session, request: ErasureRequest, target: Target, version: ModelVersion) -> str:
    if target.sample_ids:
        return "forgotten"
    if request.subject_key is None:  # completed once before; a rollback had undone it
        return "forgotten"
    shared = samples.lookup(tx, version.manifest_id, request.subject_key).train
    return "already_forgotten" if shared else "no_data"


def _leave_tombstones(tx: Session, job: Job, subject_key: UUID, version: ModelVersion, *, result: str) -> None:
    """Keep the person's samples in older manifests, nameless, so that a rollback to one forgets them again."""
    manifests = versions.other_manifests(tx, job.model_id, than=version.manifest_id)
    if result == "already_forgotten":  # the version's own manifest: the samples went with somebody else's request
        manifests = [*manifests, version.manifest_id]
    for manifest_id in manifests:
        found = samples.lookup(tx, manifest_id, subject_key).train
        versions.bury(tx, job_id=job.id, manifest_id=manifest_id, groups=[found])


def _close(tx: Session, request: ErasureRequest, *, at: datetime, settings: Settings) -> None:
    found = set(requests.results(tx, request.id)) != {"no_data"}
    envelope = certificates.sign(settings.key("signing_key"), _statement(tx, request, at=at, settings=settings))
    tx.add(Certificate(request_id=request.id, envelope=envelope, issued_at=at))
    moves.move_request(
        tx,
        request.id,
        now=RequestStatus(request.status),
        then=RequestStatus.COMPLETED if found else RequestStatus.NO_DATA,
        at=at,
    )


def _statement(tx: Session, request: ErasureRequest, *, at: datetime, settings: Settings) -> Json:
    assets = [_asset(tx, row.name, row.result or "", row.id) for row in requests.targets(tx, [request.id])]
    return certificates.statement(
        subjects=[(asset["model"], asset["to"]) for asset in assets],
        predicate={
            "certificate_id": str(uuid4()),
            "request": str(request.id),
            "controller": settings.controller,
            "ground": "GDPR Art. 17(1)",
            "received": request.received_at.astimezone(settings.zone).date().isoformat(),
            "deadline": request.deadline.astimezone(settings.zone).date().isoformat(),
            "completed": at.astimezone(settings.zone).date().isoformat(),
            "in_time": at <= request.deadline,
            "tool": f"expunge {installed_version('expunge')}",
            "assets": assets,
            "keys": "the key of the user id kept with this request was deleted at completion",
            "residuals": [
                "earlier versions of the model stay in the model store for rollback; a rollback repeats this deletion",
                "training rows in the controller's own systems are the controller's to delete",
            ],
        },
    )


def _asset(tx: Session, model: str, result: str, job_id: UUID) -> Json:
    """What was done to one model for this person, and nothing that was done to it for others."""
    job = jobs.get(tx, job_id)
    made = versions.made_by(tx, job_id)
    asset = {"kind": "deployed model", "model": model, "result": result}
    if result != "forgotten" or made is None:
        live = versions.version(tx, jobs.model_of(tx, job).current_version_id or versions.base_of(tx, job).id)
        untouched = {"method": _WITHOUT[result], "claim_strength": "data-only", "assurance": None, "verification": None}
        return {**asset, "version": live.number, "from": None, "to": live.weights, **untouched}
    report = made.report or {}
    verdict = report.get("verdict", {})
    return {
        **asset,
        "version": made.number,
        "from": versions.base_of(tx, job).weights,
        "to": made.weights,
        "method": report.get("rung"),
        "claim_strength": _STRENGTH[made.origin],
        "assurance": verdict.get("level"),
        "verification": _evidence(verdict),
    }


def _evidence(verdict: Json) -> Json:
    """The gates as they may leave the house: what was asked and found, without the numbers of single people."""
    kept = ("name", "outcome", "sentence", "strangers", "alpha_each_tail", "power_on_members", "members")
    gates = [{name: gate[name] for name in kept if name in gate} for gate in verdict.get("gates", ())]
    return {**{k: verdict[k] for k in ("outcome", "sentence", "not_run") if k in verdict}, "gates": gates}
