"""Times ahead, as an operator writes them: ``90d``, ``12h``, or a date."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import Final

from app.errors import Invalid

_PERIOD: Final = re.compile(r"([0-9]{1,5})(m|h|d)")
_UNITS: Final = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}


def period(text: str, *, field: str) -> timedelta:
    """Read a length of time.

    >>> period("7d", field="--overlap")
    datetime.timedelta(days=7)

    Raises:
        Invalid: It is none.
    """
    found = _PERIOD.fullmatch(text)
    if found is None:
        raise Invalid(field, "write a number and m, h or d, such as 90d")
    return int(found[1]) * _UNITS[found[2]]


def moment(text: str, now: datetime, *, field: str) -> datetime:
    """Read when something ends: after a length of time, or as a date begins (UTC).

    >>> moment("2027-02-01", datetime(2027, 1, 1, tzinfo=UTC), field="--expires").isoformat()
    '2027-02-01T00:00:00+00:00'

    Raises:
        Invalid: It is neither, or not ahead of us.
    """
    if _PERIOD.fullmatch(text):
        then = now + period(text, field=field)
    else:
        try:
            day = date.fromisoformat(text)
        except ValueError:
            raise Invalid(field, "write a length of time such as 90d, or a date such as 2027-01-31") from None
        then = datetime(day.year, day.month, day.day, tzinfo=UTC)
    if then <= now:
        raise Invalid(field, "this lies in the past")
    return then
