"""The signed statement a request ends with: in-toto Statement v1 in a DSSE envelope, Ed25519.

Sources: in-toto attestation framework v1 (Statement), secure-systems-lab/dsse protocol v1 (PAE), NIST SP 800-88r2
§4.6 for the fields (per asset: method, technique, tool, verification).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from app.errors import Invalid

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
PREDICATE_TYPE: Final = "https://expunge.dev/erasure-certificate/v1"
CAVEAT: Final = (
    "This states what was done and what tests with the error rates given here found. Statistical tests of one "
    "request can miss a remaining influence; copies outside the listed assets are not covered."
)
Json = dict[str, Any]  # Any: JSON


def statement(*, subjects: list[tuple[str, str]], predicate: Json) -> Json:
    """An in-toto Statement about models.

    Args:
        subjects: Pairs of model name and sha256 of the weights now live.
        predicate: What was done; see the demo's certificate for its fields.
    """
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in subjects],
        "predicateType": PREDICATE_TYPE,
        "predicate": {**predicate, "caveat": CAVEAT},
    }


def sign(seed: bytes, payload: Json) -> Json:
    """A DSSE envelope around ``payload``, signed with the Ed25519 key of the 32-byte ``seed``."""
    key = Ed25519PrivateKey.from_private_bytes(seed)
    body = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    signature = {"keyid": key_id(key.public_key()), "sig": _b64(key.sign(_pae(body)))}
    return {"payloadType": PAYLOAD_TYPE, "payload": _b64(body), "signatures": [signature]}


def verify(envelope: Json, public_key: bytes) -> Json:
    """The statement inside, if ``public_key`` (32 bytes) signed it.

    Raises:
        Invalid: The envelope is malformed, of another type, or the signature is not by this key.
    """
    try:
        body = base64.b64decode(envelope["payload"], validate=True)
        signatures = [base64.b64decode(s["sig"], validate=True) for s in envelope["signatures"]]
        right_type = envelope["payloadType"] == PAYLOAD_TYPE
    except (KeyError, TypeError, binascii.Error, ValueError):
        raise Invalid("certificate", "this is not a DSSE envelope") from None
    if not right_type or not any(_signed(public_key, body, signature) for signature in signatures):
        raise Invalid("certificate", "the signature was not made by this key over this content")
    payload: Json = json.loads(body)
    return payload


def public_key(seed: bytes) -> bytes:
    """The 32 public bytes that belong to a signing seed."""
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def key_id(key: Ed25519PublicKey) -> str:
    """A short name of a public key, to find it by; nothing is proven by it."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def _signed(key: bytes, body: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, _pae(body))
    except (InvalidSignature, ValueError):  # ValueError: not 32 bytes, so no key at all
        return False
    return True


def _pae(body: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed names its own type and lengths."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(body), body)


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
