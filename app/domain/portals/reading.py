"""Reading what portals send: forgiving in form, never in meaning; an error names the field and never its value."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime

from app.domain.portals.base import Document
from app.errors import Invalid

_STRING_OR_TRAILING_COMMA = re.compile(rb'("(?:\\.|[^"\\])*+"?)|,(?=\s*+[}\]])', re.DOTALL)
_PRINTABLE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]{0,8190}[\x21-\x7e])?")
_OURS = frozenset({"host", "content-length", "transfer-encoding", "connection", "te", "trailer", "upgrade", "expect"})
_MOST_HEADERS = 20
_EARLIEST_YEAR, _LATEST_YEAR = 2000, 2200


def document(body: bytes) -> Document:
    """Read one JSON object; a comma behind the last member is overlooked, as OpenDSR's own example has it.

    >>> document(b'{"a": [1, ",]",], }')
    {'a': [1, ',]']}

    Raises:
        Invalid: Not JSON, not an object, or a name appears twice in one object: readers would disagree on it.
    """
    try:
        found = _loads(body)
    except ValueError:
        try:
            found = _loads(_STRING_OR_TRAILING_COMMA.sub(lambda match: match[1] or b"", body))
        except ValueError:
            raise Invalid("body", "the body is not JSON") from None
    if not isinstance(found, dict):
        raise Invalid("body", "the body must be a JSON object")
    return found


def _loads(body: bytes) -> object:
    try:
        return json.loads(body, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError from None


def _once(pairs: list[tuple[str, object]]) -> Document:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Invalid("body", "a name appears twice in one JSON object; readers would disagree on it")
    return found


def canonical(found: Document) -> bytes:
    """One byte string for one meaning, to tell a repeat from another demand."""
    return json.dumps(found, sort_keys=True, separators=(",", ":")).encode()


def obj(of: Mapping[str, object], name: str) -> Document:
    """An object inside, empty if absent.

    Raises:
        Invalid: It is something else.
    """
    found = of.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Invalid(name, f"{name} must be an object")
    return found


def array(of: Mapping[str, object], name: str) -> list[object]:
    """An array inside, empty if absent.

    Raises:
        Invalid: It is something else.
    """
    found = of.get(name)
    if found is None:
        return []
    if not isinstance(found, list):
        raise Invalid(name, f"{name} must be an array")
    return found


def text(of: Mapping[str, object], name: str) -> str:
    """A string that must be there; what it may hold is the caller's to check.

    Raises:
        Invalid: It is absent, empty or something else.
    """
    found = of.get(name)
    if found is None:
        raise Invalid(name, f"{name} field is required")
    if not isinstance(found, str) or not found:
        raise Invalid(name, f"{name} must be a string that is not empty")
    return found


def label(of: Mapping[str, object], name: str) -> str:
    """A name or a number of the portal's own: up to 200 characters of printable ASCII.

    Raises:
        Invalid: It is absent or has another form.
    """
    found = text(of, name)
    if len(found) > 200 or not _PRINTABLE.fullmatch(found):
        raise Invalid(name, f"{name} has up to 200 characters of printable ASCII and no space at its ends")
    return found


def optional_label(of: Mapping[str, object], name: str) -> str | None:
    """As :func:`label`, for what may be absent or null."""
    return None if of.get(name) is None else label(of, name)


def moment(of: Mapping[str, object], name: str) -> datetime:
    """A time of RFC 3339; without a zone it is UTC, as AppsFlyer and mParticle mean it.

    >>> moment({"at": "2018-10-02T15:00:00"}, "at").isoformat()
    '2018-10-02T15:00:00+00:00'

    Raises:
        Invalid: It is absent or no time.
    """
    try:
        found = datetime.fromisoformat(text(of, name))
    except ValueError:
        raise Invalid(name, f"{name} must be a time such as 2027-02-03T09:12:00Z") from None
    if not _EARLIEST_YEAR <= found.year < _LATEST_YEAR:
        raise Invalid(name, f"{name} must lie in the years {_EARLIEST_YEAR} to {_LATEST_YEAR - 1}")
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def headers(of: Mapping[str, object], name: str) -> dict[str, str]:
    """Headers that a portal wants on our calls back; those that frame a message are ours.

    Raises:
        Invalid: There are too many, one has another form, or one is ours to set.
    """
    found = obj(of, name)
    if len(found) > _MOST_HEADERS:
        raise Invalid(name, f"at most {_MOST_HEADERS} headers can be kept for a callback")
    kept = {}
    for key, value in found.items():
        if not _HEADER_NAME.fullmatch(key) or key.lower() in _OURS:
            raise Invalid(name, "a header's name is a token of RFC 9110, and none that frames the message")
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            raise Invalid(name, "a header's value is printable ASCII")
        kept[key] = value
    return kept
