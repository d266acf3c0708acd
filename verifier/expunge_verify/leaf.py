"""What may stand in the log: one closed schema per type of leaf, and the one way to write each leaf down.

A leaf is a JSON object in canonical form (RFC 8785) of less than 2048 bytes. No field can hold a name, an address or
free text: what is not a fixed word is a random number, a digest, a day, or the name of the log itself. Whoever may
know more gets a record, and opens the leaf's commitment to it with a salt that the service destroys.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, partial
from typing import Any, Final

import rfc8785

from expunge_verify.errors import Bad, shown

Leaf = dict[str, Any]  # Any: JSON

VERSION: Final = 1
MOST_BYTES: Final = 2047
SALT_BYTES: Final = 32
LARGEST: Final = 2**53 - 1
"""RFC 8785: what every JSON reader in the world reads as the same integer."""

CHANGING_METHODS: Final = ("influence-projection/1", "influence-newton/1", "renewal/1", "retrain/1")
ALREADY_FORGOTTEN: Final = "already-forgotten/1"
NO_DATA: Final = "no-data/1"
METHODS: Final = (*CHANGING_METHODS, ALREADY_FORGOTTEN, NO_DATA)
LEVELS: Final = ("A0", "A1", "A2", "none")
"""From the strongest claim (trained again without the person) to none at all."""
OUTCOMES: Final = ("completed", "no_data", "withdrawn", "refused", "partial")

_HEX = "[0-9a-f]"
# A host name, an optional port, a path. No dotted quad anywhere, so an address of a machine at somebody's home is none.
_ORIGIN = (
    r"(?![^+]*[0-9]\.[0-9]+\.[0-9]+\.[0-9])(?:[A-Za-z0-9-]+\.)*[A-Za-z][A-Za-z0-9-]*(?::[0-9]{1,5})?"
    r"(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*"
)
_TEXTS: Final = {
    "origin": rf"(?=.{{1,200}}\Z){_ORIGIN}",
    "vkey": rf"(?=.{{1,300}}\Z){_ORIGIN}\+{_HEX}{{8}}\+[A-Za-z0-9+/]+={{0,2}}",
    "random": f"{_HEX}{{32}}",
    "commitment": f"{_HEX}{{64}}",
    "digest": f"sha256:{_HEX}{{64}}",
    "day": "[0-9]{4}-[0-9]{2}-[0-9]{2}",
    "method": "|".join(re.escape(word) for word in METHODS),
    "level": "|".join(LEVELS),
    "passed": "|".join(LEVELS[:-1]),
    "outcome": "|".join(OUTCOMES),
}
_MODELS: Final = {
    "change": ({"from", "to"}, {"from", "to"}),
    "move": ({"from", "to"}, {"from", "to"}),
    "change-or-first": ({"to"}, {"from", "to"}),
    "new": ({"to"}, {"to"}),
    "old": ({"from"}, {"from"}),
}
"""Kind of a model field → its obligatory keys, its possible keys; the values are digests of weights.

