"""The verification plot: where forgotten people stand among members and strangers, before an update and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log10
from statistics import median
from typing import Any, Final

from markupsafe import Markup

from app.dashboard.rendering import number

Json = Mapping[str, Any]  # Any: JSON
_WIDTH, _LEFT, _ROW, _TOP, _FOOT = 640, 76, 92, 8, 20
_MOST_SAID: Final = 5
_SIDES: Final = ("strangers", "members", "users")
SCALES: Final = {
    "calibrated": "how sure the model is of a person's samples, compared with models that never saw the person "
    "(standardised confidence)",
    "raw": "how small the model's loss on a person's samples is (minus the mean loss)",
}


@dataclass(frozen=True)
class Row:
    """One model's view: the statistic of three groups of people."""

    name: str
    strangers: Sequence[float]
    members: Sequence[float]
    users: Sequence[float]
    span: float = 0.0
    """From the lowest to the highest value of the whole plot: what is far smaller is written as 0."""

    def middle(self, values: Sequence[float]) -> str:
        """A group's median."""
        return self.written(median(values)) if values else "–"

    def written(self, value: float) -> str:
        """A value to about the thousandth part of the plot's width, which is as far as eyes go.

        >>> Row("after", [], [], [], span=5.6).written(-6.95e-07), Row("", [], [], [], span=5.6).written(-2.7891)
        ('0', '-2.79')
        """
        digits = 3 - ceil(log10(self.span)) if self.span > 0 else 12
        return number(round(value, digits) + 0.0, 4)  # + 0.0: no minus before a zero

    @property
    def said(self) -> str:
        """The forgotten people's own numbers, or their range where there are many."""
        if len(self.users) > _MOST_SAID:
            return f"{self.written(min(self.users))} to {self.written(max(self.users))} ({len(self.users)} people)"
        return ", ".join(map(self.written, self.users)) or "–"

    @property
    def above(self) -> str:
        """How many strangers the highest of them stands above: members stand above nearly all."""
        if not self.users or not self.strangers:
            return "–"
        return f"{sum(other < max(self.users) for other in self.strangers) / len(self.strangers):.0%}"


def rows(gate: Json) -> list[Row]:
    """What the forgetting gate measured, before and after; nothing where it measured nothing."""
    again = gate.get("resurrection") or {}
    found = {
        "before": gate.get("statistics_before"),
        "after": gate.get("statistics_after"),
        "after one more epoch": again.get("statistics"),
    }
    sides = {name: [_known(said.get(side, ())) for side in _SIDES] for name, said in found.items() if said}
    values = [value for groups in sides.values() for group in groups for value in group]
    span = max(values) - min(values) if values else 0.0
    return [Row(name, strangers, members, users, span) for name, (strangers, members, users) in sides.items()]


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def draw(found: Sequence[Row]) -> Markup | None:
    """One band per model: strangers and members as dots spread in height, forgotten people as lines."""
    values = [value for row in found for side in (row.strangers, row.members, row.users) for value in side]
    if not values:
        return None
    low, high = min(values), max(values)
    scale = _Scale(low, high if high > low else low + 1.0)
    height = _TOP + _ROW * len(found) + _FOOT
    drawn = [part for place, row in enumerate(found) for part in _band(row, scale, top=_TOP + place * _ROW)]
    ends = [
        _text(_LEFT, height - 4, f"{found[0].written(low)}  ← forgotten"),
        _text(_WIDTH, height - 4, f"remembered →  {found[0].written(high)}", "end"),
    ]
    return Markup('<svg class="chart" role="img" aria-label="{}" viewBox="0 0 {} {}">{}</svg>').format(
        described(found), _WIDTH, height, Markup("").join([*drawn, *ends])
    )


def described(found: Sequence[Row]) -> str:
    """The plot in words, for whom it is not drawn."""
    return "; ".join(
        f"{row.name}: strangers in the middle at {row.middle(row.strangers)}, members at {row.middle(row.members)}, "
        f"forgotten at {row.said}, above {row.above} of strangers"
        for row in found
    )


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float

    def x(self, value: float) -> float:
        return _LEFT + 6 + (_WIDTH - _LEFT - 12) * (value - self.low) / (self.high - self.low)


def _band(row: Row, scale: _Scale, *, top: int) -> list[Markup]:
    floor = top + _ROW - 14
    return [
        Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(_LEFT, _WIDTH, floor, floor),
        _text(_LEFT, top + 10, row.name),
        _text(_LEFT - 6, top + 34, "members", "end"),
        _text(_LEFT - 6, top + 64, "strangers", "end"),
        _dots(row.members, scale, at=top + 30, tone="info", name="members"),
        _dots(row.strangers, scale, at=top + 60, tone="grey", name="strangers"),
        *(_mark(value, scale, top=top + 14, floor=floor) for value in row.users),
    ]


def _dots(values: Sequence[float], scale: _Scale, *, at: float, tone: str, name: str) -> Markup:
    """All dots of a side as one path: lines without length, with round ends."""
    spread = (12 * ((place * 0.618) % 1 - 0.5) for place in range(len(values)))  # the same every time
    path = " ".join(f"M{scale.x(value):.1f} {at + up:.1f}h0" for value, up in zip(values, spread, strict=False))
    return Markup('<path class="spots-{}" d="{}"><title>{} {}</title></path>').format(tone, path, len(values), name)


def _mark(value: float, scale: _Scale, *, top: int, floor: int) -> Markup:
    x = f"{scale.x(value):.1f}"
    return Markup('<line class="line-bad" x1="{}" x2="{}" y1="{}" y2="{}"><title>forgotten: {}</title></line>').format(
        x, x, top, floor, number(value)
    )


def _text(x: float, y: float, said: str, anchor: str = "start") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, said)
