"""The stories that leaves tell: whether every request went its way, by rules that only read the log.

    received ─ started ─ done per model ─ shredded ─ certificate ─ closed (completed, partial)
            └─ shredded ─ closed (no_data), withdrawn or refused ─ shredded ─ closed
    closed ─ reopened (a rollback undid it) ─ started ─ done ─ certificate ─ closed

A log can be whole and signed and still tell that somebody was certified as forgotten without a test: no Merkle proof
sees that, these rules do. Each has a name, which is said with every violation of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date
from typing import Final

from expunge_verify.leaf import ALREADY_FORGOTTEN, CHANGING_METHODS, LEVELS, NO_DATA, Leaf

_AFTER_CLOSING: Final = frozenset({"request.reopened", "key.backup_expired", "recipients.notified"})
_ERASED: Final = frozenset({"completed", "partial"})
_ENDED: Final = frozenset({"withdrawn", "refused"})

RULES: Final = {
    "received-first": "the first leaf of a request is request.received",
    "received-once": "a request is received once",
    "extended-late": "a deadline is extended before it is over (Art. 12(3) GDPR)",
    "reopened-open": "what is reopened was closed",
    "after-closed": "after request.closed come only request.reopened, key.backup_expired and recipients.notified",
    "closed-once": "a request is closed once until it is reopened",
    "started-first": "erasure.started stands before the first erasure.done",
    "done-missing": "an erasure that is completed or partial has an erasure.done that found data",
    "done-unverified": "a change of weights was verified before, from the same to the same, at this level or higher",
    "done-unpromoted": "a changed model was promoted before it counts as done",
    "done-unknown": "a model that has already forgotten was registered, promoted or rolled back to before",
    "no-data-only": "where the outcome is no_data, every erasure.done says so",
    "erased-though-ended": "a withdrawn or refused request has no erasure.done",
    "ended-unsaid": "a request closed as withdrawn or refused has the leaf that says so",
    "shredded-missing": "no request is closed before its key is shredded",
    "shredded-once": "a key is shredded once",
    "shredded-early": "the key of an erased request is shredded after erasure.started",
    "backup-early": "the backup of a key expires after the key was shredded",
    "certificate-missing": "the certificate that request.closed names was issued before, since the last opening",
    "certificate-early": "a certificate is issued after key.shredded and after every erasure.done",
    "certificate-stray": "every certificate that was issued is the one that request.closed names",
    "in-time": "in_time says whether the day of closing is at most the last due day",
    "overdue": "a request whose due day is over is closed",
    "promoted-unverified": "a model is promoted after it was verified, from the same weights to the same",
    "nonce-once": "no nonce stands in two leaves",
    "commit-once": "no commitment stands in two leaves",
}
"""Every rule by its name."""


@dataclass(frozen=True)
class Violation:
    """A rule that the leaf at ``index`` breaks."""

    index: int
    rule: str
    sentence: str

    def __str__(self) -> str:
        return f"entry {self.index} [{self.rule}]: {self.sentence}"


@dataclass(frozen=True)
class Open:
    """A request without an end; ``index`` is the leaf that set its due day."""

    ref: str
    due: str
    index: int


@dataclass(frozen=True)
class Replay:
    """What the leaves tell: counts, broken rules, requests that wait for their end."""

    facts: tuple[str, ...]
    violations: tuple[Violation, ...]
    open: tuple[Open, ...]


def replay(leaves: Iterable[tuple[int, Leaf]], today: date | None) -> Replay:
    """Follow every request through the log.

    Args:
        leaves: Pairs of index and decoded leaf, in the order of the log, from its first entry on.
        today: The day by which open requests are judged; None leaves them unjudged.
    """
    log = _Log()
    for index, leaf in leaves:
        log.read(index, leaf)
    return log.judged(today)


@dataclass
class _Request:
    """What is known of one ref so far; a reopening empties the second half."""

    due: str = ""  # empty: no leaf has said it, which is a violation of its own
    due_index: int = 0
    shredded_index: int | None = None
    first_started: int | None = None

    outcome: str = ""  # empty: open
    started: bool = False
    unstarted_done: int | None = None
    methods: list[str] = field(default_factory=list)
    certificates: list[tuple[int, str]] = field(default_factory=list)
    ended: set[str] = field(default_factory=set)


class _Log:
    """The reading of one log, leaf by leaf, each judged by what stands before it."""

    def __init__(self) -> None:
        self._size = 0
        self._violations: list[Violation] = []
        self._requests: dict[str, _Request] = {}
        self._closings: Counter[str] = Counter()
        self._late = 0
        self._verified: dict[tuple[str, str], int] = {}  # (from, to) → strongest level, as its place in LEVELS
        self._promoted: set[str] = set()
        self._known: set[str] = set()
        self._once: dict[str, dict[str, int]] = {"nonce": {}, "commit": {}}

    def read(self, index: int, leaf: Leaf) -> None:
        self._size += 1
        self._read_once(index, leaf)
        if "ref" in leaf:
            self._read_request(index, leaf)
        elif leaf["type"] in _OF_MODELS:
            _OF_MODELS[leaf["type"]](self, index, leaf)

    def judged(self, today: date | None) -> Replay:
        waiting = tuple(Open(ref, r.due, r.due_index) for ref, r in self._requests.items() if r.due and not r.outcome)
        late = [request for request in waiting if today and request.due < today.isoformat()]
        for request in late:
            self._broken(request.index, "overdue", f"request {request.ref} was due on {request.due}")
        facts = [
            f"{self._size} leaves tell of {len(self._requests)} requests",
            *(f"closed as {outcome}: {count}" for outcome, count in sorted(self._closings.items())),
            f"closed after the due day: {self._late}",
            f"open, not yet due on {today}: {len(waiting) - len(late)}" if today else f"open: {len(waiting)}",
        ]
        return Replay(tuple(facts), tuple(self._violations), waiting)

    def _broken(self, index: int, rule: str, sentence: str) -> None:
        self._violations.append(Violation(index, rule, f"{sentence}; {RULES[rule]}"))

    def _read_once(self, index: int, leaf: Leaf) -> None:
        for name, seen in self._once.items():
            if name in leaf:
                first = seen.setdefault(leaf[name], index)
                if first != index:
                    self._broken(index, f"{name}-once", f"this is the {name} of entry {first}")

    def _read_request(self, index: int, leaf: Leaf) -> None:
        ref, kind = leaf["ref"], leaf["type"]
        if ref not in self._requests:
            self._requests[ref] = _Request()
            if kind != "request.received":
                self._broken(index, "received-first", f"request {ref} begins with {kind}")
        request = self._requests[ref]
        if request.outcome and kind not in _AFTER_CLOSING:
            # Said once, and not read as part of the closed story, where it would only break more rules.
            self._broken(index, "closed-once" if kind == "request.closed" else "after-closed", f"{kind} of {ref}")
        elif kind in _OF_REQUESTS:
            _OF_REQUESTS[kind](self, request, index, leaf)

    def received(self, request: _Request, index: int, leaf: Leaf) -> None:
        if request.due:
            self._broken(index, "received-once", f"request {leaf['ref']} was received before")
            return
        request.due, request.due_index = leaf["due"], index

    def extended(self, request: _Request, index: int, leaf: Leaf) -> None:
        if request.due and leaf["day"] > request.due:
            self._broken(index, "extended-late", f"extended on {leaf['day']}, due on {request.due}")
        request.due, request.due_index = leaf["due"], index

    def ended(self, request: _Request, _index: int, leaf: Leaf) -> None:
        request.ended.add(leaf["type"].removeprefix("request."))

    def reopened(self, request: _Request, index: int, leaf: Leaf) -> None:
        if not request.outcome:
            self._broken(index, "reopened-open", f"request {leaf['ref']} is open")
        self._requests[leaf["ref"]] = _Request(leaf["due"], index, request.shredded_index, request.first_started)

    def started(self, request: _Request, index: int, _leaf: Leaf) -> None:
        request.started = True
        if request.first_started is None:
            request.first_started = index

    def done(self, request: _Request, index: int, leaf: Leaf) -> None:
        if not request.started and request.unstarted_done is None:
            request.unstarted_done = index
        if request.certificates:
            self._broken(index, "certificate-early", "the certificate stands before this erasure.done")
        request.methods.append(leaf["method"])
        if leaf["method"] in CHANGING_METHODS:
            self._read_change(index, leaf)
        elif leaf["method"] == ALREADY_FORGOTTEN and leaf["model"]["to"] not in self._known:
            self._broken(index, "done-unknown", f"no leaf before names {leaf['model']['to']}")

    def _read_change(self, index: int, leaf: Leaf) -> None:
        """What every changed model owes: a test that was passed, and a promotion."""
        before, after = leaf["model"].get("from", ""), leaf["model"]["to"]
        if self._verified.get((before, after), len(LEVELS)) > LEVELS.index(leaf["level"]):
            self._broken(index, "done-unverified", f"no leaf before verified this change at level {leaf['level']}")
        if after not in self._promoted:
            self._broken(index, "done-unpromoted", f"no leaf before promoted {after}")

    def shredded(self, request: _Request, index: int, _leaf: Leaf) -> None:
        if request.shredded_index is not None:
            self._broken(index, "shredded-once", f"the key went with entry {request.shredded_index}")
            return
        request.shredded_index = index

    def backup_expired(self, request: _Request, index: int, leaf: Leaf) -> None:
        if request.shredded_index is None:
            self._broken(index, "backup-early", f"the key of request {leaf['ref']} is not shredded")

    def issued(self, request: _Request, index: int, leaf: Leaf) -> None:
        if request.shredded_index is None:
            self._broken(index, "certificate-early", f"the key of request {leaf['ref']} is not shredded")
        request.certificates.append((index, leaf["cert"]))

    def closed(self, request: _Request, index: int, leaf: Leaf) -> None:
        request.outcome = leaf["outcome"]
        self._closings[request.outcome] += 1
        if request.shredded_index is None:
            self._broken(index, "shredded-missing", f"the key of request {leaf['ref']} is not shredded")
        self._close_in_time(request, index, leaf)
        self._close_certificates(request, index, leaf)
        if request.outcome in _ERASED:
            self._close_erased(request, index)
        elif request.outcome in _ENDED:
            self._close_ended(request, index)
        elif set(request.methods) - {NO_DATA}:
            self._broken(index, "no-data-only", f"{' '.join(sorted(set(request.methods)))} stands before it")

    def _close_in_time(self, request: _Request, index: int, leaf: Leaf) -> None:
        in_time = leaf["day"] <= request.due
        self._late += not in_time
        if request.due and leaf["in_time"] is not in_time:
            said = "true" if leaf["in_time"] else "false"
            self._broken(index, "in-time", f"closed on {leaf['day']}, due on {request.due}, in_time is {said}")

    def _close_certificates(self, request: _Request, index: int, leaf: Leaf) -> None:
        named = leaf.get("cert")
        needed = named is not None or request.outcome in _ERASED
        if needed and named not in [cert for _, cert in request.certificates]:
            self._broken(index, "certificate-missing", f"request {leaf['ref']} is closed as {request.outcome}")
        for issued, cert in request.certificates:
            if cert != named:
                self._broken(issued, "certificate-stray", f"entry {index} closes request {leaf['ref']} without it")

    def _close_erased(self, request: _Request, index: int) -> None:
        if request.unstarted_done is not None:
            self._broken(request.unstarted_done, "started-first", "no erasure.started before it")
        if not set(request.methods) - {NO_DATA}:
            self._broken(index, "done-missing", f"{len(request.methods)} times erasure.done, none that found data")
        shredded, started = request.shredded_index, request.first_started
        if shredded is not None and (started is None or shredded < started):
            self._broken(shredded, "shredded-early", "no erasure.started before it")

    def _close_ended(self, request: _Request, index: int) -> None:
        if request.methods:
            self._broken(index, "erased-though-ended", f"{len(request.methods)} times erasure.done before it")
        if request.outcome not in request.ended:
            self._broken(index, "ended-unsaid", f"no request.{request.outcome} before it")

    def registered(self, _index: int, leaf: Leaf) -> None:
        self._known.add(leaf["model"]["to"])

    def verified(self, _index: int, leaf: Leaf) -> None:
        change = (leaf["model"]["from"], leaf["model"]["to"])
        level = LEVELS.index(leaf["level"])
        self._verified[change] = min(level, self._verified.get(change, level))

    def promoted(self, index: int, leaf: Leaf) -> None:
        before, after = leaf["model"]["from"], leaf["model"]["to"]
        if (before, after) not in self._verified:
            self._broken(index, "promoted-unverified", f"no leaf before verified the change to {after}")
        self._promoted.add(after)
        self._known.add(after)


_OF_REQUESTS: Final[dict[str, Callable[[_Log, _Request, int, Leaf], None]]] = {
    "request.received": _Log.received,
    "request.extended": _Log.extended,
    "request.withdrawn": _Log.ended,
    "request.refused": _Log.ended,
    "request.reopened": _Log.reopened,
    "erasure.started": _Log.started,
    "erasure.done": _Log.done,
    "key.shredded": _Log.shredded,
    "key.backup_expired": _Log.backup_expired,
    "certificate.issued": _Log.issued,
    "request.closed": _Log.closed,
}
_OF_MODELS: Final[dict[str, Callable[[_Log, int, Leaf], None]]] = {
    "model.registered": _Log.registered,
    "model.rolled_back": _Log.registered,
    "verify.passed": _Log.verified,
    "model.promoted": _Log.promoted,
}
