"""The end of a request: its result with each model, its certificate, and the loss of everything that names a person."""

from __future__ import annotations

from datetime import datetime, timedelta
from importlib.metadata import version as installed_version
from typing import Any
from uuid import UUID, uuid4

from expunge_verify.leaf import ALREADY_FORGOTTEN, NO_DATA
from sqlalchemy.orm import Session

from app import certificates
from app.domain.lifecycle import RequestStatus
from app.errors import StepFailed
from app.settings import Settings
from app.storage import audit, jobs, moves, requests, samples, versions
from app.storage.tables import Certificate, ErasureRequest, Job, ModelVersion, Target

Json = dict[str, Any]  # Any: JSON
_NOT_COVERED = [
    "training rows and caches in the controller's own systems: the controller deletes them",
    "models derived from a registered one and copies of weights outside this installation",
    "backups of the controller's data",
]
_RESIDUALS = [
    "earlier versions of the model stay in the model store for rollback; a rollback repeats this deletion",
    "a keyed hash of the user id stays on the suppression list, so that the person is not trained on again",
    "the request's row stays without the person: its id, the portal's reference, times and events",
    "the ids of the forgotten samples stay with the job that took them out, and in a sealed journal, for rollbacks",
    "the public log holds random numbers, digests and days; records behind it can be opened until their key is deleted",
]
_NOT_RECORDED = "not recorded by this tool"
_WITHOUT = {
    "forgotten": "none: the live version holds the deletion already",
    "already_forgotten": "none: earlier deletions cover every sample that was found",
    "no_data": "none: the index of the live version's training data knows no sample of the person",
}
_LOGGED = {"forgotten": ALREADY_FORGOTTEN, "already_forgotten": ALREADY_FORGOTTEN, "no_data": NO_DATA}
METHODS = {
    "newton": "influence-newton/1",
    "projection": "influence-projection/1",
    "renewal": "renewal/1",
    "retrain": "retrain/1",
}
"""The engine's methods as the log and certificates name them."""
_STRENGTH = {"unlearned": "approximate-unlearning", "retrained": "exact-retrain"}


def finish(tx: Session, job: Job, version: ModelVersion, *, at: datetime, settings: Settings) -> None:
    """Close the job's targets against ``version``, and every request for which this was the last one.

    Raises:
        StepFailed: EXPUNGE_LOG_ORIGIN is not the name of the log: a certificate would name another.
    """
    _need_our_log(tx, settings)
    for request, target in requests.of_job(tx, job.id):
        target.result = _result(tx, request, target, version)
        target.sample_ids = None
        if request.subject_key:
            _leave_tombstones(tx, job, request.subject_key, version, result=target.result)
            samples.forget_subjects(tx, [request.subject_key], model_id=job.model_id)
        tx.flush()
        if all(requests.results(tx, request.id)):
            _close(tx, request, at=at, settings=settings)


def _need_our_log(tx: Session, settings: Settings) -> None:
    if audit.names(audit.known_keys(tx)) - {settings.log_origin}:
        raise StepFailed("this worker's EXPUNGE_LOG_ORIGIN is not the log's name; give it that of dispatch")


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
    assets = [_asset(tx, row.name, row.result or "", row.id) for row in requests.targets(tx, [request.id])]
    for asset in assets:
        change = {name: asset[name] for name in ("from", "to") if asset[name] is not None}
        said = {"model": change, "method": asset["method"], "level": asset["assurance"] or "none"}
        audit.enter(tx, "erasure.done", said, at=at, request_id=request.id)
    statement = _statement(tx, request, assets, at=at, settings=settings)
    envelope = certificates.sign(settings.key("signing_key"), statement)
    tx.add(Certificate(request_id=request.id, envelope=envelope, issued_at=at))
    moves.move_request(
        tx,
        request.id,
        now=RequestStatus(request.status),
        then=RequestStatus.COMPLETED if found else RequestStatus.NO_DATA,
        at=at,
        ending=moves.Ending(certificate=certificates.digest(envelope), backups=settings.key_backups),
    )


