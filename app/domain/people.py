"""Who may do what at the dashboard: roles as the house has them, rights as the pages ask for them."""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import StrEnum
from typing import Final

from app.errors import Invalid

_LOGIN: Final = re.compile(r"[^\s\x00-\x1f\x7f-\x9f]{1,254}")
_LONGEST_NAME: Final = 200
SHORTEST_PASSWORD: Final = 12
"""Characters; ASVS 5.0 6.2.1 asks for 8 and recommends 15."""
LONGEST_PASSWORD: Final = 128
_FEWEST_DIFFERENT: Final = 5


class Role(StrEnum):
    """What a person is to this installation; a person may be several."""

    VIEWER = "viewer"
    OFFICER = "officer"
    ENGINEER = "engineer"
    AUDITOR = "auditor"
    ADMIN = "admin"


class Right(StrEnum):
    """What a page or a button asks for."""

    READ = "read"
    DECIDE = "decide"
    """Make requests by hand, and decide about them."""
    LOOK_UP = "look_up"
    """Search by user id; each search is written down."""
    EXPORT = "export"
    RETRY = "retry"
    ROLL_BACK = "roll_back"
    WEBHOOKS = "webhooks"
    KEYS = "keys"
    PEOPLE = "people"
    AUDIT = "audit"
    """Read the internal log, and open the records behind the public one."""


_R = Right
RIGHTS: Final[dict[Role, frozenset[Right]]] = {
    Role.VIEWER: frozenset({_R.READ}),
    Role.OFFICER: frozenset({_R.READ, _R.DECIDE, _R.LOOK_UP, _R.EXPORT, _R.RETRY}),
    Role.ENGINEER: frozenset({_R.READ, _R.RETRY, _R.ROLL_BACK, _R.WEBHOOKS}),
    Role.AUDITOR: frozenset({_R.READ, _R.EXPORT, _R.AUDIT}),
    Role.ADMIN: frozenset({_R.READ, _R.WEBHOOKS, _R.KEYS, _R.PEOPLE}),
}
"""An admin lets people in and decides about nobody's request; who grants themselves more stands in the internal log."""


def rights_of(roles: Collection[str]) -> frozenset[Right]:
    """What somebody with these roles may do.

    >>> Right.ROLL_BACK in rights_of(["officer"]), Right.ROLL_BACK in rights_of(["officer", "engineer"])
    (False, True)
    """
    return frozenset[Right]().union(*(RIGHTS[Role(role)] for role in roles))


def normal_login(login: str) -> str:
    """The one way in which a login is stored and looked up.

    Raises:
        Invalid: It is empty, too long or has white space in it.

    >>> normal_login(" Ann@Example.org ")
    'ann@example.org'
    """
    found = login.strip().casefold()
    if not _LOGIN.fullmatch(found):
        raise Invalid("login", "a login has 1 to 254 characters without white space; an e-mail address is a good one")
    return found


def check_name(name: str) -> str:
    """A person's name as it is shown, less white space around it.

    Raises:
        Invalid: It is empty, too long or can't be printed.
    """
    found = name.strip()
    if not found or len(found) > _LONGEST_NAME or any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in found):
        raise Invalid("name", f"a name has 1 to {_LONGEST_NAME} characters and no control characters")
    return found


def check_password(password: str, *, login: str) -> None:
    """Refuse a password that is guessed soon.

    Raises:
        Invalid: Says the rule, never the password.

    >>> check_password("correct horse battery", login="ann")
    >>> check_password("aaaaaaaaaaaaaaaa", login="ann")
    Traceback (most recent call last):
    app.errors.Invalid: a password has at least 5 different characters
    """
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise Invalid("password", f"a password has {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters")
    if len(set(password)) < _FEWEST_DIFFERENT:
        raise Invalid("password", f"a password has at least {_FEWEST_DIFFERENT} different characters")
    if login.partition("@")[0] in password.casefold():
        raise Invalid("password", "a password does not contain the login")
