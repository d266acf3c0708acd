"""What a portal can make happen: a demand is accepted, or many; one function is one transaction.

There is one way in. A single demand, a flush of the group commit, a bulk call, the command line and other portals'
dialects all come through :func:`accept_many`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from operator import attrgetter
from uuid import UUID

from sqlalchemy.orm import Session

from app import decisions, idempotency, keyring
from app.domain import deadlines, identifiers
from app.domain.decisions import IdentityLevel
from app.domain.lifecycle import RequestStatus
from app.errors import Conflict, ExpungeError, Invalid, TooMany
from app.idempotency import Bound
from app.settings import Settings
from app.storage import arrivals, bindings, intake_counts, moves, requests, versions
from app.storage.arrivals import Arrival
from app.storage.bindings import Answer, Binding, Place
from app.storage.sessions import fetch_all
from app.storage.tables import ErasureRequest

_SEALED_AT_ONCE = 256
_A_FLUSH = 256
"""A transaction with more demands counts alone: others can't tell how many it will have written."""
_NEARLY_SPENT = 2048
"""Eight flushes: with fewer left of a client's day, transactions count one after the other, so that none is one too
many. With more, what others have not committed yet can't reach the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What the portal asks for."""

    user_id: str
    models: Sequence[str] | None = None
    reference: str | None = None
    identity_level: IdentityLevel | None = None
    """How sure the portal is that the person is who they say; none: it does not say."""
    traceparent: str | None = None
    """The trace that it came in by; no part of the demand."""

    def parts(self) -> list[bytes]:
        """Everything that makes two demands the same demand."""
        scope = "\0".join(sorted(set(self.models))) if self.models else "*"
        return [self.user_id.encode(), scope.encode(), (self.reference or "").encode()]

    def body(self) -> list[bytes]:
        """Everything that makes two bodies the same body: who is surer of the person says something else."""
        return [*self.parts(), *([self.identity_level.encode()] if self.identity_level else [])]


@dataclass(frozen=True)
class Accepted:
    """The request that answers a demand, and whether it is new."""

    request: ErasureRequest
    created: bool


@dataclass(frozen=True, slots=True)
class Filing:
    """A demand as a client hands it in."""

    demand: Demand
    client_id: UUID
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Filed:
    """The request that answers a filing, and whether it is new: then as it was written, else as it stands."""

    request: Arrival | ErasureRequest
    created: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """A bulk call: its id, and how many people must agree to what it asks for."""

    id: UUID | None = None
    approvals: int = 0


def accept(
    tx: Session, demand: Demand, *, client_id: UUID, idempotency_key: str | None, now: datetime, settings: Settings
) -> Accepted:
    """Write a demand down: request, sealed user id, event; its clock starts now.

    The same Idempotency-Key, or the same demand while one is open, is answered with the request there is.

    Raises:
        Invalid: The user id breaks a rule, a model is unknown, or the Idempotency-Key was used for another body.
        TooMany: The client has made all requests that it may make today.
    """
    [outcome] = accept_many(tx, [Filing(demand, client_id, idempotency_key)], now=now, settings=settings)
    if isinstance(outcome, ExpungeError):
        raise outcome
    return Accepted(requests.get(tx, outcome.request.id), outcome.created)


def accept_many(
    tx: Session, filings: Sequence[Filing], *, now: datetime, settings: Settings, batch: Batch = Batch()
) -> list[Filed | ExpungeError]:
    """Write many demands down as :func:`accept` would one after the other, with a statement for each table.

    Returns:
        For each filing its request, or why there is none; nothing was written for that one.

    Raises:
        Conflict: Somebody else wrote the same at this moment. Nothing of the transaction may stay; tried again, alone,
            a demand finds what the other has written.
    """
    moment = _Moment(now, settings, batch)
    cases = [_case(moment, filing) for filing in filings]
    earlier, left = _standing(tx, cases, moment)
    _replay(tx, cases, earlier)
    _refuse_unknown_models(tx, cases)
    _refuse_other_bodies(cases)
    leaders = _leaders(cases)
    _within_the_day(tx, leaders, left, moment)
    _write(tx, leaders, moment)
    for case in cases:
        if case.leader is not None:
            case.follow(case.leader)
    _remember(tx, cases)
    return [case.settled() for case in cases]


class _Moment:
    """What all demands of one transaction share."""

    def __init__(self, now: datetime, settings: Settings, batch: Batch) -> None:
        self.now, self.settings, self.batch = now, settings, batch
        self.index_key, self.wrapping_key = settings.key("index_key"), settings.key("wrapping_key")
        self.local = now.astimezone(settings.zone)
        self.deadline = deadlines.due(now, settings.zone).astimezone(UTC)
        self.known = {level: level.reaches(settings.identity_needed) for level in IdentityLevel}
        self.approvals = max(settings.approvals_of_all, batch.approvals)

    def level(self, demand: Demand) -> IdentityLevel:
        """How sure the portal is, or is taken to be."""
        return demand.identity_level or self.settings.identity_assumed

    def seconds_left(self) -> float:
        """Until the day is over in which erasures are counted."""
        tomorrow = datetime.combine(self.local.date() + timedelta(days=1), time(), self.local.tzinfo)
        return (tomorrow - self.local).total_seconds()


