"""The verification plot: where forgotten people stand among members and strangers, before an update and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from markupsafe import Markup

from app.dashboard.rendering import number

Json = Mapping[str, Any]  # Any: JSON
_WIDTH, _LEFT, _ROW, _TOP, _FOOT = 640, 76, 92, 8, 20
_MOST_SAID: Final = 5
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

    @property
    def middles(self) -> tuple[float | None, float | None]:
        """Medians of strangers and of members."""
        return _middle(self.strangers), _middle(self.members)

    @property
    def said(self) -> str:
        """The forgotten people's own numbers, or their range where there are many."""
        if len(self.users) > _MOST_SAID:
            return f"{number(min(self.users))} to {number(max(self.users))} ({len(self.users)} people)"
        return ", ".join(number(value) for value in self.users) or "–"

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
    return [_row(name, said) for name, said in found.items() if said]


def _row(name: str, said: Json) -> Row:
    return Row(name, *(_known(said.get(side, ())) for side in ("strangers", "members", "users")))


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _middle(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def draw(found: Sequence[Row]) -> Markup | None:
    """One band per model: strangers and members as dots spread in height, forgotten people as lines."""
    values = [value for row in found for side in (row.strangers, row.members, row.users) for value in side]
    if not values:
        return None
    low, high = min(values), max(values)
    scale = _Scale(low, high if high > low else low + 1.0)
    height = _TOP + _ROW * len(found) + _FOOT
    drawn = [part for place, row in enumerate(found) for part in _band(row, scale, top=_TOP + place * _ROW)]
    ends = [_text(_LEFT, height - 4, number(low)), _text(_WIDTH, height - 4, number(high), "end")]
    return Markup('<svg class="chart" role="img" aria-label="{}" viewBox="0 0 {} {}">{}</svg>').format(
        described(found), _WIDTH, height, Markup("").join([*drawn, *ends])
    )


def described(found: Sequence[Row]) -> str:
    """The plot in words, for whom it is not drawn."""
    return "; ".join(
        f"{row.name}: strangers in the middle at {number(row.middles[0])}, members at {number(row.middles[1])}, "
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
        _text(_WIDTH, top + 10, row.name, "end"),
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
