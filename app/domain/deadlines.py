"""Until when a request must be answered: the calendar of Art. 12(3) GDPR.

One month from receipt, which is a calendar month and not 30 days. Regulation (EEC, Euratom) 1182/71 Art. 3: the period
ends with the last hour of the day that bears the same number as the day of receipt, or with the last day of the month
if there is none. Days are those of the controller's time zone: what arrives at 23:30 UTC on 30 January has arrived on
31 January in Berlin. A deadline on a weekend or a public holiday is not moved to the next working day, although
Art. 3(4) would allow it; nobody is harmed by an answer in time.
"""

from __future__ import annotations

import calendar
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Final

from app.errors import Invalid

_LAST_MOMENT: Final = timedelta(microseconds=1)
"""The resolution of ``datetime`` and of PostgreSQL's ``timestamptz``."""


def due(received_at: datetime, zone: tzinfo) -> datetime:
    """Tell the last moment at which a request is answered in time.

    >>> due(datetime(2027, 1, 31, 12, 0, tzinfo=UTC), UTC).isoformat()
    '2027-02-28T23:59:59.999999+00:00'

    Args:
        received_at: When the request arrived, aware.
        zone: The controller's time zone.

    Returns:
        The end of the day in ``zone``.

    Raises:
        ValueError: ``received_at`` has no time zone.
    """
    return end_of(_months_after(day(received_at, zone), 1), zone)


def extended(received_at: datetime, zone: tzinfo, *, further_months: int, decided_at: datetime) -> datetime:
    """Tell the last moment after an extension for complex or numerous requests.

    Counted from receipt, as one longer period: 31 January and two further months end on 30 April, although the first
    month ended on 28 February.

    >>> received, decided = datetime(2027, 1, 31, tzinfo=UTC), datetime(2027, 2, 20, tzinfo=UTC)
    >>> extended(received, UTC, further_months=2, decided_at=decided).date().isoformat()
    '2027-04-30'

    Args:
        received_at: When the request arrived, aware.
        zone: The controller's time zone.
        further_months: One or two.
        decided_at: When the extension was decided and the person told, aware.

    Returns:
        The end of the day in ``zone``.

    Raises:
        Invalid: More than two further months, or decided before receipt or after the first month.
        ValueError: A datetime has no time zone.
    """
    if further_months not in {1, 2}:
        raise Invalid("further_months", "Art. 12(3) GDPR allows one or two further months")
    if not _local(received_at, zone) <= _local(decided_at, zone) <= due(received_at, zone):
        raise Invalid("decided_at", "an extension must be decided within one month of receipt (Art. 12(3) GDPR)")
    return end_of(_months_after(day(received_at, zone), 1 + further_months), zone)


def day(moment: datetime, zone: tzinfo) -> date:
    """Tell the controller's day of a moment: a deadline is the last of its day there, which may be the next one in UTC.

    >>> from zoneinfo import ZoneInfo
    >>> day(datetime(2027, 2, 16, 7, 59, tzinfo=UTC), ZoneInfo("America/Los_Angeles")).isoformat()
    '2027-02-15'
    """
    return _local(moment, zone).date()


def end_of(last: date, zone: tzinfo) -> datetime:
    """Tell the last moment of a day: where clocks change at midnight, 23:59 can come twice or not at all."""
    tomorrow = last + timedelta(days=1)
    midnight = datetime(tomorrow.year, tomorrow.month, tomorrow.day, tzinfo=zone)
    return (midnight.astimezone(UTC) - _LAST_MOMENT).astimezone(zone)


def _local(moment: datetime, zone: tzinfo) -> datetime:
    if moment.utcoffset() is None:
        raise ValueError("a moment without a time zone has no place in a deadline")
    return moment.astimezone(zone)


def _months_after(day: date, months: int) -> date:
    years, month0 = divmod(day.month - 1 + months, 12)
    year, month = day.year + years, month0 + 1
    return date(year, month, min(day.day, calendar.monthrange(year, month)[1]))
