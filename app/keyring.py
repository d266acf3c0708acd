"""Sealing: user ids under a key of their request, secrets under a key that PostgreSQL never sees.

Destroying a request's 32 wrapped bytes makes its user id unreadable wherever a copy of the row may lie.
"""

from __future__ import annotations

import hmac
import os

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap, aes_key_wrap

_NONCE = 12


def new_key() -> bytes:
    """A fresh 256-bit key."""
    return AESGCM.generate_key(256)


def wrap(wrapping_key: bytes, key: bytes) -> bytes:
    """``key`` as it may lie in the database (RFC 3394, 40 bytes)."""
    return aes_key_wrap(wrapping_key, key)


def unwrap(wrapping_key: bytes, wrapped: bytes) -> bytes:
    """The key back; ``InvalidUnwrap`` when the wrapping key is another."""
    return aes_key_unwrap(wrapping_key, wrapped)


def seal(key: bytes, plain: bytes, *, context: bytes) -> bytes:
    """AES-256-GCM with a random nonce in front; ``context`` must be shown again to open."""
    nonce = os.urandom(_NONCE)
    return nonce + AESGCM(key).encrypt(nonce, plain, context)


def unseal(key: bytes, sealed: bytes, *, context: bytes) -> bytes:
    """The plain bytes; ``InvalidTag`` when key, context or bytes differ.

    >>> key = new_key()
    >>> unseal(key, seal(key, b"u-1", context=b"here"), context=b"here")
    b'u-1'
    """
    return AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], context)


def fingerprint(key: bytes, *parts: bytes) -> bytes:
    """HMAC-SHA256 over length-prefixed parts: equal only for equal parts, meaningless without the key."""
    message = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return hmac.digest(key, message, "sha256")
