"""An Idempotency-Key stands for one body and one answer.

Keys and bodies are kept as keyed digests: worthless to whoever lacks either our key or the caller's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.orm import Session

from app import keyring
from app.errors import Conflict, Invalid
from app.settings import Settings
from app.storage import bindings
from app.storage.bindings import Place


@dataclass(frozen=True, slots=True)
class Bound:
    """A key as we know it, with the body that it came with."""

    place: Place
    body_digest: bytes


def bound(index_key: bytes, client_id: UUID, key: str, *body: bytes, kind: bytes = b"body") -> Bound:
    """What a client's key and the body that it came with are known by; bodies of two kinds are never the same."""
    place = client_id, keyring.fingerprint(index_key, b"idempotency", client_id.bytes, key.encode())
    return Bound(place, keyring.fingerprint(index_key, kind, key.encode(), *body))


def other_body() -> Invalid:
    """What a caller is told whose key has stood for something else."""
    return Invalid("Idempotency-Key", "this key was used for another body; use a new key for a new demand")


def once(
    tx: Session, key: str | None, content: bytes, answer: Callable[[], str], *, client_id: UUID, settings: Settings
) -> str:
    """The answer, as JSON, or what the same key and bytes were answered with before.

    Raises:
        Invalid: The key was used for another body.
        Conflict: Somebody else used it at this moment.
    """
    if key is None:
        return answer()
    asked = bound(settings.key("index_key"), client_id, key, content, kind=b"bodies")
    earlier = bindings.answers(tx, [asked.place]).get(asked.place)
    if earlier is None:
        told = answer()
        if not bindings.bind_batch(tx, asked.place, body_digest=asked.body_digest, told=told):
            raise Conflict("a call with this Idempotency-Key has just been answered; send it again")
        return told
    if earlier.body_digest != asked.body_digest or earlier.told is None:
        raise other_body()
    return json.dumps(earlier.told)
