"""OpenDSR 2.0, its forerunner OpenGDPR 1.0, and mParticle's dialect "3.0".

Norms: github.com/opengdpr/OpenDSR, specification.md (branch opengdpr_v1 for 1.0), and for 3.0
docs.mparticle.com/developers/dsr-api/v3. Where they contradict themselves: status is ``GET requests/{id}`` (§8.1), not
``/status`` (§3.1). A signature stands in the header alone, although §7.3 asks for it inside of the body that it signs,
too. ``regulation`` is required by §7.1 and missing in its own example, so it may be missing. There is no word for a
refusal: it is ``cancelled``, and the extension says why.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID
from zoneinfo import ZoneInfo

from app.domain import deadlines, identifiers
from app.domain.lifecycle import RequestStatus
from app.domain.portals import reading
from app.domain.portals.base import (
    Asked,
    Callback,
    Document,
    Hears,
    Knobs,
    Message,
    ModelStory,
    Portal,
    Refusal,
    Retained,
    Sent,
    Story,
    instant,
)
from app.errors import Invalid

NAME = "opendsr"
IDENTITY, FORMAT, REQUEST_TYPE = "controller_customer_id", "raw", "erasure"
_REGULATIONS = frozenset({"gdpr", "ccpa"})
_MOST_CALLBACKS = 10
_R = RequestStatus
_WORDS: Mapping[RequestStatus, str] = {
    _R.RECEIVED: "pending",
    _R.AWAITING_IDENTITY: "pending",
    _R.PENDING: "pending",
    _R.ON_HOLD: "pending",
    _R.APPROVED: "in_progress",
    _R.QUEUED: "in_progress",
    _R.IN_PROGRESS: "in_progress",
    _R.NEEDS_ATTENTION: "in_progress",
    _R.COMPLETED: "completed",
    _R.PARTIALLY_COMPLETED: "completed",
    _R.NO_DATA: "completed",
    _R.REJECTED: "cancelled",
    _R.CANCELLED: "cancelled",
}
_SPELLED = {"in-progress": "in_progress", "canceled": "cancelled"}  # AppsFlyer's
_SENT = {"forgotten": "sent", "already_forgotten": "sent", "no_data": "skipped"}  # mParticle's words for sub-targets
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


@dataclass(frozen=True)
class Dialect:
    """What differs between the versions."""

    version: str
    path: str
    """What the list of requests is called."""
    signed_as: str

    @property
    def prefix(self) -> str:
        """Where its routes begin."""
        return f"/opendsr/v{self.version[0]}"

    @property
    def groups(self) -> bool:
        """Whether requests can be listed by group."""
        return self.version == "3.0"


DIALECTS = (
    Dialect("1.0", "opengdpr_requests", "OpenGDPR"),
    Dialect("2.0", "requests", "OpenDSR"),
    Dialect("3.0", "requests", "OpenDSR"),
)


def word(state: RequestStatus) -> str:
    """Our state in OpenDSR's four words.

    >>> word(RequestStatus.REJECTED), word(RequestStatus.NEEDS_ATTENTION)
    ('cancelled', 'in_progress')
    """
    return _WORDS[state]


def states(text: str) -> frozenset[RequestStatus]:
    """Which of our states a status word means, in either spelling.

    >>> states("in-progress") == states("in_progress"), states("canceled") == states("cancelled")
    (True, True)

    Raises:
        Invalid: OpenDSR has no such word.
    """
    meant = _SPELLED.get(text, text)
    if meant not in _WORDS.values():
        raise Invalid("request_status", "request_status is pending, in_progress, completed or cancelled")
    return frozenset(state for state, known in _WORDS.items() if known == meant)


def ticket(text: str) -> str:
    """A subject_request_id as we write it.

    Raises:
        Invalid: It is no UUID.
    """
    if not _UUID.fullmatch(text):
        raise Invalid(
            "subject_request_id", "subject_request_id must be a UUID, as 5b0d6c1e-6d0f-4f0e-9a52-0f6f3a7f9c11"
        )
    return str(UUID(text))


def read(sent: Sent) -> Asked:
    """Read a demand; identities may come as 2.0's array or as 3.0's object, in every version.

    Raises:
        Invalid: Names the field and, for what we don't do, what we do.
    """
    body = sent.document
    external_id = ticket(reading.text(body, "subject_request_id"))
    if reading.text(body, "subject_request_type") != REQUEST_TYPE:
        raise Invalid("subject_request_type", f"the only subject_request_type supported here is {REQUEST_TYPE}")
    reading.moment(body, "submitted_time")
    if body.get("regulation") is not None and reading.text(body, "regulation").lower() not in _REGULATIONS:
        raise Invalid("regulation", "regulation is gdpr or ccpa")
    return Asked(
        external_id=external_id,
        user_id=_person(body),
        reference=external_id,
        models=_models(reading.obj(body, "extensions"), sent.knobs["domain"]),
        group_id=reading.optional_label(body, "group_id"),
        callbacks=_callbacks(body),
    )


def _person(body: Document) -> str:
    """The one identity that training manifests know; the others can't be acted on, so they are not accepted."""
    given = list(_identities(body.get("subject_identities")))
    supported = f"the only identity supported here is {IDENTITY} in the format {FORMAT}, exactly once (see discovery)"
    if not given or any((kind, form) != (IDENTITY, FORMAT) for kind, form, _ in given):
        raise Invalid("subject_identities", supported)
    values = {value for _, _, value in given}
    if len(values) > 1:
        raise Invalid("subject_identities", supported)
    [user_id] = values
    identifiers.check_user_id(user_id)
    return user_id


