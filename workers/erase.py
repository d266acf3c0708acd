"""★ The pipeline of one job: a table of steps, each repeatable, each settled in one transaction.

A step first works outside any transaction, then settles: status, facts, events and promised webhooks commit together
or not at all. A crash before the commit repeats the step; a crash after it goes on with the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

from opentelemetry.trace import SpanKind
from sqlalchemy.orm import Session

from app import tracing
from app.domain import ledger
from app.domain.lifecycle import JobStatus, RequestStatus
from app.ending import METHODS
from app.errors import BaseMoved, ExpungeError, LeaseLost, StepFailed
from app.logs import log
from app.planning import give_up, hold_ledger
from app.storage import audit, decisions, jobs, moves, requests, samples, totals, versions
from app.storage.sessions import transaction
from app.storage.tables import ErasureRequest, Job, ModelVersion
from workers import leftovers
from workers.certify import finish
from workers.context import Context
from workers.lease import Lease
from workers.torch_step import ChildDied, run_step

Settle = Callable[[Session, Job], None]
Step = Callable[[Context, Lease, Job], Settle]
Json = dict[str, Any]  # Any: JSON

RUNGS = ("influence", "renewal", "retrain")
"""The ladder: the next rung is taken when the one before is not proven. Renewal needs a calibrated version."""
_CONTROLS = 300
"""Members and strangers that a verification looks at: 99 strangers are the least for a level of 0.01."""
_BACKOFF_SECONDS = 2
_WORKED_ON = frozenset({RequestStatus.QUEUED, RequestStatus.IN_PROGRESS})
_DEATHS_PER_RUNG = 2
"""A rung whose process dies (of memory, of time) at so many claims is taken for one that can't."""
_LOG_WAITS_SECONDS = 30
_LOG_POLL_SECONDS = 0.1
_LOG_PAUSE = timedelta(seconds=30)


class LogAway(StepFailed):
    """The public log takes no entries; waiting for it uses up no attempt."""


def run(ctx: Context, job_id: UUID) -> None:
    """Take the job, if it is free, through as many steps as it has left."""
    with transaction(ctx.engine) as tx:
        job = jobs.claim(tx, job_id, lease=ctx.settings.lease, max_attempts=ctx.settings.max_attempts)
    if job is None:
        return  # a repeated ring: somebody has it, or it is done
    with Lease(ctx, job) as lease, _traced(ctx, lease):
        try:
            while advance(ctx, lease):
                pass
        except LeaseLost:
            log.info("lease lost", job=str(job_id), fence=lease.fence)
        except Exception as error:  # noqa: BLE001 - whatever a step dies of, the job must be given back with a reason
            _give_back(ctx, lease, error)


def advance(ctx: Context, lease: Lease) -> bool:
    """Do the job's next step; false when there is none."""
    with transaction(ctx.engine) as tx:
        job = jobs.held(tx, lease.job_id, fence=lease.fence)
    step = STEPS.get(JobStatus(job.status))
    if step is None:
        return False
    name, begun = step.__name__, time.monotonic()
    lease.progress = None  # that was the last step's
    log.info("step", job=str(job.id), step=name, fence=lease.fence)
    with tracing.span(name, job=str(job.id), step=name, fence=lease.fence):
        settle = step(ctx, lease, job)
        with transaction(ctx.engine) as tx:
            settle(tx, jobs.held(tx, lease.job_id, fence=lease.fence))
            totals.measure(tx, "step", name, value=time.monotonic() - begun)
    return True


def locate(ctx: Context, lease: Lease, _: Job) -> Settle:
    """Keyed hash of each person → their samples in the live version's manifest, less what is forgotten already."""
    _announce(ctx, lease)

    def settle(tx: Session, job: Job) -> None:
        hold_ledger(tx, exclusive=False)
        base = versions.version(tx, _live(tx, job))  # locked: an empty job must not end against a base that moves
        gone = versions.forgotten(tx, base)
        for request, target in requests.of_job(tx, job.id):
            found = samples.lookup(tx, base.manifest_id, request.subject_key).train if request.subject_key else []
            target.sample_ids = [sample_id for sample_id in found if sample_id not in gone]
        tx.flush()
        groups = _groups(tx, job, base.id)
        if groups:
            start = ledger.decide(versions.ledger(tx, base, leaving=len(groups)))
            report = {"ledger": {"reason": start.reason, "refresh_factors": start.refresh_factors}}
            rung = RUNGS.index(start.rung)
            moves.move_job(
                tx, job, JobStatus.LOCATED, base_version_id=base.id, rung=rung, candidate=None, report=report
            )
        else:
            moves.move_job(tx, job, JobStatus.EMPTY, base_version_id=base.id)
            finish(tx, job, base, at=ctx.now(), settings=ctx.settings)

    return settle


