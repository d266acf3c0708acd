"""Models over HTTP: what is registered, which version is live, how it came about."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends

from app.api.auth import Caller, Scope, needs
from app.api.context import Transaction
from app.api.problems import answers
from app.api.schemas import models as schemas
from app.api.schemas.base import ModelName
from app.storage import versions
from app.storage.tables import Model, ModelVersion

router = APIRouter(prefix="/v1/models", tags=["models"])
Reader = Annotated[Caller, Depends(needs(Scope.MODELS_READ))]


@router.get("", responses=answers(401, 403, 503))
def index(tx: Transaction, _: Reader) -> schemas.ModelsOut:
    """List the registered models with their live versions; serving asks here what to load."""
    return schemas.ModelsOut(items=[_model(tx, model) for model in versions.models(tx)])


@router.get("/{name}", responses=answers(401, 403, 404, 422, 503))
def show(name: ModelName, tx: Transaction, _: Reader) -> schemas.ModelOut:
    """Read one model."""
    return _model(tx, versions.model(tx, name))


@router.get("/{name}/versions", responses=answers(401, 403, 404, 422, 503))
def lineage(name: ModelName, tx: Transaction, _: Reader) -> schemas.VersionsOut:
    """List a model's versions, newest first, each with the one it was computed from."""
    found = versions.versions(tx, versions.model(tx, name).id)
    numbers = {version.id: version.number for version in found}
    return schemas.VersionsOut(items=[_version(v, numbers) for v in found])


def _model(tx: Transaction, model: Model) -> schemas.ModelOut:
    numbers = {version.id: version for version in versions.versions(tx, model.id)}
    current = numbers.get(model.current_version_id) if model.current_version_id else None
    return schemas.ModelOut(
        name=model.name,
        recipe=model.recipe,
        current=_version(current, {i: v.number for i, v in numbers.items()}) if current else None,
    )


def _version(version: ModelVersion, numbers: dict[UUID, int]) -> schemas.VersionOut:
    return schemas.VersionOut(
        number=version.number,
        weights_sha256=version.weights,
        origin=version.origin,
        parent=numbers.get(version.parent_id) if version.parent_id else None,
        published_at=version.published_at,
        retired_at=version.retired_at,
    )
