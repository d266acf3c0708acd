"""What dispatch makes happen: requests join the open job of each model, or people are asked; dead jobs are given up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TypeVar
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app import holds
from app.domain.lifecycle import JOB_OPEN, REQUEST_ENDED, JobStatus, RequestStatus
from app.errors import Conflict
from app.settings import Settings
from app.storage import bursts, decisions, intake_counts, jobs, moves, portals, requests, versions
from app.storage.tables import ErasureRequest, Job, Model

_LEDGER_LOCK = 7215002
_ANSWERS_LIVE = timedelta(hours=24)
_REPAIR_AGAIN = timedelta(minutes=10)
_LOOK_AHEAD = 1000
_BURST = timedelta(hours=24)
K = TypeVar("K")
Known = Mapping[UUID, decisions.Known]


def hold_ledger(tx: Session, *, exclusive: bool) -> None:
    """Order planning against registration: a model is either seen by the plan or sees the ledger."""
    lock = func.pg_advisory_xact_lock if exclusive else func.pg_advisory_xact_lock_shared
    tx.execute(select(lock(_LEDGER_LOCK)))


def plan(tx: Session, *, now: datetime, settings: Settings) -> int:
    """Queue what was received, oldest first, or ask people; returns how many requests moved.

    A few statements for all of them: what people decided is read once, what a burst would do is counted once.
    """
    hold_ledger(tx, exclusive=False)
    full = jobs.full(tx, of=settings.batch_requests)
    waiting = requests.received(tx, limit=_LOOK_AHEAD, cooled_since=now - settings.cooling_off, full=full)
    if not waiting:
        return 0
    kept = holds.pass_on(tx, waiting, at=now, settings=settings)
    free = [request for request in waiting if request.id not in kept]
    rest, known = _ask_first(tx, free, now=now, settings=settings)
    held = _hold_burst(tx, rest, known, now=now, settings=settings)
    asked = len(waiting) - len(rest) + len(held)
    rest = [request for request in rest if request.id not in held]
    older = {request.id: known[request.id].older for request in rest}
    decisions.link(tx, {younger: link for younger, link in older.items() if link and link not in held})
    return asked + _queue(tx, rest, known, now=now, settings=settings)


def _ask_first(
    tx: Session, waiting: Sequence[ErasureRequest], *, now: datetime, settings: Settings
) -> tuple[Sequence[ErasureRequest], Known]:
    """Ask people about what needs it; returns what is left, and what is known of that.

    Again until nobody is left to ask: a demand waits with an older one for its person, which may have been asked about
    only now.
    """
    known = decisions.known(tx, [request.id for request in waiting])
    unasked = [request for request in waiting if _must_ask(request, known[request.id], settings)]
    if not unasked:
        return waiting, known
    for needed, some in _by(unasked, lambda r: _needed(r, known[r.id], at_least=settings.approvals_asked)).items():
        reason = f"{needed} must agree before work begins" if needed > 1 else "somebody must agree before work begins"
        _ask(tx, some, at=now, reason=reason, approvals=needed)
    decisions.note_burst(tx, [request.id for request in unasked if known[request.id].burst], at=now)
    asked = {request.id for request in unasked}
    return _ask_first(tx, [r for r in waiting if r.id not in asked], now=now, settings=settings)


def _must_ask(request: ErasureRequest, known: decisions.Known, settings: Settings) -> bool:
    """Whether somebody has yet to agree; the service's own requests repeat what was agreed to."""
    if request.origin == "suppression":
        return False
    needed = _needed(request, known, at_least=settings.approvals_of_all)
    return known.agreed(needed) < needed


def _needed(request: ErasureRequest, known: decisions.Known, *, at_least: int) -> int:
    """How many must agree: to send a demand again is no way around those who were asked about it."""
    return max(request.approvals_needed, known.awaited, at_least)


def _ask(tx: Session, asked: Sequence[ErasureRequest], *, at: datetime, reason: str, approvals: int) -> None:
    for status, some in _by(asked, lambda request: RequestStatus(request.status)).items():
        ids = [request.id for request in some]
        moves.move_requests(tx, ids, now=status, then=RequestStatus.PENDING, at=at, reason=reason, approvals=approvals)


def _hold_burst(
    tx: Session, waiting: Sequence[ErasureRequest], known: Known, *, now: datetime, settings: Settings
) -> set[UUID]:
    """Ask people about what would take too many people out of a model within a day; returns the requests held.

    What a collecting job holds already is called back, too: a burst of five hundred is seen at the hundredth. Whoever
    made a request does not count among those who agree: a stolen key that may decide would agree with itself.
    """
    needed = settings.approvals_asked
    unasked = [r.id for r in waiting if r.origin != "suppression" and known[r.id].by_others < needed]
    if not unasked:
        return set()
    counted = bursts.leaving(tx, unasked, since=now - _BURST, needed=needed)
    over = [one for one in counted if one.people > max(settings.hold_least, settings.hold_share * one.users)]
    if not over:
        return set()
    held = {request_id for one in over for request_id in one.request_ids}
    who = "somebody else than the requester" if needed == 1 else f"{needed} others than the requester"
    reason = f"more than {settings.hold_share:.0%} of a model's people would go within a day; {who} must agree"
    _ask(tx, [r for r in waiting if r.id in held], at=now, reason=reason, approvals=needed)
    back = bursts.collected(tx, [one.model_id for one in over], needed=needed)
    decisions.leave_jobs(tx, back)
    queued, pending = RequestStatus.QUEUED, RequestStatus.PENDING
    moves.move_requests(tx, back, now=queued, then=pending, at=now, reason=reason, approvals=needed)
    decisions.note_burst(tx, [*held, *back], at=now)
    return held


