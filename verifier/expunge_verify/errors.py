"""What a check can end with besides success: evidence that is bad, and evidence that could not be had."""

from __future__ import annotations

from typing import Final

MOST_SHOWN: Final = 80
_LARGEST_SHOWN = 1 << 64


class VerifyError(Exception):
    """A check did not succeed; the message is one sentence."""


class Bad(VerifyError):
    """The evidence contradicts itself or was not signed by whom it names: exit status 1."""


class Unchecked(VerifyError):
    """Nothing is proven either way, because a file, a key or the network was missing: exit status 2."""


def shown(text: object) -> str:
    r"""Text from outside, safe to print: escaped, quoted and at most 80 characters.

    >>> shown("a" + chr(27) + "[2J")
    "'a\\x1b[2J'"
    """
    if isinstance(text, str | bytes):
        # Cut before ascii(), so that a megabyte is not escaped first; and after it, because escaping makes text longer.
        return ascii(text[:MOST_SHOWN])[:MOST_SHOWN]
    if text is None or isinstance(text, bool | float) or (isinstance(text, int) and abs(text) < _LARGEST_SHOWN):
        return ascii(text)
    return f"a {type(text).__name__}"  # printing one may take for ever: nested a thousand deep, or 10^6 digits