def _statement(tx: Session, request: ErasureRequest, assets: list[Json], *, at: datetime, settings: Settings) -> Json:
    def day(moment: datetime) -> str:
        return moment.astimezone(settings.zone).date().isoformat()

    return certificates.statement(
        subjects=[(asset["model"], asset["to"]) for asset in assets],
        predicate={
            "certificate_id": str(uuid4()),
            "request": str(request.id),
            "log": {"origin": settings.log_origin, "ref": request.ref, "checkpoint": audit.current_note(tx)},
            "controller": settings.controller,
            "processor": settings.processor or None,
            "contact": settings.contact or None,
            "outcome": "no_data" if {asset["result"] for asset in assets} == {"no_data"} else "completed",
            "ground": "GDPR Art. 17(1), as the portal asserts by its request",
            "scope": request.models or "every registered model",
            "received": day(request.received_at),
            "deadline": day(request.deadline),
            "completed": day(at),
            "in_time": at <= request.deadline,
            "tool": f"expunge {installed_version('expunge')}",
            "assets": assets,
            "not_covered": _NOT_COVERED,
            "keys": {
                "user_id": "the key of the user id kept with this request was deleted at completion",
                "last_backup_expires": day(at + settings.key_backups),
                "records_can_be_opened_until": day(at + timedelta(days=settings.evidence_days)),
            },
            "recipients": _NOT_RECORDED,
            "residuals": _RESIDUALS,
            "approved_by": _NOT_RECORDED,
        },
    )


def _asset(tx: Session, model: str, result: str, job_id: UUID) -> Json:
    """What was done to one model for this person, and nothing that was done to it for others."""
    job = jobs.get(tx, job_id)
    made = versions.made_by(tx, job_id)
    asset = {"kind": "deployed model", "model": model, "result": result}
    if result != "forgotten" or made is None:
        live = versions.version(tx, jobs.model_of(tx, job).current_version_id or versions.base_of(tx, job).id)
        untouched = {
            "method": _LOGGED[result],
            "technique": _WITHOUT[result],
            "claim_strength": "data-only",
            "assurance": None,
            "verification": None,
        }
        return {**asset, "version": live.number, "from": None, "to": versions.digest_of(live.weights), **untouched}
    report = made.report or {}
    verdict = report.get("verdict", {})
    return {
        **asset,
        "version": made.number,
        "from": versions.digest_of(versions.base_of(tx, job).weights),
        "to": versions.digest_of(made.weights),
        "method": METHODS[report["update"]["method"]],
        "technique": report.get("rung"),
        "manifest": versions.digest_of(versions.manifest_digest(tx, made)),
        "claim_strength": _STRENGTH[made.origin],
        "assurance": verdict.get("level"),
        "verification": _evidence(verdict),
    }


def _evidence(verdict: Json) -> Json:
    """The gates as they may leave the house: what was asked and found, without single people or the size of a batch."""
    kept = (
        "name",
        "outcome",
        "strangers",
        "alpha_each_tail",
        "power_on_members",
        "members",
        "worst_residual",
        "margin",
    )
    gates = [{name: gate[name] for name in kept if name in gate} for gate in verdict.get("gates", ())]
    told: Json = {k: verdict[k] for k in ("outcome", "not_run") if k in verdict}
    return {**told, "sentence": _sentence(verdict.get("level"), gates), "gates": gates}


def _sentence(level: str | None, gates: list[Json]) -> str:
    """What the level rests on, in words that count nobody's requests."""
    if level == "A0":
        return "Trained again by the owner's train(), which was given only the retained samples."
    numbers = next((gate for gate in gates if "strangers" in gate and "alpha_each_tail" in gate), {})
    return (
        "No remaining influence was detected by a two-sided user-level test against "
        f"{numbers.get('strangers', 'never-seen')} people whom the model never saw, at level "
        f"{numbers.get('alpha_each_tail', 'as configured')} per tail."
    )
