"""Passwords and second factors: argon2id, and TOTP codes that are good once."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Final
from urllib.parse import quote

import pyotp
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

# OWASP's Password Storage Cheat Sheet, first choice: 19 MiB, two passes, one lane.
_HASHER: Final = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
_STEP_SECONDS: Final = 30
_NEAR: Final = (-1, 0, 1)
"""Clocks that are half a minute off (RFC 6238 5.2)."""


def hashed(password: str) -> str:
    """A password as it may be stored."""
    return _HASHER.hash(password)


def fits(stored: str | None, password: str) -> bool:
    """Whether this is the password; without one to compare with it takes as long, and is not."""
    try:
        return _HASHER.verify(stored or _nobodys(), password) and stored is not None
    except (VerificationError, InvalidHashError):
        return False


@cache
def _nobodys() -> str:
    """A hash that a guess at an unknown login is compared with: both answers take the same time."""
    return _HASHER.hash("nobody's password")


def new_secret() -> str:
    """A fresh TOTP secret of 160 bits, in base32."""
    return pyotp.random_base32()


def address_of(secret: str, *, login: str, issuer: str) -> str:
    """The otpauth:// address that authenticator apps read from a code."""
    return pyotp.TOTP(secret).provisioning_uri(name=quote(login, safe="@"), issuer_name=issuer)


def step_of(secret: str, code: str, *, now: datetime, after: int | None) -> int | None:
    """Which 30 seconds a code belongs to; none if it is wrong, or of a time up to ``after``, whose codes were used."""
    moment, totp = int(now.timestamp()) // _STEP_SECONDS, pyotp.TOTP(secret)
    given = "".join(code.split())
    for step in (moment + offset for offset in _NEAR):
        right = pyotp.utils.strings_equal(totp.generate_otp(step), given)
        if right and (after is None or step > after):
            return step
    return None
