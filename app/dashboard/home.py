"""The home page: what is open, what is due, whether anybody works on it, and what needs a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from app.api.auth import PAGES as BASE
from app.dashboard.charts import Part
from app.dashboard.visits import Reading
from app.dashboard.webhooks import host_of
from app.domain import deadlines
from app.domain.lifecycle import RequestStatus
from app.storage import facts, lineage, overview
from app.storage.facts import DAYS, OpenRequests

router = APIRouter(prefix=BASE)
_AT_RISK_DAYS: Final = 7
_TONES: Final = {"needs_attention": "bad", "pending": "warn", "awaiting_identity": "warn", "on_hold": "grey"}


@router.get("")
def show(visit: Reading, days: Annotated[Literal["30", "60", "90"], Query()] = "30") -> HTMLResponse:
    """How the house stands."""
    now, tx = visit.now, visit.tx
    read = facts.read(tx, now=now)
    until, zone = deadlines.day(now, visit.settings.zone), visit.settings.time_zone
    closed = overview.closed_by_day(tx, until=until, days=int(days), zone=zone)
    return visit.page(
        "home.html",
        facts=read,
        open=sum(one.count for one in read.requests),
        states=_states(read.requests),
        health=_health(read.requests),
        days=int(days),
        ended=sum(count for _, count in closed),
        columns=[(day.isoformat(), count) for day, count in closed],
        oldest=overview.oldest_open(tx, limit=5),
        failing=overview.failing_endpoints(tx),
        host_of=host_of,
        near=lineage.near_limit(tx),
    )


def _states(found: Sequence[OpenRequests]) -> list[Part]:
    """Open requests by status, in the order in which a request goes through them."""
    order = list(RequestStatus)
    return [
        Part(one.status, one.count, _TONES.get(one.status, "info"))
        for one in sorted(found, key=lambda one: order.index(RequestStatus(one.status)))
    ]


def _health(found: Sequence[OpenRequests]) -> list[Part]:
    """How many are in time, due within a week, and overdue."""
    overdue = sum(one.overdue for one in found)
    soon = sum(one.within_days[DAYS.index(_AT_RISK_DAYS)] for one in found) - overdue
    whole = sum(one.count for one in found)
    return [
        Part("on time", whole - soon - overdue, "good"),
        Part(f"due within {_AT_RISK_DAYS} days", soon, "warn"),
        Part("overdue", overdue, "bad"),
    ]
