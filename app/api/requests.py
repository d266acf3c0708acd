"""Erasure requests over HTTP: read, list, cancel, history, certificate; intake.py takes them in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Response

from app import certificates, decisions
from app.api import cursors
from app.api.auth import Caller, Owner, Reader
from app.api.context import CurrentSettings, Now, Transaction
from app.api.problems import PLAIN, answers
from app.api.schemas import requests as schemas
from app.audit import evidence
from app.domain.decisions import IdentityLevel
from app.domain.lifecycle import RequestStatus
from app.errors import NotFound
from app.storage import audit, requests
from app.storage.arrivals import Arrival
from app.storage.tables import ErasureRequest

router = APIRouter(prefix="/v1/erasure-requests", tags=["erasure requests"])
Reference = Annotated[str | None, Query(max_length=200, pattern=schemas.REFERENCE)]
_PAGE: dict[int | str, dict[str, Any]] = {200: {"content": {"text/html": {}}}}  # Any: OpenAPI
_TOKEN: dict[int | str, dict[str, Any]] = {200: {"content": {"application/timestamp-reply": {}}}}  # Any: OpenAPI
_RECEIPT: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {}}}}  # Any: OpenAPI


@router.get("", responses=answers(401, 403, 422, 503))
def index(
    tx: Transaction,
    caller: Reader,
    now: Now,
    cursor: Annotated[str | None, Query(max_length=30)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    status: RequestStatus | None = None,
    reference: Reference = None,
) -> schemas.ErasureRequestPage:
    """List requests in order of arrival."""
    page = requests.page(
        tx,
        after=cursors.place("c", cursor) or 0,
        limit=limit + 1,
        status=status,
        reference=reference,
        seen_by=caller.sees,
    )
    more = len(page) > limit
    return schemas.ErasureRequestPage(
        items=shown(tx, page[:limit], now), next_cursor=cursors.cursor("c", page[limit - 1].sequence) if more else None
    )


@router.get("/{request_id}", responses=answers(401, 403, 404, 422, 503))
def show(request_id: UUID, tx: Transaction, caller: Reader, now: Now) -> schemas.ErasureRequestOut:
    """Read one request: where it stands, with each model."""
    return shown(tx, [requests.get(tx, request_id, seen_by=caller.sees)], now)[0]


@router.post("/{request_id}:cancel", responses=answers(401, 403, 404, 409, 422, 503))
def cancel(
    request_id: UUID, tx: Transaction, caller: Owner, now: Now, settings: CurrentSettings
) -> schemas.ErasureRequestOut:
    """Take a request back, as its portal or as an officer for the person; possible until the work on it begins."""
    request = decisions.cancel(tx, request_id, by=caller.client_id, seen_by=caller.acts_on, now=now, settings=settings)
    return shown(tx, [request], now)[0]


@router.get("/{request_id}/events", responses=answers(401, 403, 404, 422, 503))
def history(request_id: UUID, tx: Transaction, caller: Reader) -> schemas.EventsOut:
    """Read what happened to a request, step by step."""
    requests.get(tx, request_id, seen_by=caller.sees)
    events = requests.events(tx, request_id)
    return schemas.EventsOut(items=[schemas.EventOut(at=e.at, type=e.type, detail=e.detail) for e in events])


@router.get("/{request_id}/certificate", responses=answers(401, 403, 404, 422, 503))
def certificate(request_id: UUID, tx: Transaction, caller: Reader) -> dict[str, Any]:  # Any: JSON, a DSSE envelope
    """Download the signed certificate (in-toto Statement in a DSSE envelope)."""
    return evidence.certificate_of(tx, _known(tx, request_id, caller)).envelope


@router.get("/{request_id}/certificate.tlog-proof", responses=answers(401, 403, 404, 422, 503) | PLAIN)
def certificate_proof(request_id: UUID, tx: Transaction, caller: Reader) -> Response:
    """Download the proof that the log holds the certificate (C2SP tlog-proof); seconds after the request ended."""
    found = evidence.certificate_proof(tx, evidence.certificate_of(tx, _known(tx, request_id, caller)))
    return Response(found, media_type="text/plain; charset=utf-8")


@router.get("/{request_id}/certificate.html", responses=answers(401, 403, 404, 422, 503) | _PAGE)
def certificate_page(request_id: UUID, tx: Transaction, caller: Reader, settings: CurrentSettings) -> Response:
    """Read the certificate as a page to print; it proves nothing by itself and says how to check."""
    page = evidence.page_of(tx, evidence.certificate_of(tx, _known(tx, request_id, caller)), settings)
    headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:"}
    return Response(page, media_type="text/html; charset=utf-8", headers=headers)


@router.get("/{request_id}/certificate.tsr", responses=answers(401, 403, 404, 422, 503) | _TOKEN)
def certificate_timestamp(request_id: UUID, tx: Transaction, caller: Reader) -> Response:
    """Download the RFC 3161 time stamp over the certificate's payload, where an authority is configured."""
    envelope = evidence.certificate_of(tx, _known(tx, request_id, caller)).envelope
    stamp = audit.timestamp(tx, bytes.fromhex(certificates.digest(envelope).removeprefix("sha256:")))
    if stamp is None:
        raise NotFound("there is no time stamp for this certificate (yet)")
    return Response(stamp.token, media_type="application/timestamp-reply")


@router.get("/{request_id}/receipt", responses=answers(401, 403, 404, 422, 503) | _RECEIPT)
def receipt(request_id: UUID, tx: Transaction, caller: Reader, settings: CurrentSettings) -> Response:
    """Download the receipt for the person: it opens what the log says of the request, so give it to nobody else."""
    return Response(
        evidence.receipt_of(tx, requests.get(tx, request_id, seen_by=caller.sees), settings),
        media_type="application/json",
    )


def _known(tx: Transaction, request_id: UUID, caller: Caller) -> UUID:
    return requests.get(tx, request_id, seen_by=caller.sees).id


def shown(tx: Transaction, page: Sequence[ErasureRequest], now: datetime) -> list[schemas.ErasureRequestOut]:
    """Requests as they go over the wire; that another client's request is for the same person is nobody's business."""
    twins = requests.owners(tx, [request.duplicate_of for request in page if request.duplicate_of])
    targets: dict[UUID, list[schemas.TargetOut]] = {request.id: [] for request in page}
    for row in requests.targets(tx, list(targets)):
        targets[row.request_id].append(schemas.TargetOut(model=row.name, status=row.status, result=row.result))
    return [
        told(
            request,
            now,
            targets=targets[request.id],
            duplicate_of=request.duplicate_of if twins.get(request.duplicate_of) == request.client_id else None,
        )
        for request in page
    ]


def told(
    request: ErasureRequest | Arrival,
    now: datetime,
    *,
    targets: Sequence[schemas.TargetOut] = (),
    duplicate_of: UUID | None = None,
) -> schemas.ErasureRequestOut:
    """One request as it goes over the wire; one that has just come in has no targets yet."""
    return schemas.ErasureRequestOut(
        id=request.id,
        status=RequestStatus(request.status),
        reason=request.reason,
        reference=request.reference,
        origin=request.origin,
        batch_id=request.batch_id,
        received_at=request.received_at,
        clock_from=request.clock_from,
        deadline=request.deadline,
        identity_level=IdentityLevel(request.identity_level),
        approvals_needed=request.approvals_needed,
        duplicate_of=duplicate_of,
        closed_at=request.closed_at,
        overdue=(request.closed_at or now) > request.deadline,
        targets=list(targets),
    )
