"""G0: the same tensors, frozen ones bit-identical save recomputed batch statistics; something moved; disjoint sides."""

import torch

from ..errors import NonFinite, WeightsDoNotFit
from ..model import Model, Recipe, Weights, build, check_fit
from ..report import Json, UpdateReport
from .gate import Gate, Sides, failed, passed, samples_of

NAME = "G0 structure"


def structure(
    recipe: Recipe, before: Weights, after: Weights, *, sides: Sides, update: UpdateReport, exact: bool
) -> Gate:
    """Compare the two states tensor by tensor and the sides sample by sample.

    Raises:
        WeightsDoNotFit: the *deployed* weights are not the recipe's.
    """
    check_fit(build(recipe), before)
    if misfit := _misfit(recipe, after):
        return failed(NAME, misfit, {})
    numbers = {**_moves(recipe, before, after, update), "samples_on_two_sides": _shared(sides)}
    if numbers["frozen_tensors_touched"] and not exact:  # a retraining makes its own batch statistics
        touched = len(numbers["frozen_tensors_touched"])
        return failed(NAME, f"{touched} tensors that must not move have changed.", numbers)
    if numbers["samples_on_two_sides"]:
        return failed(NAME, f"{numbers['samples_on_two_sides']} samples stand on two sides of the test.", numbers)
    if not numbers["tensors_moved"]:
        return failed(NAME, "No weight has changed.", numbers)
    return passed(NAME, f"{numbers['tensors_moved']} tensors moved, all others are bit-identical.", numbers)


def _misfit(recipe: Recipe, after: Weights) -> str | None:
    try:
        check_fit(build(recipe), after)
    except NonFinite:
        return None  # G1's business
    except WeightsDoNotFit as misfit:
        return str(misfit)
    return None


def _moves(recipe: Recipe, before: Weights, after: Weights, update: UpdateReport) -> Json:
    """List what changed; batch statistics may where the update says that it estimated them anew."""
    model = Model(recipe, before)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    moved = [name for name in changed if model.may_move(name)]
    anew = {*update.recomputed_buffers} & {*model.recomputed_buffers}
    return {
        "tensors_moved": len(moved),
        "buffers_recomputed": sorted(anew & {*changed}),
        "frozen_tensors_touched": [name for name in changed if name not in moved and name not in anew],
    }


def _shared(sides: Sides) -> int:
    """Count the samples that stand on two sides: such a test would compare somebody with themselves."""
    forgotten, unseen = set(samples_of(sides.users)), set(samples_of(sides.strangers))
    kept = {*sides.retained_ids, *samples_of(sides.members)}
    return len(forgotten & kept) + len(forgotten & unseen) + len(kept & unseen)
