"""The rung that is always right: train again, through the owner's own code, without the forgotten samples."""

from collections.abc import Sequence

import torch
from torch import nn

from .bounds import plain_ids
from .errors import NothingToForget, NotTrainable, RecipeMisbehaves
from .model import Progress, Recipe, Trains, build, check_fit, tensors_of
from .report import Update, UpdateReport


def retrain(recipe: Recipe, retain_ids: Sequence[int], *, seed: int, progress: Progress | None = None) -> Update:
    """Train from scratch on the retained samples and check that the result is a finite state of the recipe's module.

    Args:
        recipe: must also be a `Trains`.
        retain_ids: the samples that stay.
        seed: passed to the owner's training.
        progress: called with a share in [0, 1].

    Raises:
        NotTrainable: the recipe has no `train`.
        NothingToForget: no samples to train on.
        RecipeMisbehaves: `train` returned no module.
        NotCovered: the module keeps state that is no tensor.
        WeightsDoNotFit: the trained module is not what `build` returns.
        NonFinite: training diverged.
    """
    if not isinstance(recipe, Trains):
        raise NotTrainable("the recipe has no train(sample_ids, seed, progress)")
    sample_ids = plain_ids(retain_ids)
    if not sample_ids:
        raise NothingToForget("no samples are left to train on")
    with torch.random.fork_rng():
        trained = recipe.train(list(sample_ids), seed=seed, progress=progress or (lambda _: None))
    if not isinstance(trained, nn.Module):  # an owner who forgot the last line
        raise RecipeMisbehaves(f"train() returned {type(trained).__name__}: it must return the trained module")
    weights = {name: tensor.detach().clone() for name, tensor in tensors_of(trained).items()}
    module = build(recipe)
    check_fit(module, weights)
    return Update(weights=weights, report=_report(len(sample_ids), sum(p.numel() for p in module.parameters()), seed))


def _report(retained: int, parameters: int, seed: int) -> UpdateReport:
    return UpdateReport(
        method="retrain",
        complete=True,
        reason=None,
        forgotten_samples=0,
        retained_samples=retained,
        moving_parameters=parameters,
        seed=seed,
    )
