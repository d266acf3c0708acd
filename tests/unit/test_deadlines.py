"""The calendar of Art. 12(3) GDPR, against hand-written dates and against dateutil."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from dateutil.relativedelta import relativedelta
from hypothesis import given
from hypothesis import strategies as st

from app.domain.deadlines import due, extended
from app.errors import Invalid

ZONES = [
    "UTC",
    "Europe/Berlin",
    "Atlantic/Azores",
    "Asia/Kolkata",
    "Asia/Beirut",
    "America/Havana",
    "Pacific/Kiritimati",
]
MOMENTS = st.integers(0, 6000 * 86400).map(
    lambda seconds: datetime(2018, 5, 25, tzinfo=UTC) + timedelta(seconds=seconds)
)


@pytest.mark.parametrize(
    ("received", "zone", "expected"),
    [
        ("2027-03-05T10:00+00:00", "UTC", "2027-04-05T23:59:59.999999+00:00"),  # EDPB Guidelines 01/2022, example
        ("2027-08-31T10:00+00:00", "UTC", "2027-09-30T23:59:59.999999+00:00"),  # EDPB Guidelines 01/2022, example
        ("2027-01-28T00:00+00:00", "UTC", "2027-02-28T23:59:59.999999+00:00"),
        ("2027-01-29T00:00+00:00", "UTC", "2027-02-28T23:59:59.999999+00:00"),
        ("2027-01-31T23:59+00:00", "UTC", "2027-02-28T23:59:59.999999+00:00"),
        ("2028-01-30T00:00+00:00", "UTC", "2028-02-29T23:59:59.999999+00:00"),  # leap year
        ("2028-02-29T00:00+00:00", "UTC", "2028-03-29T23:59:59.999999+00:00"),
        ("2027-02-28T00:00+00:00", "UTC", "2027-03-28T23:59:59.999999+00:00"),  # 28 days, not the end of March
        ("2027-07-31T00:00+00:00", "UTC", "2027-08-31T23:59:59.999999+00:00"),
        ("2027-12-15T00:00+00:00", "UTC", "2028-01-15T23:59:59.999999+00:00"),
        ("2027-05-01T08:00+00:00", "UTC", "2027-06-01T23:59:59.999999+00:00"),
        ("2027-06-05T08:00+00:00", "UTC", "2027-07-05T23:59:59.999999+00:00"),
        ("2027-03-15T08:00+00:00", "Europe/Berlin", "2027-04-15T23:59:59.999999+02:00"),  # summer time began meanwhile
        ("2027-10-15T08:00+00:00", "Europe/Berlin", "2027-11-15T23:59:59.999999+01:00"),  # and ended
        ("2027-01-30T23:30+00:00", "Europe/Berlin", "2027-02-28T23:59:59.999999+01:00"),  # 31 January in Berlin
        ("2027-03-31T22:30+00:00", "Europe/Berlin", "2027-05-01T23:59:59.999999+02:00"),  # 1 April in Berlin
        ("2027-04-01T03:00+00:00", "America/New_York", "2027-04-30T23:59:59.999999-04:00"),  # 31 March in New York
        ("2027-04-01T05:30+05:30", "UTC", "2027-05-01T23:59:59.999999+00:00"),
        ("2027-04-01T05:29+05:30", "UTC", "2027-04-30T23:59:59.999999+00:00"),
        ("2027-06-05T08:00+00:00", "Pacific/Kiritimati", "2027-07-05T23:59:59.999999+14:00"),
    ],
)
def test_the_period_ends_with_the_day_of_the_same_number(received, zone, expected):
    assert due(datetime.fromisoformat(received), ZoneInfo(zone)).isoformat() == expected


@pytest.mark.parametrize(
    ("received", "zone", "expected_utc"),
    [
        # Beirut, 27 March 2022: 00:00 does not exist, clocks go from 23:59:59 to 01:00.
        ("2022-02-26T12:00+02:00", "Asia/Beirut", "2022-03-26T21:59:59.999999+00:00"),
        # Beirut, 29 October 2022: 23:00 to 24:00 happens twice; the day ends with the second.
        ("2022-09-29T12:00+03:00", "Asia/Beirut", "2022-10-29T21:59:59.999999+00:00"),
        # Havana, 13 March 2022: 00:00 does not exist.
        ("2022-02-12T12:00-05:00", "America/Havana", "2022-03-13T04:59:59.999999+00:00"),
        # Havana, 6 November 2022: 00:00 to 01:00 happens twice; the day before ended with the first midnight.
        ("2022-10-05T12:00-04:00", "America/Havana", "2022-11-06T03:59:59.999999+00:00"),
        # Samoa skipped 30 December 2011 altogether.
        ("2011-11-30T12:00-10:00", "Pacific/Apia", "2011-12-30T09:59:59.999999+00:00"),
    ],
)
def test_a_day_ends_once_also_where_clocks_change_at_midnight(received, zone, expected_utc):
    assert due(datetime.fromisoformat(received), ZoneInfo(zone)).astimezone(UTC).isoformat() == expected_utc


@given(MOMENTS, st.sampled_from(ZONES))
def test_dateutil_counts_the_same_month(received, name):
    zone = ZoneInfo(name)
    expected = received.astimezone(zone).date() + relativedelta(months=1)
    found = due(received, zone)
    assert found.date() == expected
    assert found.time() == time.max


@given(MOMENTS, st.sampled_from(ZONES))
def test_one_month_is_28_to_31_full_days(received, name):
    passed = due(received, ZoneInfo(name)) - received
    assert timedelta(days=28) - timedelta(hours=1) <= passed <= timedelta(days=32) + timedelta(hours=1)


@given(MOMENTS, MOMENTS, st.sampled_from(ZONES))
def test_who_asks_later_is_never_due_earlier(one, other, name):
    zone = ZoneInfo(name)
    assert (due(one, zone) <= due(other, zone)) or one > other


@given(MOMENTS, st.sampled_from(ZONES), st.integers(-14 * 60, 14 * 60))
def test_the_zone_in_which_receipt_was_written_does_not_matter(received, name, minutes):
    elsewhere = received.astimezone(timezone(timedelta(minutes=minutes)))
    assert due(elsewhere, ZoneInfo(name)) == due(received, ZoneInfo(name))


@pytest.mark.parametrize(
    ("received", "further_months", "expected"),
    [
        ("2027-01-15", 1, "2027-03-15"),
        ("2027-01-15", 2, "2027-04-15"),
        ("2027-01-31", 1, "2027-03-31"),  # counted from receipt, not from 28 February
        ("2027-01-31", 2, "2027-04-30"),
        ("2027-11-30", 1, "2028-01-30"),
        ("2027-11-30", 2, "2028-02-29"),
        ("2027-12-31", 2, "2028-03-31"),
    ],
)
def test_an_extension_is_counted_from_receipt(received, further_months, expected):
    moment = datetime.fromisoformat(received).replace(tzinfo=UTC)
    found = extended(moment, UTC, further_months=further_months, decided_at=moment + timedelta(days=20))
    assert found == datetime.combine(datetime.fromisoformat(expected), time.max, UTC)


@given(MOMENTS, st.sampled_from(ZONES), st.sampled_from([1, 2]))
def test_an_extension_may_be_decided_until_the_last_moment_and_not_after(received, name, months):
    zone = ZoneInfo(name)
    last = due(received, zone)
    assert extended(received, zone, further_months=months, decided_at=last) > last
    with pytest.raises(Invalid, match="within one month"):
        extended(received, zone, further_months=months, decided_at=last.astimezone(UTC) + timedelta(microseconds=1))


def test_an_extension_is_not_decided_before_there_is_a_request():
    received = datetime(2027, 1, 15, tzinfo=UTC)
    with pytest.raises(Invalid, match="within one month"):
        extended(received, UTC, further_months=2, decided_at=received - timedelta(seconds=1))


@pytest.mark.parametrize("months", [-1, 0, 3, 12])
def test_the_law_allows_one_or_two_further_months(months):
    received = datetime(2027, 1, 15, tzinfo=UTC)
    with pytest.raises(Invalid, match="one or two") as caught:
        extended(received, UTC, further_months=months, decided_at=received)
    assert caught.value.field == "further_months"


def test_a_moment_without_a_zone_has_no_deadline():
    aware = datetime(2027, 1, 15, tzinfo=UTC)
    naive = aware.replace(tzinfo=None)
    with pytest.raises(ValueError, match="time zone"):
        due(naive, UTC)
    with pytest.raises(ValueError, match="time zone"):
        extended(aware, UTC, further_months=1, decided_at=naive)