@dataclass(slots=True)
class _Case:
    """A filing on its way to its outcome."""

    filing: Filing
    level: IdentityLevel
    key: Bound | None
    """Its Idempotency-Key, if it came with one."""
    dedupe_key: bytes
    outcome: Filed | ExpungeError | None = None
    leader: _Case | None = None
    """An earlier filing of the same transaction that makes the same demand."""
    bound: bool = False
    """Its Idempotency-Key has its answer."""

    def follow(self, leader: _Case) -> None:
        """Have the outcome of the same demand before it; the request is no longer new."""
        told = leader.outcome
        self.outcome = Filed(told.request, created=False) if isinstance(told, Filed) else told

    def settled(self) -> Filed | ExpungeError:
        """The outcome, which there must be by now."""
        assert self.outcome is not None
        return self.outcome


def _case(moment: _Moment, filing: Filing) -> _Case:
    """Compute what a demand is known by; nothing that can't be one gets so far."""
    demand, key = filing.demand, filing.idempotency_key
    case = _Case(filing, moment.level(demand), None, b"")
    try:
        identifiers.check_user_id(demand.user_id)
    except Invalid as error:
        case.outcome = error
        return case
    case.dedupe_key = keyring.fingerprint(moment.index_key, b"demand", filing.client_id.bytes, *demand.parts())
    if key is not None:
        case.key = idempotency.bound(moment.index_key, filing.client_id, key, *demand.body())
    return case


def _undecided(cases: Iterable[_Case]) -> list[_Case]:
    return [case for case in cases if case.outcome is None]


def _standing(tx: Session, cases: Sequence[_Case], moment: _Moment) -> tuple[dict[Place, Answer], dict[UUID, int]]:
    """What was answered before, and how many more requests each client may make today."""
    places = {case.key.place for case in cases if case.key}
    clients = {case.filing.client_id for case in cases}
    of_today = intake_counts.asking(clients, day=moment.local.date(), usual=moment.settings.daily_erasures)
    earlier, left = fetch_all(tx, bindings.asking(places), of_today)
    return bindings.read(earlier), intake_counts.read(left)


def _replay(tx: Session, cases: Sequence[_Case], earlier: Mapping[Place, Answer]) -> None:
    """Answer with what the same Idempotency-Key was answered with before."""
    mine = [(case, case.key, earlier[case.key.place]) for case in cases if case.key and case.key.place in earlier]
    known = arrivals.those(tx, [answer.request_id for _, _, answer in mine if answer.request_id])
    for case, key, answer in mine:
        same = answer.body_digest == key.body_digest and answer.request_id is not None
        told = Filed(known[answer.request_id], created=False) if same and answer.request_id else None
        case.outcome, case.bound = told or idempotency.other_body(), True


def _refuse_unknown_models(tx: Session, cases: Sequence[_Case]) -> None:
    asking = [case for case in _undecided(cases) if case.filing.demand.models]
    named = {name for case in asking for name in case.filing.demand.models or ()}
    unknown = set(versions.unknown(tx, named)) if named else set()
    for case in asking:
        lacking = len(unknown.intersection(case.filing.demand.models or ()))
        if lacking:
            sentence = f"{lacking} of the models named are not registered; GET /v1/models lists them"
            case.outcome = Invalid("models", sentence)


def _refuse_other_bodies(cases: Sequence[_Case]) -> None:
    """Of one key that comes twice in a transaction, the first binds it."""
    bound: dict[Place, bytes] = {}
    for case in _undecided(cases):
        if case.key and bound.setdefault(case.key.place, case.key.body_digest) != case.key.body_digest:
            case.outcome = idempotency.other_body()


def _leaders(cases: Sequence[_Case]) -> list[_Case]:
    """The first of each demand; the others follow it, and lend it what they know of the person's identity."""
    first: dict[bytes, _Case] = {}
    for case in _undecided(cases):
        leader = first.setdefault(case.dedupe_key, case)
        if leader is not case:
            case.leader = leader
            leader.level = case.level if case.level.reaches(leader.level) else leader.level
    return list(first.values())


