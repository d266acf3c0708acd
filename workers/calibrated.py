"""What a version was calibrated with, as the torch side reads and writes it: references and EK-FAC factors.

A calibration is a JSON object on the version: digests of the two files, and the weights and the manifest that each is
bound to. References may be gone (a rollback went to a version whose own were deleted) or lack somebody (who was
forgotten and came back with the rollback): then there is no calibration, and whoever asks goes the way without.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from app.errors import Invalid
from workers.registry import Store
from workers.shelf import REFERENCES
from workers.unlearning import Recipe, Weights
from workers.unlearning.calibration import Law
from workers.unlearning.ekfac import Ekfac, fit
from workers.unlearning.errors import DamagedFile, FactorsDoNotFit, ForeignReferences
from workers.unlearning.model import Model, Progress
from workers.unlearning.objective import Objective, check_coverage
from workers.unlearning.references import References

Json = dict[str, Any]  # Any: JSON


def law_of(recipe: Recipe, sample_ids: Sequence[int]) -> Law:
    """Return what the recipe's outputs mean: its own `law`, or "plain" where targets are floating."""
    declared = getattr(recipe, "law", None)
    if declared is not None:
        return cast("Law", declared)
    _, targets = recipe.fetch(sample_ids[:1])
    return "plain" if targets.is_floating_point() else "softmax"


def references(url: str, calibration: Json | None, *, model: str, covering: Collection[int]) -> References | None:
    """Read a version's references; None when there are none, or when they know nothing of a sample asked for.

    Raises:
        Invalid: The file was altered or cut, or belongs to another version; says how the model gets a new one.
    """
    shelf = Store(url, REFERENCES)
    if calibration is None or not shelf.exists(calibration["references"]):
        return None
    with _sound("references", model), shelf.lent(calibration["references"]) as path:
        bound = {"weights_digest": calibration["weights"], "manifest_digest": calibration["manifest"]}
        found = References.load(path, **bound)
    known = torch.isin(torch.tensor(sorted(covering), dtype=torch.int64), found.sample_ids)
    return found if bool(known.all()) else None


def keep_references(url: str, found: References, *, weights: str, manifest: str) -> str:
    """Store references, bound to a digest of weights and one of a manifest, and tell their own."""
    return _keep(found, Store(url, REFERENCES), weights=weights, manifest=manifest)


def factors(url: str, calibration: Json, recipe: Recipe, weights: Weights, *, model: str) -> Ekfac:
    """Read a version's curvature factors; ``weights`` only tell the shapes.

    Raises:
        Invalid: As `references`.
    """
    bound = {"weights_digest": calibration["fitted_to"], "manifest_digest": calibration["manifest"]}
    bare = Model(recipe, weights)
    with _sound("factors", model), Store(url).lent(calibration["factors"]) as path:
        return Ekfac.load(path, bare, **bound)


def keep_factors(url: str, fitted: Ekfac, *, weights: str, manifest: str) -> str:
    """Store factors, bound to a digest of weights and one of a manifest, and tell their own."""
    return _keep(fitted, Store(url), weights=weights, manifest=manifest)


def fit_factors(
    recipe: Recipe, weights: Weights, sample_ids: Sequence[int], *, resume: Path | None = None, progress: Progress
) -> Ekfac:
    """Fit curvature factors to these weights and samples; refuses what the engine does not cover before it begins."""
    model = Model(recipe, weights)
    objective = Objective(model, sample_ids)
    check_coverage(objective)
    return fit(objective, model.theta_P, draws=2, progress=progress, resume=resume)  # as benchmarked


@contextmanager
def _sound(what: str, model: str) -> Iterator[None]:
    """Tell whoever reads of a damaged file what to do about it."""
    try:
        yield
    except (Invalid, DamagedFile, ForeignReferences, FactorsDoNotFit) as error:
        remedy = f"run `expunge models calibrate {model}` again, then retry"
        raise Invalid(what, f"the {what} of {model} can't be used, {remedy}: {error}") from error


def _keep(fitted: References | Ekfac, store: Store, *, weights: str, manifest: str) -> str:
    with tempfile.TemporaryDirectory(prefix="expunge-") as directory:
        path = Path(directory) / "fitted.safetensors"
        fitted.save(path, weights_digest=weights, manifest_digest=manifest)
        return store.adopt(path)
