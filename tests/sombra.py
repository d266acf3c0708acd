"""Transcend's gateway: tokens made by hand, so that they owe nothing to the library that reads them."""

from __future__ import annotations

import base64
import json
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature


def part(content: Any) -> bytes:
    """One part of a token."""
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=")


def es384(key: ec.EllipticCurvePrivateKey, claims: Any, header: dict[str, Any] | None = None) -> str:
    """A signed token."""
    signed = part(header or {"alg": "ES384", "typ": "JWT"}) + b"." + part(claims)
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA384())))
    return (signed + b"." + base64.urlsafe_b64encode(r.to_bytes(48) + s.to_bytes(48)).rstrip(b"=")).decode()