def unlearn(ctx: Context, lease: Lease, job: Job) -> Settle:
    """Base weights and samples → candidate weights, by the rung of the ladder that the job is on."""
    with transaction(ctx.engine) as tx:
        order = _order(ctx, tx, job)
    try:
        answer = run_step("unlearn", order, lease=lease, limit_seconds=ctx.settings.step_seconds)
    except ChildDied as died:
        if job.attempts < _DEATHS_PER_RUNG or job.rung + 1 == len(RUNGS):
            raise
        answer = {"weights": None, "refused": f"{died}, again and again", "can_retrain": True}
    if answer["weights"] == order["base"]:  # the log has no word for a change that changes nothing
        answer = {"weights": None, "refused": "the update changed nothing", "can_retrain": True}

    def settle(tx: Session, job: Job) -> None:
        if answer.get("calibrated") is False and order["calibration"]:
            log.warning("references are gone", job=str(job.id), step="unlearn")
        told = {"rung": RUNGS[job.rung], **answer, **_carried(job.report or {})}
        if answer["weights"]:
            method = METHODS[answer["update"]["method"]]
            audit.enter(
                tx,
                "unlearn.done",
                {"model": _change(tx, job, answer["weights"]), "method": method},
                at=ctx.now(),
                job_id=job.id,
            )
        moves.move_job(tx, job, JobStatus.UNLEARNED, candidate=answer["weights"], report=told)

    return settle


def verify(ctx: Context, lease: Lease, job: Job) -> Settle:
    """Candidate weights → verdict; what is not proven takes the next rung, and after the last one, a person."""
    report = job.report or {}
    if job.candidate is None:  # the engine refused, and said why
        refusal = {"outcome": "failed", "level": None, "sentence": report["refused"]}
        return _judged(ctx, report, {"verdict": refusal, "can_retrain": report["can_retrain"]})
    with transaction(ctx.engine) as tx:
        order = _order(ctx, tx, job) | {"after": job.candidate, "update": report["update"]}
        base = versions.version(tx, order["base_version"])
        forgotten = {sample_id for group in order["forget"] for sample_id in group}
        order["strangers"] = samples.strangers(tx, base.manifest_id, limit=_CONTROLS)
        order["members"] = samples.members(
            tx, base.manifest_id, excluding=forgotten | versions.forgotten(tx, base), limit=_CONTROLS
        )
    return _judged(ctx, report, run_step("verify", order, lease=lease, limit_seconds=ctx.settings.step_seconds))


def publish(ctx: Context, lease: Lease, job: Job) -> Settle:
    """Candidate → live version, if the base is live still; otherwise begin again on what is.

    References are written anew without the forgotten before the transaction: a crash in between leaves a file that no
    version names, and `leftovers` deletes it.
    """
    references = _redacted(ctx, lease, job)

    def settle(tx: Session, job: Job) -> None:
        assert job.base_version_id is not None
        assert job.candidate is not None
        versions.hold(tx, job.model_id)  # the model before the requests, as a rollback takes them
        base = versions.version(tx, job.base_version_id)
        report = job.report or {}
        made = ModelVersion(
            model_id=job.model_id,
            weights=job.candidate,
            residual=report.get("residual") or base.residual,
            manifest_id=base.manifest_id,
            parent_id=base.id,
            job_id=job.id,
            recipe=base.recipe,
            origin="retrained" if RUNGS[job.rung] == "retrain" else "unlearned",
            report=report,
        )
        counted = versions.ledger(tx, base, leaving=0)
        groups = _groups(tx, job, base.id)
        try:
            versions.publish(tx, made, base_id=base.id, at=ctx.now())
        except BaseMoved:
            moves.move_job(tx, job, JobStatus.QUEUED, base_version_id=None, candidate=None, rung=0, report=None)
            return
        fitted = {"users_at": counted.left - len(groups), "fitted_at_version": made.number}
        made.calibration = _calibration(base, report, references=references, fitted=fitted)
        versions.bury(tx, job_id=job.id, manifest_id=base.manifest_id, groups=groups)
        moves.move_job(tx, job, JobStatus.PUBLISHED)

    return settle


