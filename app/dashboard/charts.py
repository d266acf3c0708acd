"""Small pictures as SVG, drawn here: no script, no style attribute, colours from the style sheet, numbers as titles.

Every picture has a sentence for people who don't see it; the page beside it holds the same numbers as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 640, 140
_LEFT, _BELOW, _ABOVE = 58, 24, 8


@dataclass(frozen=True)
class Part:
    """A share of a whole: how it is called, how many, and the word that colours it."""

    name: str
    count: int
    tone: str


@dataclass(frozen=True)
class Line:
    """A series over the same places as its neighbours; None where nothing was measured."""

    name: str
    values: Sequence[float | None]
    tone: str


def columns(values: Sequence[tuple[str, int]], *, says: str) -> Markup:
    """A column for each place, such as a day."""
    top = max((count for _, count in values), default=0) or 1
    step = (_WIDTH - _LEFT) / max(len(values), 1)
    drawn = [_column(place, name, count, step=step, top=top) for place, (name, count) in enumerate(values)]
    ends = [_text(_LEFT, _HEIGHT - 4, values[0][0]), _text(_WIDTH, _HEIGHT - 4, values[-1][0], "end")] if values else []
    return _svg([*_scale(top), *drawn, *ends], says=says)


def _column(place: int, name: str, count: int, *, step: float, top: int) -> Markup:
    tall = (_HEIGHT - _BELOW - _ABOVE) * count / top
    return Markup(
        '<rect class="column" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}: {}</title></rect>'
    ).format(_LEFT + place * step, _HEIGHT - _BELOW - tall, max(step - 1.5, 0.8), tall, name, count)


def shares(parts: Sequence[Part], *, says: str) -> Markup:
    """One bar, cut into the parts of a whole."""
    whole, at, drawn = sum(part.count for part in parts) or 1, 0.0, []
    for part in parts:
        wide = _WIDTH * part.count / whole
        drawn.append(
            Markup(
                '<rect class="tone-{}" x="{:.1f}" y="0" width="{:.1f}" height="20"><title>{}: {}</title></rect>'
            ).format(part.tone, at, wide, part.name, part.count)
        )
        at += wide
    return _svg(drawn, says=says, height=20)


def lines(series: Sequence[Line], *, names: Sequence[str], says: str, bottom: float | None = None) -> Markup:
    """Series over the same places, such as versions; a gap where nothing was measured.

    Args:
        series: Each as long as ``names``.
        names: Of the places, first and last are written below.
        says: The sentence for people who don't see it.
        bottom: Where the scale begins, if not at the smallest value.
    """
    known = [value for line in series for value in line.values if value is not None]
    low = min(known, default=0.0) if bottom is None else bottom
    high = max(known, default=1.0)
    high = high if high > low else low + 1.0
    drawn = [part for line in series for part in _line(line, low=low, high=high)]
    ends = [_text(_LEFT, _HEIGHT - 4, names[0])] if names else []
    ends += [_text(_WIDTH, _HEIGHT - 4, names[-1], "end")] if len(names) > 1 else []
    return _svg([*_scale(high, low), *drawn, *ends], says=says)


def _line(line: Line, *, low: float, high: float) -> list[Markup]:
    step = (_WIDTH - _LEFT - 8) / max(len(line.values) - 1, 1)
    runs: list[list[str]] = [[]]
    for place, value in enumerate(line.values):
        if value is None:
            runs.append([])
            continue
        y = _HEIGHT - _BELOW - (_HEIGHT - _BELOW - _ABOVE) * (value - low) / (high - low)
        runs[-1].append(f"{_LEFT + 4 + place * step:.1f},{y:.1f}")
    return [_run(run, line) for run in runs if run]


def _run(run: list[str], line: Line) -> Markup:
    if len(run) == 1:
        x, y = run[0].split(",")
        return Markup('<circle class="dot-{}" cx="{}" cy="{}" r="2.5"><title>{}</title></circle>').format(
            line.tone, x, y, line.name
        )
    return Markup('<polyline class="line-{}" points="{}"><title>{}</title></polyline>').format(
        line.tone, " ".join(run), line.name
    )


def _scale(high: float, low: float = 0.0) -> list[Markup]:
    """Two lines across, with what they stand for."""
    across = Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>')
    floor = _HEIGHT - _BELOW
    return [
        across.format(_LEFT, _WIDTH, _ABOVE, _ABOVE),
        across.format(_LEFT, _WIDTH, floor, floor),
        _text(_LEFT - 4, _ABOVE + 8, _tick(high), "end"),
        _text(_LEFT - 4, floor, _tick(low), "end"),
    ]


def _tick(value: float) -> str:
    """What stands at an axis: short, and without an exponent where people count.

    >>> _tick(0.92561), _tick(12345.0), _tick(80.0), _tick(3e-7)
    ('0.926', '12 345', '80', '3e-07')
    """
    return f"{value:,.0f}".replace(",", " ") if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def _text(x: float, y: float, said: str, anchor: str = "start") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, said)


def _svg(parts: Sequence[Markup], *, says: str, height: int = _HEIGHT) -> Markup:
    inside = Markup("").join(parts)
    return Markup('<svg class="chart" role="img" aria-label="{}" viewBox="0 0 {} {}">{}</svg>').format(
        escape(says), _WIDTH, height, inside
    )
