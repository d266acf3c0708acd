"""Requests in portals' dialects, the callbacks that came with them, and what is promised to those."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

from sqlalchemy import exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.domain.decisions import Kind
from app.domain.lifecycle import REQUEST_ENDED, RequestStatus
from app.domain.portals.base import Hears, ModelStory, Retained, Story
from app.errors import NotFound
from app.storage import deliveries, requests
from app.storage.tables import Decision, ErasureRequest, Model, PortalCallback, PortalRequest, Posting, WebhookDelivery
from app.storage.tables import ModelVersion as Version

MOST_OF_A_GROUP: Final = 1000
_REPEATS_KNOWN: Final = timedelta(hours=24)
"""How long after its end a request's demand can be told from another one, as with an Idempotency-Key."""


def hold(tx: Session, client_id: UUID, portal: str, external_id: str) -> None:
    """Let one call at a time deal with a portal's number, until the transaction ends."""
    named = sha256(f"{client_id}\0{portal}\0{external_id}".encode()).digest()
    tx.execute(select(func.pg_advisory_xact_lock(int.from_bytes(named[:8], signed=True))))


def add(tx: Session, row: PortalRequest) -> bool:
    """Store what a request is called outside; false if that name, or that request, has a row already."""
    columns = ("request_id", "client_id", "portal", "version", "external_id", "group_id", "body_digest")
    values = {name: getattr(row, name) for name in columns}
    added = insert(PortalRequest).values(values).on_conflict_do_nothing().returning(PortalRequest.request_id)
    return tx.scalar(added) is not None


def find(tx: Session, client_id: UUID, portal: str, external_id: str) -> PortalRequest | None:
    """A client's request by the portal's own number."""
    named = (PortalRequest.portal == portal) & (PortalRequest.external_id == external_id)
    theirs = select(PortalRequest).where(PortalRequest.client_id == client_id, named)
    return tx.scalar(theirs.execution_options(populate_existing=True))


def need(tx: Session, client_id: UUID, portal: str, external_id: str) -> PortalRequest:
    """As :func:`find`; another client's is as good as none.

    Raises:
        NotFound: The client has no such request.
    """
    found = find(tx, client_id, portal, external_id)
    if found is None:
        raise NotFound("there is no request with this id")
    return found


def of_request(tx: Session, request_id: UUID) -> PortalRequest | None:
    """What a request is called outside."""
    return tx.get(PortalRequest, request_id, populate_existing=True)


def group(
    tx: Session, client_id: UUID, portal: str, group_id: str, *, states: Iterable[RequestStatus]
) -> Sequence[PortalRequest]:
    """A client's requests of one group, in order of arrival."""
    rows = (
        select(PortalRequest)
        .join(ErasureRequest, ErasureRequest.id == PortalRequest.request_id)
        .where(PortalRequest.client_id == client_id, PortalRequest.portal == portal)
        .where(PortalRequest.group_id == group_id, ErasureRequest.status.in_(list(states)))
        .order_by(ErasureRequest.sequence)
        .limit(MOST_OF_A_GROUP)
    )
    return tx.scalars(rows).all()


def story(tx: Session, row: PortalRequest) -> Story:
    """Where a request stands just now."""
    return stories(tx, [row])[row.request_id]


def stories(tx: Session, rows: Sequence[PortalRequest]) -> dict[UUID, Story]:
    """Where requests stand just now: three statements for all of them."""
    ids = [row.request_id for row in rows]
    columns = (ErasureRequest.status, ErasureRequest.reason, ErasureRequest.received_at, ErasureRequest.deadline)
    found = tx.execute(select(ErasureRequest.id, *columns).where(ErasureRequest.id == func.any(ids))).all()
    now = {request.id: request for request in found}
    models: dict[UUID, list[ModelStory]] = {request_id: [] for request_id in ids}
    for target in requests.targets(tx, ids):
        models[target.request_id].append(ModelStory(model=target.name, state=target.status, result=target.result))
    refused = _refused(tx, ids)
    return {
        row.request_id: _story(row, now[row.request_id], models[row.request_id], refused[row.request_id])
        for row in rows
    }


def _story(row: PortalRequest, now: Any, models: Sequence[ModelStory], refused: Sequence[Retained]) -> Story:
    # ``now`` is Any: a row of ErasureRequest's columns
    return Story(
        request_id=str(row.request_id),
        controller_id=str(row.client_id),
        external_id=row.external_id,
        group_id=row.group_id,
        state=RequestStatus(now.status),
        reason=now.reason,
        received_at=now.received_at,
        deadline=now.deadline,
        sequence=row.told,
        models=tuple(models),
        ground=next((kept.ground for kept in refused if kept.models is None and kept.data_class is None), None),
        retained=tuple(kept for kept in refused if kept.models is not None or kept.data_class is not None),
    )


def _refused(tx: Session, request_ids: Sequence[UUID]) -> dict[UUID, list[Retained]]:
    theirs = (Decision.request_id == func.any(list(request_ids))) & (Decision.kind == Kind.REFUSED)
    refused: dict[UUID, list[Retained]] = {request_id: [] for request_id in request_ids}
    for row in tx.scalars(select(Decision).where(theirs).order_by(Decision.id)):
        refused[row.request_id].append(Retained(ground=row.ground, models=row.models, data_class=row.data_class))
    return refused


