"""The picture of a lineage: a dot for each version, a line to the one it was computed from; a rollback branches off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from markupsafe import Markup, escape

from app.storage.lineage import Node

_WIDTH: Final = 960
_EDGE: Final = 14
_LANE: Final = 22
_TONES: Final = {"registered": "info", "retrained": "warn", "unlearned": "accent", "rolled_back": "bad"}


def drawn(nodes: Sequence[Node], *, live: int | None) -> Markup:
    """Versions from left to right, oldest first; a branch lies below whatever stands between it and its beginning."""
    lanes = _lanes(nodes)
    places = {node.number: (_x(place, len(nodes)), _y(lanes[node.number])) for place, node in enumerate(nodes)}
    links = [
        _link(places[node.parent], places[node.number], is_rollback=node.origin == "rolled_back")
        for node in nodes
        if node.parent in places
    ]
    dots = [_dot(node, places[node.number], is_live=node.number == live) for node in nodes]
    height = _y(max(lanes.values(), default=0)) + 30
    ends = [_text(places[node.number][0], height - 6, node, last=node is nodes[-1]) for node in _ends(nodes)]
    says = f"{len(nodes)} versions and what each was computed from; version {live} is live" if nodes else "No versions"
    return Markup('<svg class="chart" role="img" aria-label="{}" viewBox="0 0 {} {}">{}</svg>').format(
        escape(says), _WIDTH, height, Markup("").join([*links, *dots, *ends])
    )


def _lanes(nodes: Sequence[Node]) -> dict[int, int]:
    """A lane for each version: its parent's if it follows it, else the first that nothing between the two lies in."""
    lanes: dict[int, int] = {}
    for before, node in zip([None, *nodes], nodes, strict=False):
        if before is not None and node.parent == before.number:
            lanes[node.number] = lanes[before.number]
        else:
            taken = {lane for number, lane in lanes.items() if node.parent is not None and number > node.parent}
            lanes[node.number] = next(lane for lane in range(len(nodes) + 1) if lane not in taken)
    return lanes


def _x(place: int, count: int) -> float:
    return _EDGE + place * min((_WIDTH - 2 * _EDGE) / max(count - 1, 1), 60)


def _y(lane: int) -> int:
    return _EDGE + lane * _LANE


def _link(begin: tuple[float, int], end: tuple[float, int], *, is_rollback: bool) -> Markup:
    bend = (end[0] - min(12, (end[0] - begin[0]) / 2), end[1]) if begin[1] == end[1] else (begin[0] + 6, end[1])
    return Markup('<polyline class="line-{}" points="{:.1f},{} {:.1f},{} {:.1f},{}"/>').format(
        "grey" if is_rollback else "accent", *begin, *bend, *end
    )


def _dot(node: Node, place: tuple[float, int], *, is_live: bool) -> Markup:
    said = f"version {node.number}, {node.origin.replace('_', ' ')}, {node.people} people removed"
    dot = Markup('<circle class="dot-{}" cx="{:.1f}" cy="{}" r="{}"><title>{}</title></circle>').format(
        _TONES.get(node.origin, "grey"), *place, 4, f"{said}, live" if is_live else said
    )
    ring = Markup('<circle class="line-good" cx="{:.1f}" cy="{}" r="8"/>').format(*place) if is_live else Markup("")
    return dot + ring


def _ends(nodes: Sequence[Node]) -> Sequence[Node]:
    return [nodes[0], nodes[-1]] if len(nodes) > 1 else nodes


def _text(x: float, y: float, node: Node, *, last: bool) -> Markup:
    anchor = "end" if last and x > _WIDTH / 2 else "middle" if last else "start"
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">v{}</text>').format(
        max(x - 6 if anchor == "start" else x, 2), y, anchor, node.number
    )
