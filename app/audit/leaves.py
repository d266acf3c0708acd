"""From a row of the outbox to a leaf of the log, and to the sealed record that opens its commitment."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import datetime
from secrets import token_hex
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from expunge_verify import leaf as leaves
from sqlalchemy import Row

from app import keyring

Json = dict[str, Any]  # Any: JSON
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Pen:
    """What a leaf needs besides its row: the log's name, the zone that days are counted in, and the wrapping key."""

    origin: str
    zone: ZoneInfo
    wrapping_key: bytes


class Writer:
    """Writes the leaves of one batch; makes an evidence key for each request it meets for the first time."""

    def __init__(self, pen: Pen) -> None:
        self._pen = pen
        self.fresh_keys: dict[UUID, bytes] = {}
        """Wrapped keys to be stored with the batch, by request."""
        self._keys: dict[UUID, bytes] = {}

    def write(self, row: Row[Any]) -> tuple[bytes, bytes | None]:  # Any: a row of storage.audit.pending
        """The leaf's bytes, and the sealed record if the leaf commits to one.

        Raises:
            expunge_verify.leaf.BadLeaf: The row does not make a leaf that the schema allows.
        """
        said: Json = {
            "v": leaves.VERSION,
            "log": self._pen.origin,
            "type": row.type,
            "nonce": token_hex(16),
            "day": self._day(row.at),
            **self._public(row.fields),
        }
        if row.ref is not None:
            said["ref"] = row.ref
        shape = leaves.SCHEMA.get(row.type)
        if shape is None or "commit" not in shape.kinds:
            return _encoded(said), None
        salt, record = os.urandom(leaves.SALT_BYTES), _CANONICAL.encode(_record(row))
        entry = _encoded({**said, "commit": leaves.commitment_to(salt, record.encode())})
        opening = f'{{"salt":"{salt.hex()}","record":{record}}}'.encode()
        return entry, keyring.seal(self._key(row), opening, context=b"evidence")

    def _public(self, fields: Json) -> Json:
        """What the log says of an entry's fields: days instead of moments."""
        if "due" not in fields:
            return fields
        return {**fields, "due": self._day(datetime.fromisoformat(fields["due"]))}

    def _day(self, moment: datetime) -> str:
        return moment.astimezone(self._pen.zone).date().isoformat()

    def _key(self, row: Row[Any]) -> bytes:  # Any: as above
        if row.request_id is None:
            return self._pen.wrapping_key
        if row.request_id not in self._keys:
            if row.wrapped is None:
                key = keyring.new_key()
                self.fresh_keys[row.request_id] = keyring.wrap(self._pen.wrapping_key, key)
            else:
                key = keyring.unwrap(self._pen.wrapping_key, row.wrapped)
            self._keys[row.request_id] = key
        return self._keys[row.request_id]


def opened(wrapping_key: bytes, wrapped: bytes | None, sealed: bytes) -> Json:
    """The salt and the record behind a commitment; ``wrapped`` is the request's evidence key, none for a model's."""
    key = keyring.unwrap(wrapping_key, wrapped) if wrapped is not None else wrapping_key
    found: Json = json.loads(keyring.unseal(key, sealed, context=b"evidence"))
    return found


def _encoded(said: Json) -> bytes:
    """The leaf's bytes, written by the standard library, which is three times as fast as the verifier's way.

    No string that the schema lets pass needs an escape, so they are the same bytes (a test compares).
    """
    leaves.check(said)
    entry = _CANONICAL.encode(said).encode("ascii")
    if len(entry) > leaves.MOST_BYTES:
        raise leaves.BadLeaf("", f"the leaf has {len(entry)} bytes; at most {leaves.MOST_BYTES} are read")
    return entry


def _record(row: Row[Any]) -> Json:  # Any: as above
    """What the private record says: the exact time and our own ids; never who."""
    about = {"request": row.request_id, "job": row.job_id}
    return {
        "type": row.type,
        "at": row.at.isoformat(),
        **{name: str(value) for name, value in about.items() if value is not None},
        **row.fields,
    }
