"""The certificate of one request: to read, to take away, to check here and elsewhere; and the person's receipt."""

from __future__ import annotations

import json
from uuid import UUID

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response

from app.api.auth import PAGES as BASE
from app.audit import evidence
from app.dashboard.certificate_checks import check, digest_of
from app.dashboard.visits import Reading, Visit
from app.domain.people import Right
from app.errors import Conflict, Forbidden, NotFound
from app.storage import audit, requests
from app.storage.tables import Certificate

router = APIRouter(prefix=f"{BASE}/requests/{{request_id}}")
_PRINTED = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none';"
    " base-uri 'none'; frame-ancestors 'none'"
}


@router.get("/certificate")
def show(request_id: UUID, visit: Reading) -> HTMLResponse:
    """What it states, and how to check it."""
    return _page(visit, request_id, is_asked=False)


@router.get("/certificate/verify")
def verify(request_id: UUID, visit: Reading) -> HTMLResponse:
    """The same, checked."""
    return _page(visit, request_id, is_asked=True)


def _page(visit: Visit, request_id: UUID, *, is_asked: bool) -> HTMLResponse:
    request = requests.get(visit.tx, request_id)
    issued = evidence.certificate_of(visit.tx, request_id)
    found = check(visit.tx, issued, visit.settings, now=visit.now)
    return visit.page(
        "certificate.html",
        erasure=request,
        issued=issued,
        older=len(requests.certificates(visit.tx, request_id)) - 1,
        checked=found,
        is_asked=is_asked,
        said=found.statement["predicate"] if found.statement else None,
        subjects=found.statement["subject"] if found.statement else [],
        has_policy=visit.settings.log_policy is not None,
        stamped=found.digest is not None and audit.timestamp(visit.tx, _raw(found.digest)) is not None,
        file=_file(request_id),
    )


@router.get("/certificate.json")
def envelope(request_id: UUID, visit: Reading) -> Response:
    """The signed certificate (in-toto Statement in a DSSE envelope)."""
    issued = evidence.certificate_of(visit.tx, request_id)
    return _taken(json.dumps(issued.envelope), "application/json", f"{_file(request_id)}.json")


@router.get("/certificate.tlog-proof")
def proof(request_id: UUID, visit: Reading) -> Response:
    """The proof that the log holds it."""
    issued = evidence.certificate_of(visit.tx, request_id)
    _digest(issued)
    found = evidence.certificate_proof(visit.tx, issued)
    return _taken(found, "text/plain; charset=utf-8", f"{_file(request_id)}.tlog-proof")


@router.get("/certificate.tsr")
def timestamp(request_id: UUID, visit: Reading) -> Response:
    """The RFC 3161 time stamp over it."""
    issued = evidence.certificate_of(visit.tx, request_id)
    stamp = audit.timestamp(visit.tx, _raw(_digest(issued)))
    if stamp is None:
        raise NotFound("there is no time stamp for this certificate (yet)")
    return _taken(stamp.token, "application/timestamp-reply", f"{_file(request_id)}.tsr")


@router.get("/certificate.html")
def printable(request_id: UUID, visit: Reading) -> Response:
    """The certificate as a page to print, unless it is not what was issued: on paper nobody would see that."""
    issued = evidence.certificate_of(visit.tx, request_id)
    wrong = [one.name for one in check(visit.tx, issued, visit.settings, now=visit.now).checks if one.outcome == "bad"]
    if wrong:
        raise Conflict(f"this certificate is not what was issued, so it is not printed; wrong: {', '.join(wrong)}")
    page = evidence.page_of(visit.tx, issued, visit.settings)
    return Response(page, media_type="text/html; charset=utf-8", headers=_PRINTED)


@router.get("/receipt")
def receipt(request_id: UUID, visit: Reading) -> Response:
    """What opens the log's commitments about the request, for the person; who took it is written down."""
    if not visit.rights & {Right.AUDIT, Right.DECIDE}:
        raise Forbidden("none of your roles may open the records behind the log; an admin gives roles")
    found = evidence.receipt_of(visit.tx, requests.get(visit.tx, request_id), visit.settings)
    visit.note("receipt.taken", request_id=request_id)
    return _taken(found, "application/json", f"receipt-{str(request_id)[:8]}.json")


def _digest(issued: Certificate) -> str:
    """What the log calls it.

    Raises:
        Conflict: Nobody can call it anything any more.
    """
    found = digest_of(issued.envelope)
    if found is None:
        raise Conflict("what was signed can't be read any more: the database holds something else in its place")
    return found


def _raw(digest: str) -> bytes:
    return bytes.fromhex(digest.removeprefix("sha256:"))


def _file(request_id: UUID) -> str:
    return f"certificate-{str(request_id)[:8]}"


def _taken(content: bytes | str, kind: str, name: str) -> Response:
    return Response(content, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})
