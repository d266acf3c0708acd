"""The signed statement a request ends with: in-toto Statement v1 in a DSSE envelope, Ed25519.

Sources: in-toto attestation framework v1 (Statement), secure-systems-lab/dsse protocol v1 (PAE), NIST SP 800-88r2
§4.6 for the fields (per asset: method, technique, tool, verification).
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any, Final

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from expunge_verify import dsse
from expunge_verify.certificate import PREDICATE_TYPE, STATEMENT_TYPE
from expunge_verify.errors import VerifyError

from app.errors import Invalid

PAYLOAD_TYPE: Final = dsse.IN_TOTO
CAVEAT: Final = (
    "This states what was done and what tests with the error rates given here found. Statistical tests of one "
    "request can miss a remaining influence; copies outside the listed assets are not covered."
)
Json = dict[str, Any]  # Any: JSON
_MOST_BYTES: Final = 1 << 20


def statement(*, subjects: list[tuple[str, str]], predicate: Json) -> Json:
    """An in-toto Statement about models.

    Args:
        subjects: Pairs of model name and digest (``sha256:…``) of the weights now live.
        predicate: What was done; see the demo's certificate for its fields.
    """
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": sha256.removeprefix("sha256:")}} for name, sha256 in subjects],
        "predicateType": PREDICATE_TYPE,
        "predicate": {**predicate, "caveat": CAVEAT},
    }


def sign(seed: bytes, payload: Json) -> Json:
    """A DSSE envelope around ``payload``, signed with the Ed25519 key of the 32-byte ``seed``."""
    return dsse.sign(seed, PAYLOAD_TYPE, rfc8785.dumps(payload))


def verify(envelope: Json, public_key: bytes) -> Json:
    """The statement inside, if ``public_key`` (32 bytes) signed it.

    Raises:
        Invalid: The envelope is malformed, of another type, or the signature is not by this key.
    """
    try:
        payload: Json = dsse.strict_json(dsse.open_envelope(envelope, public_key, PAYLOAD_TYPE), _MOST_BYTES)
    except VerifyError as error:
        raise Invalid("certificate", str(error)) from None
    return payload


def payload(envelope: Json) -> Json:
    """The statement inside an envelope of our own; nothing is checked."""
    found: Json = json.loads(base64.b64decode(envelope["payload"]))
    return found


def digest(envelope: Json) -> str:
    """What the log calls a certificate: the SHA-256 of its payload."""
    return f"sha256:{hashlib.sha256(base64.b64decode(envelope['payload'])).hexdigest()}"


def public_key(seed: bytes) -> bytes:
    """The 32 public bytes that belong to a signing seed."""
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
