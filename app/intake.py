"""What a portal can make happen: accept and cancel; one function is one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy.orm import Session

from app import keyring
from app.domain import deadlines, identifiers
from app.domain.lifecycle import CANCELLABLE, RequestStatus
from app.errors import Conflict, Invalid
from app.settings import Settings
from app.storage import audit, moves, requests, versions
from app.storage.tables import ErasureRequest, RequestKey


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What the portal asks for."""

    user_id: str
    models: Sequence[str] | None = None
    reference: str | None = None

    def parts(self) -> list[bytes]:
        """Everything that makes two demands the same demand."""
        scope = "\0".join(sorted(set(self.models))) if self.models else "*"
        return [self.user_id.encode(), scope.encode(), (self.reference or "").encode()]


@dataclass(frozen=True)
class Accepted:
    """The request that answers a demand, and whether it is new."""

    request: ErasureRequest
    created: bool


def accept(
    tx: Session, demand: Demand, *, client_id: UUID, idempotency_key: str | None, now: datetime, settings: Settings
) -> Accepted:
    """Write a demand down: request, sealed user id, event; its clock starts now.

    The same Idempotency-Key, or the same demand while one is open, is answered with the request there is.

    Raises:
        Invalid: The user id breaks a rule, a model is unknown, or the Idempotency-Key was used for another body.
    """
    if idempotency_key is not None:
        replay = _replay(tx, demand, client_id=client_id, idempotency_key=idempotency_key, settings=settings)
        if replay is not None:
            return Accepted(replay, created=False)
    unknown = versions.unknown(tx, demand.models or ())
    if unknown:
        raise Invalid("models", f"{len(unknown)} of the models named are not registered; GET /v1/models lists them")
    key = keyring.new_key()
    request = _request(demand, key, client_id=client_id, now=now, settings=settings)
    created = requests.add(tx, request) is not None
    if created:
        wrapped = keyring.wrap(settings.key("wrapping_key"), key)
        tx.add(RequestKey(request_id=request.id, purpose=audit.WORKING, wrapped=wrapped))
        moves.receive(tx, request)
    else:
        twin = requests.open_twin(tx, request.dedupe_key or b"")
        if twin is None:  # it ended between our insert and this look; the portal's repeat will be a new request
            raise Conflict("the same demand has just been closed; send it again")
        request = twin
    tx.flush()
    if idempotency_key is not None:
        _remember(tx, demand, request, client_id=client_id, idempotency_key=idempotency_key, settings=settings)
    return Accepted(requests.get(tx, request.id), created=created)


def cancel(
    tx: Session, request_id: UUID, *, now: datetime, settings: Settings, seen_by: UUID | None = None
) -> ErasureRequest:
    """Take a request back before anything is destroyed; cancelling twice is cancelling once.

    Raises:
        NotFound: No such request.
        Conflict: The work has begun or is done.
    """
    request = requests.locked(tx, request_id, seen_by=seen_by)
    if request.status == RequestStatus.CANCELLED:
        return request
    if request.subject_key is None:
        raise Conflict("this deletion was completed once and is being repeated after a rollback; it can't be cancelled")
    if request.status not in CANCELLABLE:
        raise Conflict(f"the request is {request.status}; only one that still waits can be cancelled")
    moves.move_request(
        tx,
        request_id,
        now=RequestStatus(request.status),
        then=RequestStatus.CANCELLED,
        at=now,
        reason="cancelled by caller",
        ending=moves.Ending(backups=settings.key_backups),
    )
    return requests.locked(tx, request_id)


def _request(demand: Demand, key: bytes, *, client_id: UUID, now: datetime, settings: Settings) -> ErasureRequest:
    identifiers.check_user_id(demand.user_id)
    index_key, request_id = settings.key("index_key"), uuid4()
    return ErasureRequest(
        id=request_id,
        client_id=client_id,
        reference=demand.reference,
        models=sorted(set(demand.models)) if demand.models else None,
        received_at=now,
        deadline=deadlines.due(now, settings.zone),
        subject_key=identifiers.subject_key(index_key, demand.user_id),
        suppression_key=identifiers.suppression_key(index_key, demand.user_id),
        sealed_user_id=keyring.seal(key, demand.user_id.encode(), context=request_id.bytes),
        dedupe_key=keyring.fingerprint(index_key, b"demand", client_id.bytes, *demand.parts()),
    )


def _key_digest(settings: Settings, client_id: UUID, idempotency_key: str) -> bytes:
    return keyring.fingerprint(settings.key("index_key"), b"idempotency", client_id.bytes, idempotency_key.encode())


def _body_digest(settings: Settings, demand: Demand, idempotency_key: str) -> bytes:
    """Tells two bodies under one key apart; worthless to whoever lacks either our key or the caller's."""
    return keyring.fingerprint(settings.key("index_key"), b"body", idempotency_key.encode(), *demand.parts())


def _replay(
    tx: Session, demand: Demand, *, client_id: UUID, idempotency_key: str, settings: Settings
) -> ErasureRequest | None:
    earlier = requests.answered(tx, client_id, _key_digest(settings, client_id, idempotency_key))
    if earlier is None:
        return None
    if earlier.body_digest != _body_digest(settings, demand, idempotency_key):
        raise Invalid("Idempotency-Key", "this key was used for another body; use a new key for a new demand")
    return requests.get(tx, earlier.request_id)


def _remember(
    tx: Session, demand: Demand, request: ErasureRequest, *, client_id: UUID, idempotency_key: str, settings: Settings
) -> None:
    key_digest = _key_digest(settings, client_id, idempotency_key)
    body_digest = _body_digest(settings, demand, idempotency_key)
    if requests.remember_answer(tx, client_id, key_digest, body_digest=body_digest, request_id=request.id):
        return
    # Another transaction has just answered this key: with the same demand it found the same request.
    replay = _replay(tx, demand, client_id=client_id, idempotency_key=idempotency_key, settings=settings)
    if replay is None or replay.id != request.id:
        raise Conflict("a request with this Idempotency-Key has just been answered; send it again")