def certify(ctx: Context, _: Lease, __: Job) -> Settle:
    """A certificate per request; keys, index rows and the old references go, webhooks are promised."""
    leftovers.sweep(ctx)

    def settle(tx: Session, job: Job) -> None:
        moves.move_job(tx, job, JobStatus.CERTIFIED)
        finish(tx, job, versions.of_job(tx, job.id), at=ctx.now(), settings=ctx.settings)

    return settle


STEPS: dict[JobStatus, Step] = {
    JobStatus.QUEUED: locate,
    JobStatus.LOCATED: unlearn,
    JobStatus.UNLEARNED: verify,
    JobStatus.VERIFIED: publish,
    JobStatus.PUBLISHED: certify,
}


@contextmanager
def _traced(ctx: Context, lease: Lease) -> Iterator[None]:
    """Continue the trace by which the oldest of the job's requests came in."""
    with ExitStack() as stack:
        if tracing.is_on():
            with transaction(ctx.engine) as tx:
                parents = requests.traceparents(tx, lease.job_id)
            continued = tracing.span("job", parents=parents, kind=SpanKind.CONSUMER, job=str(lease.job_id))
            stack.enter_context(continued)
        yield


def _announce(ctx: Context, lease: Lease) -> None:
    """Put on record, where everybody can see it, that the erasure begins; nothing is destroyed before.

    A certificate without a beginning would be false; a beginning without a certificate is only late.

    Raises:
        LogAway: The public log takes no entries.
    """
    with transaction(ctx.engine) as tx:
        job = jobs.held(tx, lease.job_id, fence=lease.fence)
        hold_ledger(tx, exclusive=False)
        for request, _ in requests.of_job(tx, job.id):
            _begin(ctx, tx, job, request)
    until = time.monotonic() + _LOG_WAITS_SECONDS
    while True:
        with transaction(ctx.engine) as tx:
            if not audit.unpublished_starts(tx, lease.job_id):
                return
        if time.monotonic() > until:
            raise LogAway("the public log takes no entries: `expunge doctor` says why")
        time.sleep(_LOG_POLL_SECONDS)


def _begin(ctx: Context, tx: Session, job: Job, request: ErasureRequest) -> None:
    """Begin the work on one request; what waits for people and was never begun leaves the job instead."""
    if request.status in _WORKED_ON:
        requests.suppress(tx, request, refused=decisions.refused_models(tx, request.id))
    elif not decisions.has_begun(tx, request.id):
        decisions.leave_jobs(tx, [request.id], models=[jobs.model_of(tx, job).name])
    if request.status == RequestStatus.QUEUED:
        moves.move_request(tx, request.id, now=RequestStatus.QUEUED, then=RequestStatus.IN_PROGRESS, at=ctx.now())


def _judged(ctx: Context, report: Json, answer: Json) -> Settle:
    def settle(tx: Session, job: Job) -> None:
        told = {**report, "verdict": answer["verdict"]}
        _tell_verdict(ctx, tx, job, answer["verdict"])
        if answer["verdict"]["outcome"] == "passed":
            moves.move_job(tx, job, JobStatus.VERIFIED, report=told)
        elif job.rung + 1 < len(RUNGS) and answer["can_retrain"]:
            kept = {"earlier": told, "ledger": told.pop("ledger", None)}
            moves.move_job(tx, job, JobStatus.LOCATED, rung=_next_rung(tx, job), candidate=None, report=kept)
        else:
            give_up(tx, job, now=ctx.now(), reason=f"not proven: {answer['verdict']['sentence']}")

    return settle


def _tell_verdict(ctx: Context, tx: Session, job: Job, verdict: Json) -> None:
    """Enter what the gates said of the candidate, if there is one, into the log."""
    if job.candidate is None:
        return
    change = _change(tx, job, job.candidate)
    if verdict["outcome"] == "passed":
        audit.enter(tx, "verify.passed", {"model": change, "level": verdict["level"]}, at=ctx.now(), job_id=job.id)
    else:
        audit.enter(tx, "verify.failed", {"model": change}, at=ctx.now(), job_id=job.id)