def add_callback(tx: Session, row: PortalCallback) -> None:
    """Store a callback."""
    tx.add(row)
    tx.flush()


def end_callback(tx: Session, callback_id: UUID, *, because: str, at: datetime) -> None:
    """Tell a callback nothing more, and forget where it was."""
    ended = {"sealed": None, "done_at": func.coalesce(PortalCallback.done_at, at)}
    tx.execute(update(PortalCallback).where(PortalCallback.id == callback_id).values(ended))
    deliveries.stop(tx, WebhookDelivery.callback_id == callback_id, said=f"given up: {because}")


def promise(tx: Session, request_ids: Sequence[UUID], *, status: RequestStatus, at: datetime) -> None:
    """Promise the portals of these requests word of a change, in the transaction that makes it true.

    What is kept is the story as it is now; URL, headers and the portal's words are put to it when it is sent. A few
    statements for all of them, and one where none came from a portal.
    """
    changed = update(PortalRequest).where(PortalRequest.request_id == func.any(list(request_ids)))
    counted = changed.values(told=PortalRequest.told + 1).returning(PortalRequest)
    rows = {row.request_id: row for row in tx.scalars(counted.execution_options(populate_existing=True))}
    listeners = _listeners(tx, list(rows), status) if rows else []
    if not listeners:
        return
    bodies = {key: _kept(told) for key, told in stories(tx, [rows[row.request_id] for row in listeners]).items()}
    promised = [
        {
            "callback_id": row.id,
            "request_id": row.request_id,
            "receiver": row.receiver_id or rows[row.request_id].client_id,
            "body": bodies[row.request_id],
            "created_at": at,
        }
        for row in listeners
    ]
    tx.execute(insert(WebhookDelivery), promised)
    if status in REQUEST_ENDED:
        heard = PortalCallback.id == func.any([row.id for row in listeners])
        tx.execute(update(PortalCallback).where(heard, PortalCallback.hears != Hears.EVERY_CHANGE).values(done_at=at))


def _listeners(tx: Session, request_ids: Sequence[UUID], status: RequestStatus) -> Sequence[Any]:  # Any: three columns
    """Callbacks that hear of this status, in the order of the requests' arrival."""
    hears = {Hears.EVERY_CHANGE, Hears.UNTIL_THE_END} | ({Hears.THE_END} if status in REQUEST_ENDED else set())
    return tx.execute(
        select(PortalCallback.id, PortalCallback.request_id, PortalCallback.receiver_id)
        .join(ErasureRequest, ErasureRequest.id == PortalCallback.request_id)
        .where(
            PortalCallback.request_id == func.any(list(request_ids)),
            PortalCallback.hears.in_(hears),
            PortalCallback.sealed.is_not(None),
            PortalCallback.done_at.is_(None),
        )
        .order_by(ErasureRequest.sequence)
    ).all()


def _kept(told: Story) -> bytes:
    moments = {"received_at": told.received_at.isoformat(), "deadline": told.deadline.isoformat()}
    lists = {"models": [vars(model) for model in told.models], "retained": [vars(kept) for kept in told.retained]}
    return json.dumps({**vars(told), **moments, **lists}).encode()


def kept_story(body: bytes) -> Story:
    """The story that a delivery keeps."""
    kept: dict[str, Any] = json.loads(body)  # Any: JSON of _kept
    return Story(
        **kept
        | {
            "state": RequestStatus(kept["state"]),
            "received_at": datetime.fromisoformat(kept["received_at"]),
            "deadline": datetime.fromisoformat(kept["deadline"]),
            "models": tuple(ModelStory(**model) for model in kept["models"]),
            "retained": tuple(Retained(**one) for one in kept["retained"]),
        }
    )


def callback(tx: Session, callback_id: UUID) -> PortalCallback:
    """One callback."""
    return tx.get_one(PortalCallback, callback_id)


def forget_told(tx: Session) -> None:
    """Forget where the portals of ended requests wanted to hear, once they heard or can't be reached.

    A request that a rollback opens again later is told of no more; its portal can still ask.
    """
    undelivered = exists().where(
        WebhookDelivery.callback_id == PortalCallback.id, WebhookDelivery.next_attempt_at.is_not(None)
    )
    ended = exists().where(ErasureRequest.id == PortalCallback.request_id, ErasureRequest.closed_at.is_not(None))
    told = or_(PortalCallback.done_at.is_not(None), ended)
    tx.execute(update(PortalCallback).where(PortalCallback.sealed.is_not(None), told, ~undelivered).values(sealed=None))
    long_ended = exists().where(
        ErasureRequest.id == PortalRequest.request_id, ErasureRequest.closed_at < func.now() - _REPEATS_KNOWN
    )
    known = PortalRequest.body_digest.is_not(None)
    tx.execute(update(PortalRequest).where(known, long_ended).values(body_digest=None))


def knows(tx: Session, subject_key: UUID) -> bool:
    """Whether the training data of a live version hold the person; also true while there is no model to ask."""
    live = select(Version.manifest_id).join(Model, Model.current_version_id == Version.id)
    found = exists().where(Posting.subject_key == subject_key, Posting.manifest_id.in_(live))
    return bool(tx.scalar(select(or_(found, ~exists(live.subquery().select())))))
