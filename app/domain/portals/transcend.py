"""Transcend's server webhook: one call per identifier, proven by a token of Sombra; completion is a PUT with its nonce.

Norm: docs.transcend.io/docs/api-reference, webhook/new-privacy-request-job and PUT/v1/data-silo. The nonce names the
job and the profile, so the PUT repeats no identifier (Sombra 7.199 and newer): at the end we have none to repeat.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from app.domain.lifecycle import RequestStatus
from app.domain.portals import reading
from app.domain.portals.base import Asked, Callback, Document, Hears, Knobs, Message, Portal, Sent, Story
from app.errors import Invalid

NAME, VERSION = "transcend", "1"
NONCE = "x-transcend-nonce"
_NONCE = re.compile(r"[\x21-\x7e]{1,8000}")
_REQUEST = re.compile(r"[0-9A-Za-z-]{1,64}")
_NOT_DONE: Mapping[RequestStatus, str] = {
    RequestStatus.REJECTED: "SKIPPED_DUE_TO_EXCEPTION",
    RequestStatus.CANCELLED: "SKIPPED",
}


def read(sent: Sent) -> Asked:
    """Read an ERASURE job. ``knobs`` bring what the token vouches for as ``value``, and a keyed hash of the nonce.

    Raises:
        Invalid: Names the field; also if the body names another person than the token.
    """
    body = sent.document
    if body.get("type") != "ERASURE":
        raise Invalid("type", "only jobs of the type ERASURE are supported here")
    core = reading.text(reading.obj(body, "coreIdentifier"), "value")
    if core != sent.knobs["value"]:
        raise Invalid("coreIdentifier", "the coreIdentifier is not the one that the x-sombra-token vouches for")
    extras = reading.obj(body, "extras")
    profile = sent.knobs["identity"] == "profile"
    user_id = reading.text(reading.obj(extras, "profile"), "identifier") if profile else core
    return Asked(
        external_id=sent.knobs["job"],
        user_id=user_id,
        reference=_request(reading.obj(extras, "request")),
        callbacks=[
            Callback(
                url=f"{sent.knobs['url'].rstrip('/')}/v1/data-silo",
                hears=Hears.THE_END,
                headers={NONCE: nonce(sent.headers)},
            )
        ],
    )


def nonce(headers: Mapping[str, str]) -> str:
    """The job's nonce.

    Raises:
        Invalid: It is absent or not a header's value.
    """
    found = headers.get(NONCE, "")
    if not _NONCE.fullmatch(found):
        raise Invalid(NONCE, f"the header {NONCE} is required")
    return found


def _request(request: Document) -> str | None:
    """Transcend's own number of the request, from its id or the end of its link."""
    link = request.get("link")
    for found in (request.get("id"), link.rstrip("/").rpartition("/")[2] if isinstance(link, str) else None):
        if isinstance(found, str) and _REQUEST.fullmatch(found):
            return found
    return None


def answer(_: Sent, __: Story) -> Document:
    """Nothing: Transcend looks at the status code alone."""
    return {}


def tell(story: Story, callback: Callback, knobs: Knobs) -> Message:
    """The PUT that resolves the job; a refusal is not reported as done."""
    headers = {**callback.headers, "authorization": f"Bearer {knobs['api_key']}"}
    if knobs["sombra_key"]:
        headers["x-sombra-authorization"] = f"Bearer {knobs['sombra_key']}"
    content = json.dumps({"status": _NOT_DONE.get(story.state, "READY")}).encode()
    return Message(method="PUT", content=content, headers=headers)


_KNOBS = {
    "identity": "transcend_identity",
    "url": "transcend_url",
    "api_key": "transcend_api_key",
    "sombra_key": "transcend_sombra_key",
}
PORTALS = (
    Portal(
        name=NAME,
        version=VERSION,
        prefix="/portals/transcend",
        read=read,
        answer=answer,
        tell=tell,
        knobs=_KNOBS,
    ),
)