def _identities(found: object) -> Iterable[tuple[str, str, str]]:
    """(type, format, value) of each."""
    if isinstance(found, dict):
        for kind, identity in found.items():
            one: Document = identity if isinstance(identity, dict) else {"value": identity}
            yield kind, _format(one, "encoding"), reading.text(one, "value")
    elif isinstance(found, list):
        for identity in found:
            if not isinstance(identity, dict):
                raise Invalid("subject_identities", "each identity is an object")
            kind = reading.text(identity, "identity_type")
            yield kind, _format(identity, "identity_format"), reading.text(identity, "identity_value")
    elif found is not None:
        raise Invalid("subject_identities", "subject_identities is an array of identities, or an object by type")


def _format(identity: Document, name: str) -> str:
    return reading.text(identity, name) if identity.get(name) is not None else FORMAT


def _models(extensions: Document, domain: str) -> list[str] | None:
    found = reading.array(reading.obj(extensions, domain), "models")
    names = [name for name in found if isinstance(name, str) and re.fullmatch(identifiers.MODEL_NAME, name)]
    if len(names) < len(found) or len(names) > 100:
        raise Invalid("extensions", f'extensions["{domain}"].models is a list of up to 100 names of models')
    return names or None


def _callbacks(body: Document) -> list[Callback]:
    found = body.get("status_callback_urls")
    urls = [found] if isinstance(found, str) else reading.array(body, "status_callback_urls")
    if len(urls) > _MOST_CALLBACKS or not all(isinstance(url, str) for url in urls):
        raise Invalid("status_callback_urls", f"status_callback_urls is an array of up to {_MOST_CALLBACKS} URLs")
    return [Callback(url=str(url), hears=Hears.EVERY_CHANGE) for url in dict.fromkeys(urls)]


