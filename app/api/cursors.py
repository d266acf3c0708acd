"""Where the next page of a list begins: cursors are opaque to callers, and only those that we gave out are taken."""

from __future__ import annotations

from app.errors import Invalid

_LONGEST = 19
"""A letter, and what fits a bigint."""


def cursor(letter: str, place: int) -> str:
    """The cursor for what follows ``place``; each list has its letter, so that none takes another's."""
    return f"{letter}{place}"


def place(letter: str, sent: str | None) -> int | None:
    """The place that a cursor stands for; none at the beginning.

    Raises:
        Invalid: It is not one of this list's.
    """
    if sent is None:
        return None
    number = sent.removeprefix(letter)
    if number == sent or not (number.isascii() and number.isdigit()) or len(sent) > _LONGEST:
        raise Invalid("cursor", "use the next_cursor of an earlier page, or none to begin")
    return int(number)