A ``change`` leads to other weights. A rollback is a ``move``: the version that it leaves may have had the same.
"""

_EVERY = {"v": "version", "log": "origin", "type": "type", "nonce": "random", "day": "day"}
_REF = {"ref": "random"}
_COMMIT = {"commit": "commitment"}
_REQUEST = {**_REF, **_COMMIT}
_DUE = {**_REQUEST, "due": "day"}
_CHANGE = {**_COMMIT, "model": "change"}


@dataclass(frozen=True)
class Shape:
    """The fields of one type of leaf by the kind of their value; ``optional`` names those that may be missing."""

    kinds: Mapping[str, str]
    optional: frozenset[str] = frozenset()

    @property
    def required(self) -> frozenset[str]:
        """Every field that must be there."""
        return frozenset(self.kinds) - self.optional


SCHEMA: Final[Mapping[str, Shape]] = {
    "log.opened": Shape({**_EVERY, "vkey": "vkey", "schema": "digest"}),
    "log.key_rotated": Shape({**_EVERY, "vkey": "vkey"}),
    "request.received": Shape({**_EVERY, **_DUE}),
    "request.identity_confirmed": Shape({**_EVERY, **_DUE}, optional=frozenset({"due"})),
    "request.extended": Shape({**_EVERY, **_DUE}),
    "request.refused": Shape({**_EVERY, **_REQUEST}),
    "request.withdrawn": Shape({**_EVERY, **_REQUEST}),
    "request.reopened": Shape({**_EVERY, **_DUE}),
    "erasure.started": Shape({**_EVERY, **_REQUEST}),
    "erasure.done": Shape(
        {**_EVERY, **_REQUEST, "model": "change-or-first", "method": "method", "level": "level"},
    ),
    "model.registered": Shape({**_EVERY, **_COMMIT, "model": "new"}),
    "unlearn.done": Shape({**_EVERY, **_CHANGE, "method": "method"}),
    "verify.passed": Shape({**_EVERY, **_CHANGE, "level": "passed"}),
    "verify.failed": Shape({**_EVERY, **_CHANGE}),
    "model.promoted": Shape({**_EVERY, **_CHANGE}),
    "model.retired": Shape({**_EVERY, **_COMMIT, "model": "old"}),
    "model.rolled_back": Shape({**_EVERY, **_COMMIT, "model": "move"}),
    "key.shredded": Shape({**_EVERY, **_REF}),
    "key.backup_expired": Shape({**_EVERY, **_REF}),
    "certificate.issued": Shape({**_EVERY, **_REF, "cert": "digest"}),
    "recipients.notified": Shape({**_EVERY, **_REQUEST}),
    "request.closed": Shape(
        {**_EVERY, **_REQUEST, "outcome": "outcome", "in_time": "bool", "cert": "digest"},
        optional=frozenset({"cert"}),
    ),
    "config.changed": Shape({**_EVERY, **_COMMIT}),
    "retention.pruned": Shape({**_EVERY, "before": "positive"}),
}


class BadLeaf(Bad):
    """An entry that the schema has no place for; ``field`` names where, and is empty if it is the whole of it."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(sentence)
        self.field = field


def encode(leaf: Mapping[str, object]) -> bytes:
    """The bytes of a leaf as they stand in the log.

    Raises:
        BadLeaf: The schema does not allow it.
    """
    check(leaf)
    raw = rfc8785.dumps(_plain(leaf))
    _check_length(raw)
    return raw


def decode(raw: bytes) -> Leaf:
    """The leaf that an entry of the log holds.

    Raises:
        BadLeaf: It is not JSON, not what the schema allows, or not written in the one canonical way.
    """
    _check_length(raw)
    try:
        leaf = json.loads(raw.decode("ascii"))
    except (ValueError, RecursionError):  # ValueError: not ASCII, not JSON, or an integer of thousands of digits
        raise BadLeaf("", f"the entry {shown(raw)} is no JSON in ASCII") from None
    if not isinstance(leaf, dict):
        raise BadLeaf("", f"the entry {shown(raw)} is no JSON object")
    check(leaf)
    # Sees every other spelling: a key twice, another order, a space, an escape, 1.0 for 1. The standard library writes
    # leaves as RFC 8785 does, because no string that passed the schema needs an escape; and eight times as fast.
    if _CANONICAL.encode(leaf).encode() != raw:
        raise BadLeaf("", f"the entry {shown(raw)} is not written in canonical form (RFC 8785)")
    return leaf


def check(leaf: Mapping[str, object]) -> None:
    """Let pass what the schema allows, whatever its order.

    Raises:
        BadLeaf: Names the first field that is missing, unknown or wrong.
    """
    kind = leaf.get("type")
    shape = SCHEMA.get(kind) if isinstance(kind, str) else None
    if shape is None:
        raise BadLeaf("type", f"there is no type of leaf {_said(kind)}")
    for name in leaf:
        if name not in shape.kinds:
            raise BadLeaf(str(name), f"{kind} has no field {shown(name)}")
    for name, wanted in shape.kinds.items():
        if name in leaf:
            if not _FITS[wanted](leaf[name]):
                raise BadLeaf(name, f"{_said(leaf[name])} is no value for the field {name} of {kind}")
        elif name not in shape.optional:
            raise BadLeaf(name, f"{kind} needs the field {name}")


