"""Batch statistics are recomputed on retained samples, not unlearned: sums over data, replaced by new sums.

Every recomputable BatchNorm starts from scratch and takes the plain average over the batches of a fixed-size random
subsample of R, with the weights after the step (Izmailov et al. 2018, whose averaged weights need the same pass). All
other modules stay in eval mode. The batches have equal sizes within one sample, so that none of them weighs more.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import NotCovered
from .model import STATISTICS, Model, fetch, split_arguments
from .objective import Cost, Objective


def with_statistics(
    objective: Objective, theta_P: Tensor, *, samples: int = 4096, batch_size: int = 1024
) -> dict[str, Tensor]:
    """Return the state dict with these moving parameters, its batch statistics estimated anew where it has some."""
    state = objective.model.state(theta_P)
    sizes = {"samples": samples, "batch_size": batch_size}
    return recompute(objective.model, state, objective.sample_ids, **sizes, seed=0, cost=objective.cost)


def recompute(
    model: Model,
    state: Mapping[str, Tensor],
    retain_ids: Sequence[int],
    *,
    samples: int,
    batch_size: int,
    seed: int,
    cost: Cost,
) -> dict[str, Tensor]:
    """Return the state dict with `model.recomputed_buffers` estimated anew; every other tensor is the given one.

    The cost does not grow with |R|. Every rank of a sharded update does this work itself, on the same samples.

    Args:
        model: the recipe with its weights; only read.
        state: a full state dict of the model's module, with the weights after the step.
        retain_ids: R.
        samples: size of the subsample, drawn without replacement; all of R where R is smaller.
        batch_size: most samples per batch.
        seed: of the draw.
        cost: charged 1/3 per sample of the subsample.

    Raises:
        NotCovered: fewer than two samples, which have no variance.
    """
    if not model.recomputed_buffers:
        return dict(state)
    batches = _deal(retain_ids, samples, batch_size, seed)
    twin = copy.deepcopy(model.module)
    twin.load_state_dict(dict(state))
    _start_over(twin.eval(), model.recomputed_buffers)
    with torch.no_grad():
        for ids in batches:
            positional, named = split_arguments(fetch(model.recipe, ids)[0])
            twin(*positional, **named)
            cost.add(len(ids), 1 / 3)
    found = twin.state_dict()
    return {**state, **{name: found[name].clone() for name in model.recomputed_buffers}}


def _deal(retain_ids: Sequence[int], samples: int, batch_size: int, seed: int) -> list[list[int]]:
    """Draw the subsample and cut it into batches of two samples or more."""
    size = min(samples, len(retain_ids))
    if size < 2:
        raise NotCovered(f"batch statistics were asked of {size} retained samples: a variance needs 2")
    drawn = torch.randperm(len(retain_ids), generator=torch.Generator().manual_seed(seed))[:size]
    count = min(-(-size // batch_size), size // 2)
    return [[retain_ids[place] for place in part.tolist()] for part in drawn.tensor_split(count)]


def _start_over(module: nn.Module, buffers: Sequence[str]) -> None:
    """Reset these BatchNorms and let them, and nothing else, average what passes through."""
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm) and f"{name}.{STATISTICS[0]}".lstrip(".") in buffers:
            part.reset_running_stats()
            part.momentum = None  # torch's word for a cumulative average
            part.train()
