"""One request's history as one list: events, decisions and who made them, steps of jobs, entries of the public log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID
from zoneinfo import ZoneInfo

from app.dashboard import request_words
from app.dashboard.rendering import words
from app.domain import deadlines
from app.storage.tables import AuditEntry, Decision, Event

Source = Literal["request", "decision", "job", "log"]
_ORDER: tuple[Source, ...] = ("decision", "request", "job", "log")
"""What came in the same moment: the decision, what it did, what was said of it."""


@dataclass(frozen=True)
class Line:
    """One thing that happened."""

    at: datetime
    source: Source
    said: str
    model: str | None = None
    who: str | None = None
    notes: tuple[tuple[str, str], ...] = ()
    """What there is to know besides, by its name."""
    place: int | None = None
    """Where the log has it."""
    is_public: bool = False
    """Whether the log shows that place to everybody."""


@dataclass(frozen=True)
class Told:
    """Everything that a history is made of."""

    events: Sequence[tuple[Event, str | None]]
    decisions: Sequence[Decision]
    entries: Sequence[AuditEntry]
    names: Mapping[UUID, str]
    shown: int
    """How many entries the log shows."""
    zone: ZoneInfo


def merge(told: Told) -> list[Line]:
    """All lines in order of time, none told twice: an event of a decision gives way to the decision itself."""
    lines = [*_decisions(told), *_events(told), *_entries(told)]
    return sorted(lines, key=lambda line: (line.at, _ORDER.index(line.source)))


def deciders(events: Sequence[tuple[Event, str | None]], decisions: Sequence[Decision]) -> set[UUID]:
    """Whose names a history needs."""
    said = {UUID(event.detail["said_by"]) for event, _ in events if "said_by" in event.detail}
    return said | {decision.client_id for decision in decisions if decision.client_id}


def _decisions(told: Told) -> Iterator[Line]:
    for one in told.decisions:
        yield Line(
            one.decided_at,
            "decision",
            request_words.of_event(f"decision.{one.kind}"),
            who=_decider(one, told),
            notes=tuple(_notes(one, told.zone)),
        )


def _decider(one: Decision, told: Told) -> str:
    if one.client_id is None:
        return "the service: a hold on the person's data" if one.passed_from else "the service, by policy"
    return told.names.get(one.client_id, "a client that is gone")


def _notes(one: Decision, zone: ZoneInfo) -> Iterator[tuple[str, str]]:
    if ground := request_words.of_ground(one.kind, one.ground):
        yield "Ground", ground
    if one.models:
        yield "Models", ", ".join(one.models)
    if one.data_class:
        yield "Data that stay", one.data_class
    if one.until:
        yield "Until", str(deadlines.day(one.until, zone))
    if one.explanation:
        yield "In their words", one.explanation
    if one.notified_at:
        yield "The person was told", str(deadlines.day(one.notified_at, zone))


def _events(told: Told) -> Iterator[Line]:
    rows = Counter(f"decision.{one.kind}" for one in told.decisions)
    for event, model in told.events:
        if rows[event.type] > 0:
            rows[event.type] -= 1
            continue
        by = event.detail.get("said_by")
        yield Line(
            event.at,
            "job" if event.type.startswith("job.") else "request",
            request_words.of_event(event.type),
            model=model,
            who=told.names.get(UUID(by)) if by else None,
            notes=tuple(_details(event, told.zone)),
        )


def _details(event: Event, zone: ZoneInfo) -> Iterator[tuple[str, str]]:
    for name, value in event.detail.items():
        if name == "said_by":
            continue
        if name == "notice":
            yield "Notice", request_words.NOTICES.get(str(value), words(str(value)))
        elif name == "reason":
            yield "Why", request_words.of_reason(str(value))
        else:
            yield words(name).capitalize(), _shown(str(value), zone)


def _shown(value: str, zone: ZoneInfo) -> str:
    """A moment as its day, anything else as it stands."""
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return value
    return str(deadlines.day(moment, zone)) if moment.tzinfo else value


def _entries(told: Told) -> Iterator[Line]:
    for entry in told.entries:
        place = entry.leaf_index
        yield Line(
            entry.at,
            "log",
            request_words.of_entry(entry.type),
            place=place,
            is_public=place is not None and place < told.shown,
        )
