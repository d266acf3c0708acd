"""The stories that leaves tell: whether every request went its way, by rules that only read the log.

    received ─ identity confirmed ─ extended, if need be, anywhere below until the first due day is over
    received ─ started ─ done per model ─ shredded ─ certificate ─ closed (completed)
            ├─ refused in part ─ started ─ done per model left ─ shredded ─ certificate ─ closed (partial)
            ├─ started ─ done, none of it with data ─ shredded ─ closed (no_data)
            └─ withdrawn or refused ─ shredded ─ closed
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

from expunge_verify.errors import shown
from expunge_verify.leaf import (
    ALREADY_FORGOTTEN,
    CHANGING_METHODS,
    EARLIER_SCHEMAS,
    LEVELS,
    NO_DATA,
    SCHEMA_DIGEST,
    Leaf,
)

_AFTER_CLOSING: Final = frozenset({"request.reopened", "key.backup_expired", "recipients.notified"})
_ERASED: Final = frozenset({"completed", "partial"})
_ENDED: Final = frozenset({"withdrawn", "refused"})
_REFUSED_IN_PART: Final = frozenset({"partial", "withdrawn"})  # outcomes that an earlier refusal of a part leaves open
_MOST_DAYS: Final = 32  # a month (Art. 12(3) GDPR), and a day because the log's zone is not known
_MOST_DAYS_EXTENDED: Final = 94  # three months, likewise

RULES: Final = {
    "opened-first": "log.opened is the first entry, and stands there only",
    "schema-other": "the log follows the schema that this program reads",
    "key-other": "the keys that a log names are its own",
    "received-first": "the first leaf of a request is request.received",
    "received-once": "a request is received once",
    "extended-late": "a deadline is extended before it is over (Art. 12(3) GDPR)",
    "extended-once": "a deadline is extended once (Art. 12(3) GDPR)",
    "clock-once": "identity_confirmed names a new due day once, before any extension and any erasure.started",
    "due-far": "a request is due within 32 days of its opening or of its identity_confirmed, an extended one within 94",
    "days-back": "the days of one request do not run backwards by more than one",
    "reopened-open": "what is reopened was closed",
    "after-closed": "after request.closed come only request.reopened, key.backup_expired and recipients.notified",
    "closed-once": "a request is closed once until it is reopened",
    "started-first": "erasure.started stands before the first erasure.done",
    "done-missing": "a completed erasure has an erasure.done that found data, a partial one any erasure.done",
    "done-unverified": "a change was verified after the request's first erasure.started, at this level or higher",
    "done-uncomputed": "a change was computed before, from the same weights to the same, by the same method",
    "done-rolled-back": "the weights that are named were not rolled back from, or promoted again since",
    "done-unpromoted": "a changed model was promoted before it counts as done",
    "done-unknown": "a model that has already forgotten was registered, promoted or rolled back to before",
    "level-fits": "a method that changes weights claims A0, A1 or A2, every other one claims none",
    "change-unknown": "what is verified or promoted begins from weights that were live before",
    "no-data-unsaid": "an outcome of no_data has erasure.started and an erasure.done that says so",
    "no-data-only": "where the outcome is no_data, every erasure.done says so",
    "erased-though-ended": "a withdrawn or refused request has no erasure.done",
    "ended-unsaid": "a request closed as withdrawn or refused has the leaf that says so",
    "ended-otherwise": "a withdrawn request is closed as that, a refused one as that, as partial or as withdrawn",
    "partial-unsaid": "a request closed as partial has a request.refused that says so",
    "certified-though-ended": "a withdrawn or refused request has no certificate",
    "shredded-missing": "no request is closed before its key is shredded",
    "shredded-once": "a key is shredded once",
    "shredded-early": "the key of an erased request is shredded after erasure.started",
    "backup-early": "the backup of a key expires after the key was shredded",
    "certificate-missing": "the certificate that request.closed names was issued before, since the last opening",
    "certificate-early": "a certificate is issued after key.shredded and after every erasure.done",
    "certificate-stray": "every certificate that was issued is the one that request.closed names",
    "in-time": "in_time says whether the day of closing is at most the last due day",
    "overdue": "a request whose due day is over is closed",
    "promoted-unverified": "a model is promoted after its change was verified, and before a later test of it failed",
    "nonce-once": "no nonce stands in two leaves",
    "commit-once": "no commitment stands in two leaves",
    "cert-once": "no certificate is issued twice",
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
    reading = Reading()
    for index, leaf in leaves:
        reading.read(index, leaf)
    return reading.judged(today)


class Reading:
    """Follows the requests of a log whose leaves come one by one, from the first entry on."""

    def __init__(self) -> None:
        self._log = _Log()

    def read(self, index: int, leaf: Leaf) -> None:
        """Take the next leaf."""
        self._log.read(index, leaf)

    def judged(self, today: date | None) -> Replay:
        """What the leaves so far tell; ``today`` as for ``replay``."""
        return self._log.judged(today)


@dataclass(slots=True)
class _Request:
    """What is known of one ref so far; a reopening empties the second half."""

    due: str = ""  # empty: no leaf has said it, which is a violation of its own
    due_index: int = 0
    shredded_index: int | None = None
    first_started: int | None = None
    last_day: str = ""
    ended: set[str] = field(default_factory=set)

    opened_day: str = ""
    outcome: str = ""  # empty: open
    started: bool = False
    unstarted_done: int | None = None
    methods: list[str] = field(default_factory=list)
    certificates: list[tuple[int, str]] = field(default_factory=list)
    extended: bool = False
    clock_set: bool = False


class _Log:
    """The reading of one log, leaf by leaf, each judged by what stands before it."""

    def __init__(self) -> None:
        self._size = 0
        self._violations: list[Violation] = []
        self._requests: dict[str, _Request] = {}
        self._closings: Counter[str] = Counter()
        self._late = 0
        self._inherited = 0
        self._rollbacks = 0
        self._computed: set[tuple[str, str, str]] = set()  # (from, to, method)
        self._verified: dict[tuple[str, str], dict[str, int]] = {}  # (from, to) → level → the last entry that says so
        self._promoted: set[str] = set()
        self._known: set[str] = set()
        self._undone: set[str] = set()  # rolled back from, and not live again since
        self._once: dict[str, dict[str, int]] = {"nonce": {}, "commit": {}, "cert": {}}

    def read(self, index: int, leaf: Leaf) -> None:
        self._size += 1
        if (leaf["type"] == "log.opened") is not (index == 0):
            self._broken(index, "opened-first", f"this is {leaf['type']}")
        self._read_once(index, leaf)
        if "ref" in leaf:
            self._read_request(index, leaf)
        elif leaf["type"] in _OF_THE_LOG:
            _OF_THE_LOG[leaf["type"]](self, index, leaf)

    def judged(self, today: date | None) -> Replay:
        waiting = tuple(Open(ref, r.due, r.due_index) for ref, r in self._requests.items() if r.due and not r.outcome)
        late = [request for request in waiting if today and request.due < today.isoformat()]
        for request in late:
            self._broken(request.index, "overdue", f"request {request.ref} was due on {request.due}")
        facts = [
            f"{self._size} leaves tell of {len(self._requests)} requests",
            *(f"closed as {outcome}: {count}" for outcome, count in sorted(self._closings.items())),
            f"closed after the due day: {self._late}",
            f"erasures that rest on earlier ones ({ALREADY_FORGOTTEN}): {self._inherited}",
            f"rollbacks: {self._rollbacks}; the log alone cannot tell which deletions they undid",
            f"open, not yet due on {today}: {len(waiting) - len(late)}" if today else f"open: {len(waiting)}",
        ]
        return Replay(tuple(facts), tuple(self._violations), waiting)

    def _broken(self, index: int, rule: str, sentence: str) -> None:
        self._violations.append(Violation(index, rule, f"{sentence}; {RULES[rule]}"))

    def _read_once(self, index: int, leaf: Leaf) -> None:
        for name, seen in self._once.items():
            if name in leaf and (name, leaf["type"]) != ("cert", "request.closed"):
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
        self._read_day(request, index, leaf)
        if request.outcome and kind not in _AFTER_CLOSING:
            # Said once, and not read as part of the closed story, where it would only break more rules.
            self._broken(index, "closed-once" if kind == "request.closed" else "after-closed", f"{kind} of {ref}")
        elif kind in _OF_REQUESTS:
            _OF_REQUESTS[kind](self, request, index, leaf)

    def _read_day(self, request: _Request, index: int, leaf: Leaf) -> None:
        if request.last_day and _days(leaf["day"], request.last_day) > 1:
            self._broken(index, "days-back", f"{leaf['day']} stands after {request.last_day}")
        request.last_day = max(request.last_day, leaf["day"])

    def _need_near(self, index: int, leaf: Leaf, since: str, most: int) -> None:
        if _days(since, leaf["due"]) > most:
            self._broken(index, "due-far", f"opened on {since}, due on {leaf['due']}")

    def received(self, request: _Request, index: int, leaf: Leaf) -> None:
        if request.due:
            self._broken(index, "received-once", f"request {leaf['ref']} was received before")
            return
        request.due, request.due_index, request.opened_day = leaf["due"], index, leaf["day"]
        self._need_near(index, leaf, leaf["day"], _MOST_DAYS)

    def identified(self, request: _Request, index: int, leaf: Leaf) -> None:
        """A clock that waited for the person's identity begins here."""
        if "due" not in leaf:
            return
        if request.clock_set or request.extended or request.started:
            self._broken(index, "clock-once", f"the clock of {leaf['ref']} runs already")
        self._need_near(index, leaf, leaf["day"], _MOST_DAYS)
        request.due, request.due_index, request.opened_day, request.clock_set = leaf["due"], index, leaf["day"], True

    def extended(self, request: _Request, index: int, leaf: Leaf) -> None:
        if request.extended:
            self._broken(index, "extended-once", f"request {leaf['ref']} was extended before")
        request.extended = True
        if request.due and leaf["day"] > request.due:
            self._broken(index, "extended-late", f"extended on {leaf['day']}, due on {request.due}")
        if request.opened_day:
            self._need_near(index, leaf, request.opened_day, _MOST_DAYS_EXTENDED)
        request.due, request.due_index = leaf["due"], index

    def ended(self, request: _Request, _index: int, leaf: Leaf) -> None:
        request.ended.add(leaf["type"].removeprefix("request."))

    def reopened(self, request: _Request, index: int, leaf: Leaf) -> None:
        if not request.outcome:
            self._broken(index, "reopened-open", f"request {leaf['ref']} is open")
        self._need_near(index, leaf, leaf["day"], _MOST_DAYS)
        self._requests[leaf["ref"]] = _Request(
            leaf["due"],
            index,
            request.shredded_index,
            request.first_started,
            request.last_day,
            request.ended,
            leaf["day"],
        )

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
        self._inherited += leaf["method"] == ALREADY_FORGOTTEN
        changes = leaf["method"] in CHANGING_METHODS
        if changes is (leaf["level"] == "none"):
            self._broken(index, "level-fits", f"{leaf['method']} claims {leaf['level']}")
        if leaf["model"]["to"] in self._undone:
            self._broken(index, "done-rolled-back", f"{leaf['model']['to']} was rolled back from")
        if changes:
            self._read_change(request, index, leaf)
        elif leaf["method"] == ALREADY_FORGOTTEN and leaf["model"]["to"] not in self._known:
            self._broken(index, "done-unknown", f"no leaf before names {leaf['model']['to']}")

    def _read_change(self, request: _Request, index: int, leaf: Leaf) -> None:
        """What every changed model owes: a computation, a test that was passed since the request began, a promotion."""
        before, after, level = leaf["model"].get("from", ""), leaf["model"]["to"], leaf["level"]
        if (before, after, leaf["method"]) not in self._computed:
            self._broken(index, "done-uncomputed", f"no unlearn.done before tells of {leaf['method']} to {after}")
        if not self._tested((before, after), level, since=request.first_started or 0):
            self._broken(index, "done-unverified", f"no leaf since then verified this change at level {level}")
        if after not in self._promoted:
            self._broken(index, "done-unpromoted", f"no leaf before promoted {after}")

    def _tested(self, change: tuple[str, str], level: str, *, since: int) -> bool:
        """A test before the request's time is none for it: whatever it passed still knew that person's data."""
        enough = LEVELS.index(level)
        found = self._verified.get(change, {}).items()
        return any(LEVELS.index(passed) <= enough and at > since for passed, at in found)

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
        fits = {request.outcome} | ({"refused"} if request.outcome in _REFUSED_IN_PART else set())
        for other in sorted(request.ended - fits):
            self._broken(index, "ended-otherwise", f"request.{other} stands before it, closed as {request.outcome}")
        if request.outcome in _ENDED:
            self._close_ended(request, index, leaf)
            return
        self._close_certificates(request, index, leaf)
        if request.unstarted_done is not None:
            self._broken(request.unstarted_done, "started-first", "no erasure.started before it")
        if request.outcome in _ERASED:
            self._close_erased(request, index)
        else:
            self._close_without_data(request, index)

    def _close_without_data(self, request: _Request, index: int) -> None:
        if set(request.methods) - {NO_DATA}:
            self._broken(index, "no-data-only", f"{' '.join(sorted(set(request.methods)))} stands before it")
        elif not request.started or not request.methods:
            self._broken(index, "no-data-unsaid", f"{len(request.methods)} times erasure.done before it")

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
        partial = request.outcome == "partial"
        if not set(request.methods) - ({NO_DATA} if not partial else set()):
            self._broken(index, "done-missing", f"{len(request.methods)} times erasure.done, none that counts for it")
        if partial and "refused" not in request.ended:
            self._broken(index, "partial-unsaid", "no request.refused before it")
        shredded, started = request.shredded_index, request.first_started
        if shredded is not None and (started is None or shredded < started):
            self._broken(shredded, "shredded-early", "no erasure.started before it")

    def _close_ended(self, request: _Request, index: int, leaf: Leaf) -> None:
        if request.certificates or "cert" in leaf:
            self._broken(index, "certified-though-ended", f"request {leaf['ref']} is closed as {request.outcome}")
        if request.methods:
            self._broken(index, "erased-though-ended", f"{len(request.methods)} times erasure.done before it")
        if request.outcome not in request.ended:
            self._broken(index, "ended-unsaid", f"no request.{request.outcome} before it")

    def opened(self, index: int, leaf: Leaf) -> None:
        self.keyed(index, leaf)
        if leaf["schema"] not in {SCHEMA_DIGEST, *EARLIER_SCHEMAS}:
            self._broken(index, "schema-other", f"it follows {leaf['schema']}, this program reads {SCHEMA_DIGEST}")

    def keyed(self, index: int, leaf: Leaf) -> None:
        name = leaf["vkey"].partition("+")[0]
        if name != leaf["log"]:
            self._broken(index, "key-other", f"a key of {shown(name)}")

    def registered(self, _index: int, leaf: Leaf) -> None:
        self._live(leaf["model"]["to"])

    def rolled_back(self, _index: int, leaf: Leaf) -> None:
        self._rollbacks += 1
        self._undone.add(leaf["model"]["from"])
        self._live(leaf["model"]["to"])

    def computed(self, _index: int, leaf: Leaf) -> None:
        self._computed.add((*_change(leaf), leaf["method"]))

    def verified(self, index: int, leaf: Leaf) -> None:
        self._need_known(index, leaf)
        self._verified.setdefault(_change(leaf), {})[leaf["level"]] = index

    def failed(self, _index: int, leaf: Leaf) -> None:
        self._verified.pop(_change(leaf), None)

    def promoted(self, index: int, leaf: Leaf) -> None:
        self._need_known(index, leaf)
        after = leaf["model"]["to"]
        if _change(leaf) not in self._verified:
            self._broken(index, "promoted-unverified", f"no leaf before verified the change to {after}")
        self._promoted.add(after)
        self._live(after)

    def _live(self, weights: str) -> None:
        self._known.add(weights)
        self._undone.discard(weights)

    def _need_known(self, index: int, leaf: Leaf) -> None:
        if leaf["model"]["from"] not in self._known:
            self._broken(index, "change-unknown", f"no leaf before names {leaf['model']['from']}")


def _change(leaf: Leaf) -> tuple[str, str]:
    return leaf["model"]["from"], leaf["model"]["to"]


def _days(first: str, second: str) -> int:
    return (date.fromisoformat(second) - date.fromisoformat(first)).days


_OF_REQUESTS: Final[dict[str, Callable[[_Log, _Request, int, Leaf], None]]] = {
    "request.received": _Log.received,
    "request.identity_confirmed": _Log.identified,
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
_OF_THE_LOG: Final[dict[str, Callable[[_Log, int, Leaf], None]]] = {
    "log.opened": _Log.opened,
    "log.key_rotated": _Log.keyed,
    "model.registered": _Log.registered,
    "model.rolled_back": _Log.rolled_back,
    "unlearn.done": _Log.computed,
    "verify.failed": _Log.failed,
    "verify.passed": _Log.verified,
    "model.promoted": _Log.promoted,
}
