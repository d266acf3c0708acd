"""Questions to the suppression list as they go over the wire."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, FailFast, Field

from app.api.schemas.base import Incoming, ModelName
from app.domain.identifiers import MAX_USER_ID_CHARACTERS

MOST_IDS = 10_000
UserIds = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_USER_ID_CHARACTERS)]],
    FailFast(),  # ten thousand wrong ones are one mistake
    Field(min_length=1, max_length=MOST_IDS, description="spelt as the erasure requests spell them"),
]


class SuppressionCheckIn(Incoming):
    """Who of these people must not be trained on?"""

    model: ModelName
    user_ids: UserIds


class SuppressionCheckOut(BaseModel):
    """The answer, by places in the question: ids never come back."""

    asked: int
    suppressed: list[int] = Field(description="places in user_ids, from 0, of people who must not be trained on")


class SuppressionTokensIn(Incoming):
    """By which tokens does my list know these people?"""

    user_ids: UserIds


class SuppressionTokensOut(BaseModel):
    """One token per id, in the order of the question; this client's own, and the same every time."""

    tokens: list[str]