def _within_the_day(tx: Session, leaders: Sequence[_Case], left: Mapping[UUID, int], moment: _Moment) -> None:
    """Refuse what is more than a client may ask for in a day; demands that we have already don't count."""
    wanted = _by_client(leaders)
    free = {client_id: min(_A_FLUSH, left[client_id] - _NEARLY_SPENT) for client_id in wanted}
    tight = {client_id for client_id, cases in wanted.items() if len(cases) > free[client_id]}
    if not tight:
        return
    intake_counts.hold(tx, tight)
    left = intake_counts.room(tx, tight, day=moment.local.date(), usual=moment.settings.daily_erasures)
    over = [client_id for client_id in tight if len(wanted[client_id]) > left[client_id]]
    known = arrivals.twins(tx, [case.dedupe_key for client_id in over for case in wanted[client_id]])
    for client_id in over:
        fresh = [case for case in wanted[client_id] if case.dedupe_key not in known]
        for case in fresh[max(0, left[client_id]) :]:
            sentence = "this client has made all the erasure requests that it may make today"
            case.outcome = TooMany(sentence, retry_after_seconds=moment.seconds_left())


def _by_client(cases: Iterable[_Case]) -> dict[UUID, list[_Case]]:
    found: dict[UUID, list[_Case]] = {}
    for case in cases:
        found.setdefault(case.filing.client_id, []).append(case)
    return found


def _write(tx: Session, leaders: Sequence[_Case], moment: _Moment) -> None:
    """Write the requests; where the same demand is open, that one answers."""
    for sealed in _sealed(sorted(_undecided(leaders), key=attrgetter("dedupe_key")), moment):
        new = moves.arrive(tx, [arrival for _, arrival in sealed], day=moment.local.date())
        for case, arrival in sealed:
            if arrival.id in new:
                case.outcome, case.bound = Filed(arrival, created=True), new[arrival.id]
    rest = _undecided(leaders)
    twins = arrivals.twins(tx, [case.dedupe_key for case in rest])
    for case in rest:
        twin = twins.get(case.dedupe_key)
        # none: it ended between our insert and this look; the portal's repeat will be a new request
        closed = Conflict("the same demand has just been closed; send it again")
        case.outcome = Filed(_surer(tx, twin, case, moment), created=False) if twin else closed


def _sealed(cases: Sequence[_Case], moment: _Moment) -> Iterator[list[tuple[_Case, Arrival]]]:
    """What is to be written, some at a time: the next are sealed in a thread while PostgreSQL writes the last."""

    def seal(start: int) -> list[tuple[_Case, Arrival]]:
        return [(case, _arrival(case, moment)) for case in cases[start : start + _SEALED_AT_ONCE]]

    starts = range(0, len(cases), _SEALED_AT_ONCE)
    if len(starts) <= 1:
        yield from map(seal, starts)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="seal") as thread:
        yield from thread.map(seal, starts)


def _surer(tx: Session, twin: ErasureRequest, case: _Case, moment: _Moment) -> ErasureRequest:
    """The open request; if it waits for just what the repeat says of the person, it goes on."""
    awaits = twin.status == RequestStatus.AWAITING_IDENTITY
    if not (awaits and moment.known[case.level]):
        return twin
    client_id = case.filing.client_id
    return decisions.confirm_identity(
        tx, twin.id, case.level, by=client_id, seen_by=client_id, now=moment.now, settings=moment.settings
    )


def _arrival(case: _Case, moment: _Moment) -> Arrival:
    demand, key = case.filing.demand, keyring.new_key()
    random = secrets.token_bytes(32)
    request_id = UUID(bytes=random[:16], version=4)
    return Arrival(
        id=request_id,
        ref=random[16:].hex(),
        status=RequestStatus.RECEIVED if moment.known[case.level] else RequestStatus.AWAITING_IDENTITY,
        client_id=case.filing.client_id,
        batch_id=moment.batch.id,
        reference=demand.reference,
        models=sorted(set(demand.models)) if demand.models else None,
        received_at=moment.now,
        deadline=moment.deadline,
        identity_level=case.level,
        approvals_needed=moment.approvals,
        subject_key=identifiers.subject_key(moment.index_key, demand.user_id),
        suppression_key=identifiers.suppression_key(moment.index_key, demand.user_id),
        sealed_user_id=keyring.seal(key, demand.user_id.encode(), context=request_id.bytes),
        dedupe_key=case.dedupe_key,
        wrapped=keyring.wrap(moment.wrapping_key, key),
        traceparent=demand.traceparent,
        key_digest=case.key.place[1] if case.key else None,
        body_digest=case.key.body_digest if case.key else None,
    )


def _remember(tx: Session, cases: Sequence[_Case]) -> None:
    """Bind the Idempotency-Keys of those that found a request; a new request was written with its own."""
    found = {
        case.key.place: Binding(*case.key.place, case.key.body_digest, case.outcome.request.id)
        for case in cases
        if case.key and not case.bound and isinstance(case.outcome, Filed)
    }
    lost = found.keys() - bindings.bind(tx, found.values())
    if not lost:
        return
    # Another transaction has just answered these keys: with the same demand it found the same request.
    theirs = bindings.answers(tx, lost)
    if any(place not in theirs or theirs[place].request_id != found[place].request_id for place in lost):
        raise Conflict("a request with this Idempotency-Key has just been answered; send it again")