def status(dialect: Dialect, story: Story, knobs: Knobs) -> Document:
    """Where a request stands: the answer to GET, and the body of a callback but for its URL.

    Args:
        dialect: The version.
        story: The request's.
        knobs: Our ``domain``, and the controller's ``zone``, in which days are told.
    """
    told: Document = {
        "controller_id": story.controller_id,
        "expected_completion_time": instant(story.deadline),
        "subject_request_id": story.external_id,
        "request_status": word(story.state),
        "api_version": dialect.version,
        "results_url": None,
        "extensions": {knobs["domain"]: _extension(dialect, story, knobs)},
    }
    if dialect.version != "1.0":
        told["results_count"] = 0 if story.state is RequestStatus.NO_DATA else None
    if dialect.groups:
        told["group_id"] = story.group_id
    return told


def _extension(dialect: Dialect, story: Story, knobs: Knobs) -> Document:
    """What OpenDSR has no words for."""
    told: Document = {
        "state": story.state.value,
        "reason": story.reason,
        "sequence": story.sequence,
        "request": story.request_id,
        "deadline": deadlines.day(story.deadline, ZoneInfo(knobs["zone"])).isoformat(),
        "models": [{"id": m.model, "state": m.state, "result": m.result} for m in story.models],
        "refused_on": story.ground,
        "retained": [_retained(kept) for kept in story.retained],
    }
    if dialect.groups:
        told["distribution_status"] = [_distributed(model, knobs["domain"]) for model in story.models]
    return told


def _retained(kept: Retained) -> Document:
    return {"ground": kept.ground, "models": list(kept.models or ()) or None, "data_class": kept.data_class}


def _distributed(model: ModelStory, domain: str) -> Document:
    failed = "failed" if model.state == "failed" else "pending"
    return {
        "domain": domain,
        "name": model.model,
        "status": _SENT.get(model.result or "", failed),
        "status_message": model.result or model.state,
    }


def receipt(_: Sent, story: Story) -> Document:
    """The answer to a demand, less ``encoded_request``, which only whoever has the bytes can add."""
    return {
        "controller_id": story.controller_id,
        "subject_request_id": story.external_id,
        "received_time": instant(story.received_at),
        "expected_completion_time": instant(story.deadline),
    }


def cancellation(dialect: Dialect, story: Story, received_time: str) -> Document:
    """The answer to DELETE."""
    told: Document = {
        "controller_id": story.controller_id,
        "subject_request_id": story.external_id,
        "received_time": received_time,
        "api_version": dialect.version,
    }
    return told | {"expected_completion_time": None} if dialect.groups else told


def discovery(dialect: Dialect, domain: str) -> Document:
    """What we can do, and where our certificate is: on the domain that it is made out to."""
    return {
        "api_version": dialect.version,
        "supported_identities": [{"identity_type": IDENTITY, "identity_format": FORMAT}],
        "supported_subject_request_types": [REQUEST_TYPE],
        "processor_certificate": f"https://{domain}{dialect.prefix}/certificate.pem",
    }


def written(told: Document | list[Document]) -> bytes:
    """The bytes that are sent, and signed."""
    return json.dumps(told, separators=(",", ":"), ensure_ascii=True).encode()


def _portal(dialect: Dialect) -> Portal:
    def tell(story: Story, callback: Callback, knobs: Knobs) -> Message:
        told = status(dialect, story, knobs) | {"status_callback_url": callback.url}
        return Message(content=written(told), signed_as=dialect.signed_as)

    def refuse(refusal: Refusal) -> tuple[int, Document]:
        # §7.5 knows 400 alone; mParticle, whose clients there are, answers these as they are.
        code = 400 if refusal.status in {409, 415, 422} else refusal.status
        error: Document = {"code": code, "message": refusal.message}
        if refusal.fields:
            error["errors"] = [
                {"domain": "Validation", "reason": field, "message": problem} for field, problem in refusal.fields
            ]
        return code, error if dialect.version == "3.0" else {"error": error}

    return Portal(
        name=NAME,
        version=dialect.version,
        prefix=dialect.prefix,
        read=read,
        answer=receipt,
        tell=tell,
        knobs={"domain": "opendsr_domain", "zone": "time_zone"},
        refuse=refuse,
    )


PORTALS = tuple(map(_portal, DIALECTS))
