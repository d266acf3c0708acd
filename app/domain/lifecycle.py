"""★ The state machine: what a request and a job may become, and nothing else.

A request is one person's demand to be forgotten; a job is one update of one model, which serves many requests.

    request   received ──► queued ──► in_progress ──► completed │ partially_completed ──► queued   (a rollback undid it)
                 │            │            ├────────► no_data                    (no model's data hold the person)
                 │            │            └────────► needs_attention ──► queued (an operator tried again)
                 │            │                              └──────────► partially_completed (the rest was refused)
                 └─► pending ─► approved ──► queued          (a person must agree: policy, or a burst of demands,
                                                              which also calls back what is queued: queued ──► pending;
                                                              more must agree than did: approved ──► pending)

      awaiting_identity ──► received                         (the portal vouches for the person)
      whatever waits ──► on_hold ──► received                (a legal hold, and its release)
      whatever waits ──► cancelled │ rejected                (taken back; refused with a ground)

    job       queued ──► located ──► unlearned ──► verified ──► published ──► certified
                ▲  │        ▲            │             │
                │  └► empty └────────────┘             │   unlearned → located: not proven, next rung of the ladder
                └──────────────────────────────────────┘   verified → queued: the model moved on, begin again on it
              any open status ──► failed                   (needs a person; requests show needs_attention)

``no_data``, ``cancelled``, ``rejected``, ``certified``, ``empty`` and ``failed`` are final; a retry is a new job. What
waits is what nothing was destroyed for: ``received``, ``awaiting_identity``, ``pending``, ``approved``, ``queued`` and
``on_hold``. That two requests are for one person is no status: each has its clock, its certificate and the link
``duplicate_of`` (ADR 11). Every move is written by :mod:`app.storage.moves` as compare-and-set, with its event.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from app.errors import IllegalMove


class RequestStatus(StrEnum):
    """Where an erasure request stands."""

    RECEIVED = "received"
    AWAITING_IDENTITY = "awaiting_identity"
    PENDING = "pending"
    APPROVED = "approved"
    ON_HOLD = "on_hold"
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    PARTIALLY_COMPLETED = "partially_completed"
    NO_DATA = "no_data"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    NEEDS_ATTENTION = "needs_attention"


class JobStatus(StrEnum):
    """How far the update of one model has come."""

    QUEUED = "queued"
    LOCATED = "located"
    UNLEARNED = "unlearned"
    VERIFIED = "verified"
    PUBLISHED = "published"
    CERTIFIED = "certified"
    EMPTY = "empty"
    FAILED = "failed"


_R, _J = RequestStatus, JobStatus

WAITING: Final = frozenset({_R.RECEIVED, _R.AWAITING_IDENTITY, _R.PENDING, _R.APPROVED, _R.QUEUED, _R.ON_HOLD})
"""Statuses in which nothing has been destroyed yet: the request may be held, refused or taken back."""
INITIAL: Final = frozenset({_R.RECEIVED, _R.AWAITING_IDENTITY})
"""Statuses in which a request comes in."""
PLANNABLE: Final = frozenset({_R.RECEIVED, _R.APPROVED})
"""Statuses that the planner picks up."""
_TAKEN_BACK: Final = frozenset({_R.CANCELLED, _R.REJECTED})
_ANY_WAIT: Final = _TAKEN_BACK | {_R.ON_HOLD}

REQUEST_MOVES: Final[dict[RequestStatus, frozenset[RequestStatus]]] = {
    _R.RECEIVED: _ANY_WAIT | {_R.QUEUED, _R.PENDING, _R.NEEDS_ATTENTION},
    _R.AWAITING_IDENTITY: _ANY_WAIT | {_R.RECEIVED},
    _R.PENDING: _ANY_WAIT | {_R.APPROVED},
    _R.APPROVED: _ANY_WAIT | {_R.QUEUED, _R.PENDING, _R.NEEDS_ATTENTION},
    _R.ON_HOLD: _TAKEN_BACK | {_R.RECEIVED, _R.AWAITING_IDENTITY},
    _R.QUEUED: _ANY_WAIT | {_R.IN_PROGRESS, _R.PENDING, _R.NEEDS_ATTENTION},
    _R.IN_PROGRESS: frozenset({_R.COMPLETED, _R.PARTIALLY_COMPLETED, _R.NO_DATA, _R.NEEDS_ATTENTION}),
    _R.NEEDS_ATTENTION: _TAKEN_BACK | {_R.QUEUED, _R.PARTIALLY_COMPLETED},
    _R.COMPLETED: frozenset({_R.QUEUED}),
    _R.PARTIALLY_COMPLETED: frozenset({_R.QUEUED}),
    _R.NO_DATA: frozenset(),
    _R.REJECTED: frozenset(),
    _R.CANCELLED: frozenset(),
}

JOB_MOVES: Final[dict[JobStatus, frozenset[JobStatus]]] = {
    _J.QUEUED: frozenset({_J.LOCATED, _J.EMPTY, _J.FAILED}),
    _J.LOCATED: frozenset({_J.UNLEARNED, _J.FAILED}),
    _J.UNLEARNED: frozenset({_J.VERIFIED, _J.LOCATED, _J.FAILED}),
    _J.VERIFIED: frozenset({_J.PUBLISHED, _J.QUEUED, _J.FAILED}),
    _J.PUBLISHED: frozenset({_J.CERTIFIED, _J.FAILED}),
    _J.FAILED: frozenset(),
    _J.CERTIFIED: frozenset(),
    _J.EMPTY: frozenset(),
}

REQUEST_ENDED: Final = frozenset({_R.COMPLETED, _R.PARTIALLY_COMPLETED, _R.NO_DATA, _R.REJECTED, _R.CANCELLED})
"""Statuses in which a request's clock has stopped."""
ERASED: Final = frozenset({_R.COMPLETED, _R.PARTIALLY_COMPLETED})
"""Ends that a rollback can undo."""
CANCELLABLE: Final = WAITING | {_R.NEEDS_ATTENTION}
"""Statuses from which a request may be taken back or refused, as long as nothing has been destroyed for it."""
JOB_OPEN: Final = frozenset({_J.QUEUED, _J.LOCATED, _J.UNLEARNED, _J.VERIFIED, _J.PUBLISHED})
"""Statuses in which a worker still has something to do."""


def check_request(now: RequestStatus, then: RequestStatus) -> None:
    """Refuse a move of a request that the machine does not have.

    >>> check_request(RequestStatus.RECEIVED, RequestStatus.COMPLETED)
    Traceback (most recent call last):
    app.errors.IllegalMove: a request that is received can't become completed
    """
    if then not in REQUEST_MOVES[now]:
        raise IllegalMove(f"a request that is {now} can't become {then}")


def check_job(now: JobStatus, then: JobStatus) -> None:
    """Refuse a move of a job that the machine does not have.

    >>> check_job(JobStatus.CERTIFIED, JobStatus.QUEUED)
    Traceback (most recent call last):
    app.errors.IllegalMove: a job that is certified can't become queued
    """
    if then not in JOB_MOVES[now]:
        raise IllegalMove(f"a job that is {now} can't become {then}")
