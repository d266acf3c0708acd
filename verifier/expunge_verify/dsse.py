"""DSSE envelopes with Ed25519, and JSON that can be read in one way only.

Source: secure-systems-lab/dsse, envelope and protocol v1. Narrower than it allows: an envelope has no fields but the
specified ones, base64 is the canonical standard one, and a signature that names another key is not tried. So one
changed bit anywhere in an envelope is refused, in the unsigned parts, too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from expunge_verify.errors import Bad, shown
from expunge_verify.notes import unbase64

IN_TOTO: Final = "application/vnd.in-toto+json"
MOST_BYTES: Final = 1 << 20
MOST_DEPTH: Final = 32
MOST_PARTS: Final = 1 << 18  # 64 MiB once read; 16 MiB of "[]," would become a gigabyte
MOST_SIGNATURES: Final = 16


def pae(payload_type: str, body: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed names its own type and lengths.

    >>> pae("http://example.com/HelloWorld", b"hello world")
    b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(body), body)


def sign(seed: bytes, payload_type: str, body: bytes) -> dict[str, Any]:  # Any: JSON
    """An envelope around ``body``, signed with the Ed25519 key of the 32-byte ``seed``."""
    key = Ed25519PrivateKey.from_private_bytes(seed)
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    signature = {"keyid": key_id(public), "sig": _b64(key.sign(pae(payload_type, body)))}
    return {"payloadType": payload_type, "payload": _b64(body), "signatures": [signature]}


def key_id(public_key: bytes) -> str:
    """A short name of a public key, to find it by; nothing is proven by it."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def open_envelope(raw: bytes | Mapping[str, object], public_key: bytes, payload_type: str) -> bytes:
    """The payload of an envelope, if ``public_key`` (32 bytes) signed it as ``payload_type``.

    Raises:
        Bad: It is no envelope, of another type, or no signature in it was made by this key over this content.
    """
    envelope = strict_json(raw, MOST_BYTES) if isinstance(raw, bytes) else raw
    kind, payload, signatures = _fields(envelope)
    if kind != payload_type:
        raise Bad(f"the envelope holds {shown(kind)}, not {shown(payload_type)}")
    message = pae(payload_type, payload)
    if not any(_signed(public_key, message, signature) for signature in signatures):
        raise Bad(f"none of the envelope's {len(signatures)} signatures was made by key {key_id(public_key)} over it")
    return payload


def strict_json(raw: bytes, max_bytes: int) -> Any:  # Any: JSON
    """What JSON says, refused wherever two readers could read it in two ways.

    Raises:
        Bad: Too long, of too many parts, not UTF-8, not JSON, a key twice, NaN or an infinity, half a surrogate pair,
            or nested deeper than 32.
    """
    if len(raw) > max_bytes:
        raise Bad(f"the JSON has {len(raw)} bytes; at most {max_bytes} are read")
    # Counted before it is read, and in texts, too: no more values than these begin.
    if sum(raw.count(mark) for mark in (b",", b":", b"[", b"{")) > MOST_PARTS:
        raise Bad(f"the JSON has more than {MOST_PARTS} parts")
    try:
        read = json.loads(
            raw.decode(), object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite_float
        )
    except RecursionError:
        raise Bad(f"the JSON is nested deeper than {MOST_DEPTH}") from None
    except ValueError as error:  # also UnicodeDecodeError, JSONDecodeError and integers of more than 4300 digits
        raise Bad(f"this is no JSON in UTF-8 ({type(error).__name__})") from None
    for text in _texts(read):
        _whole(text)
    return read


def _fields(envelope: object) -> tuple[str, bytes, list[tuple[str, bytes]]]:
    """Type, payload, and pairs of key id and signature."""
    match envelope:
        case {"payloadType": str(kind), "payload": str(payload), "signatures": [*signatures], **rest} if not rest:
            pass
        case _:
            raise Bad("this is no DSSE envelope: it needs payloadType, payload and signatures, and nothing else")
    if not 1 <= len(signatures) <= MOST_SIGNATURES:
        raise Bad(f"the envelope has {len(signatures)} signatures; 1 to {MOST_SIGNATURES} are read")
    return kind, unbase64(payload), [_signature(signature) for signature in signatures]


def _signature(signature: object) -> tuple[str, bytes]:
    match signature:
        case {"sig": str(sig), "keyid": str(name), **rest} if not rest:
            return name, unbase64(sig)
        case {"sig": str(sig), **rest} if not rest:
            return "", unbase64(sig)
        case _:
            raise Bad("a signature of the envelope is not made of sig and an optional keyid")


def _signed(key: bytes, message: bytes, signature: tuple[str, bytes]) -> bool:
    name, raw = signature
    if name not in ("", key_id(key)):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(raw, message)
    except (InvalidSignature, ValueError):  # ValueError: not 32 bytes, so no key at all
        return False
    return True


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # Any: JSON
    read = dict(pairs)
    if len(read) != len(pairs):
        raise Bad("a JSON object has a key twice")
    return read


def _no_constant(_name: str) -> object:
    raise Bad("JSON has no NaN and no infinity")


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise Bad("JSON has no NaN and no infinity")  # 1e999 is spelled like a number and read as one of them
    return number


def _texts(read: object) -> Iterator[str]:
    """Every string, keys too.

    Raises:
        Bad: Nested deeper than 32.
    """
    left = [(read, 1)]
    while left:
        value, depth = left.pop()
        if depth > MOST_DEPTH:
            raise Bad(f"the JSON is nested deeper than {MOST_DEPTH}")
        if isinstance(value, dict):
            left += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list):
            left += [(part, depth + 1) for part in value]
        elif isinstance(value, str):
            yield value


def _whole(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Bad("a JSON string holds half of a surrogate pair") from None


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
