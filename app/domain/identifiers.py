"""What stands for a person or a caller: keyed hashes of user ids, and API keys.

User ids are opaque. They are hashed exactly as given, never trimmed, lower-cased or Unicode-normalised: whether ``Ann``
and ``ann`` are one person is the controller's knowledge, and a guess would erase somebody else. The index import and
the request must therefore spell an id the same way.

A keyed hash is still personal data for whoever holds the key. Each purpose has its own domain, so that a row of one
table can't be joined with a row of another. No error here repeats the value.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import zlib
from typing import Final
from uuid import UUID

from app.errors import Invalid

MAX_USER_ID_CHARACTERS: Final = 256
"""Counted in code points, as PostgreSQL and JSON Schema do."""
MAX_SUBJECT_CHARACTERS: Final = 255
"""Of a token's ``sub`` (OpenID Connect Core 2)."""

_USER_ID: Final = re.compile(rf"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{{1,{MAX_USER_ID_CHARACTERS}}}")
_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_CHARACTERS: Final = 43  # 62**42 < 2**256 < 62**43
_CHECKSUM_CHARACTERS: Final = 6  # 62**5 < 2**32 < 62**6
_API_KEY_PREFIX: Final = "exk_"
_API_KEY: Final = re.compile(rf"{_API_KEY_PREFIX}[0-9A-Za-z]{{{_SECRET_CHARACTERS + _CHECKSUM_CHARACTERS}}}")


MODEL_NAME: Final = r"^[a-z0-9][a-z0-9._-]{0,99}$"
"""What a model may be called: lowercase letters, digits, ``.``, ``_`` and ``-``."""


def check_model_name(name: str) -> None:
    """Refuse a name that requests could not use.

    Raises:
        Invalid: The name breaks the rule.
    """
    if not re.fullmatch(MODEL_NAME, name):
        raise Invalid("name", "a model's name has up to 100 lowercase letters, digits, '.', '_' and '-'")


def check_user_id(user_id: str) -> None:
    """Refuse an id that could not be stored, sent on or told apart by eye.

    >>> check_user_id("u-48213")
    >>> check_user_id("a line" + chr(10) + "feed")
    Traceback (most recent call last):
    app.errors.Invalid: a user id has 1 to 256 characters, no control characters and no lone surrogates

    Raises:
        Invalid: Says the rule, not the value.
    """
    if not _USER_ID.fullmatch(user_id):
        rule = f"a user id has 1 to {MAX_USER_ID_CHARACTERS} characters, no control characters and no lone surrogates"
        raise Invalid("user_id", rule)
    if user_id.isspace():
        raise Invalid("user_id", "a user id is not only white space")


def subject_key(index_key: bytes, user_id: str) -> UUID:
    """Tell under which key the sample index and a request know a person.

    The first 128 bits of HMAC-SHA256: among 10 million people a collision has probability 1.5e-25.

    Args:
        index_key: 32 random bytes; the same for as long as the index lives.
        user_id: An id that :func:`check_user_id` lets pass.

    Raises:
        Invalid: The id can't be written as UTF-8.
        ValueError: The key has another length.
    """
    return UUID(bytes=_keyed_hash(index_key, b"expunge/index/v1", user_id)[:16])


def suppression_key(index_key: bytes, user_id: str) -> bytes:
    """Tell under which 32 bytes the suppression ledger remembers that a person was erased.

    Raises:
        Invalid: The id can't be written as UTF-8.
        ValueError: The key has another length.
    """
    return _keyed_hash(index_key, b"expunge/suppression/v1", user_id)


def suppression_token(reader_key: bytes, key: bytes) -> bytes:
    """Tell by which 16 bytes one reader of the suppression list knows a person, whether listed or not.

    Whoever has the token of a person and not ``reader_key`` can neither tell who it is nor find the person in the list
    of another reader. Among 10 million people a collision has probability 1.5e-25.

    Args:
        reader_key: 32 bytes that stay in the house, of one reader.
        key: What :func:`suppression_key` gives.

    Raises:
        ValueError: The key has another length.
    """
    if len(reader_key) != 32:
        raise ValueError("a reader's key has 32 bytes")
    return hmac.digest(reader_key, b"expunge/suppression-token/v1\0" + key, "sha256")[:16]


def new_api_key(random_bytes: bytes) -> str:
    """Write 256 random bits as ``exk_``, 43 base62 characters and a checksum of 6 (GitHub's form, CRC-32 in base62).

    The prefix lets secret scanners find leaked keys; the checksum lets them drop look-alikes without asking us.

    Args:
        random_bytes: 32 bytes from ``secrets.token_bytes``.

    Raises:
        ValueError: Another number of bytes.
    """
    if len(random_bytes) != 32:
        raise ValueError("an API key takes 32 random bytes")
    secret = _API_KEY_PREFIX + _base62(int.from_bytes(random_bytes), _SECRET_CHARACTERS)
    return secret + _checksum(secret)


def looks_like_api_key(text: str) -> bool:
    """Tell from form and checksum alone whether a look-up is worth it; says nothing about validity.

    >>> looks_like_api_key(new_api_key(bytes(range(32)))), looks_like_api_key("Bearer")
    (True, False)
    """
    return bool(_API_KEY.fullmatch(text)) and _checksum(text[:-_CHECKSUM_CHARACTERS]) == text[-_CHECKSUM_CHARACTERS:]


def api_key_digest(key: str) -> bytes:
    """Tell what is stored of an API key; plain SHA-256 is enough, since 256 random bits can't be guessed."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()  # whatever a header held gets a digest


def _keyed_hash(key: bytes, domain: bytes, user_id: str) -> bytes:
    if len(key) != 32:  # HMAC would take any length, also none
        raise ValueError("the index key has 32 bytes")
    try:
        message = domain + b"\0" + user_id.encode()
    except UnicodeEncodeError:  # carries the whole id
        raise Invalid("user_id", "a user id has no lone surrogates") from None
    return hmac.digest(key, message, "sha256")


def _checksum(secret: str) -> str:
    return _base62(zlib.crc32(secret.encode("ascii")), _CHECKSUM_CHARACTERS)


def _base62(number: int, characters: int) -> str:
    digits = []
    for _ in range(characters):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
