"""What all shapes share: what comes in is strict, names of models have a form."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from app.domain import identifiers

_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(2200, 1, 1, tzinfo=UTC)
Moment = Annotated[AwareDatetime, Field(strict=False, ge=_EARLIEST, le=_LATEST)]
"""A time that we are sent; near the ends of the calendar, counting months and zones would leave it."""
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
"""Words for people, without control characters, which PostgreSQL can't keep and pages and sheets take for commands."""
Lines = Annotated[str, Field(pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]*$")]
"""The same with tabs and line ends."""
ModelName = Annotated[str, Field(pattern=identifiers.MODEL_NAME)]


class Incoming(BaseModel):
    """A body that we are sent: unknown fields and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class FieldProblem(BaseModel):
    """One thing that is wrong with one field."""

    field: str
    problem: str
