"""The end of a request that was worked on: one asset per model, its certificate, what stays and on what ground."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from importlib.metadata import version as installed_version
from typing import Any
from uuid import UUID, uuid4

from expunge_verify.leaf import ALREADY_FORGOTTEN, NO_DATA
from sqlalchemy.orm import Session

from app import certificates
from app.domain import deadlines
from app.domain.decisions import Kind
from app.domain.lifecycle import RequestStatus
from app.errors import StepFailed
from app.settings import Settings
from app.storage import audit, decisions, jobs, moves, requests, versions
from app.storage.tables import Certificate, Decision, ErasureRequest

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
_REASONS = {
    RequestStatus.COMPLETED: "every model of the request has forgotten the person",
    RequestStatus.PARTIALLY_COMPLETED: "done where it was not refused; what stays stands on the certificate",
    RequestStatus.NO_DATA: "no model of the request was trained on the person",
}
_STRENGTH = {"unlearned": "approximate-unlearning", "retrained": "exact-retrain"}


def close(tx: Session, request: ErasureRequest, *, at: datetime, settings: Settings) -> None:
    """End a request that has a result with each of its models: log, certificate, status.

    Raises:
        StepFailed: EXPUNGE_LOG_ORIGIN is not the name of the log: a certificate would name another.
    """
    need_our_log(tx, settings)
    assets = [_asset(tx, row.name, row.result or "", row.id) for row in requests.targets(tx, [request.id])]
    for asset in assets:
        change = {name: asset[name] for name in ("from", "to") if asset[name] is not None}
        said = {"model": change, "method": asset["method"], "level": asset["assurance"] or "none"}
        audit.enter(tx, "erasure.done", said, at=at, request_id=request.id)
    refusals = decisions.of_request(tx, request.id, kind=Kind.REFUSED)
    then = _outcome(assets, refusals)
    statement = _statement(tx, request, assets, refusals, then, at=at, settings=settings)
    envelope = certificates.sign(settings.key("signing_key"), statement)
    tx.add(Certificate(request_id=request.id, envelope=envelope, issued_at=at))
    moves.move_request(
        tx,
        request.id,
        now=RequestStatus(request.status),
        then=then,
        at=at,
        reason=_REASONS[then],
        ending=moves.Ending(certificate=certificates.digest(envelope), backups=settings.key_backups),
    )


def need_our_log(tx: Session, settings: Settings) -> None:
    """Refuse to certify under a log's name that is not the log's.

    Raises:
        StepFailed: EXPUNGE_LOG_ORIGIN is another.
    """
    if audit.names(audit.known_keys(tx)) - {settings.log_origin}:
        raise StepFailed("this worker's EXPUNGE_LOG_ORIGIN is not the log's name; give it that of dispatch")


def _outcome(assets: list[Json], refusals: Sequence[Decision]) -> RequestStatus:
    if refusals:
        return RequestStatus.PARTIALLY_COMPLETED
    unknown = all(asset["result"] == "no_data" for asset in assets)
    return RequestStatus.NO_DATA if unknown else RequestStatus.COMPLETED


def _statement(
    tx: Session,
    request: ErasureRequest,
    assets: list[Json],
    refusals: Sequence[Decision],
    then: RequestStatus,
    *,
    at: datetime,
    settings: Settings,
) -> Json:
    def day(moment: datetime) -> str:
        return deadlines.day(moment, settings.zone).isoformat()

    return certificates.statement(
        subjects=[(asset["model"], asset["to"]) for asset in assets],
        predicate={
            "certificate_id": str(uuid4()),
            "request": str(request.id),
            "log": {"origin": settings.log_origin, "ref": request.ref, "checkpoint": audit.current_note(tx)},
            "controller": settings.controller,
            "processor": settings.processor or None,
            "contact": settings.contact or None,
            "outcome": then.value,
            "ground": "GDPR Art. 17(1), as the portal asserts by its request",
            "scope": request.models or "every registered model",
            "retained": [{**_retained(refusal, request), "decided": day(refusal.decided_at)} for refusal in refusals],
            "identity": request.identity_level,
            "received": day(request.received_at),
            "clock_from": day(request.clock_from or request.received_at),
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
            "approved_by": _approved(len(decisions.approvers(tx, request.id))),
        },
    )


def _retained(refusal: Decision, request: ErasureRequest) -> Json:
    """What stays and why, as a word of the law; the decider's own words are for the person alone, in the notice."""
    return {
        "models": refusal.models or request.models or "every registered model",
        "data_class": refusal.data_class,
        "ground": refusal.ground,
        "erased_otherwise": refusal.models is None,
    }


def _approved(people: int) -> str:
    return f"{people} of the controller" if people else "nobody was asked: no policy of this installation required it"


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