def _queue(tx: Session, waiting: Sequence[ErasureRequest], known: Known, *, now: datetime, settings: Settings) -> int:
    """Give requests to the jobs of their models; those without any model need attention."""
    everything = versions.live(tx, None)
    demands = [(r, [m for m in everything if _concerns(r, m, known[r.id].refused)]) for r in waiting]
    for request, models in demands:
        if not models:
            moves.move_request(
                tx,
                request.id,
                now=RequestStatus(request.status),
                then=RequestStatus.NEEDS_ATTENTION,
                at=now,
                reason="no model is registered; register one, then retry the request",
            )
    homeless = sum(not models for _, models in demands)
    return homeless + enqueue(tx, [demand for demand in demands if demand[1]], now=now, settings=settings)


def _concerns(request: ErasureRequest, model: Model, refused: Collection[str]) -> bool:
    return model.name not in refused and (request.models is None or model.name in request.models)


def enqueue(
    tx: Session, demands: Sequence[tuple[ErasureRequest, Sequence[Model]]], *, now: datetime, settings: Settings
) -> int:
    """Let requests join the collecting jobs of their models; returns how many, since a job may be full.

    A request joins all of its jobs or none; one that is left out keeps its place in the order of arrival.
    """
    joined = Counter(jobs.joined(tx)) if demands else Counter[UUID]()
    joining: dict[UUID, list[UUID]] = {}
    taken = []
    for request, models in demands:
        if any(joined[model.id] >= settings.batch_requests for model in models):
            continue
        taken.append(request)
        for model in models:
            joined[model.id] += 1
            joining.setdefault(model.id, []).append(request.id)
    opens_at = now + timedelta(seconds=settings.coalesce_seconds)
    for model_id in sorted(joining):  # in one order, so that two planners can't deadlock
        jobs.join_all(tx, jobs.collecting(tx, model_id, opens_at=opens_at), joining[model_id], model_id)
    for status, some in _by(taken, lambda request: RequestStatus(request.status)).items():
        moves.move_requests(tx, [request.id for request in some], now=status, then=RequestStatus.QUEUED, at=now)
    return len(taken)


def _by(found: Iterable[ErasureRequest], key: Callable[[ErasureRequest], K]) -> dict[K, list[ErasureRequest]]:
    groups: dict[K, list[ErasureRequest]] = {}
    for request in found:
        groups.setdefault(key(request), []).append(request)
    return groups


def retry(tx: Session, request_id: UUID, *, now: datetime, settings: Settings) -> None:
    """Give a request that needs attention to new jobs, for those models where it has no result and is not refused.

    Raises:
        NotFound: No such request.
        Conflict: It does not need attention, the person's data are on hold, or there is no model to work on.
    """
    hold_ledger(tx, exclusive=False)
    request = requests.locked(tx, request_id)
    if request.status != RequestStatus.NEEDS_ATTENTION:
        raise Conflict(f"the request is {request.status}; only one that needs attention can be retried")
    if not decisions.has_begun(tx, request_id):
        holds.need_free(tx, request)
    done = {row.name for row in requests.targets(tx, [request_id]) if row.result is not None or row.status in JOB_OPEN}
    done |= decisions.refused_models(tx, request_id)
    if request.subject_key is None:  # a repetition is of what was done: nobody knows any more who the person is
        done |= {model.name for model in versions.models(tx)} - {row.name for row in requests.targets(tx, [request_id])}
    models = [model for model in versions.live(tx, None) if _concerns(request, model, done)]
    if not models:
        raise Conflict("no registered model is left to work on; register the model, then retry")
    if not enqueue(tx, [(request, models)], now=now, settings=settings):
        raise Conflict("the next job is full; retry in a moment")


def give_up(tx: Session, job: Job, *, now: datetime, reason: str) -> None:
    """Close a job that can't go on; its requests need attention, their clocks keep running."""
    moves.move_job(tx, job, JobStatus.FAILED, error=reason)
    for request, _ in requests.of_job(tx, job.id):
        status = RequestStatus(request.status)
        if status not in REQUEST_ENDED | {RequestStatus.NEEDS_ATTENTION}:
            moves.move_request(tx, request.id, now=status, then=RequestStatus.NEEDS_ATTENTION, at=now, reason=reason)


def repair(tx: Session, *, now: datetime) -> None:
    """Open a job for every model that lives with a deletion undone and that nobody works on.

    A rollback opens that job itself; this catches what slipped between two transactions, and tries again some time
    after a failure.
    """
    hold_ledger(tx, exclusive=False)
    for model in versions.live(tx, None):
        if not jobs.any_open(tx, model.id, or_failed_within=_REPAIR_AGAIN) and versions.undone(tx, model):
            jobs.collecting(tx, model.id, opens_at=now)


def sweep(tx: Session, *, now: datetime, settings: Settings) -> None:
    """Close jobs that used up their attempts."""
    for job in jobs.exhausted(tx, max_attempts=settings.max_attempts):
        why = job.error or "the worker died at every attempt"
        give_up(tx, job, now=now, reason=f"{job.status}: {why} ({job.attempts} attempts)")


def forget_answers(tx: Session) -> None:
    """Forget which Idempotency-Keys were answered, a day later, and where portals wanted to hear, once they heard."""
    requests.expire_answers(tx, older_than=_ANSWERS_LIVE)
    intake_counts.forget(tx)
    portals.forget_told(tx)
