"""What all shapes share: what comes in is strict, names of models have a form."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from app.domain import identifiers

ModelName = Annotated[str, Field(pattern=identifiers.MODEL_NAME)]


class Incoming(BaseModel):
    """A body that we are sent: unknown fields and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class FieldProblem(BaseModel):
    """One thing that is wrong with one field."""

    field: str
    problem: str
