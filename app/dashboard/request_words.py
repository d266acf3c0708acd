"""One request in plain words: what a state means and who must act, what each line of its history tells."""

from __future__ import annotations

from typing import Final, NamedTuple

from app.dashboard.log_words import KINDS
from app.dashboard.rendering import words
from app.domain.decisions import ExtensionReason, Ground, HoldGround, IdentityLevel, Kind, Notice
from app.domain.lifecycle import JobStatus, RequestStatus


class State(NamedTuple):
    """What a status means, and who must do what next."""

    means: str
    next: str


_S, _J = RequestStatus, JobStatus
STATES: Final[dict[str, State]] = {
    _S.RECEIVED: State(
        "It has come in and waits to be planned. Nothing has been changed or destroyed for it.",
        "Nobody: the service plans it by itself, when a cooling-off period, if one is set, is over.",
    ),
    _S.AWAITING_IDENTITY: State(
        "It is not known well enough who asks. Nothing has been changed or destroyed for it.",
        "An officer or the portal confirms who the person is.",
    ),
    _S.PENDING: State(
        "People must agree before work on it begins. Nothing has been changed or destroyed for it.",
        "An officer approves or refuses it.",
    ),
    _S.APPROVED: State(
        "People have agreed, and it waits to be planned. Nothing has been changed or destroyed for it.",
        "Nobody: the service plans it within seconds.",
    ),
    _S.ON_HOLD: State(
        "It waits on purpose, and its clock runs on. Nothing has been changed or destroyed for it.",
        "An officer looks at it again on the day of review, then ends the hold, refuses the request or takes it back.",
    ),
    _S.QUEUED: State(
        "It waits for the next update of each model, together with the requests of others.",
        "Nobody: a worker takes it when its turn comes.",
    ),
    _S.IN_PROGRESS: State(
        "The work has begun: it can't be held, refused or cancelled any more.",
        "Nobody: a worker is at it. If it can't go on by itself, the request will need attention.",
    ),
    _S.COMPLETED: State(
        "Every model of the request has been updated without the person's samples, and the update was verified.",
        "Somebody tells the person; see the notices.",
    ),
    _S.PARTIALLY_COMPLETED: State(
        "It was carried out where it was not refused; what stays, and on what ground, is on the certificate.",
        "Somebody tells the person what was done and what was refused; see the notices.",
    ),
    _S.NO_DATA: State(
        "No model of the request was trained on samples of this person, as far as the manifests know.",
        "Somebody tells the person; see the notices.",
    ),
    _S.REJECTED: State(
        "It was refused. No model was changed for it.",
        "Somebody tells the person the reasons and the remedies; see the notices.",
    ),
    _S.CANCELLED: State("It was taken back. No model was changed for it.", "Nobody."),
    _S.NEEDS_ATTENTION: State(
        "The service could not go on by itself. Its clock runs on.",
        "An engineer or an officer finds out why and tries again, or an officer refuses what can't be done.",
    ),
}

STEPS: Final[dict[str, str]] = {
    _J.QUEUED: "looking up the person's samples",
    _J.LOCATED: "computing new weights",
    _J.UNLEARNED: "verifying the new weights",
    _J.VERIFIED: "publishing the new version",
    _J.PUBLISHED: "issuing certificates",
}
"""What a worker does with a job in each open status."""

GROUNDS: Final[dict[str, str]] = {
    Ground.EXPRESSION: "Freedom of expression and information, Art. 17(3)(a)",
    Ground.LEGAL_OBLIGATION: "The law obliges us to keep the data, Art. 17(3)(b)",
    Ground.PUBLIC_HEALTH: "Public interest in public health, Art. 17(3)(c)",
    Ground.ARCHIVING_RESEARCH: "Erasure would seriously impair archiving, research or statistics, Art. 17(3)(d)",
    Ground.LEGAL_CLAIMS: "Needed for legal claims, Art. 17(3)(e)",
    Ground.NO_GROUND: "None of the reasons for erasure in Art. 17(1) applies",
    Ground.UNFOUNDED: "Manifestly unfounded, Art. 12(5)",
    Ground.EXCESSIVE: "Excessive, in particular repeated, Art. 12(5)",
    Ground.NOT_IDENTIFIABLE: "The person can't be identified, Art. 11(2)",
    Ground.NOT_CONTROLLER: "We are not the controller of these data",
}
HOLDS: Final[dict[str, str]] = {
    HoldGround.LEGAL_HOLD: "Legal hold: the person's data must be kept for now",
    HoldGround.RESTRICTION: "Restriction of processing: the person wants the data kept, Art. 18",
    HoldGround.CLARIFICATION: "Something about this request has to be cleared up first",
}
REASONS: Final[dict[str, str]] = {
    ExtensionReason.COMPLEXITY: "The request is complex",
    ExtensionReason.NUMBER: "There are many requests",
}
LEVELS: Final[dict[str, str]] = {
    IdentityLevel.NONE: "none: nobody vouches for who asks",
    IdentityLevel.LOW: "low: some confidence in who asks",
    IdentityLevel.SUBSTANTIAL: "substantial: the identity was checked",
    IdentityLevel.HIGH: "high: the identity was checked in person or by an official electronic identity",
}
NOTICES: Final[dict[str, str]] = {
    Notice.RECEIPT: "We have received the request",
    Notice.IDENTITY: "We need to know who the person is",
    Notice.EXTENSION: "It takes longer than a month, and why",
    Notice.REFUSAL: "What is refused, why, and the remedies",
    Notice.COMPLETION: "The erasure was carried out",
    Notice.PARTIAL: "The erasure was carried out in part",
    Notice.NO_DATA: "No model was trained on the person's data",
}
RESULTS: Final = {
    "forgotten": "The model was updated without the person's samples.",
    "already_forgotten": "Earlier deletions had taken every sample of the person out of this model; it was not changed "
    "again.",
    "no_data": "The model was not trained on samples of this person; it was not changed.",
}
RUNGS: Final = {
    "influence": "influence: the weights move to where the remaining samples would have led them",
    "renewal": "renewal: the weights are trained anew towards models that never saw the person",
    "retrain": "retraining: the model is trained again from the remaining samples only",
}
LADDER: Final = ("influence", "renewal", "retrain")
"""The rungs as jobs count them."""

