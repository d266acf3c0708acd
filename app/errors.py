"""Every error we raise on purpose, drawn as a tree; each knows its HTTP face.

    ExpungeError
    ├── Invalid             422  a field is wrong; says which one and what to do
    │   └── ForbiddenAddress     a callback may not go there (domain/addresses.py)
    │       └── Refused          found at the moment of connecting (workers/egress.py)
    ├── Unauthenticated     401  no key, or one we don't know
    │   └── SignatureRefused     a webhook that isn't ours, or isn't fresh (domain/webhook.py)
    ├── Forbidden           403  a known key without the scope
    ├── NotFound            404  no such thing
    │   └── NotConfigured        a dialect that the operator has not set up
    ├── Conflict            409  the thing exists, but not in a state that allows this
    │   ├── IllegalMove          a status change outside the machine, or someone was faster
    │   ├── LeaseLost            this worker no longer holds the job; drop the result
    │   └── BaseMoved            the model got a new version meanwhile; unlearn again on it
    ├── TooMany             429  this caller has used up what it may do for now; says when it may go on
    ├── Unavailable         503  PostgreSQL can't be reached; nothing was accepted
    ├── LogStopped          503  the public log is not signed until a person has looked
    ├── Undelivered         502  a callback found no answer (workers/egress.py)
    ├── Misconfigured       500  the operator must change a setting; says which one
    └── StepFailed          500  a pipeline step can't go on; the job keeps the sentence

A sentence in an error never contains a user id or any function of one.
"""

from __future__ import annotations


class ExpungeError(Exception):
    """The root: one sentence for people, one code for programs, one HTTP status."""

    status = 500
    code = "internal"


class Invalid(ExpungeError):
    """Input that can't be accepted: ``field`` names where, the sentence what to do."""

    status, code = 422, "invalid"

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(sentence)
        self.field = field


class Unauthenticated(ExpungeError):
    """The caller showed no key, or one that is unknown or revoked."""

    status, code = 401, "unauthenticated"


class Forbidden(ExpungeError):
    """The caller's key lacks the scope that the route needs."""

    status, code = 403, "forbidden"


class NotFound(ExpungeError):
    """There is no such request, model, version or endpoint."""

    status, code = 404, "not-found"


class NotConfigured(NotFound):
    """This dialect is not spoken here until the operator sets it up; the sentence says how."""

    code = "not-configured"


class Conflict(ExpungeError):
    """The thing exists, but its state does not allow what was asked."""

    status, code = 409, "conflict"


class IllegalMove(Conflict):
    """A status change that the machine does not have, or that somebody else made first."""

    code = "illegal-move"


class LeaseLost(Conflict):
    """Another worker holds the job now; whatever this one computed is dropped."""

    code = "lease-lost"


class BaseMoved(Conflict):
    """The model's current version is no longer the one the candidate was computed from."""

    code = "base-moved"


class TooMany(ExpungeError):
    """The caller has used up what it may do for now."""

    status, code = 429, "too-many"

    def __init__(self, sentence: str, *, retry_after_seconds: float) -> None:
        super().__init__(sentence)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(ExpungeError):
    """PostgreSQL can't be reached; the request was not accepted and may be sent again."""

    status, code = 503, "unavailable"


class LogStopped(ExpungeError):
    """What PostgreSQL holds and what was signed disagree; nothing more is signed until a person has looked."""

    status, code = 503, "log-stopped"


class Misconfigured(ExpungeError):
    """A setting is missing or wrong; the sentence names it and says what to do."""

    code = "misconfigured"


class StepFailed(ExpungeError):
    """A pipeline step can't go on; ``final`` when trying again would not help."""

    code = "step-failed"

    def __init__(self, sentence: str, *, final: bool = False) -> None:
        super().__init__(sentence)
        self.final = final
