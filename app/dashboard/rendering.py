"""Templates to pages: what every page says about itself, and how times, words and numbers are written."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final
from zoneinfo import ZoneInfo

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from starlette.requests import Request

from app.api.auth import PAGES as BASE
from app.dashboard import charts

_UNITS: Final = (("day", 86_400), ("hour", 3_600), ("minute", 60))


def render(template: str, request: Request, **said: Any) -> str:  # Any: what templates show
    """A page, or a part of one.

    Args:
        template: Its file.
        request: The call that it answers; parts of the page say where they are by it.
        **said: What the template shows; without a ``visit`` there is nobody to show a menu to.
    """
    return _environment().get_template(template).render({"visit": None, "here": request.url.path, "base": BASE} | said)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("app.dashboard"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {"words": words, "moment": moment, "ago": ago, "number": number}
    made.globals |= {"charts": charts}
    return made


def words(code: str | None) -> str:
    """A code word as people write it.

    >>> words("needs_attention")
    'needs attention'
    """
    return (code or "").replace("_", " ")


def moment(at: datetime | None, zone: ZoneInfo) -> Markup:
    """A moment in the controller's time zone, to the minute, exact where one looks closer."""
    if at is None:
        return Markup('<span class="none">–</span>')
    local = at.astimezone(zone)
    exact, shown = local.isoformat(timespec="seconds"), f"{local:%Y-%m-%d %H:%M}"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(exact, exact, shown)


def ago(length: timedelta | float | None) -> str:
    """A length of time, in its largest unit.

    >>> ago(timedelta(hours=30)), ago(59), ago(7200)
    ('1 day', '59 seconds', '2 hours')
    """
    if length is None:
        return "–"
    seconds = int(length.total_seconds() if isinstance(length, timedelta) else length)
    unit, size = next(((unit, size) for unit, size in _UNITS if abs(seconds) >= size), ("second", 1))
    count = abs(seconds) // size
    return f"{count} {unit}{'' if count == 1 else 's'}"


def number(value: float | None, digits: int = 3) -> str:
    """A number to so many significant digits.

    >>> number(0.123456), number(120000), number(None)
    ('0.123', '120 000', '–')
    """
    if value is None:
        return "–"
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else f"{value:.{digits}g}"
