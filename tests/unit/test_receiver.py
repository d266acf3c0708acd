"""How failing receivers are treated, as tables: the clock of five days, and rests."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.receiver import HOPELESS_AFTER, SEVERAL, Failing, failed_again, is_hopeless, rest_after

BEGAN = datetime(2027, 2, 3)  # noqa: DTZ001 - only differences matter


def after(*hours: float) -> Failing:
    """The series that failures at these hours make."""
    failing = None
    for hour in hours:
        failing = failed_again(failing, BEGAN + timedelta(hours=hour))
    assert failing is not None
    return failing


@pytest.mark.parametrize(
    ("hours", "hopeless"),
    [
        ((0, 1, 2, *range(24, 120, 24), 119.9), False),
        ((0, 1, 2, *range(24, 121, 24)), True),
        ((0, 1, *range(24, 217, 24)), True),  # the third came within a day of the first
        ((0, 25, 50, 75, 100, 125), False),  # never several within a day
        ((0, 25, 50, 50.1, 50.2, 75, 100, 125, 150), False),  # the clock began at 50
        ((0, 25, 50, 50.1, 50.2, 75, 100, 125, 150, 170.1), True),
        ((0, 1, 2, 40, 80, 129), False),  # nobody knows how it was between 80 and 129
        ((0, 1, 2, 48, 96, 121), True),
        ((120,), False),
    ],
)
def test_five_days_count_from_several_failures_within_one_and_not_over_a_silence(
    hours: tuple[float, ...], hopeless: bool
) -> None:
    assert is_hopeless(after(*hours)) is hopeless


def test_one_message_alone_that_fails_through_the_whole_schedule_disables_nobody() -> None:
    hours, now = [], 0.0
    for pause in (0, 5 / 3600, 5 / 60, 0.5, 2, 5, 10, 14, 20, 24):
        now += pause * 1.2
        hours.append(now)
    assert not is_hopeless(after(*hours))


@given(st.lists(st.floats(0, 400), min_size=1, max_size=40).map(sorted))
def test_nobody_is_hopeless_before_five_days_or_with_fewer_failures_than_several(hours: list[float]) -> None:
    failing = after(*hours)
    assert failing.since <= failing.last == BEGAN + timedelta(hours=hours[-1])
    if is_hopeless(failing):
        assert failing.failures >= SEVERAL
        assert timedelta(hours=hours[-1] - hours[0]) >= HOPELESS_AFTER


@pytest.mark.parametrize("answer", [400, 404, 410, 500, 503, 301, ConnectionResetError()])
def test_other_failures_need_no_rest(answer: int | Exception) -> None:
    assert rest_after(answer, slow=False, asked=timedelta(hours=1)) is None


@pytest.mark.parametrize(("answer", "slow"), [(429, False), (502, False), (504, False), (TimeoutError(), True)])
@pytest.mark.parametrize(("asked", "seconds"), [(None, 60), (-5, 60), (1, 60), (90, 90), (10**9, 120)])
def test_a_rest_lasts_a_minute_and_what_is_asked_for_stretches_it_twofold_at_most(
    answer: int | Exception, slow: bool, asked: int | None, seconds: int
) -> None:
    wanted = None if asked is None else timedelta(seconds=asked)
    assert rest_after(answer, slow=slow, asked=wanted) == timedelta(seconds=seconds)
