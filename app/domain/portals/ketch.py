"""Ketch Forwarder, ``dsr/v1 DeleteRequest``: a call, an answer at once, then events until the end.

Norm: github.com/ketch-com/ketch-forwarder, api/dsr/v1/Delete.md and Status.md. Callbacks carry the headers that came
with the demand. After ``completed``, ``cancelled`` or ``denied`` Ketch accepts no more events.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from app.domain.lifecycle import RequestStatus
from app.domain.portals import reading
from app.domain.portals.base import Asked, Callback, Document, Hears, Knobs, Message, Portal, Refusal, Sent, Story
from app.errors import Invalid

NAME, VERSION = "ketch", "dsr/v1"
_MOST_CALLBACKS = 10
_R = RequestStatus
_WORDS: Mapping[RequestStatus, tuple[str, str]] = {
    _R.RECEIVED: ("pending", "unknown"),
    _R.AWAITING_IDENTITY: ("pending", "need_user_verification"),
    _R.PENDING: ("pending", "unknown"),
    _R.ON_HOLD: ("in_progress", "other"),
    _R.APPROVED: ("in_progress", "unknown"),
    _R.QUEUED: ("in_progress", "unknown"),
    _R.IN_PROGRESS: ("in_progress", "unknown"),
    _R.NEEDS_ATTENTION: ("in_progress", "other"),
    _R.COMPLETED: ("completed", "executed"),
    _R.PARTIALLY_COMPLETED: ("completed", "executed"),
    _R.NO_DATA: ("completed", "no_match"),
    _R.REJECTED: ("denied", "unknown"),
    _R.CANCELLED: ("cancelled", "unknown"),
}
_REASONS = {
    "art11_2_not_identifiable": "insufficient_identification",
    "art12_5_unfounded": "suspected_fraud",
    "art12_5_excessive": "too_many_requests",
}
_CLAIM_NOT_COVERED = "claim_not_covered"
_STATUSES = {401: "forbidden", 403: "forbidden", 404: "not_found", 409: "conflict", 429: "unavailable"}


def read(sent: Sent) -> Asked:
    """Read a DeleteRequest; of the data subject's name and address nothing is looked at.

    Raises:
        Invalid: Names the field.
    """
    body = sent.document
    if body.get("apiVersion") != VERSION or body.get("kind") != "DeleteRequest":
        raise Invalid("kind", f"only {VERSION} DeleteRequest is supported here")
    metadata, request = reading.obj(body, "metadata"), reading.obj(body, "request")
    uid = reading.label(metadata, "uid")
    remarks = {"tenant": reading.label(metadata, "tenant")}
    return Asked(
        external_id=uid,
        user_id=_person(reading.array(request, "identities"), sent.knobs["identity"]),
        reference=uid,
        callbacks=_callbacks(reading.array(request, "callbacks"), remarks),
    )


def _person(identities: list[object], space: str) -> str:
    """The value in the one identity space that holds our user ids; others are how other systems know the person."""
    ours = [found for found in identities if isinstance(found, dict) and found.get("identitySpace") == space]
    values = {reading.text(found, "identityValue") for found in ours if found.get("identityFormat", "raw") == "raw"}
    if len(values) != 1:
        raise Invalid("identities", f"there must be exactly one raw identity in the identity space {space}")
    return values.pop()


def _callbacks(found: list[object], remarks: Mapping[str, str]) -> list[Callback]:
    if len(found) > _MOST_CALLBACKS:
        raise Invalid("callbacks", f"at most {_MOST_CALLBACKS} callbacks")
    callbacks = []
    for one in found:
        if not isinstance(one, dict):
            raise Invalid("callbacks", "each callback is an object with url and headers")
        url, headers = reading.text(one, "url"), reading.headers(one, "headers")
        callbacks.append(Callback(url=url, headers=headers, hears=Hears.UNTIL_THE_END, remarks=remarks))
    return callbacks


def answer(sent: Sent, story: Story) -> Document:
    """The DeleteResponse."""
    tenant = reading.label(reading.obj(sent.document, "metadata"), "tenant")
    return _envelope("DeleteResponse", story.external_id, tenant) | {"response": _standing(story)}


def tell(story: Story, callback: Callback, _: Knobs) -> Message:
    """The DeleteStatusEvent."""
    event = _envelope("DeleteStatusEvent", story.external_id, callback.remarks["tenant"]) | {"event": _standing(story)}
    return Message(content=json.dumps(event).encode(), headers=callback.headers)


def refuse(refusal: Refusal) -> tuple[int, Document]:
    """The Error object; its metadata can't be filled before a demand was read."""
    code = 400 if refusal.status in {415, 422} else refusal.status
    word = _STATUSES.get(code, "invalid" if code < 500 else "unavailable" if code == 503 else "internal")
    detail = "; ".join([refusal.message, *(f"{field}: {problem}" for field, problem in refusal.fields)])
    return code, {
        "apiVersion": VERSION,
        "kind": "Error",
        "metadata": {},
        "error": {"code": code, "status": word, "message": detail},
    }


def _standing(story: Story) -> Document:
    word, reason = _WORDS[story.state]
    if story.state is RequestStatus.REJECTED:
        reason = _REASONS.get(story.ground or "", _CLAIM_NOT_COVERED)
    return {
        "status": word,
        "reason": reason,
        "expectedCompletionTimestamp": int(story.deadline.timestamp()),
        "requestID": story.request_id,
    }


def _envelope(kind: str, uid: str, tenant: str) -> Document:
    return {"apiVersion": VERSION, "kind": kind, "metadata": {"uid": uid, "tenant": tenant}}


PORTALS = (
    Portal(
        name=NAME,
        version=VERSION,
        prefix="/portals/ketch",
        read=read,
        answer=answer,
        tell=tell,
        knobs={"identity": "ketch_identity"},
        refuse=refuse,
    ),
)