def commitment(salt: bytes, record: object) -> str:
    """What stands in a leaf for a record that does not: HMAC-SHA256 with a salt that can be destroyed.

    Args:
        salt: 32 random bytes, of this record alone. Without them nothing can be opened or guessed.
        record: Anything that JSON can say.

    Raises:
        Bad: The salt has another length, or the record has no canonical form.
    """
    try:
        canonical = rfc8785.dumps(record)  # type: ignore[arg-type] # it refuses what is no JSON
    except (ValueError, RecursionError) as error:
        raise Bad(f"the record has no canonical form ({type(error).__name__})") from None
    return commitment_to(salt, canonical)


def commitment_to(salt: bytes, canonical: bytes) -> str:
    """The commitment to a record that is in canonical form already.

    Raises:
        Bad: The salt has another length.
    """
    if len(salt) != SALT_BYTES:
        raise Bad(f"a salt has {SALT_BYTES} bytes, this one {len(salt)}")
    return hmac.digest(salt, b"erasure-detail/v1\0" + canonical, "sha256").hex()


def _said(value: object) -> str:
    """Text is quoted; of all else the type is enough, and what is nested a thousand deep cannot be printed."""
    return shown(value) if isinstance(value, str) else f"a value of type {type(value).__name__}"


def _check_length(raw: bytes) -> None:
    if len(raw) > MOST_BYTES:
        raise BadLeaf("", f"the entry has {len(raw)} bytes; a leaf has at most {MOST_BYTES}")


def _plain(leaf: Mapping[str, object]) -> Leaf:
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in leaf.items()}


def _is_text(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def is_origin(value: object) -> bool:
    """Whether a log may bear this name: a host and a path, no scheme, no bare address."""
    return isinstance(value, str) and _names_a_log(value)


@lru_cache(maxsize=64)  # one log has one origin
def _names_a_log(text: str) -> bool:
    return _PATTERNS["origin"].fullmatch(text) is not None


def _is_day(value: object) -> bool:
    return isinstance(value, str) and _exists(value)


@lru_cache(maxsize=1024)
def _exists(day: str) -> bool:
    if not _PATTERNS["day"].fullmatch(day):
        return False
    try:
        date.fromisoformat(day)
    except ValueError:
        return False
    return True


def _is_model(kind: str, value: object) -> bool:
    required, allowed = _MODELS[kind]
    if not isinstance(value, Mapping) or not required <= value.keys() <= allowed:
        return False
    if kind == "change" and value["from"] == value["to"]:
        return False
    return all(_is_text(_PATTERNS["digest"], weights) for weights in value.values())


def _is_integer(least: int, most: int, value: object) -> bool:
    return type(value) is int and least <= value <= most  # True is an int, too, and 1.0 equals 1


_CANONICAL: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
_PATTERNS: Final = {kind: re.compile(text) for kind, text in _TEXTS.items()}
_FITS: Final[Mapping[str, Callable[[object], bool]]] = {
    **{kind: partial(_is_text, pattern) for kind, pattern in _PATTERNS.items()},
    **{kind: partial(_is_model, kind) for kind in _MODELS},
    "day": _is_day,
    "origin": is_origin,
    "version": partial(_is_integer, VERSION, VERSION),
    "positive": partial(_is_integer, 1, LARGEST),
    "bool": lambda value: isinstance(value, bool),
    "type": lambda _: True,  # it has chosen the shape
}


def _described() -> bytes:
    """The schema in canonical form: two programs agree on what a leaf is if they agree on these bytes."""
    types = {
        name: {field: f"{kind}?" if field in shape.optional else kind for field, kind in shape.kinds.items()}
        for name, shape in SCHEMA.items()
    }
    models = {kind: [sorted(required), sorted(allowed)] for kind, (required, allowed) in _MODELS.items()}
    said = {
        "v": VERSION,
        "most_bytes": MOST_BYTES,
        "texts": _TEXTS,
        "models": models,
        "differ": ["change"],
        "types": types,
    }
    return rfc8785.dumps(said)  # type: ignore[arg-type] # dict is invariant


SCHEMA_DIGEST: Final = f"sha256:{hashlib.sha256(_described()).hexdigest()}"
"""What ``log.opened`` says about the schema that its log follows."""

EARLIER_SCHEMAS: Final = frozenset({"sha256:46b7cd5cc1c69d96a89e9436a1627cebcc7cf9228297ef77d07d71fe7cfb9dc4"})
"""Schemas that this one has only added to, so that a log opened under them is read all the same.

The first one had no ``due`` in ``request.identity_confirmed``, which no log had held before."""
