"""Receipts: what the log's commitments hide, opened for the one whom it is about.

    {"v":1, "origin":"…", "entries":[{"leaf":{…}, "salt":"64 hex", "record":{…}, "proof":"the text of a proof file"}]}

Only a receipt links a person with entries of the log, so it belongs to that person and to nobody else. Entries of
types without a commitment stand in it without salt and record. All entries are of one request, in the order of the
log, and where a record says what its leaf says, too, both say the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from expunge_verify import dsse, leaf
from expunge_verify import proof as proofs
from expunge_verify.errors import Bad, shown
from expunge_verify.policy import Policy

VERSION: Final = 1
MOST_BYTES: Final = 1 << 24
MOST_ENTRIES: Final = 1000

_SAID_TWICE: Final = ("type", "method", "level", "outcome", "in_time", "cert", "model")
_SALT = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Opened:
    """One entry of a receipt to be written: its leaf, what opens the commitment if it has one, and its proof file."""

    leaf: Mapping[str, object]
    proof: bytes
    salt: bytes | None = None
    record: object = None

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """As it stands in the receipt."""
        opening = {"salt": self.salt.hex(), "record": self.record} if self.salt else {}
        return {"leaf": dict(self.leaf), **opening, "proof": self.proof.decode()}


def format(origin: str, entries: Iterable[Opened]) -> bytes:  # noqa: A001 # as proof.format: reads like the pair of check
    """The receipt over these entries of a log."""
    said = {"v": VERSION, "origin": origin, "entries": [entry.as_json() for entry in entries]}
    return json.dumps(said, indent=1, ensure_ascii=False, allow_nan=False).encode()


def check_receipt(raw: bytes, policy: Policy) -> list[str]:
    """Check that every entry stands in the log and that its record is the one committed to; a sentence for each.

    Raises:
        Bad: The receipt is malformed, tells of two requests or one entry twice, or an entry is not in the log, of
            another log, or hides another record.
        Unchecked: The policy has no key of a log.
    """
    origin, entries = _read(dsse.strict_json(raw, MOST_BYTES))
    facts: dict[str, None] = {}  # in order; most entries rest on the same checkpoint, which is said once
    last, ref = -1, None
    for number, entry in enumerate(entries):
        try:
            said, found = _check_entry(entry, origin, policy)
            ref = ref or said["ref"]
            facts |= dict.fromkeys((f"the receipt is about request {ref}", *found.facts))
            _need(said["ref"] == ref, f"it is about request {said['ref']}, the receipt about {ref}")
            _need(found.index > last, f"entry {found.index} stands behind entry {last}, not in the order of the log")
        except Bad as error:
            raise Bad(f"number {number} of the receipt: {error}") from None
        last = found.index
    return list(facts)


@dataclass(frozen=True)
class _Found:
    """Where the log has an entry, and what was found about it, a sentence each."""

    index: int
    facts: tuple[str, ...]


def _need(holds: bool, sentence: str) -> None:  # noqa: FBT001 # as assert
    if not holds:
        raise Bad(sentence)


def _read(receipt: Any) -> tuple[str, list[Any]]:  # Any: JSON
    match receipt:
        case {"v": int(version), "origin": str(origin), "entries": [_, *_] as entries} if len(receipt) == 3:
            pass
        case _:
            raise Bad("this is no receipt: it needs v, origin and at least one of entries, and nothing else")
    if isinstance(version, bool) or version != VERSION:
        raise Bad(f"the receipt is not of version {VERSION}")
    if len(entries) > MOST_ENTRIES:
        raise Bad(f"the receipt has {len(entries)} entries; at most {MOST_ENTRIES} are read")
    return origin, entries


def _check_entry(entry: Any, origin: str, policy: Policy) -> tuple[leaf.Leaf, _Found]:  # Any: JSON
    match entry:
        case {"leaf": dict(said), "proof": str(text)} if len(entry) == 2 + 2 * ("commit" in said):
            raw = leaf.encode(said)
        case _:
            raise Bad("an entry has leaf and proof and, if the leaf has a commitment, salt and record; nothing else")
    if said["log"] != origin:
        raise Bad(f"the leaf is of log {shown(said['log'])}, the receipt of {shown(origin)}")
    if "ref" not in said:
        raise Bad(f"{said['type']} is about no request")
    read = proofs.parse(text.encode())
    if read.extra not in (None, raw):
        raise Bad("the extra data of the proof is not the leaf")
    facts = proofs.check(raw, read, policy)
    if "commit" in said:
        _check_opening(entry, said)
    what = "opens to its record" if "commit" in said else "hides nothing"
    return said, _Found(read.index, (*facts, f"entry {read.index}, {said['type']} on {said['day']}, {what}"))


def _check_opening(entry: Mapping[str, object], said: leaf.Leaf) -> None:
    match entry:
        case {"salt": str(salt), "record": dict(record)} if _SALT.fullmatch(salt):
            found = leaf.commitment(bytes.fromhex(salt), record)
        case _:
            raise Bad("the entry needs a salt of 64 hex digits and a record")
    if found != said["commit"]:
        raise Bad("the record is not the one that the leaf commits to")
    for name in _SAID_TWICE:
        if name in said and (name == "type" or name in record) and record.get(name) != said[name]:
            raise Bad(f"the record has {name} {shown(record.get(name))}, its leaf {shown(said[name])}")