_EVENTS: Final[dict[str, str]] = {
    "request.received": "The request came in",
    "request.awaiting_identity": "It waits until it is known who the person is",
    "request.pending": "It waits for people to agree",
    "request.approved": "Enough people have agreed",
    "request.on_hold": "It was put on hold",
    "request.queued": "It was queued for the next update of each model",
    "request.in_progress": "The work on it began",
    "request.completed": "It was completed",
    "request.partially_completed": "It was completed in part",
    "request.no_data": "It ended: no model holds data of the person",
    "request.rejected": "It was refused",
    "request.cancelled": "It was taken back",
    "request.needs_attention": "It needs a person's attention",
    "request.undone": "A rollback undid its deletion, which is queued again",
    "request.restored": "It was restored from the log after a loss of the database",
    "job.queued": "An update of the model was queued",
    "job.located": "The samples to forget were located",
    "job.unlearned": "New weights were computed",
    "job.verified": "The new weights passed verification",
    "job.published": "The new version went live",
    "job.certified": "Certificates were issued for the update",
    "job.empty": "There was nothing to change in the model",
    "job.failed": "The update was given up",
    "notice.sent": "The person was told",
    **{f"decision.{kind}": said for kind, said in {
        Kind.IDENTITY_CONFIRMED: "The person's identity was confirmed",
        Kind.APPROVED: "The request was approved",
        Kind.HELD: "The request was put on hold",
        Kind.RELEASED: "The hold was ended",
        Kind.EXTENDED: "The deadline was extended",
        Kind.REFUSED: "The request, or a part of it, was refused",
        Kind.RETRIED: "Another attempt was ordered",
        Kind.CANCELLED: "The request was taken back",
        Kind.BURST: "The service asked people: too many would leave a model within a day",
    }.items()},
}  # fmt: skip


def of_event(kind: str) -> str:
    """What an event tells; one that nobody has described yet shows its own name.

    >>> of_event("job.located"), of_event("job.turned_inside_out")
    ('The samples to forget were located', 'job: turned inside out')
    """
    return _EVENTS.get(kind) or words(kind.replace(".", ": "))


def of_entry(kind: str) -> str:
    """What an entry of the public log tells.

    >>> of_entry("key.shredded")
    'The key of the user id was deleted'
    """
    return KINDS.get(kind) or words(kind.replace(".", ": "))


def of_reason(reason: str) -> str:
    """Why a request is where it is: what begins with a code word begins with what it means instead.

    >>> of_reason("legal_hold, to be reviewed on 2026-12-14")
    "Legal hold: the person's data must be kept for now, to be reviewed on 2026-12-14"
    >>> of_reason("refused: art17_3_e_legal_claims"), of_reason("located: out of memory")
    ('refused: Needed for legal claims, Art. 17(3)(e)', 'while computing new weights: out of memory')
    """
    head, comma, rest = reason.partition(", ")
    if head in HOLDS:
        return f"{HOLDS[head]}{comma}{rest}"
    head, colon, rest = reason.partition(": ")
    if head in STEPS and colon:
        return f"while {STEPS[head]}: {rest}"
    return f"{head}: {GROUNDS[rest]}" if rest in GROUNDS else reason


def of_ground(kind: str, ground: str | None) -> str | None:
    """A decision's word of the law in plain words: it depends on what was decided."""
    tables = {Kind.HELD: HOLDS, Kind.EXTENDED: REASONS, Kind.IDENTITY_CONFIRMED: LEVELS}
    return tables.get(Kind(kind), GROUNDS).get(ground, words(ground)) if ground else None
