"""What every portal's dialect is made of: how a demand is read, what the portal is told of it, and of which changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from app.domain.lifecycle import RequestStatus

Document = dict[str, object]
"""A JSON object."""
Knobs = Mapping[str, str]
"""What the operator set for this portal."""


class Hears(StrEnum):
    """Of which changes a callback is told."""

    EVERY_CHANGE = "every_change"
    """Also when a rollback opens the request again."""
    UNTIL_THE_END = "until_the_end"
    """Every change up to the first end; the portal takes nothing after it."""
    THE_END = "the_end"
    """The first end alone."""


@dataclass(frozen=True, kw_only=True)
class Callback:
    """Where a portal wants to be told, with what it wants to see there; URL, headers and remarks are its secrets."""

    url: str = field(repr=False)
    hears: Hears
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    remarks: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What the dialect needs to word its messages, such as the portal's tenant."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a portal asks for, in our words."""

    external_id: str
    """The portal's own ticket number."""
    user_id: str = field(repr=False)
    reference: str | None
    models: Sequence[str] | None = None
    group_id: str | None = None
    callbacks: Sequence[Callback] = ()


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One call of a portal: the JSON object, the headers in lower case, the operator's settings."""

    document: Document = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    knobs: Knobs = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class ModelStory:
    """How a request stands with one model."""

    model: str
    state: str
    result: str | None


@dataclass(frozen=True, kw_only=True)
class Retained:
    """What stays, and on which ground."""

    ground: str | None
    models: Sequence[str] | None
    data_class: str | None


@dataclass(frozen=True, kw_only=True)
class Story:
    """Where a request stands, without anything about the person: what every dialect words in its own way."""

    request_id: str
    controller_id: str
    """The client's id with us."""
    external_id: str
    group_id: str | None
    state: RequestStatus
    reason: str | None
    received_at: datetime
    deadline: datetime
    sequence: int
    """Counts the changes of one request: later messages may overtake earlier ones on the way."""
    models: Sequence[ModelStory]
    ground: str | None
    """On which ground the whole request was refused."""
    retained: Sequence[Retained]


@dataclass(frozen=True, kw_only=True)
class Message:
    """What is sent to a callback."""

    content: bytes
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    signed_as: str | None = None
    """The name in the signature's headers, if this portal wants one."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """An error on its way out: status, a sentence, and which fields are wrong."""

    status: int
    message: str
    fields: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, kw_only=True)
class Portal:
    """One dialect: everything we know of a kind of portal, as functions of what came and where the request stands."""

    name: str
    version: str
    prefix: str
    """Where its routes begin."""
    read: Callable[[Sent], Asked]
    answer: Callable[[Sent, Story], Document]
    """What the call is answered with at once."""
    tell: Callable[[Story, Callback, Knobs], Message]
    knobs: Mapping[str, str]
    """Knob -> name of the operator's setting (app/settings.py)."""
    refuse: Callable[[Refusal], tuple[int, Document]] | None = None
    """How it wants errors; none: as problem documents."""


def instant(moment: datetime) -> str:
    """Write a time as every dialect reads it: UTC, whole seconds, ``Z``.

    >>> instant(datetime(2027, 2, 3, 9, 12, 0, 5, tzinfo=UTC))
    '2027-02-03T09:12:00Z'
    """
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
