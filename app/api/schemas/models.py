"""Models and versions as they go over the wire."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel


class VersionOut(BaseModel):
    """One version of a model."""

    number: int
    weights_sha256: str
    origin: str
    parent: int | None
    published_at: datetime
    retired_at: datetime | None


class ModelOut(BaseModel):
    """A registered model and its live version."""

    name: str
    recipe: str
    current: VersionOut | None


class ModelsOut(BaseModel):
    """All registered models."""

    items: list[ModelOut]


class VersionsOut(BaseModel):
    """A model's versions, newest first."""

    items: list[VersionOut]
