"""How a receiver of webhooks is treated that fails: spared for a minute, and switched off after days of nothing else.

Standard Webhooks (operational considerations) and what Svix does: an endpoint is disabled after five days in which
every attempt failed. The five days begin only where several attempts failed within one, so that a lone failure of a
quiet endpoint starts no clock; and a receiver that was left alone for longer than the schedule's widest gap begins
anew, since nobody can say how it was in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

HOPELESS_AFTER: Final = timedelta(days=5)
SEVERAL: Final = 3
"""So many failures, ..."""
_AT_ONCE: Final = timedelta(days=1)
"""... within this time, begin the clock."""
_SILENCE: Final = timedelta(days=2)
"""The schedule's last gap is 24 h, stretched twofold at most by what a receiver asks for."""
_REST: Final = timedelta(seconds=60)
SLOW: Final = timedelta(seconds=5)
"""Whoever takes longer for an answer, a good one included, holds a worker that others wait for."""
_BUSY: Final = frozenset({429, 502, 504})
"""Too Many Requests, Bad Gateway, Gateway Timeout: less would help."""


@dataclass(frozen=True)
class Failing:
    """A series of failures without a success in between."""

    since: datetime
    last: datetime
    failures: int


def failed_again(before: Failing | None, at: datetime) -> Failing:
    """Count one more failure, or begin a series with it.

    >>> hour = [datetime(2027, 2, 3, hour) for hour in range(3)]
    >>> failed_again(failed_again(failed_again(None, hour[0]), hour[1]), hour[2]).failures
    3
    """
    if before is None or at - before.last > _SILENCE:
        return Failing(at, at, 1)
    if before.failures < SEVERAL and at - before.since > _AT_ONCE:
        return Failing(at, at, 1)
    return Failing(before.since, at, before.failures + 1)


def is_hopeless(failing: Failing) -> bool:
    """Whether it has done nothing but fail for so long that nothing more is sent.

    >>> first = datetime(2027, 2, 3)
    >>> is_hopeless(Failing(first, first + timedelta(days=5), 9)), is_hopeless(Failing(first, first, 9))
    (True, False)
    """
    return failing.failures >= SEVERAL and failing.last - failing.since >= HOPELESS_AFTER


def rest_after(answer: int | Exception, *, slow: bool, asked: timedelta | None) -> timedelta | None:
    """How long a receiver is sent nothing at all after this answer; none: it may go on.

    >>> rest_after(500, slow=False, asked=None), rest_after(429, slow=False, asked=timedelta(hours=9))
    (None, datetime.timedelta(seconds=120))

    Args:
        answer: A status code, or the error that came instead.
        slow: Whether no answer came in time, or only after :data:`SLOW`.
        asked: What its Retry-After asked for, which counts for up to twice the minute, or one receiver could set our
            clock.
    """
    if not slow and answer not in _BUSY:
        return None
    return min(max(asked or _REST, _REST), 2 * _REST)
