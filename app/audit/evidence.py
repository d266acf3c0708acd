"""What people get in hand: proof files, receipts, and the certificate as a page to read and print."""

from __future__ import annotations

import base64
import io
from typing import Any, Final
from uuid import UUID

import segno
from cryptography.exceptions import InvalidTag
from expunge_verify import leaf, receipt
from expunge_verify import proof as proofs
from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy.orm import Session

from app import certificates
from app.audit.leaves import opened
from app.audit.tree import inclusion_proof
from app.errors import NotFound
from app.settings import Settings
from app.storage import audit, requests
from app.storage.tables import Certificate, ErasureRequest

Json = dict[str, Any]  # Any: JSON
_LATER: Final = "the log has not published this yet; ask again in a few seconds"
_PAGES = Environment(loader=PackageLoader("app"), autoescape=True, undefined=StrictUndefined)


def proof_of(tx: Session, index: int) -> bytes:
    """The proof file of one entry, which it carries as extra data, for the newest published checkpoint.

    Raises:
        NotFound: The log has published no such entry yet.
    """
    shown = audit.published(tx)
    if shown is None or shown.published is None or not 0 <= index < shown.size:
        raise NotFound(_LATER)
    (entry,) = audit.entries(tx, index, index + 1)
    return _proof(tx, index, entry, size=shown.size, note=bytes(shown.published))


def _proof(tx: Session, index: int, entry: bytes, *, size: int, note: bytes) -> bytes:
    return proofs.format(index, inclusion_proof(tx, index, size), note, entry)


def certificate_of(tx: Session, request_id: UUID) -> Certificate:
    """The newest certificate of a request that has ended.

    Raises:
        NotFound: No such request, it is open, or it ended without one.
    """
    request = requests.get(tx, request_id)
    if request.closed_at is None:
        raise NotFound("the request is open; its certificate comes with its end")
    issued = requests.certificates(tx, request.id)
    if not issued:
        raise NotFound("there is no certificate for this request yet")
    return issued[0]


def certificate_proof(tx: Session, issued: Certificate) -> bytes:
    """The proof file that belongs beside a certificate.

    Raises:
        NotFound: The log has not published it yet.
    """
    index = audit.place_of_certificate(tx, issued.request_id, certificates.digest(issued.envelope))
    if index is None:
        raise NotFound(_LATER)
    return proof_of(tx, index)


def receipt_of(tx: Session, request: ErasureRequest, settings: Settings) -> bytes:
    """The receipt for the person: everything that the log's commitments about the request hide.

    Raises:
        NotFound: Its retention is over, or the log has published nothing about it yet.
    """
    wrapped, shown = audit.key_of(tx, request.id, audit.EVIDENCE), audit.published(tx)
    if wrapped is None or shown is None or shown.published is None:
        raise NotFound("the records behind the log's commitments can't be opened: not sequenced yet, or past retention")
    entries = []
    for entry, sealed in audit.of_request(tx, request.id, before=shown.size):
        assert entry.entry is not None
        assert entry.leaf_index is not None
        raw = bytes(entry.entry)
        said, proof = leaf.decode(raw), _proof(tx, entry.leaf_index, raw, size=shown.size, note=bytes(shown.published))
        if "commit" not in said:
            entries.append(receipt.Opened(said, proof))
        elif sealed and (found := _found(settings, wrapped, sealed.sealed)):
            entries.append(receipt.Opened(said, proof, bytes.fromhex(found["salt"]), found["record"]))
    return receipt.format(settings.log_origin, entries)


def record_of(tx: Session, index: int, settings: Settings) -> Json:
    """The leaf at a place with the record and the salt behind its commitment.

    Raises:
        NotFound: No such entry, it commits to nothing, or its key is gone.
    """
    place = audit.at_place(tx, index)
    entry, sealed = place or (None, None)
    if entry is None or sealed is None:
        raise NotFound("there is no such entry, or it commits to no record")
    wrapped = audit.key_of(tx, entry.request_id, audit.EVIDENCE) if entry.request_id else None
    gone = entry.request_id is not None and wrapped is None
    found = None if gone else _found(settings, wrapped, sealed.sealed)
    if found is None or entry.entry is None:
        raise NotFound("the key of this record is gone: its retention is over")
    return {"leaf": leaf.decode(bytes(entry.entry)), **found}


def _found(settings: Settings, wrapped: bytes | None, sealed: bytes) -> Json | None:
    try:
        return opened(settings.key("wrapping_key"), wrapped, sealed)
    except InvalidTag:  # sealed by a key that went before this one was made
        return None


def page_of(tx: Session, issued: Certificate, settings: Settings) -> str:
    """The certificate as an HTML page, with a code that leads to the log's entry; no scripts, nothing loaded."""
    digest = certificates.digest(issued.envelope)
    index, shown = audit.place_of_certificate(tx, issued.request_id, digest), audit.published(tx)
    if index is not None and (shown is None or index >= shown.size):
        index = None  # it has its place, but nobody can look it up yet
    address = f"https://{settings.log_origin}/entry/{index}.tlog-proof" if index is not None else None
    payload: Json = certificates.payload(issued.envelope)
    stamp = audit.timestamp(tx, bytes.fromhex(digest.removeprefix("sha256:")))
    return _PAGES.get_template("certificate.html").render(
        said=payload["predicate"],
        subjects=payload["subject"],
        digest=digest,
        index=index,
        address=address,
        code=_code(address) if address else None,
        key_id=issued.envelope["signatures"][0]["keyid"],
        stamped_at=stamp.stamped_at if stamp else None,
    )


def _code(text: str) -> str:
    """A QR code as a data URI of SVG."""
    drawn = io.BytesIO()
    segno.make(text, error="m").save(drawn, kind="svg", border=2, xmldecl=False, svgns=True)
    return f"data:image/svg+xml;base64,{base64.b64encode(drawn.getvalue()).decode()}"