def _change(tx: Session, job: Job, to: str) -> Json:
    """The weights that the job began from and those it computed, as the log names them."""
    base = versions.base_of(tx, job)
    return {"from": versions.digest_of(base.weights), "to": versions.digest_of(to)}


def _next_rung(tx: Session, job: Job) -> int:
    """Renewal aims at references; a version without any goes straight to retraining."""
    renewable = versions.base_of(tx, job).calibration is not None
    return job.rung + 1 if renewable else RUNGS.index("retrain")


def _carried(report: Json) -> Json:
    """What a job's report keeps from rung to rung: what the ledger said, and what earlier rungs found."""
    return {name: report[name] for name in ("ledger", "earlier") if name in report}


def _redacted(ctx: Context, lease: Lease, job: Job) -> str | None:
    """The digest of the base's references without the forgotten; none when the base has none (any more)."""
    with transaction(ctx.engine) as tx:
        base = versions.base_of(tx, job)
        if base.calibration is None:
            return None
        order = _order(ctx, tx, job)
        strangers = samples.strangers(tx, base.manifest_id)
    keep = [*order["retain"], *(sample_id for ids in strangers for sample_id in ids)]
    answer = run_step("redact", {**order, "keep": keep}, lease=lease, limit_seconds=ctx.settings.step_seconds)
    found: str | None = answer["references"]
    return found


def _calibration(base: ModelVersion, report: Json, *, references: str | None, fitted: Json) -> Json | None:
    """What the new version is calibrated with: fewer references, and new factors where they were fitted anew."""
    if base.calibration is None or references is None:
        return None
    fresh = {**report["fitted"], **fitted} if report.get("fitted") else {}
    return {**base.calibration, "references": references, **fresh}


def _live(tx: Session, job: Job) -> UUID:
    live = versions.hold(tx, job.model_id).current_version_id
    if live is None:
        raise StepFailed("the model has no live version", final=True)
    return live


def _groups(tx: Session, job: Job, base_version_id: UUID) -> list[list[int]]:
    """What to forget, one group per person: the job's requests, and deletions that a rollback undid."""
    asked = {
        request.subject_key: target.sample_ids for request, target in requests.of_job(tx, job.id) if target.sample_ids
    }
    return list(asked.values()) + versions.missing(tx, versions.version(tx, base_version_id))


def _order(ctx: Context, tx: Session, job: Job) -> Json:
    """All that the torch process needs to know; it gets no database."""
    assert job.base_version_id is not None
    base = versions.version(tx, job.base_version_id)
    forget = _groups(tx, job, base.id)
    gone = versions.forgotten(tx, base).union(*forget)
    return {
        "model": jobs.model_of(tx, job).name,
        "recipes": str(ctx.settings.recipes_path),
        "store": ctx.settings.store_url,
        "base": base.weights,
        "base_version": base.id.hex,
        "residual": base.residual,
        "calibration": base.calibration,
        "refresh_factors": bool(((job.report or {}).get("ledger") or {}).get("refresh_factors")),
        "rung": RUNGS[job.rung],
        "seed": job.id.int % 2**31,
        "forget": forget,
        "retain": [sample_id for sample_id in samples.sample_ids(tx, base.manifest_id) if sample_id not in gone],
    }


def _give_back(ctx: Context, lease: Lease, error: Exception) -> None:
    """Let the job be tried again later, or hand it to a person when trying again can't help.

    Only sentences of our own errors are kept; another exception's message could quote anything.
    """
    sentence = str(error) if isinstance(error, ExpungeError) else type(error).__name__
    log.warning("step failed", job=str(lease.job_id), kind=type(error).__name__)
    try:
        with transaction(ctx.engine) as tx:
            job = jobs.held(tx, lease.job_id, fence=lease.fence)
            if isinstance(error, StepFailed) and error.final:
                give_up(tx, job, now=ctx.now(), reason=f"{job.status}: {sentence}")
            elif isinstance(error, LogAway):
                jobs.put_back(tx, job.id, fence=lease.fence, error=sentence, after=_LOG_PAUSE)
            else:
                pause = timedelta(seconds=_BACKOFF_SECONDS**job.attempts)
                jobs.release(tx, job.id, fence=lease.fence, error=sentence, after=pause)
    except ExpungeError:
        pass  # the lease runs out by itself; dispatch rings again
