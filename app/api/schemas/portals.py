"""What portals that call by webhook are answered with."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class KetchMetadata(BaseModel):
    """Whose request it is."""

    uid: str
    tenant: str


class KetchStanding(BaseModel):
    """Where a request stands, in Ketch's words."""

    status: Literal["pending", "in_progress", "completed", "cancelled", "denied"]
    reason: str
    expectedCompletionTimestamp: int  # noqa: N815 - Ketch's name
    requestID: str  # noqa: N815 - Ketch's name


class KetchOut(BaseModel):
    """The answer to a DeleteRequest."""

    apiVersion: Literal["dsr/v1"]  # noqa: N815 - Ketch's name
    kind: Literal["DeleteResponse"]
    metadata: KetchMetadata
    response: KetchStanding


class KetchError(BaseModel):
    """What Ketch is told of an error."""

    code: int
    status: str
    message: str


class KetchErrorOut(BaseModel):
    """An error in Ketch's shape."""

    apiVersion: Literal["dsr/v1"]  # noqa: N815 - Ketch's name
    kind: Literal["Error"]
    metadata: dict[str, str]
    error: KetchError


class FidesOut(BaseModel):
    """Whether Fides has to wait until it is resumed."""

    halt: bool
