"""Fides' policy webhook: before its own work Fides waits (``halt``) until we resume it with the token that came along.

Norm: ethyca/fides, docs "Configure Policy Webhooks" and PrivacyRequest.trigger_policy_webhook. The header ``reply-to``
is a path on the Fides server; a whole URL is accepted only if it is on that server, since its token goes there.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from app.domain.portals import reading
from app.domain.portals.base import Asked, Callback, Document, Hears, Knobs, Message, Portal, Sent, Story
from app.errors import Invalid

NAME, VERSION = "fides", "1"
ERASURE = "erasure"
_TOKEN = re.compile(r"[\x21-\x7e]{1,8000}")
_PATH = re.compile(r"/[A-Za-z0-9_~./-]{1,500}")


def is_ours(document: Document) -> bool:
    """Whether the policy erases at all; access and consent are none of our business.

    Raises:
        Invalid: The policy does not say what it does.
    """
    return reading.text(document, "policy_action") == ERASURE


def read(sent: Sent) -> Asked:
    """Read a call of a policy webhook.

    Raises:
        Invalid: Names the field or header.
    """
    body = sent.document
    ticket = reading.label(body, "privacy_request_id")
    identity = reading.obj(body, "identity") or reading.obj(body, "identities")
    return Asked(
        external_id=ticket,
        user_id=_person(identity, sent.knobs["identity"]),
        reference=ticket,
        callbacks=[_resume(sent)] if _waits(body) else [],
    )


def _person(identity: Document, name: str) -> str:
    found = identity.get(name)
    if isinstance(found, dict):  # a custom identity: {"label": …, "value": …}
        found = found.get("value")
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    if not isinstance(found, str) or not found:
        raise Invalid("identity", f"the identity {name} is required: it is where training data know the person by")
    return found


def _waits(body: Document) -> bool:
    """Only a webhook that comes before the execution and listens to the answer can make Fides wait."""
    return body.get("direction") == "two_way" and body.get("callback_type") == "pre"


def _resume(sent: Sent) -> Callback:
    token = sent.headers.get("reply-to-token", "")
    if not _TOKEN.fullmatch(token):
        raise Invalid("reply-to-token", "a two_way webhook before execution comes with the header reply-to-token")
    url = _on_our_fides(sent.headers.get("reply-to", ""), sent.knobs["url"])
    return Callback(url=url, hears=Hears.THE_END, headers={"authorization": f"Bearer {token}"})


def _on_our_fides(reply_to: str, base: str) -> str:
    """Where to resume: a path below the configured base, or a URL on its host.

    >>> _on_our_fides("/privacy-request/pri_1/resume", "https://fides.example/api/v1")
    'https://fides.example/api/v1/privacy-request/pri_1/resume'
    """
    if not base:
        raise Invalid("reply-to", "set EXPUNGE_FIDES_URL to where Fides may be resumed, or make the webhook one_way")
    root = base.rstrip("/")
    server = "{0.scheme}://{0.netloc}".format(urlsplit(root))
    path = reply_to.removeprefix(server) if reply_to.startswith(f"{server}/") else reply_to
    if not _PATH.fullmatch(path) or path.startswith("//") or ".." in path:
        raise Invalid("reply-to", "reply-to is not on the server that EXPUNGE_FIDES_URL names")
    prefix = urlsplit(root).path
    return server + path if reply_to.startswith(server) or (prefix and path.startswith(f"{prefix}/")) else root + path


def answer(sent: Sent, _: Story) -> Document:
    """Whether Fides has to wait for us."""
    return {"halt": _waits(sent.document)}


def tell(_: Story, callback: Callback, __: Knobs) -> Message:
    """Resume; Fides has no word for how it went."""
    return Message(content=b"{}", headers=callback.headers)


PORTALS = (
    Portal(
        name=NAME,
        version=VERSION,
        prefix="/portals/fides",
        read=read,
        answer=answer,
        tell=tell,
        knobs={"identity": "fides_identity", "url": "fides_url"},
    ),
)
