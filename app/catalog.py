"""What an ML engineer makes happen: register a model version, roll one back; one function is one transaction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy.orm import Session

from app.domain import deadlines, identifiers
from app.domain.lifecycle import ERASED, RequestStatus
from app.errors import Conflict
from app.planning import hold_ledger
from app.settings import Settings
from app.storage import jobs, moves, requests, samples, versions
from app.storage.tables import ErasureRequest, Model, ModelVersion

_CERTIFYING = "certificates for the live version are being written; try again in a moment"
_UNDONE = "the model was rolled back; the deletion is made again"


@dataclass(frozen=True, kw_only=True)
class Registration:
    """A trained model as its owner hands it over; weights and residual are already in the model store."""

    name: str
    recipe: str
    weights: str
    residual: str | None
    manifest_digest: str


def register(
    tx: Session,
    registration: Registration,
    rows: Iterable[samples.Row],
    *,
    unlearn: bool,
    now: datetime,
    settings: Settings,
) -> tuple[ModelVersion, samples.Loaded]:
    """Import the manifest and make the weights the live version.

    Raises:
        Invalid: The manifest breaks a rule; nothing is imported.
        Conflict: It was trained on erased people and ``unlearn`` is false, or another version was published meanwhile.
    """
    identifiers.check_model_name(registration.name)
    model = versions.find(tx, registration.name) or _new(tx, registration)
    loaded = samples.load(
        tx,
        model.id,
        digest=registration.manifest_digest,
        rows=rows,
        model_name=model.name,
        before_ledger=lambda: hold_ledger(tx, exclusive=True),  # only now: an import may take minutes
    )
    if loaded.suppressed and not unlearn:
        raise Conflict(
            f"the manifest names {loaded.suppressed} people whose erasure was requested; train without them, "
            "or register with --unlearn to have them unlearned at once"
        )
    made = ModelVersion(
        model_id=model.id,
        weights=registration.weights,
        residual=registration.residual,
        manifest_id=loaded.manifest_id,
        recipe=registration.recipe,
        origin="registered",
    )
    versions.hold(tx, model.id)  # reads it anew: somebody may have published during the import
    _refuse_while_certifying(tx, model)
    version = versions.publish(tx, made, base_id=model.current_version_id, at=now)
    model.recipe = registration.recipe
    moves.record(tx, "model.registered", model_id=model.id, detail={"version": version.number})
    for subject in loaded.suppressed_subjects:
        _demand_again(tx, model, subject, now=now, settings=settings)
    return version, loaded


def roll_back(
    tx: Session, name: str, *, to: int, now: datetime, settings: Settings, seen: int | None = None
) -> tuple[ModelVersion, int]:
    """Make an earlier version's weights live again and queue every deletion that this undoes.

    Args:
        tx: The transaction.
        name: The model.
        to: The version whose weights are to be live.
        now: The clock.
        settings: For the new deadlines.
        seen: The live version that whoever asks looked at; another one is a reason to look again.

    Returns:
        The new version, and how many requests were queued again.

    Raises:
        NotFound: No such model or version.
        Conflict: As :func:`why_not` says, or another version than the one ``seen`` is live.
    """
    hold_ledger(tx, exclusive=False)
    model = versions.hold(tx, versions.model(tx, name).id)
    target = versions.numbered(tx, model.id, to)
    refused = why_not(tx, model, target)
    if refused is not None or model.current_version_id is None:
        raise Conflict(refused or f"{name} has no live version")
    live = versions.version(tx, model.current_version_id).number
    if seen not in {None, live}:
        raise Conflict(
            f"version {live} was published meanwhile, and you saw version {seen}: look again at what it undoes"
        )
    made = ModelVersion(
        model_id=model.id,
        weights=target.weights,
        residual=target.residual,
        manifest_id=target.manifest_id,
        recipe=target.recipe,
        calibration=target.calibration,  # its files may be gone: then workers do without
        parent_id=target.id,
        origin="rolled_back",
    )
    version = versions.publish(tx, made, base_id=model.current_version_id, at=now)
    moves.record(tx, "model.rolled_back", model_id=model.id, detail={"version": version.number, "to": to})
    return version, _queue_undone(tx, model, version, now=now, settings=settings)


def why_not(tx: Session, model: Model, target: ModelVersion) -> str | None:
    """Why the model can't be rolled back to a version of its own right now; none: it can."""
    if model.current_version_id is None or model.current_version_id == target.id:
        return f"version {target.number} is live already"
    if jobs.being_certified(tx, model.id):
        return _CERTIFYING
    if target.recipe != versions.version(tx, model.current_version_id).recipe:
        return f"version {target.number} has another recipe ({target.recipe}); register its weights again with it"
    return None


def _refuse_while_certifying(tx: Session, model: Model) -> None:
    if jobs.being_certified(tx, model.id):
        raise Conflict(_CERTIFYING)


def _new(tx: Session, registration: Registration) -> Model:
    model = Model(name=registration.name, recipe=registration.recipe)
    tx.add(model)
    tx.flush()
    return model


def _demand_again(tx: Session, model: Model, subject: tuple[UUID, bytes], *, now: datetime, settings: Settings) -> None:
    """A request of our own for an erased person whom a new version was trained on."""
    request = ErasureRequest(
        id=uuid4(),
        origin="suppression",
        models=[model.name],
        received_at=now,
        deadline=deadlines.due(now, settings.zone),
        subject_key=subject[0],
        suppression_key=subject[1],
    )
    requests.add(tx, request)
    moves.receive(tx, request, detail={"origin": "suppression"})


def _queue_undone(tx: Session, model: Model, version: ModelVersion, *, now: datetime, settings: Settings) -> int:
    if not versions.missing(tx, version):
        return 0
    job_id = jobs.collecting(tx, model.id, opens_at=now)
    undone = versions.undone_by(tx, version)
    for request in undone:
        jobs.join(tx, job_id, request.id, model.id)
        status = RequestStatus(request.status)
        if status not in ERASED:  # open already, and ends when this has ended, too
            moves.record(tx, "request.undone", request_id=request.id, model_id=model.id, detail={"reason": _UNDONE})
            continue
        moves.move_request(
            tx,
            request.id,
            now=status,
            then=RequestStatus.QUEUED,
            at=now,
            reason=_UNDONE,
            due=deadlines.due(now, settings.zone),  # the first clock was met; this one is ours
        )
    return len(undone)
